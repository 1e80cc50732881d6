"""Where a scale comes from: absmax, percentile, least squared error, running mean.

Learned scales are in `learned`, per-format clip factors in `clips`, shared
power-of-two scales in `blocks`. No gradient flows through any scale of this module's
when `fake_quantize` uses it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Num

from fliqs_jax.checks import check_at_least, check_within
from fliqs_jax.formats import Format
from fliqs_jax.quantizers.rounding import LARGEST_SCALE, SMALLEST_SCALE, round_to_grid


def as_float32(x: Num[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """Returns x as float32; an integer or complex x is a TypeError naming the cure."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x must be a floating-point array, got {x.dtype}: "
            "convert it first, x.astype(jnp.float32)"
        )
    return x.astype(jnp.float32)


def reduced_axes(ndim: int, axis: int | Sequence[int] | None):
    """Returns the axes to reduce over when those of `axis` keep a scale each."""
    if axis is None:
        return None
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"axis {axis} is out of range for an array of {ndim} axes")
    kept = {a % ndim for a in axes}
    return tuple(a for a in range(ndim) if a not in kept)


def scale_of_bound(bound: Num[ArrayLike, "*C"], fmt: Format) -> Float[Array, "*C"]:
    r"""Turns the magnitude that a format must reach into a scale.

    .. math:: s = bound / v_{max}

    Rounded so that s * v_max is never below the bound: the largest element keeps its
    straight-through gradient.

    Args:
      bound: largest magnitude to represent, in the tensor's units. Shape [*C].
      fmt: one format, scalar fields, may be traced.

    Returns:
      The scale, float32, within [2**-100, 2**126]. It is 1 where the bound is zero or
      not finite, and for formats that need no scale (bf16, fp16, fp32).

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> float(scale_of_bound(3.5, parse_format("int4")))
      0.5
    """
    bound = jnp.asarray(bound, jnp.float32)
    max_value = jnp.asarray(fmt.max_value)
    # The barrier keeps XLA from replacing the division by a constant's reciprocal,
    # which would make jit differ from eager in the last bit.
    scale = bound / lax.optimization_barrier(max_value)
    next_scale = lax.bitcast_convert_type(
        lax.bitcast_convert_type(scale, jnp.int32) + 1, jnp.float32
    )
    scale = jnp.where(scale * max_value < bound, next_scale, scale)
    scale = jnp.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)
    usable = jnp.asarray(fmt.needs_scale) & (bound > 0) & jnp.isfinite(bound)
    return jnp.where(usable, scale, 1.0)


def absmax_bound(
    x: Num[ArrayLike, "*S"], *, axis: int | Sequence[int] | None = None
) -> Float[Array, "..."]:
    """Returns the largest finite magnitude, zero if there is none; see `absmax`."""
    x = as_float32(x)
    magnitude = jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0)
    axes = reduced_axes(x.ndim, axis)
    return jnp.max(magnitude, axis=axes, keepdims=axis is not None, initial=0.0)


def absmax(
    x: Num[ArrayLike, "*S"], fmt: Format, *, axis: int | Sequence[int] | None = None
) -> Float[Array, "..."]:
    r"""Returns the scale that maps the largest magnitude onto the largest value.

    .. math:: s = \max |x| / v_{max}

    Entries that are not finite are left out, so one infinity does not empty the grid.

    Args:
      x: the tensor, any floating type.
      fmt: one format, may be traced.
      axis: axes that keep a scale each, such as -1 for one scale per output channel;
        None is one scale for the tensor.

    Returns:
      The scale, float32; shape [] for `axis=None`, else x's shape with 1 for the other
      axes, so that it broadcasts. 1 for all-zero slices.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if an axis is out of range.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> absmax(jnp.array([[1.0, -7.0], [0.0, 0.0]]), parse_format("int4"), axis=0)
      Array([[1.],
             [1.]], dtype=float32)
    """
    return scale_of_bound(absmax_bound(x, axis=axis), fmt)


def percentile(
    x: Num[ArrayLike, "*S"],
    fmt: Format,
    *,
    percent: float | int = 99.9,
    axis: int | Sequence[int] | None = None,
) -> Float[Array, "..."]:
    r"""Returns the scale that maps a percentile of |x| onto the largest value.

    .. math:: s = \mathrm{percentile}_p(|x|) / v_{max}

    Args:
      x: the tensor, any floating type; entries that are not finite are left out.
      fmt: one format, may be traced.
      percent: p, above 0 and at most 100; static.
      axis: axes that keep a scale each, as in `absmax`.

    Returns:
      The scale, float32, shaped as in `absmax`.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if `percent` or an axis is out of range.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> float(percentile(jnp.arange(-7.0, 8.0), parse_format("int4"), percent=100))
      1.0
    """
    check_within("(0, 100]", percent=percent)
    x = as_float32(x)
    axes = reduced_axes(x.ndim, axis)
    if not x.size:
        return absmax(x, fmt, axis=axis)
    magnitude = jnp.where(jnp.isfinite(x), jnp.abs(x), jnp.nan)
    bound = jnp.nanpercentile(magnitude, percent, axis=axes, keepdims=axis is not None)
    return scale_of_bound(bound, fmt)


