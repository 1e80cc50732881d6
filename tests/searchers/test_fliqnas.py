"""The one-shot step over architecture and formats: phases, masks, what is fixed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_searches import fliqnas_search
from small_supernets import perceptron_supernet
from stepping import run_steps

import fliqs_jax as fq
from fliqs_jax.controller import default, leave_one_out, published
from fliqs_jax.models.supernets import extract, subnetwork_sites
from fliqs_jax.searchers.fliqnas import allowed_options
from fliqs_jax.searchers.in_training.calibration import init_calibration
from fliqs_jax.searchers.in_training.controllers import recipe
from fliqs_jax.searchers.in_training.one_shot import of_live_sites
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.joint.budget import best_within
from fliqs_jax.searchers.joint.subnetwork_classifier import (
    SubnetworkClassifier,
    extracted_formats,
)
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.optimizers import make_optimizer

IMAGE = np.zeros((1, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def digits():
    return fq.load_dataset("digits")


def run(*arguments):
    """Runs the first steps; returns state, logits and metrics."""
    return run_steps(*arguments, lambda state: state.controller.logits)


@pytest.fixture(scope="module")
def whole_run(digits):
    return run(fliqnas_search(digits), digits, mapping.make_mesh(), 16)


def test_logits_move_in_the_search_phase_only(whole_run):
    logits = whole_run[1]
    moved = [bool((a != b).any()) for a, b in zip(logits[:-1], logits[1:], strict=True)]
    assert moved == [4 <= step < 12 and step % 2 == 0 for step in range(16)]


def test_absent_options_stay_absent_and_the_expected_cost_is_the_target(
    digits, whole_run
):
    search, logits = fliqnas_search(digits), whole_run[1][-1]
    assert (np.isneginf(logits) == ~search.costs.present).all()
    chances = np.asarray(jax.nn.softmax(logits, axis=1))
    expected = float(search.costs.expected(chances))
    assert expected == pytest.approx(search.target, rel=1e-3)


def test_choice_is_the_best_within_the_budget_and_the_state_keeps_it(digits, whole_run):
    search, state = fliqnas_search(digits), whole_run[0]
    options = search.current_options(state)
    assert search.costs.exact_cost(options) <= search.target
    scores = np.asarray(search.controller.final_scores(state.controller))
    again = best_within(scores, search.costs, search.target)
    np.testing.assert_array_equal(options, again.options)
    assert (
        search.final_policy(state)["Dense_1"][1]
        == "u" + (search.costs.space.space.policy(options[2:])["Dense_1"][1])
    )


def test_entropy_and_progress_are_about_what_is_searched(digits, whole_run):
    search = fliqnas_search(digits, fixed=np.array([2, 1, -1, -1, -1]))
    start = search.init(jax.random.key(0), digits.train.images[:1])
    shown = search.progress(start)
    assert shown["entropy"] == pytest.approx(np.log(3))
    assert shown["probabilities"][0].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(shown["probabilities"][1], [0, 1, np.nan])


@pytest.mark.parametrize(
    "fixed", [[0, 1, -1, -1, -1], [-1, -1, 1, 2, 1]], ids=["architecture", "formats"]
)
def test_decisions_made_beforehand_stay_as_they_are(digits, fixed):
    fixed = np.array(fixed)
    search = fliqnas_search(digits, fixed=fixed)
    for seed in range(2):
        state = search.init(jax.random.key(seed), digits.train.images[:1])
        keys = dict.fromkeys(("options", "warmup"), jax.random.key(seed))
        samples, options = search.draw(state, keys)
        for vector in (*samples, options, search.select(state).options):
            assert (np.asarray(vector)[fixed >= 0] == fixed[fixed >= 0]).all()


def test_warm_up_takes_the_largest_options_first_and_fades(digits):
    search = fliqnas_search(digits, fixed=np.array([-1, 0, -1, -1, -1]))
    lowest = jnp.zeros(5, jnp.int32)
    shares = []
    for step in (0, 1, 2, 3, 4, 9):
        keys = jax.random.split(jax.random.key(step), 400)
        warmed_up = jax.vmap(search.warmed_up, in_axes=(0, None, None))
        drawn = warmed_up(keys, lowest, jnp.int32(step))
        assert (drawn[:, 1:] == 0).all()  # made beforehand, and formats
        shares.append(float((drawn[:, 0] == 2).mean()))
    np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.25, 0, 0], atol=0.08)


def masks(search, choice):
    params = search.init(jax.random.key(0), IMAGE).params
    masked = search.classifier.net.mask(jax.tree.map(jnp.ones_like, params), choice)
    return jax.tree.map(lambda leaf: np.asarray(leaf) != 0, masked)


def test_dead_weights_have_no_gradient_and_do_not_decay(digits):
    fixed = np.array([0, 0, 2, 2, 2])
    phases = Phases(warmup_end=0, search_end=0, steps=4)
    sgd = make_optimizer("sgd", lambda step: 0.1, weight_decay=0.1)
    search = fliqnas_search(digits, fixed=fixed, phases=phases, optimizer=sgd)
    start = search.init(jax.random.key(0), digits.train.images[:1]).params
    mesh = Mesh(np.array(jax.devices()[:1]), (mapping.AXIS,))
    end = run(search, digits, mesh, 3)[0].params
    live = masks(search, fixed[:2])
    moved = jax.tree.map(lambda a, b: np.asarray(a) != np.asarray(b), start, end)
    for changed, kept in zip(*map(jax.tree.leaves, (moved, live)), strict=True):
        assert not changed[~kept].any()
    assert (moved["Dense_1"]["kernel"] == live["Dense_1"]["kernel"]).all()


def test_extracted_network_gives_what_the_masked_one_gives(digits, whole_run):
    search, state = fliqnas_search(digits), whole_run[0]
    subnetwork = search.current_formats(state)
    choice = np.asarray(subnetwork.choice)
    images = digits.test.images[:16]
    masked = jax.jit(search.classifier.predict)(
        state.params, state.model_state, images, formats=subnetwork
    )
    net, full = search.classifier.net, search.classifier.classifier
    variables = {"params": state.params, **state.model_state}
    model, small = extract(net, jax.device_get(variables), choice)
    sites = subnetwork_sites(net, choice)
    classifier = Classifier(
        quantized=fq.QuantizedModel(model, sites=sites), mean=full.mean, std=full.std
    )
    formats = extracted_formats(net, choice, subnetwork.formats)
    params = small.pop("params")
    logits = jax.jit(classifier.predict)(params, small, images, formats=formats)
    np.testing.assert_allclose(logits, masked, rtol=1e-3, atol=1e-4)


def test_clip_bounds_of_sites_left_out_stay_as_they_are(digits):
    """Where no device's sub-network has a site, its input says nothing."""
    space = fliqnas_search(digits).costs.space.space
    old = init_calibration(space)  # bounds of 1

    def on_device(bound, live):
        fresh = old.replace(activation_clip=jnp.full_like(old.activation_clip, bound))
        return of_live_sites(old, fresh, live).activation_clip

    live = jnp.array([[True, False, True], [True, False, False]])
    merged = jax.vmap(on_device, axis_name=mapping.AXIS)(jnp.array([2.0, 3.0]), live)
    assert merged[:, :, 0].tolist() == [[2.5, 1.0, 2.0]] * 2


