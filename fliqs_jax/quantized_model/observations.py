"""Statistics of the sites' inputs, carried out of a model as gradients.

An identity on a site's input takes zeros that ride in the params tree; the "gradient"
of those zeros is the statistic. So nothing is sown, and layers under `nn.scan` and
`nn.remat` report one by one. XLA drops the rest of the backward pass as dead code.
"""

import math
import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import fp8_ops
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree, Shaped

# float32 whose gradients accumulate by their maximum, not by their sum. Flax made it
# for the same need: ranges of a layer that runs several times.
MAX_DTYPE = fp8_ops.fp32_max_grad


@typing.no_type_check  # a pytree: tracing puts objects other than arrays in its fields
@flax.struct.dataclass
class Observations:
    """What the inputs of L sites looked like, before quantization.

    NaN at a site that did not run, or whose output does not reach the model's output
    through differentiable operations (as behind `stop_gradient`).
    """

    absmax: Float[Array, "L"]  # over all calls
    minimum: Float[Array, "L"]  # over all calls
    mean_square: Float[Array, "L"]  # mean over calls
    # Values of the input spread evenly over it, ascending. Of several calls: the mean
    # of each order statistic.
    samples: Float[Array, "L S"]


def zero_rows(num_sites: int, num_samples: int) -> tuple[Array, Array]:
    """Returns what rides in: rows for maxima [L, 2] and for sums [L, 2 + S]."""
    maxima = lax.full((num_sites, 2), -np.inf, MAX_DTYPE)
    return maxima, jnp.zeros((num_sites, 2 + num_samples), jnp.float32)


def read_rows(maxima: Shaped[Array, "L 2"], sums: Float[Array, "L P"]) -> Observations:
    """Turns the gradients of `zero_rows` into Observations."""
    maxima = lax.convert_element_type(maxima, jnp.float32)
    calls = jnp.where(sums[:, :1] > 0, sums[:, :1], jnp.nan)
    seen = calls[:, 0] > 0
    means = sums[:, 1:] / calls
    return Observations(
        absmax=jnp.where(seen, maxima[:, 0], jnp.nan),
        minimum=jnp.where(seen, -maxima[:, 1], jnp.nan),
        mean_square=means[:, 0],
        samples=means[:, 1:],
    )


@jax.custom_vjp
def observe_input(
    x: Shaped[Array, "*S"], maxima: Shaped[Array, "..."], sums: Float[Array, "..."]
) -> Shaped[Array, "*S"]:
    """Returns x; the gradients of the other two are the statistics of x."""
    del maxima, sums
    return x


def _observe_forward(x, maxima, sums):
    return x, (_statistics(x, maxima, sums), maxima, sums)


def _observe_backward(residuals, gradient):
    (extremes, totals), maxima, sums = residuals
    extremes = lax.convert_element_type(extremes, MAX_DTYPE)
    return gradient, _like(extremes, maxima), _like(totals, sums)


observe_input.defvjp(_observe_forward, _observe_backward)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """Returns the mesh axes of `shard_map` over which any leaf of a tree varies."""
    types = [jax.typeof(leaf).manual_axis_type for leaf in jax.tree.leaves(tree)]
    return frozenset().union(*(manual.varying for manual in types))


def _like(value, primal):
    """Returns a gradient in its primal's shape, varying over the same mesh axes."""
    missing = varying_axes(primal) - varying_axes(value)
    value = value.reshape(primal.shape)
    return lax.pcast(value, tuple(missing), to="varying") if missing else value


@custom_vmap
def _statistics(x, maxima, sums):
    del maxima
    x = x.astype(jnp.float32)
    extremes = jnp.stack([jnp.max(jnp.abs(x)), jnp.max(-x)])
    samples = jnp.sort(x.reshape(-1)[_spread_indices(x.size, sums.size - 2)])
    means = jnp.stack([jnp.ones((), jnp.float32), jnp.mean(jnp.square(x))])
    return extremes, jnp.concatenate([means, samples])


@_statistics.def_vmap
def _statistics_of_batch(axis_size, in_batched, x, maxima, sums):
    # nn.vmap over layers: each has its own zeros. Over examples: one site sees all.
    x_batched, rows_batched, _ = in_batched
    if not rows_batched:
        return _statistics(x, maxima, sums), (False, False)
    function = jax.vmap(_statistics.fun, in_axes=(0 if x_batched else None, 0, 0))
    return function(x, maxima, sums), (True, True)


def _spread_indices(size: int, count: int) -> np.ndarray:
    """Returns `count` positions spread over 0...size-1, repeated if there are fewer."""
    # A stride coprime to the size: one that shares a factor with the number of channels
    # would meet only some of them. Near the golden section, any count spreads evenly.
    stride = max(round(size * 0.618), 1)
    while math.gcd(stride, size) > 1:
        stride += 1
    return np.sort(np.arange(count, dtype=np.int64) * stride % size)
