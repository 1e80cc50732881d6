"""Microscaling (MX): short blocks along one axis share a power-of-two scale.

Only the values: packing codes and scales into bytes is the deployment's business.
"""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num

from fliqs_jax.checks import check_at_least
from fliqs_jax.formats import Format
from fliqs_jax.quantizers.rounding import floor_log2, power_of_two
from fliqs_jax.quantizers.scales import absmax_bound, as_float32
from fliqs_jax.quantizers.straight_through import check_format, fake_quantize


def mx_scale(bound: Float[Array, "*C"], fmt: Format) -> Float[Array, "*C"]:
    r"""Returns the power-of-two scale of blocks from their largest magnitudes.

    .. math:: s = 2^{\lfloor \log_2 b \rfloor - e_{max}},
        \quad e_{max} = \lfloor \log_2 v_{max} \rfloor

    Magnitudes above s * v_max (at most a factor 2) saturate, as the specification says.

    Args:
      bound: b, the largest magnitude of each block, as `absmax_bound` gives it.
      fmt: one format, may be traced.

    Returns:
      The scales, within 2**-100...2**126 (the specification's reach down to 2**-127); 1
      where the bound is zero and for formats that need no scale.

    Reference:
      OCP Microscaling Formats (MX) Specification 1.0, section 6.3

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> mx_scale(jnp.array([7.9, 0.0]), parse_format("e2m1")).tolist()
      [1.0, 1.0]
    """
    exponent = floor_log2(bound) - floor_log2(jnp.asarray(fmt.max_value))
    scale = power_of_two(jnp.clip(exponent, -100, 126))
    return jnp.where(jnp.asarray(fmt.needs_scale) & (bound > 0), scale, 1.0)


def fake_quantize_blocks(
    x: Num[ArrayLike, "*S"],
    fmt: Format,
    *,
    axis: int = -1,
    block_size: int = 32,
    clip_gradient: bool = True,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*S"]:
    r"""Rounds a tensor to a format in blocks along an axis (MX).

    .. math:: \hat x_i = s_g \, Q(x_i / s_g), \quad g = \lfloor i / 32 \rfloor

    An axis that is no multiple of the block size ends in a shorter block. Gradient,
    rounding, NaN and infinities are those of `fake_quantize`; entries that are not
    finite do not enter their block's scale.

    Args:
      x: the tensor, any floating type, of at least one axis.
      fmt: the element format, may be traced.
      axis: the axis to cut into blocks; the contracted one, for a matrix product.
      block_size: elements that share a scale; 32 in the specification.
      clip_gradient: False passes the gradient of saturated elements too.
      key: a random key for stochastic rounding.

    Returns:
      The quantized tensor in x's type and shape.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if fmt is stacked, or the axis or block size is out of range.

    Reference:
      OCP Microscaling Formats (MX) Specification 1.0

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> x = jnp.array([1.0, 0.3, 100.0, 30.0])
      >>> fake_quantize_blocks(x, parse_format("e2m1"), block_size=2).tolist()
      [1.0, 0.25, 96.0, 32.0]
    """
    x = jnp.asarray(x)
    check_format(fmt)
    check_at_least(1, block_size=block_size)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} is out of range for an array of {x.ndim} axes")
    x32 = jnp.moveaxis(as_float32(x), axis, -1)
    length = x32.shape[-1]
    fill = [(0, 0)] * (x.ndim - 1) + [(0, -length % block_size)]
    padded = jnp.pad(x32, fill)  # zeros change no block's largest magnitude
    num_blocks = padded.shape[-1] // block_size
    blocks = padded.reshape(*padded.shape[:-1], num_blocks, block_size)
    kept = tuple(range(x.ndim))  # every axis but the one within a block
    scale = mx_scale(absmax_bound(blocks, axis=kept), fmt)
    y = fake_quantize(blocks, fmt, scale=scale, clip_gradient=clip_gradient, key=key)
    y = y.reshape(padded.shape)[..., :length]
    return jnp.moveaxis(y, -1, axis).astype(x.dtype)
