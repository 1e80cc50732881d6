"""The bi-level step: who sees which batch, order, warm-up, devices, limits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from small_searches import OneCell

from fliqs_jax.models.cells import (
    NASBENCH201,
    nasbench201_network_counts,
)
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.searchers.cells.architecture import Architecture, ArchitectureSettings
from fliqs_jax.searchers.cells.limits import Limit, MultiplierSettings
from fliqs_jax.searchers.dca_nas import DcaNas, drawn_shares, row_names, with_shares
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.mapping import AXIS, replicate, shard_batch, shard_map_step

MODEL = OneCell(3)
COST = nasbench201_network_counts(3, width=4, num_cells=1, image_shape=(8, 8, 1))
SETTINGS = ArchitectureSettings(learning_rate=0.1, weight_decay=0.0, entropy_weight=0.0)


def batch_of(seed, size=8):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (size, 4, 4, 1)).astype(np.uint8)
    return images, random.integers(0, 3, size).astype(np.int32)


def paired(training, judging):
    names = ("image", "label", "judge_image", "judge_label")
    return dict(zip(names, (*batch_of(training), *batch_of(judging)), strict=True))


def searcher_of(bound=None, **changes):
    limits = ()
    if bound is not None:
        cost = COST.cost("parameters")
        limits = (Limit(name="parameters", bound=bound, derived=cost),)
    fields = dict(
        classifier=Classifier(QuantizedModel(MODEL), mean=(0.5,), std=(0.3,)),
        space=NASBENCH201,
        architecture=Architecture(limits, SETTINGS),
        optimizer=optax.sgd(0.05, momentum=0.9),
        steps=10,
        warmup_steps=0,
    )
    return DcaNas(**{**fields, **changes})


@functools.cache
def first_state():
    """The state before the first step, of the searcher without limits."""
    state = searcher_of().init(jax.random.key(0), batch_of(0)[0][:1])
    return jax.device_get(state.replace(key=None))


class Runner:
    """A searcher compiled once on some devices; the same fresh state every time."""

    def __init__(self, searcher, devices=1):
        self.mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
        self.compiled = shard_map_step(searcher.step, self.mesh)
        first = first_state()
        alphas = jax.tree.map(np.array, first.architecture.alphas)
        self.first = first.replace(
            architecture=jax.device_get(searcher.architecture.init(alphas))
        )

    def __call__(self, *batches):
        state = jax.tree.map(np.array, self.first).replace(key=jax.random.key(7))
        state = replicate(state, self.mesh)
        for batch in batches:
            state, metrics = self.compiled(state, shard_batch(batch, self.mesh))
        return jax.device_get(state.replace(key=None)), jax.device_get(metrics)


@pytest.fixture(scope="module")
def first_order():
    return Runner(searcher_of())


def same(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_each_batch_moves_its_own_level_and_the_same_seed_gives_the_same(first_order):
    one, _ = first_order(paired(1, 2))
    again, metrics = first_order(paired(1, 2))
    other_training, _ = first_order(paired(3, 2))
    assert same(one, again) and np.isfinite(metrics["held_out_loss"])
    # First order: training images never reach the alphas of the step.
    assert same(one.architecture.alphas, other_training.architecture.alphas)
    assert not same(one.weights, other_training.weights)
    assert not same(one.architecture.alphas, first_order.first.architecture.alphas)


def test_warm_up_leaves_alphas_alone_and_held_out_images_unread():
    waiting = Runner(searcher_of(warmup_steps=2))
    first = waiting.first.architecture
    one, metrics = waiting(paired(1, 2), paired(3, 4))
    other, _ = waiting(paired(1, 5), paired(3, 6))
    assert same(one.architecture, first) and same(one, other)
    assert np.isnan(metrics["held_out_loss"]) and np.isfinite(metrics["loss"])
    moved, _ = waiting(paired(1, 2), paired(3, 4), paired(5, 6))
    assert not same(moved.architecture.alphas, first.alphas)


def test_bound_that_never_binds_leaves_darts_and_a_tight_one_presses(first_order):
    batches = [paired(1, 2), paired(3, 4), paired(5, 6)]
    free, _ = first_order(*batches)
    loose, _ = Runner(searcher_of(bound=1e9))(*batches)
    close(free.weights, loose.weights, 1e-6)
    close(free.architecture.alphas, loose.architecture.alphas, 1e-6)
    assert loose.architecture.multipliers == 0
    pressing = dataclasses.replace(SETTINGS, multipliers=MultiplierSettings(rate=5.0))
    cost = COST.cost("parameters")
    limit = Limit(name="parameters", bound=cost.constant, derived=cost)
    tight = searcher_of(architecture=Architecture((limit,), pressing))
    tight, _ = Runner(tight)(*batches)
    assert tight.architecture.multipliers > 0
    prices = [float(cost.of_alphas(s.architecture.alphas)) for s in (tight, free)]
    assert prices[0] < prices[1]


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one():
    # Batch statistics are each device's own: equal shares make them those of one.
    images, labels = batch_of(1, 1)
    held, held_labels = batch_of(2, 1)
    batch = {
        "image": np.repeat(images, 8, 0),
        "label": np.repeat(labels, 8),
        "judge_image": np.repeat(held, 8, 0),
        "judge_label": np.repeat(held_labels, 8),
    }
    for order in (1, 2):
        one = Runner(searcher_of(order=order))(batch)[0]
        eight = Runner(searcher_of(order=order), devices=8)(batch)[0]
        close(one.architecture.alphas, eight.architecture.alphas, 1e-3)
        close(one.weights, eight.weights, 1e-4)


class Handing(Architecture):
    """Leaves in place of the alphas the gradient that the step hands over."""

    def step(self, state, gradient, progress):
        return state.replace(alphas=gradient)


def alpha_gradient(searcher, state, batch):
    spy = dataclasses.replace(searcher, architecture=Handing((), SETTINGS))
    mapped = jax.jit(jax.vmap(spy.step, in_axes=(None, 0), axis_name=AXIS))
    after, _ = mapped(state, jax.tree.map(lambda x: x[None], batch))
    return jax.tree.map(lambda x: x[0], after.architecture.alphas)


@pytest.mark.slow
def test_second_order_is_a_central_difference_and_without_a_step_first_order():
    batch = paired(1, 2)
    first = searcher_of()
    state = first_state().replace(key=jax.random.key(7))
    plain = alpha_gradient(first, state, batch)
    rate = 0.05
    second = searcher_of(order=2, optimizer=optax.sgd(rate))
    state = state.replace(opt_state=second.optimizer.init(state.weights))
    found = alpha_gradient(second, state, batch)
    still = searcher_of(order=2, optimizer=optax.sgd(0.0))
    close(alpha_gradient(still, state, batch), plain, 1e-6)

    # DARTS: grad L_val(w', alpha) - xi (grad L_train(w+) - grad L_train(w-)) / (2 r),
    # with a tenth of its radius, which takes weights past the kink of a ReLU here.
    def loss(weights, alphas, kind):
        images, labels = batch[f"{kind}image"], batch[f"{kind}label"]
        logits, _ = first.classifier.train_forward(
            with_shares(weights, jax.tree.map(jax.nn.softmax, alphas)),
            state.model_state,
            first.classifier.normalise(images),
            formats=None,
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    alphas, weights = jax.tree.map(
        jnp.asarray, (state.architecture.alphas, state.weights)
    )
    moved = jax.tree.map(
        lambda w, g: w - rate * g, weights, jax.grad(loss)(weights, alphas, "")
    )
    direct = jax.grad(loss, argnums=1)(moved, alphas, "judge_")
    direction = jax.grad(loss)(moved, alphas, "judge_")
    radius = 0.001 / optax.tree.norm(direction)
    sides = [
        jax.grad(loss, argnums=1)(
            jax.tree.map(lambda w, v: w + sign * radius * v, weights, direction),  # noqa: B023
            alphas,
            "",
        )
        for sign in (1, -1)
    ]
    expected = jax.tree.map(
        lambda g, up, down: g - rate * (up - down) / (2 * radius), direct, *sides
    )
    correction = jax.tree.map(jnp.subtract, expected, plain)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected))
    assert error < 0.05 * optax.tree.norm(correction)
    assert optax.tree.norm(correction) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 3}, "order must be 1 or 2, got 3"),
        ({"warmup_steps": 10}, "warmup_steps must be 0 to 9"),
    ],
)
def test_settings_that_make_no_search_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        searcher_of(**changes)


def test_progress_names_edges_and_compares_expected_with_derived_cost():
    searcher = searcher_of(bound=3000.0)
    state = Runner(searcher).first
    found = searcher.progress(state)
    rows = found["probabilities"]
    assert len(rows) == len(row_names(NASBENCH201)) == 6
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-3)
    cost = COST.cost("parameters")
    expected = float(cost.of_alphas(state.architecture.alphas)) / 3000
    assert found["parameters_ratio"] == pytest.approx(expected)
    derived = cost.of(NASBENCH201, NASBENCH201.derive(state.architecture.alphas))
    assert found["parameters_derived_ratio"] == derived / 3000


def test_drawn_operations_have_their_probability_and_the_gradient_of_the_mean():
    alphas = {"cell": jnp.array([[0.0, 1.0, 2.0], [0.5, 0.5, -3.0]])}
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: drawn_shares(key, alphas, 0.7)["cell"])(keys)
    np.testing.assert_allclose(drawn.sum(axis=2), 1.0, atol=1e-5)
    assert np.isclose(drawn.max(axis=2), 1.0, atol=1e-5).all()
    frequency = drawn.mean(axis=0)
    np.testing.assert_allclose(frequency, jax.nn.softmax(alphas["cell"]), atol=0.03)
    noise = jax.random.gumbel(jax.random.split(keys[0], 1)[0], (2, 3))
    values = jnp.array([1.0, -2.0, 3.0])

    def soft(alpha):
        return (jax.nn.softmax((alpha + noise) / 0.7) @ values).sum()

    def hard(alpha):
        return (drawn_shares(keys[0], {"cell": alpha}, 0.7)["cell"] @ values).sum()

    want = jax.grad(soft)(alphas["cell"])
    np.testing.assert_allclose(jax.grad(hard)(alphas["cell"]), want, rtol=1e-5)


def test_search_by_drawn_operations_moves_the_architecture():
    runner = Runner(searcher_of(temperature=1.0))
    state, metrics = runner(paired(1, 2))
    assert np.isfinite(metrics["loss"])
    assert not same(state.architecture.alphas, runner.first.architecture.alphas)
    with pytest.raises(ValueError, match="temperature must be positive"):
        searcher_of(temperature=0.0)