def clip_ratios(num_candidates: int) -> Float[Array, "N"]:
    """Returns clip candidates as fractions of absmax, geometric, 1 down to 1/32."""
    return jnp.asarray(np.geomspace(1.0, 1.0 / 32.0, num_candidates), jnp.float32)


def around_ratio(
    ratio: Float[Array, "*C"],
    num_candidates: int,
    *,
    most: Float[ArrayLike, ""] = 1.0,
) -> Float[Array, "N *C"]:
    """Returns a ratio, then 15 between its two neighbours in `clip_ratios`."""
    spacing = 32.0 ** (1.0 / (num_candidates - 1))
    factors = spacing ** np.linspace(-1.0, 1.0, 15)
    factors = np.concatenate([[1.0], factors]).astype(np.float32)  # ties keep `ratio`
    factors = factors.reshape((-1,) + (1,) * ratio.ndim)
    return jnp.minimum(ratio[None] * factors, most)


def squared_error(
    x: Float[Array, "*S"], fmt: Format, scale: Float[Array, "..."]
) -> Float[Array, "*S"]:
    """Returns (quantized - x)**2 per element, float32, zero where x is not finite."""
    error = round_to_grid(x, fmt, scale) - x
    return jnp.where(jnp.isfinite(x), error * error, 0.0)


def mse_optimal(
    x: Num[ArrayLike, "*S"],
    fmt: Format,
    *,
    axis: int | Sequence[int] | None = None,
    num_candidates: int = 48,
) -> Float[Array, "..."]:
    r"""Returns the scale of least squared quantization error.

    .. math:: s = \arg\min_{s'} \sum_i (s' \, Q(x_i / s') - x_i)^2

    Searches clip bounds between absmax and absmax / 32: a geometric grid, then a finer
    one around its best. Float formats have local optima within a factor of two, which
    the first grid has to tell apart. Each candidate is one fused pass over x.

    Args:
      x: the tensor, any floating type; entries that are not finite are left out.
      fmt: one format, may be traced.
      axis: axes that keep a scale each, as in `absmax`.
      num_candidates: bounds in the first grid, at least 2; static. The second has 16.

    Returns:
      The scale, float32, shaped as in `absmax`.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if `num_candidates` or an axis is out of range.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> x = jnp.array([1.0] * 99 + [7.0])  # rather the ones than the outlier
      >>> print(f"{mse_optimal(x, parse_format('int2')):.2f}")
      1.06
    """
    check_at_least(2, num_candidates=num_candidates)
    x = as_float32(x)
    axes = reduced_axes(x.ndim, axis)
    bound = absmax_bound(x, axis=axis)

    def best(ratios):  # [N, *C] -> [*C]
        def error(ratio):
            per_element = squared_error(x, fmt, scale_of_bound(bound * ratio, fmt))
            return jnp.sum(per_element, axis=axes, keepdims=axis is not None)

        index = jnp.argmin(lax.map(error, ratios), axis=0)
        return jnp.take_along_axis(ratios, index[None], axis=0)[0]

    coarse = clip_ratios(num_candidates).reshape((-1,) + (1,) * bound.ndim)
    ratio = best(jnp.broadcast_to(coarse, (num_candidates, *bound.shape)))
    ratio = best(around_ratio(ratio, num_candidates))
    return scale_of_bound(bound * ratio, fmt)


class EmaState(NamedTuple):
    """Running mean of a bound: the biased mean and the weight that it has seen."""

    mean: Float[Array, "*C"]
    weight: Float[Array, "*C"]  # 1 - decay**updates


def init_ema(shape: Sequence[int] = ()) -> EmaState:
    """Returns the state before any observation, for bounds of a shape."""
    return EmaState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def update_ema(
    state: EmaState, bound: Num[ArrayLike, "*C"], *, decay: float = 0.99
) -> tuple[Float[Array, "*C"], EmaState]:
    r"""Updates an exponential moving average of bounds, debiased at its start.

    .. math:: m_t = d \, m_{t-1} + (1 - d) \, b_t, \quad \bar b_t = m_t / (1 - d^t)

    Args:
      state: what `init_ema` or the last update returned.
      bound: b, this step's bound, such as `absmax_bound(x)`; skipped if not finite.
      decay: d, in [0, 1).

    Returns:
      The averaged bound (pass it to `scale_of_bound`) and the next state.

    Raises:
      ValueError: if `decay` is out of range.

    Example:
      >>> bound, state = update_ema(init_ema(), 4.0)
      >>> float(bound)
      4.0
    """
    check_within("[0, 1)", decay=decay)
    bound = jnp.asarray(bound, jnp.float32)
    seen = jnp.isfinite(bound)
    step = jnp.where(seen, 1.0 - decay, 0.0)
    # The difference form holds a constant bound to the last bit.
    mean = state.mean + step * (jnp.where(seen, bound, 0.0) - state.mean)
    weight = state.weight + step * (1.0 - state.weight)
    debiased = jnp.where(weight > 0, mean / jnp.maximum(weight, 2.0**-100), 0.0)
    return debiased, EmaState(mean, weight)
