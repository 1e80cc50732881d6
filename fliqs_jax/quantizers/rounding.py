"""The one element-wise kernel that rounds to any format's grid.

It knows neither scales nor gradients (`straight_through` adds both).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from fliqs_jax.formats import Format


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
    *,
    random_bits: UInt[Array, "*S"] | None = None,
) -> Float[Array, "*S"]:
    """Rounds float32 values to a format's grid: clip, then nearest, ties to even.

    The format's fields are scalars and may be traced: one compilation serves them all.
    With `random_bits` it rounds to one of the two neighbours, with probabilities that
    make the expectation exact. NaN stays NaN. fp32 is not special here: the caller
    passes its tensors by.
    """
    fmt = Format(*map(jnp.asarray, vars(fmt).values()))
    x = jnp.clip(x, fmt.min_value, fmt.max_value)
    # Above 2**min_exponent the step follows the binade, so a float32's lowest `dropped`
    # bits go: round its bit pattern as an integer. A carry moves to the next binade.
    dropped = jnp.maximum(23 - fmt.mantissa_bits, 1)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    if random_bits is None:
        carry = ((1 << (dropped - 1)) - 1) + ((bits >> dropped) & 1)
    else:
        carry = random_bits.astype(jnp.int32) & ((1 << dropped) - 1)
    by_binade = lax.bitcast_convert_type((bits + carry) & (-1 << dropped), jnp.float32)
    # Below it the step is constant. For 8 exponent bits that region is float32's own
    # subnormals, whose bit patterns are evenly spaced too: there the first way serves
    # all values, and the step, which may be no normal float32, is not needed.
    constant_step = fmt.min_exponent > -126
    exponent = jnp.where(constant_step, fmt.min_exponent - fmt.mantissa_bits, 0)
    steps = x * power_of_two(-exponent)
    if random_bits is None:
        steps = jnp.round(steps)
    else:
        below = jnp.floor(steps)
        threshold = (random_bits >> 8).astype(jnp.float32) * 2.0**-24
        steps = below + (threshold < steps - below)
    by_step = steps * power_of_two(exponent)
    smallest_normal = jnp.where(constant_step, power_of_two(fmt.min_exponent), 0.0)
    # NaN compares false and goes the arithmetic way, which keeps it.
    return jnp.where(jnp.abs(x) >= smallest_normal, by_binade, by_step)