@pytest.mark.slow
def test_fixed_network_trains_alike_on_one_device_and_on_eight(digits):
    results = []
    phases = Phases(warmup_end=0, search_end=0, steps=16)
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = Mesh(np.array(devices), (mapping.AXIS,))
        search = fliqnas_search(
            digits, fixed=np.array([1, 0, 2, 2, 2]), phases=phases, dynamic_scales=True
        )
        results.append([row["loss"][0] for row in run(search, digits, mesh, 6)[2]])
    # Each device has batch statistics and input scales of its own.
    np.testing.assert_allclose(*results, rtol=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("make, every", [(leave_one_out, 2), (published, 1)])
def test_other_forms_move_present_options_only(digits, make, every):
    search = fliqnas_search(digits, chosen=recipe(make), judge_every=every)
    mesh = Mesh(np.array(jax.devices()[:1]), (mapping.AXIS,))
    _, logits, metrics = run(search, digits, mesh, 8)
    assert (np.isneginf(logits[-1]) == ~search.costs.present).all()
    assert not np.isnan(logits[-1]).any()
    assert (logits[-1] != logits[0]).any()


PULL = np.array([[0.0, 0.5, 0.7], [0.0, 0.4, 0.0]] + [[0.0, 0.6, 0.65]] * 3)


@pytest.mark.parametrize("share", [0.05, pytest.param(0.2, marks=pytest.mark.slow)])
def test_controller_finds_the_best_network_of_a_bandit(digits, share):
    """Loss falls with size and bits, additively, under a noise that a batch shares."""
    search = fliqnas_search(digits)
    costs = search.costs
    phases = Phases(warmup_end=20, search_end=400, steps=400)
    target = share * costs.reference("int8")
    controller = recipe(default, num_samples=4)(costs, target, phases)
    pull = jnp.asarray(PULL, jnp.float32)

    @jax.jit
    def step(state, at):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), at))
        options = controller.sample(keys[0], state)
        losses = -pull[jnp.arange(5), options].sum(axis=1)
        noise = jax.random.normal(keys[1], (2,))
        losses += 0.3 * noise[0] + 0.05 * noise[1]
        return controller.update(state, options, losses, at)[0], None

    start = controller.init(allowed_options(costs))
    state, _ = jax.lax.scan(step, start, jnp.arange(400))
    best = best_within(np.where(costs.present, PULL, -np.inf), costs, target)
    found = best_within(
        np.asarray(controller.final_scores(state), np.float64), costs, target
    )
    worth = PULL[np.arange(5), found.options].sum()
    assert costs.exact_cost(found.options) <= target
    assert worth >= best.score - 0.02
    chances = np.asarray(jax.nn.softmax(state.logits, axis=1))
    assert float(costs.expected(chances)) == pytest.approx(target, rel=1e-3)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"judge_every": 0}, "judge_every must be at least 1"),
        ({"fixed": np.array([0, 0, 0, 0, 0])}, "nothing to search"),
    ],
)
def test_settings_that_cannot_be_are_refused(digits, changed, message):
    with pytest.raises(ValueError, match=message):
        fliqnas_search(digits, **changed)


@pytest.mark.parametrize("fixed", [[3, 0, 0, 0, 0], [0, 0]], ids=["option", "length"])
def test_fixed_options_of_another_space_are_refused(digits, fixed):
    with pytest.raises(ValueError, match="fixed must hold 5 options"):
        allowed_options(fliqnas_search(digits).costs, np.array(fixed))


def test_classifier_of_another_model_is_refused(digits):
    search = fliqnas_search(digits)
    other = perceptron_supernet(digits.train.image_shape)
    other = dataclasses.replace(other, model=other.build({"first": 4, "second": 6}))
    with pytest.raises(ValueError, match="must be of the full network"):
        SubnetworkClassifier(search.classifier.classifier, other)
