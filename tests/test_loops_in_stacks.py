"""Layers that run several times, in stacks: a site a layer, with its calls counted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.sites import find_sites


class Loop(nn.Module):
    """A layer that runs several times, as a recurrent cell does."""

    steps: int

    @nn.compact
    def __call__(self, x):
        def body(dense, carry, _):
            return jnp.tanh(dense(carry)), None

        scan = nn.scan(
            body, variable_broadcast="params", split_rngs={"params": False},
            length=self.steps,
        )  # fmt: skip
        return scan(nn.Dense(4), x, None)[0]


@pytest.mark.parametrize("layers, steps", [(3, 3), (3, 2), (2, 4)])
def test_calls_of_loops_in_a_stack_made_by_vmap(layers, steps):
    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.vmap(
                Loop, variable_axes={"params": 0}, split_rngs={"params": True},
                in_axes=None, axis_size=layers,
            )  # fmt: skip
            return stack(steps)(x).sum(axis=0)

    x = jnp.ones((2, 4))
    sites = find_sites(Experts(), x)
    assert len(sites) == layers
    assert [site.calls for site in sites] == [steps] * layers
    assert [site.macs for site in sites] == [steps * 16] * layers
    qm = QuantizedModel(Experts())
    seen = qm.observe(qm.init(jax.random.key(0), x), x, num_samples=8)
    assert np.isfinite(seen.absmax).all()


@pytest.mark.parametrize("layers, steps, examples", [(3, 1, 3), (3, 4, 3)])
def test_calls_of_a_scanned_stack_shared_over_examples(layers, steps, examples):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Loop(steps)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                Layer, variable_axes={"params": 0}, split_rngs={"params": True},
                length=layers,
            )  # fmt: skip
            return stack()(x, None)[0]

    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            mapped = nn.vmap(
                Stack, variable_axes={"params": None}, split_rngs={"params": False}
            )
            return mapped()(x)

    sites = find_sites(Shared(), jnp.ones((examples, 4)))
    assert [site.calls for site in sites] == [steps] * layers
