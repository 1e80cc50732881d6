"""Traces of Hessian and Fisher against closed forms, and against each other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fliqs_jax.data import batches as make_batches
from fliqs_jax.data import load_dataset
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.searchers.sensitivities.hutchinson import (
    fisher_traces,
    hessian_traces,
    probed_diagonal,
)
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train.classifier import Classifier, image_sites
from fliqs_jax.train.losses import cross_entropy


class Linear(nn.Module):
    """logits = x A B."""

    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        x = nn.Dense(5, use_bias=False)(x)
        return nn.Dense(4, use_bias=False)(x)


def set_up(model, *, shape=(1, 1, 3), sizes=(8, 4)):
    """Returns what the estimates take, with random weights and images."""
    random = np.random.default_rng(0)
    sites = image_sites(model, shape)
    classifier = Classifier(
        quantized=QuantizedModel(model, sites=sites, per_channel=True),
        mean=(0.25,) * shape[-1],
        std=(0.5,) * shape[-1],
    )
    data = [
        {
            "image": random.integers(0, 256, (size, *shape), dtype=np.uint8),
            "label": random.integers(0, 4, size).astype(np.int32),
        }
        for size in sizes
    ]
    state = TrainedState(*classifier.init(jax.random.key(0), data[0]["image"]))
    return classifier, state, sites, data


def by_hand(state, data):
    """Traces of Hessian and Fisher of the linear network, in float64, by formula.

    With P = diag(p) - p p', the Hessian of the loss in its logits: for logits = h B the
    trace over B is |h|^2 tr P, for h = x A that over A is |x|^2 tr B P B'. The Fisher's
    are squares of x (B g)' and h g', g = p - e_y.
    """
    a, b = (np.asarray(state.params[f"Dense_{n}"]["kernel"], float) for n in (0, 1))
    hessian, fisher = np.zeros(2), np.zeros(2)
    images = np.concatenate([batch["image"] for batch in data])
    labels = np.concatenate([batch["label"] for batch in data])
    for x, label in zip((images / 255.0 - 0.25) / 0.5, labels, strict=True):
        x = x.reshape(-1)
        logits = x @ a @ b
        p = np.exp(logits) / np.exp(logits).sum()
        curvature, g = np.diag(p) - np.outer(p, p), p - np.eye(4)[label]
        hessian += [(x @ x) * np.trace(b @ curvature @ b.T),
                    ((x @ a) ** 2).sum() * np.trace(curvature)]  # fmt: skip
        fisher += [(x @ x) * ((b @ g) ** 2).sum(), ((x @ a) ** 2).sum() * (g @ g)]
    return hessian / len(images), fisher / len(images)


def test_probes_of_a_quadratic_average_to_its_trace():
    random = np.random.default_rng(1)
    root = random.normal(size=(6, 6))
    curvature = root + root.T  # indefinite, with off-diagonals
    loss = lambda w: 0.5 * w @ curvature @ w + w.sum()  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 4000)
    weights = jnp.asarray(random.normal(size=6), jnp.float32)
    probe = lambda key: probed_diagonal(loss, weights, key).sum()  # noqa: E731
    sums = jax.jit(jax.vmap(probe))(keys)
    # The variance of v'Hv over random signs is twice the squared off-diagonals.
    off = curvature - np.diag(np.diag(curvature))
    deviation = np.sqrt(2 * (off**2).sum())
    error = abs(sums.mean() - np.trace(curvature))
    assert error < 3 * deviation / np.sqrt(len(keys))
    assert sums.std() == pytest.approx(deviation, rel=0.05)


def test_traces_are_those_of_the_formula():
    things = set_up(Linear())
    _, state, _, data = things
    hessian, fisher = by_hand(state, data)
    found = hessian_traces(*things, tolerance=0.0, most_probes=400)
    assert found.probes == 400 and not found.converged
    assert (abs(found.traces - hessian) < 4 * found.standard_errors).all()
    assert (found.standard_errors < 0.2 * hessian).all()
    np.testing.assert_allclose(
        fisher_traces(*things, examples_at_once=8), fisher, rtol=1e-4
    )


def test_estimate_stops_when_no_mean_changes_and_repeats_itself():
    *things, data = set_up(Linear(), sizes=(12,))
    first = hessian_traces(*things, data, tolerance=0.05, seed=1)
    assert first.converged and 10 <= first.probes < 100
    again = hessian_traces(*things, data, tolerance=0.05, seed=1)
    assert (again.traces == first.traces).all() and again.probes == first.probes
    few = hessian_traces(*things, data, most_probes=2, seed=2)
    assert few.probes == 2 and not few.converged


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


@pytest.mark.slow
def test_scanned_layers_have_traces_of_their_own():
    classifier, state, sites, data = things = set_up(Scanned(), sizes=(6,))
    assert [site.path for site in sites] == [
        "layers/Dense_0[0]", "layers/Dense_0[1]", "Dense_0",
    ]  # fmt: skip

    def loss(kernels, layer):
        stack = dict(state.params["layers"]["Dense_0"])
        stack["kernel"] = stack["kernel"].at[layer].set(kernels)
        params = {**state.params, "layers": {"Dense_0": stack}}
        logits = classifier.predict(params, {}, data[0]["image"], formats=None)
        return cross_entropy(logits, jnp.asarray(data[0]["label"])).mean()

    kernels = state.params["layers"]["Dense_0"]["kernel"]
    expected = [
        np.trace(np.asarray(jax.hessian(loss)(kernels[n], n)).reshape(9, 9))
        for n in range(2)
    ]
    found = hessian_traces(*things, tolerance=0.0, most_probes=400)
    errors = abs(found.traces[:2] - expected)
    assert (errors < 4 * found.standard_errors[:2]).all()
    assert (found.standard_errors[:2] < 0.5 * np.abs(expected)).all()


@pytest.mark.parametrize("estimate", [hessian_traces, fisher_traces])
def test_wrong_arguments_are_named(estimate):
    *things, data = set_up(Linear(), sizes=(4,))
    with pytest.raises(ValueError, match="at least one batch"):
        estimate(*things, [])
    state = things[1]
    state.params["Dense_1"]["kernel"] *= np.nan
    with pytest.raises(ValueError, match=r"trace of 'Dense_\d' is nan"):
        estimate(*things, data)


def test_wrong_numbers_are_named():
    things = set_up(Linear())
    with pytest.raises(ValueError, match="most_probes must be at least 2, got 1"):
        hessian_traces(*things, most_probes=1)
    with pytest.raises(ValueError, match="tolerance must not be negative, got -1"):
        hessian_traces(*things, tolerance=-1.0)
    with pytest.raises(ValueError, match="examples_at_once .* got 0"):
        fisher_traces(*things, examples_at_once=0)


class Small(nn.Module):
    """Seven sites of different sizes for 8x8 images."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        for channels, stride in ((4, 1), (8, 2), (8, 1), (12, 2)):
            x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x.mean((1, 2))
        for features in (32, 16):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


