"""Search spaces: decisions, groups, pins, and the three forms of a choice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site

PATHS = ("stem", "Block_0/Conv_0", "Block_0/Conv_1", "Block_1/Conv_0", "head")
SITES = tuple(
    Site(
        path=path,
        op="dense",
        weight_shape=(4, 2),
        macs=8,
        weight_count=8,
        input_size=4,
        output_size=2,
        calls=1,
    )
    for path in PATHS
)
OPTIONS = ("int2", "int4", "e4m3")
PINS = {"stem|head": "int8"}

SPACES = {
    "plain": SearchSpace(SITES, OPTIONS),
    "pinned": SearchSpace(SITES, OPTIONS, pins=PINS),
    "weights only": SearchSpace(SITES, OPTIONS, weights_only=True, pins=PINS),
    "fixed inputs": SearchSpace(SITES, OPTIONS, weights_only=True, activations="int8"),
    "separate": SearchSpace(SITES, OPTIONS, separate=True, pins=PINS),
    "grouped": SearchSpace(SITES, OPTIONS, groups=["Block_0/.*"]),
    "separate groups": SearchSpace(
        SITES, OPTIONS, groups={"Block_.*": "body"}, separate=True
    ),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@given(data=st.data())
def test_options_and_policies_are_inverse(space, data):
    options = data.draw(
        st.lists(
            st.integers(0, 2),
            min_size=space.num_decisions,
            max_size=space.num_decisions,
        )
    )
    assert space.options(space.policy(options)).tolist() == options


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_gathered_formats_are_those_of_the_policy(space):
    options = np.arange(space.num_decisions, dtype=np.int32) % 3
    gathered = jax.jit(space.formats)(options)
    named = space.policy(options).formats(space.sites)
    assert jax.tree.all(jax.tree.map(np.array_equal, gathered, named))


def test_all_options_share_one_compilation_and_a_batch_axis_is_vmapped():
    space, traces = SPACES["pinned"], []

    @jax.jit
    def bits(options):
        traces.append(options)
        return space.formats(options).weight.storage_bits

    every = np.array(list(itertools.product(range(3), repeat=3)), np.int32)
    one_by_one = np.stack([bits(options) for options in every])
    assert len(traces) == 1
    assert one_by_one[5].tolist() == [8, 2, 4, 8, 8]  # options 0, 1, 2
    assert (jax.vmap(bits)(every) == one_by_one).all()


def test_names_of_decisions_and_formats():
    assert SPACES["pinned"].decision_names == PATHS[1:4]
    assert SPACES["grouped"].decision_names == (
        "stem",
        "Block_0/.*",
        "Block_1/Conv_0",
        "head",
    )
    assert SPACES["separate groups"].decision_names == (
        "stem:weights",
        "stem:activations",
        "body:weights",
        "body:activations",
        "head:weights",
        "head:activations",
    )
    assert SPACES["pinned"].format_names == (*OPTIONS, "int8")
    assert (SPACES["pinned"].num_decisions, SPACES["pinned"].num_options) == (3, 3)
    assert "3 decisions of 3 options over 5 sites" in repr(SPACES["pinned"])


def test_static_arrays_mark_what_no_decision_sets():
    space = SPACES["weights only"]
    assert space.weight_decision.tolist() == [-1, 0, 1, 2, -1]
    assert space.activation_decision.tolist() == [-1] * 5
    assert space.weight_fixed.tolist() == [3, -1, -1, -1, 3]
    assert [space.format_names[i] for i in space.activation_fixed] == ["fp32"] * 5
    assert SPACES["separate groups"].activation_decision.tolist() == [1, 3, 3, 3, 5]


def test_weights_only_pin_leaves_the_input_unless_a_pair_says_otherwise():
    space = SearchSpace(
        SITES,
        OPTIONS,
        weights_only=True,
        pins={"stem": "int8", "head": ("int8", "bf16")},
    )
    policy = space.policy([0, 0, 0])
    assert policy["stem"] == ("int8", "fp32") and policy["head"] == ("int8", "bf16")
    assert policy["Block_0/Conv_0"] == ("int2", "fp32")


def test_pinned_site_leaves_its_group():
    space = SearchSpace(SITES, OPTIONS, groups=["Block_.*"], pins={PATHS[2]: "int8"})
    assert space.decision_names == ("stem", "Block_.*", "head")
    assert space.policy([0, 1, 0])[PATHS[2]] == ("int8", "int8")


def test_unsigned_grid_counts_as_the_signed_option():
    policy = Policy.uniform(SITES, "int4", "uint4")
    assert SPACES["plain"].options(policy).tolist() == [1] * 5
    both = SearchSpace(SITES, ["int4", "uint4"], separate=True)
    assert both.options(policy).tolist() == [0, 1] * 5


def test_options_outside_the_range_are_the_nearest_in_a_trace_and_refused_outside():
    space = SPACES["pinned"]
    bits = jax.jit(space.formats)(jnp.array([-5, 3, 99])).weight.storage_bits
    assert bits.tolist() == [8, 2, 8, 8, 8]
    with pytest.raises(
        ValueError, match="option 3 of decision 'Block_0/Conv_1' is out"
    ):
        space.policy([0, 3, 0])


def test_options_of_another_shape_are_refused():
    space = SPACES["pinned"]
    for options in ([0, 0], [[0, 0, 0]], [0, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"must have shape \[3\]"):
            space.policy(options)
    with pytest.raises(ValueError, match=r"must have shape \[3\], .* got \[2\]"):
        space.formats(np.zeros(2, np.int32))


def test_fractional_options_are_refused():
    with pytest.raises(ValueError, match="must be integers, got float64"):
        SPACES["pinned"].policy(np.zeros(3))


@pytest.mark.parametrize(
    ("space", "policy", "message"),
    [
        (
            "plain",
            Policy.uniform(SITES, "int8"),
            "weights of 'stem': int8 is not an op",
        ),
        (
            "pinned",
            Policy.uniform(SITES, "int4"),
            "int4, but this space fixes it at int8",
        ),
        (
            "plain",
            Policy.uniform(SITES, "int4", "int2"),
            r"activations of 'stem' \(int2\) and weights of 'stem' \(int4\) differ",
        ),
        (
            "grouped",
            Policy.uniform(SITES, "int4", pins={PATHS[2]: "int2"}),
            "decision 'Block_0/.*' sets them alike",
        ),
        ("plain", Policy.uniform(SITES[:4], "int4"), "no entry for 'head'"),
    ],
)
def test_policy_outside_the_space_is_refused_with_the_reason(space, policy, message):
    with pytest.raises(ValueError, match=message):
        SPACES[space].options(policy)


@pytest.mark.parametrize(
    ("formats", "keywords", "message"),
    [
        (["int4"], {}, "at least two"),
        (["int4", "int8", "int4"], {}, "int4 more than once"),
        (["int4", "int99"], {}, "unknown format 'int99'"),
        (OPTIONS, {"pins": {".*": "int8"}}, "no decision is left: 5 sites, 5 of them"),
        (OPTIONS, {"pins": {"tail": "int8"}}, "pin 'tail' matches no site"),
        (OPTIONS, {"groups": ["Conv_.*"]}, "group 'Conv_.*' matches no site"),
        (
            OPTIONS,
            {"groups": ["Block_0/.*", ".*/Conv_0"]},
            "'Block_0/.*' and '.*/Conv_0' both match site 'Block_0/Conv_0'",
        ),
        (OPTIONS, {"groups": {"Block_.*": "head"}}, "name of a site outside it"),
        (OPTIONS, {"weights_only": True, "separate": True}, "exclude each other"),
        (OPTIONS, {"activations": "int8"}, "needs weights_only=True"),
        (OPTIONS, {"weights_only": True, "activations": "x"}, "unknown format 'x'"),
    ],
)
def test_wrong_space_is_refused_with_the_cure(formats, keywords, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(SITES, formats, **keywords)


def test_space_of_no_sites_is_refused():
    with pytest.raises(ValueError, match="no decision is left: 0 sites"):
        SearchSpace([], OPTIONS)
