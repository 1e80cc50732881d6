"""Sensitivities against closed forms on linear networks; one compilation for all."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import Calibration
from fliqs_jax.searchers.sensitivities.fisher import FisherMeter
from fliqs_jax.searchers.sensitivities.meter import (
    SensitivityMeter,
    TrainedState,
    calibrate_inputs,
    isolated_formats,
    kl_divergence,
    logit_error,
    loss_change,
)
from fliqs_jax.train.classifier import Classifier, image_sites

BITS, OPTIONS = (2, 4), ("int2", "int4")
SHAPE = (1, 1, 3)


class Linear(nn.Module):
    """logits = x A B."""

    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        x = nn.Dense(5, use_bias=False)(x)  # on its own line: numbered in this order
        return nn.Dense(4, use_bias=False)(x)


def set_up(model, *, shape=SHAPE, options=OPTIONS, seed=0, **space):
    """Returns what a meter takes, for a model with random weights and images."""
    random = np.random.default_rng(seed)
    sites = image_sites(model, shape)
    classifier = Classifier(
        quantized=QuantizedModel(model, sites=sites, per_channel=True),
        mean=(0.25,) * shape[-1],
        std=(0.5,) * shape[-1],
    )
    data = [
        {
            "image": random.integers(0, 256, (12, *shape), dtype=np.uint8),
            "label": random.integers(0, 4, 12).astype(np.int32),
        }
        for _ in range(2)
    ]
    params, model_state = classifier.init(jax.random.key(seed), data[0]["image"])
    state = TrainedState(params, model_state)
    space = SearchSpace(sites, options, **space)
    # By hand, as calibrating takes seconds to compile; crooked, so that nothing ties.
    site, option = np.ogrid[: len(sites), : len(space.format_names)]
    calibration = Calibration(
        weight_clip=jnp.asarray(1.0137 + 0.5171 * option[0]),
        activation_clip=jnp.asarray(1.0137 + 0.31 * site + 0.4171 * option),
        nonnegative=jnp.zeros(len(sites), bool),
        updates=jnp.ones((), jnp.int32),
    )
    return classifier, state, space, calibration, data


def rounded(x, bits, bound):
    """x on the signed grid of `bits` bits whose largest value stands for the bound."""
    high = 2 ** (bits - 1) - 1
    return np.clip(np.rint(x / (bound / high)), -high - 1, high) * (bound / high)


class ByHand:
    """The linear network in float64: quantized sides, logits, gradients."""

    def __init__(self, state, calibration, data):
        self.weights = [
            np.asarray(state.params[f"Dense_{n}"]["kernel"], np.float64) for n in (0, 1)
        ]
        images = np.concatenate([batch["image"] for batch in data])
        self.x = (images.reshape(len(images), -1) / 255.0 - 0.25) / 0.5
        self.labels = np.concatenate([batch["label"] for batch in data])
        self.weight_clip = np.asarray(calibration.weight_clip)
        self.bound = np.asarray(calibration.activation_clip)

    def weight(self, number, option):
        """Q(W) of a layer, one scale an output channel."""
        w = self.weights[number]
        rms = np.sqrt((w**2).mean(axis=0))
        kept = self.weight_clip[option] * rms
        return rounded(w, BITS[option], np.minimum(abs(w).max(axis=0), kept))

    def input(self, number, option, x):
        return rounded(x, BITS[option], self.bound[number, option])

    def logits(self, quantized=(), *, inputs=False):
        """Logits with these (layer, option) on their grids, the inputs too if asked."""
        x, chosen = self.x, dict(quantized)
        for number, weight in enumerate(self.weights):
            if number in chosen:
                x = self.input(number, chosen[number], x) if inputs else x
                weight = self.weight(number, chosen[number])
            x = x @ weight
        return x

    def loss(self, logits):
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(log_p)), self.labels].mean()


def table_of(meter, space):
    return np.stack([meter.row(decision) for decision in range(space.num_decisions)])


@pytest.mark.parametrize("inputs", [False, True], ids=["weights only", "tied"])
def test_loss_change_and_squared_error_are_those_of_the_formula(inputs):
    things = set_up(Linear(), weights_only=not inputs)
    _, state, space, calibration, data = things
    hand = ByHand(state, calibration, data)
    plain = hand.logits()
    expected = {logit_error: np.zeros((2, 2)), loss_change: np.zeros((2, 2))}
    for layer, option in np.ndindex(2, 2):
        logits = hand.logits([(layer, option)], inputs=inputs)
        expected[logit_error][layer, option] = ((logits - plain) ** 2).mean()
        change = hand.loss(logits) - hand.loss(plain)
        expected[loss_change][layer, option] = change
    for measure, values in expected.items():
        measured = table_of(SensitivityMeter(*things, measure=measure), space)
        np.testing.assert_allclose(measured, values, rtol=2e-3, atol=1e-5)


def test_divergence_is_that_of_scipy():
    from scipy import special

    things = set_up(Linear())
    hand = ByHand(*things[1:2], *things[3:])
    p = special.softmax(hand.logits(), axis=1)
    q = special.softmax(hand.logits([(1, 0)], inputs=True), axis=1)
    meter = SensitivityMeter(*things, measure=kl_divergence)
    expected = special.rel_entr(p, q).sum(axis=1).mean()
    assert meter.row(1)[0] == pytest.approx(expected, rel=1e-3)


def fisher_by_hand(hand, option):
    """Sums over examples, one at a time, of squared gradient times squared error."""
    a, b = hand.weights
    sums = np.zeros((2, 2))  # layer; weights, input
    for x, label in zip(hand.x, hand.labels, strict=True):
        hidden = x @ a
        logits = hidden @ b
        p = np.exp(logits) / np.exp(logits).sum()
        at_logits = p - np.eye(4)[label]
        at_hidden = b @ at_logits
        at_x = a @ at_hidden
        errors = [hand.weight(n, option) - hand.weights[n] for n in (0, 1)]
        sums[0, 0] += ((np.outer(x, at_hidden) * errors[0]) ** 2).sum()
        sums[1, 0] += ((np.outer(hidden, at_logits) * errors[1]) ** 2).sum()
        sums[0, 1] += ((at_x * (hand.input(0, option, x) - x)) ** 2).sum()
        moved = hand.input(1, option, hidden) - hidden
        sums[1, 1] += ((at_hidden * moved) ** 2).sum()
    return sums / (2 * len(hand.x))


@pytest.fixture(scope="module")
def separate():
    """The Fisher table of weights and inputs apart, and the network by hand."""
    things = set_up(Linear(), separate=True)
    meter = FisherMeter(*things, examples_at_once=5)  # 4 divides a batch of 12
    return table_of(meter, things[2]), ByHand(things[1], *things[3:])


def test_fisher_is_that_of_a_loop_over_examples(separate):
    measured, hand = separate
    expected = np.stack([fisher_by_hand(hand, k).reshape(-1) for k in (0, 1)], axis=1)
    # Decisions: Dense_0:weights, Dense_0:activations, Dense_1:weights, ...
    np.testing.assert_allclose(measured, expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("space", "sums"),
    [
        ({"groups": ["Dense_.*"]}, [[0, 1, 2, 3]]),
        ({"weights_only": True}, [[0], [2]]),
        ({"pins": {"Dense_0": "fp32"}}, [[2, 3]]),
    ],
    ids=str,
)
def test_fisher_of_a_decision_is_the_sum_over_what_it_sets(space, sums, separate):
    parts, _ = separate
    joined = set_up(Linear(), **space)
    expected = [parts[rows].sum(axis=0) for rows in sums]
    measured = table_of(FisherMeter(*joined), joined[2])
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(3)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, images):
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = layers(name="layers")(images.reshape(len(images), -1), None)
        return nn.Dense(4)(x)


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for number in range(2):
            x, _ = Layer(name=f"layers_{number}")(x, None)
        return nn.Dense(4)(x)


@pytest.mark.slow
@pytest.mark.parametrize("meter", [SensitivityMeter, FisherMeter])
def test_scanned_layers_measure_as_unrolled_ones(meter):
    scanned, unrolled = set_up(Scanned()), set_up(Unrolled())
    stack = scanned[1].params
    params = {
        f"layers_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], stack["layers"])
        for n in range(2)
    }
    params["Dense_0"] = stack["Dense_0"]
    classifier, _, space, calibration, data = unrolled
    state = TrainedState(params, {})
    expected = table_of(meter(classifier, state, space, calibration, data), space)
    np.testing.assert_allclose(
        table_of(meter(*scanned), scanned[2]), expected, rtol=1e-3, atol=1e-7
    )


def test_pins_stay_at_their_format_and_all_else_is_float():
    things = set_up(Linear(), pins={"Dense_0": ("int4", "int8")})
    _, _, space, calibration, _ = things
    none = isolated_formats(calibration, space, -1, 0)
    assert none.weight.storage_bits.tolist() == [4, 32]
    assert none.activation.storage_bits.tolist() == [8, 32]
    one = isolated_formats(calibration, space, 0, 0)
    assert one.weight.storage_bits.tolist() == [4, 2]
    assert one.activation.storage_bits.tolist() == [8, 2]


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.mark.parametrize("meter", [SensitivityMeter, FisherMeter])
def test_fp32_costs_nothing_and_one_compilation_serves_the_table(meter):
    things = set_up(Normalised(), shape=(4, 4, 1), options=("int2", "e4m3", "fp32"))
    meter, space = meter(*things), things[2]
    table = table_of(meter, space)
    assert meter.compile_count == 1
    assert (table[:, 2] == 0).all()
    assert (table[:, 0] != 0).all()


def test_calibrated_bounds_are_those_of_the_float_networks_inputs():
    classifier, state, space, _, data = set_up(Linear(), options=("int4", "int16"))
    calibration = calibrate_inputs(classifier, state, space, data[:1])
    images = data[0]["image"].reshape(12, 3)
    x = (images / 255.0 - 0.25) / 0.5
    hidden = x @ np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    # At 16 bits nothing is worth clipping.
    expected = [abs(x).max(), abs(hidden).max()]
    np.testing.assert_allclose(calibration.activation_clip[:, 1], expected, rtol=0.02)
    assert not calibration.nonnegative.any()


def test_weights_that_are_not_finite_are_named():
    classifier, state, space, calibration, data = set_up(Linear())
    state.params["Dense_1"]["kernel"] *= np.nan
    for meter in (SensitivityMeter, FisherMeter):
        with pytest.raises(ValueError, match=r"'Dense_\d' at int2 is nan"):
            meter(classifier, state, space, calibration, data).row(1)


@pytest.mark.parametrize("meter", [SensitivityMeter, FisherMeter])
def test_no_batches_are_refused(meter):
    *things, _ = set_up(Linear())
    with pytest.raises(ValueError, match="at least one batch"):
        meter(*things, [])