@pytest.mark.slow
def test_hessian_and_fisher_of_a_trained_network_agree_on_the_order():
    digits = load_dataset("digits")
    model, shape = Small(), (8, 8, 1)
    sites = image_sites(model, shape)
    classifier = Classifier(
        quantized=QuantizedModel(model, sites=sites, per_channel=True),
        mean=tuple(digits.mean.tolist()),
        std=tuple(digits.std.tolist()),
    )
    source = make_batches(digits.train, batch_size=64, seed=0)
    params, model_state = classifier.init(
        jax.random.key(0), np.zeros((1, *shape), np.uint8)
    )
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, model_state, moments, images, labels):
        def loss(params):
            logits, new_state = classifier.train_forward(
                params, model_state, classifier.normalise(images), formats=None
            )
            return cross_entropy(logits, labels).mean(), new_state

        grads, new_state = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), new_state, moments

    moments = optimizer.init(params)
    for number in range(200):
        batch = source.batch(number)
        params, model_state, moments = step(
            params, model_state, moments, batch["image"], batch["label"]
        )
    state = TrainedState(params, model_state)
    data = [source.batch(300)]
    logits = classifier.predict(params, model_state, data[0]["image"], formats=None)
    assert (logits.argmax(-1) == data[0]["label"]).mean() > 0.95
    hessian = hessian_traces(classifier, state, sites, data, most_probes=40)
    fisher = fisher_traces(classifier, state, sites, data)
    assert (hessian.traces > 0).all()
    assert stats.spearmanr(hessian.traces, fisher).statistic >= 0.7
