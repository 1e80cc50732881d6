"""The one element-wise kernel that rounds to any format's grid.

It has no gradient of its own (`straight_through` and `learned` define theirs).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from fliqs_jax.formats import Format

# Bounds within which a scale, its reciprocal and its product with 2**-23 are normal
# float32 numbers: the CPU flushes others to zero.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**126


def power_of_two(exponent: Int[Array, "*S"]) -> Float[Array, "*S"]:
    """Returns 2**exponent exactly, float32, for whole exponents in -126...127."""
    # On CPU jnp.exp2 is exact at only 33 of the 254 normal exponents.
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def floor_log2(x: Float[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns the exponent of |x|, int32; -127 for zero and float32 subnormals."""
    return (lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> 23) - 127


def round_to_grid(
    x: Float[Array, "*S"],
    fmt: Format,
    scale: Float[Array, "..."] | float = 1.0,
    *,
    random_bits: UInt[Array, "*S"] | None = None,
) -> Float[Array, "*S"]:
    """Returns the grid values nearest to float32 x / scale, times the scale.

    Clips, then rounds ties to even. The format's fields are scalars and may be traced:
    nothing branches on them, so one compilation serves every format. With `random_bits`
    it rounds to one of the two neighbours instead, with probabilities that make the
    expectation exact. NaN stays NaN. The scale broadcasts against x and lies within
    SMALLEST_SCALE...LARGEST_SCALE. fp32 is not special here: the caller passes its
    tensors by.
    """
    min_value, max_value = jnp.asarray(fmt.min_value), jnp.asarray(fmt.max_value)
    mantissa_bits = jnp.asarray(fmt.mantissa_bits)
    # The reciprocal is spelled out: XLA multiplies by it anyway when the scale is a
    # constant, and jit must equal eager.
    x = x * (1.0 / scale)
    # Selects, which keep NaN, take one instruction each; jnp.clip takes three.
    x = jnp.where(x > max_value, max_value, x)
    x = jnp.where(x < min_value, min_value, x)
    # The exponent's bits alone are the power of two at or below |x|. Clamped from below
    # it gives every value of the subnormal binade that binade's step.
    smallest = (jnp.asarray(fmt.min_exponent) + 127) << 23
    binade = lax.bitcast_convert_type(x, jnp.int32) & (255 << 23)
    binade = jnp.maximum(binade, smallest)
    # x / step_size = x * 2**(mantissa_bits - e) takes two factors, as one power of two
    # would leave float32's range at the ends of bf16's: 2**(1 - e) is normal for every
    # e in -126...127, and so is 2**e, by which the way back multiplies.
    inverse = lax.bitcast_convert_type((255 << 23) - binade, jnp.float32)
    steps = (x * inverse) * power_of_two(mantissa_bits - 1)
    if random_bits is None:
        steps = jnp.round(steps)
    else:
        below = jnp.floor(steps)
        threshold = (random_bits >> 8).astype(jnp.float32) * 2.0**-24
        steps = jnp.where(threshold < steps - below, below + 1.0, below)
    binade = lax.bitcast_convert_type(binade, jnp.float32)
    return (steps * (power_of_two(-mantissa_bits) * scale)) * binade
