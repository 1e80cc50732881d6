"""The one-shot step: phases, one compilation, equal on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from stepping import run_steps

from fliqs_jax.controller import default, published
from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.data import load_dataset
from fliqs_jax.models import create_model
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.fliqs import Fliqs
from fliqs_jax.searchers.in_training.controllers import recipe
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import Classifier, image_sites

FORMATS = ("int2", "int4", "int8")
PHASES = Phases(warmup_end=4, search_end=12, steps=16)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def make_search(digits, chosen=None, policy=None, judge_every=2, **settings):
    model = create_model("lenet300")
    sites = image_sites(model, digits.train.image_shape)
    space = SearchSpace(sites, FORMATS)
    costs = cost_table(space, site_bops)
    target = 0.3 * costs.reference("int8")
    phases = PHASES if policy is None else Phases(warmup_end=0, search_end=0, steps=16)
    chosen = chosen or recipe(default, num_samples=4)
    return Fliqs(
        classifier=Classifier(
            quantized=QuantizedModel(model, sites=sites, per_channel=True),
            mean=tuple(digits.mean.tolist()),
            std=tuple(digits.std.tolist()),
        ),
        space=space,
        costs=costs,
        target=target,
        controller=chosen(costs, target, phases),
        phases=phases,
        optimizer=optax.sgd(0.05),
        settings=FliqsSettings(judge_every=judge_every, calibrate_every=5, **settings),
        policy=policy,
    )


def run(*arguments, **how):
    """Runs the first steps; returns state, logits, metrics and dispatcher."""
    return run_steps(*arguments, lambda state: state.controller.logits, **how)


@pytest.fixture(scope="module")
def whole_run(digits):
    return run(make_search(digits), digits, mapping.make_mesh(), 16)


def test_logits_move_in_the_search_phase_only(whole_run):
    _, logits, _, _ = whole_run
    moved = [bool((a != b).any()) for a, b in zip(logits[:-1], logits[1:], strict=True)]
    # Warm-up ends at 4, search at 12; judged on every second step between.
    assert moved == [4 <= step < 12 and step % 2 == 0 for step in range(16)]


def test_one_program_serves_all_phases_and_formats(whole_run):
    assert whole_run[3].compile_count == 1


def test_judgements_are_reported_where_they_happen(whole_run):
    rewards = [float(row["reward"][0]) for row in whole_run[2]]
    judged = [4 <= step < 12 and step % 2 == 0 for step in range(16)]
    assert [np.isfinite(reward) for reward in rewards] == judged


def test_fixed_policy_is_within_the_budget_and_the_state_keeps_it(digits, whole_run):
    search, state = make_search(digits), whole_run[0]
    options = np.asarray(state.fixed_options)
    assert search.costs.exact_cost(options) <= search.target
    assert search.final_policy(state) == search.final_policy(state)
    np.testing.assert_array_equal(search.current_options(state), options)


def test_inputs_that_are_never_negative_get_unsigned_names(digits, whole_run):
    policy = make_search(digits).final_policy(whole_run[0])
    signs = [activations.startswith("u") for _, activations in policy.values()]
    assert signs == [False, True, True]  # normalised pixels, then two ReLUs


@pytest.mark.slow
def test_same_seed_same_trajectory_other_seed_another(digits, whole_run):
    again = run(make_search(digits), digits, mapping.make_mesh(), 16)
    jax.tree.map(np.testing.assert_array_equal, again[1], whole_run[1])
    other = run(make_search(digits), digits, mapping.make_mesh(), 8, seed=1)
    assert (other[1][8] != whole_run[1][8]).any()


def test_pmap_equals_shard_map(digits, whole_run):
    mapped = run(make_search(digits), digits, mapping.make_mesh(), 7, name="pmap")
    np.testing.assert_allclose(mapped[1][7], whole_run[1][7], rtol=1e-4, atol=1e-6)
    losses = [float(row["loss"][0]) for row in mapped[2]]
    expected = [float(row["loss"][0]) for row in whole_run[2][:7]]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_fixed_policy_trains_alike_on_one_device_and_on_eight(digits):
    model_sites = image_sites(create_model("lenet300"), digits.train.image_shape)
    policy = Policy.uniform(model_sites, "int8")
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = Mesh(np.array(devices), (mapping.AXIS,))
        search = make_search(digits, policy=policy, dynamic_scales=True)
        results.append([row["loss"][0] for row in run(search, digits, mesh, 6)[2]])
    # Each device has its own input scales: alike to a rounding step, not to a bit.
    np.testing.assert_allclose(*results, rtol=0.02)


def test_published_form_updates_each_step_and_its_baseline_in_warm_up(digits):
    search = make_search(digits, recipe(published), judge_every=1)
    state, logits, metrics, _ = run(search, digits, mapping.make_mesh(), 8)
    moved = [bool((a != b).any()) for a, b in zip(logits[:-1], logits[1:], strict=True)]
    assert moved == [False] * 4 + [True] * 4
    assert int(state.controller.memory.num_rewards) == 8


def test_weights_train_through_the_sampled_formats(digits):
    state, _, metrics, _ = run(make_search(digits), digits, mapping.make_mesh(), 3)
    start = make_search(digits).init(
        jax.random.key(0), jnp.asarray(digits.train.images[:1])
    )
    for before, after in zip(
        jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True
    ):
        assert (np.asarray(before) != np.asarray(after)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 3, 10), "got 5, 3, 10"),
        ((0, 0, 0), "got 0, 0, 0"),
        ((0, 11, 10), "got 0, 11, 10"),
    ],
)
def test_phases_out_of_order_are_refused(arguments, message):
    warmup_end, search_end, steps = arguments
    with pytest.raises(ValueError, match=message):
        Phases(warmup_end=warmup_end, search_end=search_end, steps=steps)


def test_phases_as_fractions():
    phases = Phases.of(1000, warmup_fraction=0.25, final_fraction=0.2)
    assert (phases.warmup_end, phases.search_end) == (250, 800)
    with pytest.raises(ValueError, match="final_fraction must be in"):
        Phases.of(1000, final_fraction=1.5)


def test_budget_out_of_reach_names_the_least_cost(digits):
    search = make_search(digits)
    with pytest.raises(ValueError, match="least reachable"):
        Fliqs(
            **{
                field: getattr(search, field)
                for field in search.__dataclass_fields__
                if field != "target"
            },
            target=search.costs.minimum() / 2,
        )


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("judge_every", 0, "judge_every must be at least 1, got 0"),
        ("calibrate_every", 0, "calibrate_every must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=message):
        FliqsSettings(**{setting: value})
