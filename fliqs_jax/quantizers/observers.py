"""Ranges of tensors for post-training quantization, and the grids that cover them.

Four observers say which range of a tensor's values to represent; `affine_grid` makes of
a range, symmetric or not, a format and a scale. A zero point is no further number: an
integer format whose range is moved by it (a format is data), so whatever runs formats
runs these. Written for one tensor; `jax.vmap` for channels or sites.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from fliqs_jax.checks import check_within
from fliqs_jax.formats import Format
from fliqs_jax.quantizers.rounding import LARGEST_SCALE, SMALLEST_SCALE, round_to_grid
from fliqs_jax.quantizers.scales import (
    around_ratio,
    as_float32,
    clip_ratios,
    scale_of_bound,
    squared_error,
)

_CANDIDATES = 48  # of the first grid of clip ratios
_BINS = 512  # of a histogram
_SMOOTHING = 1e-6  # of a distribution, so that no quotient is infinite


class ValueRange(NamedTuple):
    """The values of a tensor to represent; zero is among them."""

    low: Float[Array, "*C"]  # not positive
    high: Float[Array, "*C"]  # not negative


# (tensor, format, symmetric, live, weights) -> range; see `minmax_range`. The last two
# may be left out.
Observer = Callable[..., ValueRange]


def affine_grid(
    values: ValueRange, fmt: Format, symmetric: Bool[ArrayLike, ""]
) -> tuple[Format, Float[Array, ""]]:
    r"""Returns a format and a scale that cover a range.

    .. math:: s = (high - low) / (2^b - 1), \quad z = \mathrm{round}(-low / s)

    for integers of b bits that need not be symmetric; the format then reaches from -z
    to 2^b - 1 - z and the scale is s. Zero is on the grid, whatever the range, and the
    error within it is at most s / 2. Otherwise the format stays, its largest value at
    the larger end of the range; and so do floats, which have no zero point. A range of
    zeros alone has scale 1. Where nothing is positive the format's largest value is 0.

    Args:
      values: low and high, scalars.
      fmt: one format, may be traced; signed and unsigned integers of as many bits are
        the same to an asymmetric grid.
      symmetric: whether zero stays where it is; may be traced.

    Returns:
      The format and the scale, positive.

    Reference:
      Jacob et al., Quantization and training for integer-arithmetic-only inference,
      2018, https://arxiv.org/abs/1712.05877

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> values = ValueRange(jnp.array(-1.0), jnp.array(2.0))
      >>> fmt, scale = affine_grid(values, parse_format("int2"), False)
      >>> (fmt.values() * scale).tolist()
      [-1.0, 0.0, 1.0, 2.0]
    """
    low, high = jnp.minimum(values.low, 0.0), jnp.maximum(values.high, 0.0)
    steps = jnp.asarray(fmt.max_value) - fmt.min_value
    # Only an integer's reach is of one step more below zero than above, or none below.
    integer = (jnp.asarray(fmt.max_value) + fmt.min_value == -1.0) | (
        jnp.asarray(fmt.min_value) == 0.0
    )
    step = jnp.clip((high - low) / steps, SMALLEST_SCALE, LARGEST_SCALE)
    zero = jnp.clip(jnp.round(-low / step), 0.0, steps)
    moved = integer & ~jnp.asarray(symmetric)
    bits = fmt.mantissa_bits + (jnp.asarray(fmt.min_value) < 0)
    grid = fmt.replace(
        mantissa_bits=jnp.where(moved, bits, fmt.mantissa_bits),
        min_exponent=jnp.where(moved, bits, fmt.min_exponent),
        min_value=jnp.where(moved, -zero, fmt.min_value),
        max_value=jnp.where(moved, steps - zero, fmt.max_value),
    )
    scale = scale_of_bound(jnp.maximum(high, -low), fmt)
    step = jnp.where((high > low) & jnp.isfinite(high - low), step, 1.0)
    return grid, jnp.where(moved, step, scale)


def minmax_range(
    x: Float[Array, "S"],
    fmt: Format,
    symmetric: Bool[ArrayLike, ""],
    live: Float[ArrayLike, ""] = 1.0,
    weights: Float[ArrayLike, "*S"] = 1.0,
) -> ValueRange:
    """Returns the range of all values.

    Args:
      x: the tensor's values; those that are not finite are left out.
      fmt: one format; makes no difference here.
      symmetric: whether the grid will be; makes no difference here.
      live: share of the entries of `x` that belong to the tensor, others being zeros
        (channels that a mask leaves out); makes no difference here.
      weights: how often each entry counts, as of samples among which are the extremes
        of a larger tensor; makes no difference here.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> low, high = minmax_range(jnp.array([1.0, 3.0]), parse_format("int8"), True)
      >>> float(low), float(high)
      (0.0, 3.0)
    """
    del fmt, symmetric, live, weights
    finite = jnp.where(jnp.isfinite(x), as_float32(x), 0.0)
    return ValueRange(
        jnp.min(finite, initial=0.0, axis=-1), jnp.max(finite, initial=0.0, axis=-1)
    )


def percentile_range(
    x: Float[Array, "S"],
    fmt: Format,
    symmetric: Bool[ArrayLike, ""],
    live: Float[ArrayLike, ""] = 1.0,
    weights: Float[ArrayLike, "*S"] = 1.0,
    *,
    percent: float | int = 99.9,
) -> ValueRange:
    """Returns the range without the outermost values, as many at either end.

    For a symmetric grid the percentile is one of magnitudes.

    Args:
      x: the tensor's values; those that are not finite are left out.
      fmt: one format; makes no difference here.
      symmetric: whether the grid will be.
      live: as in `minmax_range`; zeros beyond are not counted.
      weights: makes no difference here.
      percent: of the values to keep below the upper end, above 50 and at most 100;
        static.

    Raises:
      ValueError: if `percent` is out of range.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> x = jnp.arange(101.0)
      >>> float(percentile_range(x, parse_format("int8"), True, percent=90.0).high)
      90.0
    """
    del weights
    check_within("(50, 100]", percent=percent)
    x = jnp.where(jnp.isfinite(x), as_float32(x), jnp.nan)
    beyond = (100.0 - percent) * jnp.asarray(live)
    bound = jnp.nanpercentile(jnp.abs(x), 100.0 - beyond)
    low = jnp.where(symmetric, -bound, jnp.nanpercentile(x, beyond))
    high = jnp.where(symmetric, bound, jnp.nanpercentile(x, 100.0 - beyond))
    full = minmax_range(x, fmt, symmetric)
    return ValueRange(
        jnp.clip(jnp.nan_to_num(low), full.low, 0.0),
        jnp.clip(jnp.nan_to_num(high), 0.0, full.high),
    )


def mse_range(
    x: Float[Array, "S"],
    fmt: Format,
    symmetric: Bool[ArrayLike, ""],
    live: Float[ArrayLike, ""] = 1.0,
    weights: Float[ArrayLike, "*S"] = 1.0,
) -> ValueRange:
    """Returns the range of least squared quantization error, both ends drawn in alike.

    Zeros are on every grid, so they make no difference. Other arguments as in
    `minmax_range`; `fmt` and `symmetric` make the grid whose error counts.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> x = jnp.array([1.0] * 99 + [7.0])  # rather the ones than the outlier
      >>> print(f"{mse_range(x, parse_format('int2'), True).high:.1f}")
      1.1
    """
    del live
    x = as_float32(x)

    def error(values):
        errors = squared_error(x, *affine_grid(values, fmt, symmetric))
        return jnp.sum(weights * errors)

    return _least(error, minmax_range(x, fmt, symmetric))


def kl_range(
    x: Float[Array, "S"],
    fmt: Format,
    symmetric: Bool[ArrayLike, ""],
    live: Float[ArrayLike, ""] = 1.0,
    weights: Float[ArrayLike, "*S"] = 1.0,
) -> ValueRange:
    r"""Returns the range whose quantized histogram tells least apart from the original.

    .. math:: \sum_i p_i \log (p_i / q_i)

    p is the histogram of the values, those beyond the range counted at its ends; q what
    is left of those inside once all that round to one value are spread evenly over the
    bins they came from. Arguments as in `mse_range`; of the zeros, those beyond `live`
    are not counted.

    Reference:
      Migacz, 8-bit inference with TensorRT, 2017 (entropy calibration)
    """
    x = as_float32(x)
    full = minmax_range(x, fmt, symmetric)
    span = jnp.maximum(full.high - full.low, SMALLEST_SCALE)
    edge = full.low + span * jnp.arange(_BINS + 1) / _BINS
    centre = 0.5 * (edge[1:] + edge[:-1])
    finite = jnp.isfinite(x)
    index = jnp.clip(
        (jnp.where(finite, x, 0.0) - full.low) / span * _BINS, 0, _BINS - 1
    )
    counted = jnp.where(finite, weights, 0.0)
    counts = jnp.zeros(_BINS).at[index.astype(jnp.int32)].add(counted)
    at_zero = jnp.clip(-full.low / span * _BINS, 0, _BINS - 1).astype(jnp.int32)
    dead = (1.0 - jnp.asarray(live)) * counted.sum()
    counts = counts.at[at_zero].add(-jnp.minimum(dead, counts[at_zero]))

    def divergence(values):
        inside = (centre >= values.low) & (centre <= values.high)
        grid, scale = affine_grid(values, fmt, symmetric)
        rounded = round_to_grid(centre, grid, scale)
        kept = jnp.where(inside, counts, 0.0)
        # Bins ascend, and so do the values that they round to.
        new = jnp.concatenate([jnp.zeros(1, bool), rounded[1:] != rounded[:-1]])
        group = jnp.cumsum(new)
        filled = (kept > 0).astype(x.dtype)
        total, bins = (
            jax.ops.segment_sum(part, group, num_segments=_BINS)
            for part in (kept, filled)
        )
        spread = filled * (total / jnp.maximum(bins, 1.0))[group]
        first, last = jnp.argmax(inside), _BINS - 1 - jnp.argmax(inside[::-1])
        below = jnp.where(centre < values.low, counts, 0.0).sum()
        above = jnp.where(centre > values.high, counts, 0.0).sum()
        clipped = kept.at[first].add(below).at[last].add(above)
        p, q = (_smooth(part, inside) for part in (clipped, spread))
        return jnp.where(inside, p * (jnp.log(p) - jnp.log(q)), 0.0).sum()

    return _least(divergence, full)


OBSERVERS: Mapping[str, Observer] = types.MappingProxyType(
    {
        "minmax": minmax_range,
        "percentile": percentile_range,
        "mse": mse_range,
        "kl": kl_range,
    }
)


def _smooth(counts: Float[Array, "B"], inside: Bool[Array, "B"]) -> Float[Array, "B"]:
    share = counts / jnp.maximum(counts.sum(), 1.0) + _SMOOTHING
    return jnp.where(inside, share / jnp.where(inside, share, 0.0).sum(), 1.0)


def _least(
    error: Callable[[ValueRange], Float[Array, ""]], full: ValueRange
) -> ValueRange:
    """Returns the part of a range of least error, in two grids of clip ratios."""

    def best(ratios):
        errors = lax.map(
            lambda r: error(ValueRange(full.low * r, full.high * r)), ratios
        )
        return ratios[jnp.argmin(errors)]

    ratio = best(clip_ratios(_CANDIDATES))
    ratio = best(around_ratio(ratio, _CANDIDATES))
    return ValueRange(full.low * ratio, full.high * ratio)
