"""Statistics of the sites' inputs, carried out of a model as gradients.

An identity on a site's input takes zeros that ride in the params tree; the "gradient"
of those zeros is the statistic. So nothing is sown, and layers under `nn.scan` and
`nn.remat` report one by one. XLA drops the rest of the backward pass as dead code.
"""

import functools
import math
import typing
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import fp8_ops
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree, Shaped

from fliqs_jax.quantized_model.riding import FlatParams, SiteGroup, collect_rows

# float32 whose gradients accumulate by their maximum, not by their sum. Flax made it
# for the same need: ranges of a layer that runs several times.
_MAX_DTYPE = fp8_ops.fp32_max_grad
# Of a row, before its samples: calls, mean square, size, maximum, -minimum.
_NUM_STATISTICS = 5
SUMS, MAXIMA = "fliqs_jax_sums", "fliqs_jax_maxima"  # names of the riding leaves


@typing.no_type_check  # a pytree: tracing puts objects other than arrays in its fields
@flax.struct.dataclass
class Observations:
    """What the inputs of L sites looked like, before quantization.

    NaN at a site that did not run, or whose output does not reach the model's output
    through differentiable operations (as behind `stop_gradient`). Also where a site
    ran more often than its `calls` say.
    """

    absmax: Float[Array, "L"]  # over all calls
    maximum: Float[Array, "L"]  # over all calls
    minimum: Float[Array, "L"]  # over all calls
    mean_square: Float[Array, "L"]  # mean over calls
    size: Float[Array, "L"]  # number of values, mean over calls
    # Values of the input spread evenly over it, ascending. Of several calls: each order
    # statistic where it is largest in magnitude, so a quiet call hides no loud one.
    samples: Float[Array, "L S"]


def zero_leaves(groups: Sequence[SiteGroup], num_samples: int) -> FlatParams:
    """Returns the zeros that ride in: a row for sums, one for maxima where needed."""
    leaves = {}
    for group in groups:
        shape = group.leaf_shape(_NUM_STATISTICS + num_samples)
        leaves[group.leaf_path(SUMS)] = jnp.zeros(shape, jnp.float32)
        if group.calls > 1:
            leaves[group.leaf_path(MAXIMA)] = lax.full(
                group.leaf_shape(2 + 2 * num_samples), -np.inf, _MAX_DTYPE
            )
    return leaves


def read_leaves(leaves: FlatParams, groups: Sequence[SiteGroup]) -> Observations:
    """Turns the gradients of `zero_leaves` into Observations."""
    rows = collect_rows(leaves, groups, SUMS)
    calls, squares, sizes, maximum, negated_minimum = rows[:, :_NUM_STATISTICS].T
    samples = rows[:, _NUM_STATISTICS:]
    expected = np.repeat([g.calls for g in groups], [g.num_layers for g in groups])
    # The sums of extremes say nothing when a site ran more than once.
    valid = (calls > 0) & ((calls < 1.5) | (expected > 1))
    repeated = [group for group in groups if group.calls > 1]
    if repeated:
        paths = [group.leaf_path(MAXIMA) for group in repeated]
        maxima = {
            path: lax.convert_element_type(leaves[path], jnp.float32) for path in paths
        }
        extremes = collect_rows(maxima, repeated, MAXIMA)
        maximum = maximum.at[expected > 1].set(extremes[:, 0])
        negated_minimum = negated_minimum.at[expected > 1].set(extremes[:, 1])
        high, negated_low = jnp.split(extremes[:, 2:], 2, axis=1)
        loudest = jnp.where(high >= negated_low, high, -negated_low)
        samples = samples.at[expected > 1].set(loudest)
    calls = jnp.where(valid, calls, jnp.nan)
    return Observations(
        absmax=jnp.where(valid, jnp.maximum(maximum, negated_minimum), jnp.nan),
        maximum=jnp.where(valid, maximum, jnp.nan),
        minimum=jnp.where(valid, -negated_minimum, jnp.nan),
        mean_square=squares / calls,
        size=sizes / calls,
        samples=jnp.where(valid[:, None], samples, jnp.nan),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _carry_out(inputs, sums, maxima, repeated):
    del sums, maxima, repeated
    return inputs


def observe_inputs(
    inputs: list[Shaped[Array, "..."]],
    sums: Float[Array, "..."],
    maxima: Shaped[Array, "..."] | None,
) -> list[Shaped[Array, "..."]]:
    """Returns a site's inputs; the gradients of the others are their statistics."""
    return _carry_out(inputs, sums, maxima, maxima is not None)


def _carry_out_forward(inputs, sums, maxima, repeated):
    del maxima, repeated  # maxima is no residual: few operations know its dtype
    (x, *others) = inputs
    if others:  # one tensor to the statistics
        x = jnp.concatenate([x, *others], axis=-1)
    return inputs, (_statistics(x, sums), sums)


def _carry_out_backward(repeated, residuals, gradient):
    row = _like(*residuals)
    if not repeated:
        return gradient, row, None
    _, extremes, samples = jnp.split(row, [_NUM_STATISTICS - 2, _NUM_STATISTICS])
    maxima = jnp.concatenate([extremes, samples, -samples])
    return gradient, row, lax.convert_element_type(maxima, _MAX_DTYPE)


_carry_out.defvjp(_carry_out_forward, _carry_out_backward)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """Returns the mesh axes of `shard_map` over which any leaf of a tree varies."""
    types = [jax.typeof(leaf).manual_axis_type for leaf in jax.tree.leaves(tree)]
    return frozenset().union(*(manual.varying for manual in types))


def _like(row, primal):
    """Returns a row placed as the primal's: leading axis, same varying mesh axes."""
    missing = varying_axes(primal) - varying_axes(row)
    row = row.reshape(row.shape + (1,) * (primal.ndim - 1))
    return lax.pcast(row, tuple(missing), to="varying") if missing else row


@custom_vmap
def _statistics(x, sums):
    x = x.astype(jnp.float32)
    one, mean_square = jnp.ones((), jnp.float32), jnp.mean(jnp.square(x))
    size = jnp.full((), x.size, jnp.float32)
    numbers = jnp.stack([one, mean_square, size, jnp.max(x), jnp.max(-x)])
    positions = _spread_indices(x.size, sums.size - _NUM_STATISTICS)
    return jnp.concatenate([numbers, jnp.sort(x.reshape(-1)[positions])])


@_statistics.def_vmap
def _statistics_of_batch(axis_size, in_batched, x, sums):
    # nn.vmap over layers: each has its own zeros. Over examples: one site sees all.
    x_batched, rows_batched = in_batched
    if not rows_batched:
        return _statistics(x, sums), False
    function = jax.vmap(_statistics.fun, in_axes=(0 if x_batched else None, 0))
    return function(x, sums), True


def _spread_indices(size: int, count: int) -> np.ndarray:
    """Returns `count` positions spread over 0...size-1, repeated if there are fewer."""
    # A stride coprime to the size: one that shares a factor with the number of channels
    # would meet only some of them. Near the golden section, any count spreads evenly.
    stride = max(round(size * 0.618), 1)
    while math.gcd(stride, size) > 1:
        stride += 1
    return np.sort(np.arange(count, dtype=np.int64) * stride % size)
