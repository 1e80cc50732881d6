"""Every family of networks learns: the loss falls on a small batch of real images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets

from fliqs_jax import models

# Fields, side of the images and steps: narrow, small and few.
NETWORKS = {
    "lenet5": ({"width": 8, "hidden": 32}, 8, 40),
    "deit_tiny": ({"dim": 64, "num_layers": 2, "patch_size": 8}, 32, 12),
    "resnet8": ({"width": 8}, 16, 12),
    "nasbench201": ({"width": 8, "num_cells": 1}, 16, 12),
    "darts": ({"channels": 4, "layers": 3}, 16, 20),
    "resnet18": ({"width": 0.125}, 32, 12),
    "resnet50": ({"width": 0.125, "num_blocks": (1, 1, 1, 1)}, 32, 12),
    "mobilenet_v2": ({"width": 0.25}, 32, 20),
    "efficientnet_b0": ({"width": 0.25}, 32, 20),
    "inception_v3": ({"width": 0.125}, 75, 24),
}
QUICK = ("lenet5", "deit_tiny")


def digits(side, count=32):
    found = sklearn.datasets.load_digits()
    images = found.images[:count, :, :, None].astype(np.float32) / 8.0 - 1.0
    images = jax.image.resize(images, (count, side, side, 1), "linear")
    return images, jnp.asarray(found.target[:count])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_loss_falls_on_a_small_real_batch(name):
    fields, side, steps = NETWORKS[name]
    model = models.create_model(name, num_classes=10, **fields)
    images, labels = digits(side)
    variables = dict(jax.jit(model.init)(jax.random.key(0), images))
    params = variables.pop("params")
    optimizer = optax.adam(3e-3)
    memory = optimizer.init(params)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, state):
        logits, state = model.apply(
            {"params": params, **state}, images, train=True, mutable=list(state)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    @jax.jit
    def step(params, state, memory):
        (value, state), gradients = loss(params, state)
        updates, memory = optimizer.update(gradients, memory)
        return optax.apply_updates(params, updates), state, memory, value

    values = []
    for _ in range(steps):
        params, variables, memory, value = step(params, variables, memory)
        values.append(float(value))
    assert np.isfinite(values).all()
    assert values[-1] < 0.6 * values[0], values
