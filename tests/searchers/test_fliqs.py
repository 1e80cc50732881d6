"""The one-shot step: phases, judgements, equal on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_searches import fliqs_search
from stepping import run_steps

from fliqs_jax.controller import published
from fliqs_jax.data import load_dataset
from fliqs_jax.models import create_model
from fliqs_jax.policy import Policy
from fliqs_jax.searchers.fliqs import Fliqs
from fliqs_jax.searchers.in_training.controllers import recipe
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import image_sites


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def run(*arguments):
    """Runs the first steps; returns state, logits and metrics."""
    return run_steps(*arguments, lambda state: state.controller.logits)


@pytest.fixture(scope="module")
def whole_run(digits):
    return run(fliqs_search(digits), digits, mapping.make_mesh(), 16)


def test_logits_move_in_the_search_phase_only(whole_run):
    _, logits, _ = whole_run
    moved = [bool((a != b).any()) for a, b in zip(logits[:-1], logits[1:], strict=True)]
    # Warm-up ends at 4, search at 12; judged on every second step between.
    assert moved == [4 <= step < 12 and step % 2 == 0 for step in range(16)]


def test_judgements_are_reported_where_they_happen(whole_run):
    rewards = [float(row["reward"][0]) for row in whole_run[2]]
    judged = [4 <= step < 12 and step % 2 == 0 for step in range(16)]
    assert [np.isfinite(reward) for reward in rewards] == judged


def test_fixed_policy_is_within_the_budget_and_the_state_keeps_it(digits, whole_run):
    search, state = fliqs_search(digits), whole_run[0]
    options = np.asarray(state.fixed_options)
    assert search.costs.exact_cost(options) <= search.target
    assert search.final_policy(state) == search.final_policy(state)
    np.testing.assert_array_equal(search.current_options(state), options)


def test_inputs_that_are_never_negative_get_unsigned_names(digits, whole_run):
    policy = fliqs_search(digits).final_policy(whole_run[0])
    signs = [activations.startswith("u") for _, activations in policy.values()]
    assert signs == [False, True, True]  # normalised pixels, then two ReLUs


def test_fixed_policy_trains_alike_on_one_device_and_on_eight(digits):
    model_sites = image_sites(create_model("lenet300"), digits.train.image_shape)
    policy = Policy.uniform(model_sites, "int8")
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = Mesh(np.array(devices), (mapping.AXIS,))
        search = fliqs_search(digits, policy=policy, dynamic_scales=True)
        results.append([row["loss"][0] for row in run(search, digits, mesh, 6)[2]])
    # Each device has its own input scales: alike to a rounding step, not to a bit.
    np.testing.assert_allclose(*results, rtol=0.02)


def test_published_form_updates_each_step_and_its_baseline_in_warm_up(digits):
    search = fliqs_search(digits, recipe(published), judge_every=1)
    state, logits, metrics = run(search, digits, mapping.make_mesh(), 8)
    moved = [bool((a != b).any()) for a, b in zip(logits[:-1], logits[1:], strict=True)]
    assert moved == [False] * 4 + [True] * 4
    assert int(state.controller.memory.num_rewards) == 8


def test_weights_train_through_the_sampled_formats(digits):
    state, _, metrics = run(fliqs_search(digits), digits, mapping.make_mesh(), 3)
    start = fliqs_search(digits).init(
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
    search = fliqs_search(digits)
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
