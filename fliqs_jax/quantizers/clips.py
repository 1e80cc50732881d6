"""Switchable clip factors: where to clip, for every format at once.

A search shares one copy of the weights among formats whose best clips differ widely,
so it keeps a bound per site and format. The scale of a bound is `scale_of_bound`'s.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float, Num

from fliqs_jax.formats import Format
from fliqs_jax.quantizers.scales import (
    absmax_bound,
    around_ratio,
    clip_ratios,
    scale_of_bound,
    squared_error,
)

_CANDIDATES = 48  # of the coarse grid, 8 % apart; 1 % in the finer one
_BEYOND = 12  # further ones, up to an extreme that the samples lack
_GAUSSIAN_POINTS = 2**14
_LARGEST_FACTOR = 8.0


def _check_stacked(formats: Format) -> None:
    if len(shape := np.shape(formats.max_value)) != 1:
        raise ValueError(
            f"formats must have one leading axis K, got {shape}: use stack_formats"
        )


def _least_error_ratios(
    error: Callable[[Format, Float[Array, ""]], Float[Array, ""]],
    formats: Format,
    most: Float[Array, ""] | None = None,
) -> Float[Array, "K"]:
    """Returns for every format the ratio in [1/32, 1] of least error, in two grids.

    Args:
      error: of a format at a ratio.
      formats: K formats.
      most: a larger ratio, up to which to look as well.
    """

    def best(ratios):  # [N, K] -> [K]
        errors = lax.map(lambda row: jax.vmap(error)(formats, row), ratios)
        index = jnp.argmin(errors, axis=0)
        return jnp.take_along_axis(ratios, index[None], axis=0)[0]

    coarse = clip_ratios(_CANDIDATES)
    if most is not None:
        beyond = most ** (jnp.arange(1, _BEYOND + 1) / _BEYOND)
        coarse = jnp.concatenate([coarse, beyond])
    ratio = best(jnp.broadcast_to(coarse[:, None], (len(coarse), len(formats))))
    return best(around_ratio(ratio, _CANDIDATES, most=1.0 if most is None else most))


def best_clips(
    samples: Float[Array, "S"],
    formats: Format,
    *,
    absmax: Float[Array, ""] | None = None,
    size: Num[ArrayLike, ""] = math.inf,
) -> Float[Array, "K"]:
    r"""Returns for every format the clip bound of least squared error on samples.

    .. math:: c_k = \arg\min_c \frac{1}{S} \sum_i e_k(x_i; c)
        + \frac{1}{N} e_k(x_{max}; c), \quad
        e_k(x; c) = (s \, Q_k(x / s) - x)^2, \quad s = c / v_{max,k}

    Bounds from 1/32 of the samples' largest magnitude up to absmax are tried. Works
    under `jit`, and `vmap` over sites; a format may be traced.

    Args:
      samples: x, values of one tensor; entries that are not finite are left out.
      formats: K formats.
      absmax: largest magnitude of the tensor, which a wide format may reach for and a
        few samples miss; None: no more than the samples'.
      size: N, number of the tensor's values.

    Returns:
      The bounds, positive, in the units of the samples: absmax for formats that need no
      scale, 1 where all samples are zero.

    Raises:
      ValueError: if `formats` has no leading axis or more than one.

    Reference:
      Jin et al., AdaBits, 2020 (switchable clipping level),
      https://arxiv.org/abs/1912.09666

    Example:
      >>> from fliqs_jax.formats import stack_formats
      >>> samples = jnp.array([1.0] * 99 + [-8.0])
      >>> best_clips(samples, stack_formats(["int2", "int16"])).round(1).tolist()
      [1.100000023841858, 8.0]
    """
    _check_stacked(formats)
    bound = absmax_bound(samples)
    most = None
    if absmax is not None:
        most = jnp.maximum(jnp.where(bound > 0, absmax / bound, 1.0), 1.0)

    def error(fmt, ratio):
        scale = scale_of_bound(bound * ratio, fmt)
        total = jnp.sum(squared_error(samples, fmt, scale))
        if absmax is not None:
            total += len(samples) / size * squared_error(absmax, fmt, scale)
        return total

    ratios = _least_error_ratios(error, formats, most)
    return jnp.where(bound > 0, bound * ratios, 1.0)


def gaussian_clip_factors(formats: Format) -> Float[Array, "K"]:
    r"""Returns for every format the clip bound of least squared error on a normal.

    .. math:: c_k = \arg\min_c \mathrm{E}_{z \sim N(0, 1)} (s \, Q_k(z / s) - z)^2,
        \quad s = c / v_{max,k}

    The expectation is a sum over fixed points, so the result repeats exactly. On the
    signed integers it is 1.05, 1.81, 2.37, 2.83 and 3.23 for 2 to 6 bits.

    Args:
      formats: K formats, may be traced.

    Returns:
      The bounds in standard deviations, within [1/4, 8]; 8 for formats that need no
      scale, which ignore it.

    Raises:
      ValueError: if `formats` has no leading axis or more than one.

    Reference:
      Max, Quantizing for minimum distortion, 1960 (the same optimum for other grids)

    Example:
      >>> from fliqs_jax.formats import stack_formats
      >>> gaussian_clip_factors(stack_formats(["int4"])).round(1).tolist()
      [2.4000000953674316]
    """
    _check_stacked(formats)
    # Quantiles of a normal twice as wide, weighted back: the tails that decide the fine
    # formats' clip are sampled as densely as the middle.
    middles = (np.arange(_GAUSSIAN_POINTS, dtype=np.float32) + 0.5) / _GAUSSIAN_POINTS
    z = 2.0 * ndtri(middles)
    weights = jnp.exp(-3.0 * z * z / 8.0)

    def error(fmt, ratio):
        scale = scale_of_bound(_LARGEST_FACTOR * ratio, fmt)
        return jnp.sum(weights * squared_error(z, fmt, scale))

    return _LARGEST_FACTOR * _least_error_ratios(error, formats)
