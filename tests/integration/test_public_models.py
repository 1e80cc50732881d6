"""Searches over public models: classifiers to the end, the others through its core."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public_models.attention import AttentionClassifier, MlpMixer, Transformer
from public_models.convolutional import (
    GroupNormConvNet,
    OwnContractions,
    PreActivationResNet,
    UNet,
)
from public_models.recurrent import LstmClassifier

import fliqs_jax as fq
from fliqs_jax.controller import default
from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.train.classifier import image_sites

CLASSIFIERS = {
    "pre-activation resnet": PreActivationResNet(axis_name="data"),
    "mixer": MlpMixer(),
    "attention classifier": AttentionClassifier(),
    "group norm, norms of weights": GroupNormConvNet(),
    "own contractions": OwnContractions(),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifier_is_searched_to_the_end_and_resumes(model, tmp_path):
    data = fq.load_dataset("digits")
    sites = image_sites(model, data.train.image_shape)
    arguments = {
        "model": model,
        "dataset": data,
        "space": fq.SearchSpace(sites, ["int2", "int4", "int8"]),
        "workdir": str(tmp_path / "run"),
        "cost_target": 0.3,
        "job": fq.JobSettings(steps=16, batch_size=16, evaluate_every=16),
        "optimizer": fq.OptimizerSettings(name="adamw", learning_rate=3e-3),
        "say": lambda line: None,
    }
    result = fq.search_formats(**arguments)
    assert set(result.policy) == {site.path for site in sites}
    reference = fq.bops(sites, fq.Policy.uniform(sites, "int8"))
    assert fq.bops(sites, result.policy) == result.cost <= 0.3 * reference
    assert np.isfinite(result.summary["loss"])
    assert fq.search_formats(**arguments) == result
    network = fq.load_network(result.workdir, model)
    hits = np.asarray(jax.jit(network)(data.test.images)).argmax(1) == data.test.labels
    assert hits.mean() == pytest.approx(result.accuracy, abs=1e-6)


@dataclasses.dataclass(frozen=True)
class Task:
    """A model that is no image classifier, data for it, and its loss."""

    model: nn.Module
    inputs: tuple[jax.Array, ...]
    targets: jax.Array
    loss: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, targets


def token_loss(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def squared_error(images, targets):
    return jnp.square(images - targets).mean()


def tasks() -> dict[str, Task]:
    key = jax.random.key(0)
    tokens = jax.random.randint(key, (16, 5), 1, 11)
    images = jax.random.normal(key, (8, 8, 8, 1))
    series = jax.random.normal(key, (32, 5, 4))
    rising = (series[:, -1, 0] > series[:, 0, 0]).astype(jnp.int32)
    edges = images - jnp.roll(images, 1, axis=1)
    return {
        # Four features, as in the contract, are too few to learn ten words in 60 steps.
        "copies tokens": Task(
            Transformer(vocabulary=11, features=8), (tokens, tokens), tokens, token_loss
        ),
        "image to images": Task(
            UNet(), (images,), jnp.concatenate([images, edges], -1), squared_error
        ),
        "reads a series": Task(LstmClassifier(), (series,), rising, token_loss),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copies tokens", "image to images", "reads a series"])
def test_core_of_a_search_runs_on_other_tasks(name):
    task = tasks()[name]
    quantized = fq.QuantizedModel(task.model)
    space = fq.SearchSpace(quantized.sites(*task.inputs), ["int3", "int5", "int8"])
    costs = cost_table(space, site_bops)
    target, steps = 0.4 * costs.reference("int8"), 60
    controller = default(
        lambda chances: costs.expected(chances) / target,
        warmup_steps=4,
        end_step=steps - 10,
        num_samples=2,
    )
    adam = optax.adam(2e-2)
    params = jax.jit(quantized.init)(jax.random.key(1), *task.inputs)["params"]
    logits = jnp.zeros((space.num_decisions, space.num_options))
    state = (params, adam.init(params), controller.init(logits))
    traces = []

    @jax.jit
    def step(state, number):
        traces.append(number)
        params, opt_state, controlled = state
        key = jax.random.fold_in(jax.random.key(2), number)
        samples = controller.sample(key, controlled)

        @jax.jit
        def loss(params, options):
            outputs = quantized.apply(
                {"params": params}, *task.inputs, policy=space.formats(options)
            )
            return task.loss(outputs, task.targets)

        first, gradient = jax.value_and_grad(loss)(params, samples[0])
        losses = jnp.stack([first, loss(params, samples[1])])
        controlled, metrics = controller.update(
            controlled, samples, losses, step=number
        )
        updates, opt_state = adam.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, controlled), (first, metrics["cost_ratio"])

    losses = []
    for number in range(steps):
        state, (loss, ratio) = step(state, jnp.asarray(number))
        losses.append(float(loss))
    assert len(traces) == 1
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert ratio == pytest.approx(1.0, abs=0.05)
