"""fake_quantize: floats on a format's grid, with the straight-through gradient.

The rounding itself is in `rounding`, the choice of a scale in `scales`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Num

from fliqs_jax.formats import Format
from fliqs_jax.quantizers.rounding import LARGEST_SCALE, SMALLEST_SCALE, round_to_grid
from fliqs_jax.quantizers.scales import (
    absmax,
    as_float32,
)


def check_format(fmt: Format) -> None:
    """Refuses stacked formats."""
    if shape := np.shape(fmt.max_value):
        raise ValueError(
            f"fmt must be one format, got formats of shape {shape}: "
            "index it (fmt[i], a traced i too) or vmap over it"
        )


def broadcastable_scale(
    scale: Num[ArrayLike, "..."], x: Float[Array, "*S"], *, name: str = "scale"
) -> Float[Array, "..."]:
    """Returns a scale in float32, with x's number of axes or none, after checking it.

    Kept within the kernel's bounds; so a zero in an array of scales (of a dead channel,
    say) is none. Arrays on a device are not looked at: that would wait for them.
    """
    if isinstance(scale, int | float | np.generic) and not scale > 0:
        raise ValueError(f"{name} must be positive, got {scale}")
    if isinstance(scale, np.ndarray) and not (scale >= 0).all():
        raise ValueError(f"{name} must not be negative, got {scale.min()}")
    scale = jnp.clip(jnp.asarray(scale, jnp.float32), SMALLEST_SCALE, LARGEST_SCALE)
    if not scale.ndim:
        return scale
    # The missing leading axes, spelled out: under rank promotion "raise" too.
    padded = (1,) * (x.ndim - scale.ndim) + scale.shape
    fits = len(padded) == x.ndim and all(
        size in (1, length) for size, length in zip(padded, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} {scale.shape} does not broadcast to x {x.shape}")
    return scale.reshape(padded)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _straight_through(x, fmt, scale, key, clip_gradient):
    random_bits = None if key is None else jax.random.bits(key, x.shape, jnp.uint32)
    on_grid = round_to_grid(x, fmt, scale, random_bits=random_bits)
    return jnp.where(fmt.mantissa_bits >= 23, x, on_grid)  # fp32: bit for bit


@_straight_through.defjvp
def _straight_through_jvp(clip_gradient, primals, tangents):
    x, fmt, scale, key = primals
    x_dot = tangents[0]  # the scale's tangent is dropped: no gradient through it
    y = _straight_through(x, fmt, scale, key, clip_gradient)
    if not clip_gradient:
        return y, x_dot
    inside = (x >= fmt.min_value * scale) & (x <= fmt.max_value * scale)
    return y, jnp.where(inside | (fmt.mantissa_bits >= 23), x_dot, 0.0)


def fake_quantize(
    x: Num[ArrayLike, "*S"],
    fmt: Format,
    *,
    scale: Num[ArrayLike, "..."] | None = None,
    clip_gradient: bool = True,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*S"]:
    r"""Rounds a tensor to the values that a format can hold, and keeps it in floats.

    .. math:: \hat x = s \cdot Q(x / s), \quad
        \partial \hat x / \partial x = [\, s v_{min} \le x \le s v_{max} \,]

    Q clips to the format's range and rounds to its nearest value, ties to even. The
    format is data: under `jit` one compilation serves every format. NaN stays NaN (its
    gradient is zero under the mask), infinities become the largest value. fp32 returns
    x bit for bit, with gradient 1. No gradient flows to the scale. Computed in float32,
    where results below 2**-126 may flush to zero, as they do on CPU.

    Args:
      x: the tensor, any floating type.
      fmt: one format (scalar fields), may be traced.
      scale: s, positive; broadcasts against x, shape [C] for one scale a channel. Kept
        within 2**-100...2**126, so that a zero channel's zero scale does no harm. None
        is the tensor's `absmax`, which is 1 (a cast) for bf16 and fp16.
      clip_gradient: False passes the gradient outside the range too.
      key: a random key for stochastic rounding: to either neighbour, unbiased.

    Returns:
      The quantized tensor in x's type and shape.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if fmt is stacked, or if scale does not broadcast or is not positive.

    Reference:
      Bengio et al., straight-through estimator, 2013, https://arxiv.org/abs/1308.3432

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> fake_quantize(jnp.array([0.3, 2.5, 9.0]), parse_format("int4"), scale=1.0)
      Array([0., 2., 7.], dtype=float32)
    """
    x = jnp.asarray(x)
    x32 = as_float32(x)
    check_format(fmt)
    fmt = jax.tree.map(jnp.asarray, fmt)
    scale = absmax(x32, fmt) if scale is None else broadcastable_scale(scale, x32)
    y = _straight_through(x32, fmt, scale, key, clip_gradient)
    return y.astype(x.dtype)
