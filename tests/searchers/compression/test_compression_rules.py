"""Names of codebooks, rules by path, and the way from leaves to vectors and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.quantizers.codebook import decode_params
from fliqs_jax.searchers.compression.rules import (
    CompressionRule,
    find_scopes,
    kmeans_step,
    parse_codebook,
    scope_weights,
    with_codebooks,
    with_weights,
)

PARAMS = {
    "Conv_0": {"kernel": jnp.arange(8.0).reshape(2, 2, 2), "bias": jnp.ones(2)},
    "BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
    "Dense_0": {"kernel": jnp.array([[-1.0, 2.0]], jnp.bfloat16), "bias": jnp.ones(2)},
    "Dense_1": {"kernel": jnp.array([[4.0], [5.0]]), "bias": jnp.ones(1)},
}


def rule(pattern, k=2, **changed):
    return CompressionRule(pattern=pattern, c_step=kmeans_step(k), **changed)


@pytest.mark.parametrize(
    ("name", "size", "levels"),
    [
        ("binary", None, [-1, 1]),
        ("ternary", 3, [-1, 0, 1]),
        ("powers_of_two", 5, [-1, -0.5, 0, 0.5, 1]),
        ("int2", None, [-2, -1, 0, 1]),
        ("e2m1", None, [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]),
    ],
)
def test_fixed_codebooks_have_the_values_of_their_name(name, size, levels):
    step = parse_codebook(name, size)
    assert step.num_values == len(levels)
    codebook = step.project(jnp.array([0.3, -7.0]), None)
    np.testing.assert_array_equal(np.unique(codebook.values), levels)


def test_scaled_format_is_its_values_times_one_number():
    codebook = parse_codebook("scaled:int2").project(jnp.array([0.5, -1.0, 0.0]), None)
    np.testing.assert_allclose(codebook.values, [-1.0, -0.5, 0.0, 0.5], rtol=1e-6)
    assert codebook.num_fitted == 1


def test_kmeans_starts_from_the_values_before():
    w = jnp.array([0.0, 1.0, 10.0, 11.0])
    step = kmeans_step(2)
    np.testing.assert_allclose(step.project(w, None).values, [0.5, 10.5])
    # All weights are nearer to 20 than to 100: the start decides.
    np.testing.assert_allclose(step.project(w, [20.0, 100.0]).values, [5.5, 100.0])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("kmeans", None, "needs a size: give codebook_size=K"),
        ("kmeans", 0, "k must be at least 1"),
        ("powers_of_two", 4, "must be 2 C \\+ 3 .* got 4"),
        ("binary", 3, "has 2 values, so codebook_size=3 cannot be"),
        ("bf16", None, "more than 8 bits"),
        ("quinary", None, "'quinary': use kmeans, binary"),
        ("twice:int4", None, "unknown prefix 'twice'"),
    ],
)
def test_a_wrong_name_or_size_is_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        parse_codebook(name, size)


def test_first_matching_rule_wins_and_vectors_stay_out():
    scopes = find_scopes(PARAMS, [rule("Dense_1/.*", 4), rule(".*")])
    assert {scope.name: scope.c_step.num_values for scope in scopes} == {
        "Conv_0/kernel": 2,
        "Dense_0/kernel": 2,
        "Dense_1/kernel": 4,
    }


def test_a_shared_rule_is_one_scope_of_all_its_weights():
    scopes = find_scopes(PARAMS, [rule("Dense.*", shared=True), rule("Conv.*")])
    assert [scope.paths for scope in scopes] == [
        ("Conv_0/kernel",),
        ("Dense_0/kernel", "Dense_1/kernel"),
    ]
    assert scopes[1].name == "Dense_0/kernel and 1 more"
    _, shared = scope_weights(PARAMS, scopes)
    np.testing.assert_array_equal(shared, [-1, 2, 4, 5])


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["Dense_7/kernel"], "'Dense_7/kernel' takes no weight.*'Dense_0/kernel'"),
        ([".*", "Dense_0/kernel"], "that no rule before it matches"),
        (["Dense_0/bias"], "two axes or more"),
        (["Dense_0/("], "is no regular expression"),
    ],
)
def test_a_rule_that_takes_nothing_is_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        find_scopes(PARAMS, [rule(pattern) for pattern in patterns])


def test_vectors_return_to_their_leaves_in_shape_and_type():
    scopes = find_scopes(PARAMS, [rule("Dense.*", shared=True), rule("Conv.*")])
    vectors = scope_weights(PARAMS, scopes)
    back = with_weights(PARAMS, scopes, [2.0 * vector for vector in vectors])
    doubled = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, back, doubled)
    same_type = jax.tree.map(lambda x, y: x.dtype == y.dtype, back, PARAMS)
    assert all(jax.tree.leaves(same_type))


def test_leaves_of_a_shared_codebook_decode_to_their_own_weights():
    scopes = find_scopes(PARAMS, [rule("Dense.*", 4, shared=True)])
    codebook = scopes[0].c_step.project(scope_weights(PARAMS, scopes)[0], None)
    packed = with_codebooks(PARAMS, scopes, [codebook])
    np.testing.assert_array_equal(
        packed["Dense_0"]["kernel"].values, packed["Dense_1"]["kernel"].values
    )
    plain = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, decode_params(packed), plain)


def test_biases_of_several_axes_are_left_alone():
    kernel, vector = jnp.ones((4, 2, 3)), jnp.ones((2, 3))
    params = {"query": {"kernel": kernel, "bias": vector}, "norm": {"scale": vector}}
    rule = CompressionRule(pattern=".*", c_step=kmeans_step(2))
    (scope,) = find_scopes(params, [rule])
    assert scope.paths == ("query/kernel",)
