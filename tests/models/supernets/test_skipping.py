"""Dead layers left out: the same results, and nothing computed for them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_supernets import (
    QUICK_FAMILIES,
    random_choice,
    random_images,
    random_variables,
    small_supernet,
)

from fliqs_jax.models.supernets import skip_dead_layers
from fliqs_jax.training_mode import training_keywords


def forward(net, variables, images):
    """A function of masked params: statistics, and logits' sum and its gradient."""
    train = training_keywords(type(net.model).__call__, train=True)

    def loss(params):
        state = {**variables, "params": params}
        logits, state = net.model.apply(state, images, mutable=["batch_stats"], **train)
        return (logits * jnp.arange(logits.size).reshape(logits.shape)).sum(), state

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_network_without_its_dead_layers_is_the_masked_one(family):
    net = small_supernet(family)
    variables, images = random_variables(net), random_images(net)
    plain, skipping = (forward(net, variables, images) for _ in range(2))
    for choice in [net.smallest, random_choice(net, 0), net.full]:
        masked = net.mask(variables["params"], choice)
        wanted, gradient = plain(masked)
        with skip_dead_layers():
            found, own_gradient = skipping(masked)
        # Only what is live has a gradient that anyone takes.
        gradients = [net.mask(each, choice) for each in (gradient, own_gradient)]
        for a, b in zip(
            jax.tree.leaves((found, gradients[1])),
            jax.tree.leaves((wanted, gradients[0])),
            strict=True,
        ):
            largest = float(jnp.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest)


class Counted(nn.Module):
    """Two dense layers that tell when they are run."""

    tell: Callable[[], None]

    @nn.compact
    def __call__(self, x):
        def dot_general(*args, **kwargs):
            jax.debug.callback(self.tell)
            return jax.lax.dot_general(*args, **kwargs)

        x = nn.Dense(3, dot_general=dot_general)(x)
        return nn.Dense(3, dot_general=dot_general)(inputs=x)


@pytest.mark.parametrize(
    "kernels, biases, runs",
    [
        ((1, 1), (0, 0), 2),
        ((1, 0), (1, 0), 1),
        ((0, 0), (0, 0), 0),
        ((0, 1), (1, 1), 2),
    ],
)
def test_only_layers_of_zeros_are_left_out(kernels, biases, runs):
    calls = []
    model, x = Counted(lambda: calls.append(1)), jnp.ones((2, 3))
    params = {
        f"Dense_{n}": {"kernel": jnp.full((3, 3), float(k)), "bias": jnp.full(3, b)}
        for n, (k, b) in enumerate(zip(kernels, np.float32(biases), strict=True))
    }
    wanted = model.apply({"params": params}, x)
    jax.effects_barrier()
    calls.clear()
    with skip_dead_layers():
        found = jax.jit(model.apply)({"params": params}, x)
    jax.effects_barrier()
    assert len(calls) == runs
    assert (found == wanted).all()


def test_variables_are_initialised_all_the_same():
    model, x = nn.Dense(2), jnp.ones((1, 3))
    with skip_dead_layers():
        made = model.init(jax.random.key(0), x)
    assert (made["params"]["kernel"] != 0).all()
