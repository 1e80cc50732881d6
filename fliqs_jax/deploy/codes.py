"""Codes: numbers of a format as the bits that hardware stores.

Integers are two's complement (unsigned ones plain); floats sign, exponent, mantissa
from the highest bit down. Host only: quantizing is `fliqs_jax.quantizers`.
"""

import numpy as np
from jaxtyping import ArrayLike, Float, Integer, UInt

from fliqs_jax.formats import parse_format


def encode(values: Float[ArrayLike, "*S"], name: str) -> UInt[np.ndarray, "*S"]:
    """Returns the codes of numbers that a format has.

    Args:
      values: on the format's grid, scale 1; a zero of either sign is zero.
      name: of the format, at most 32 bits.

    Returns:
      uint8, uint16 or uint32, whichever is the smallest that holds a code.

    Raises:
      ValueError: if a value is not one of the format's.

    Example:
      >>> encode(np.array([-1.0, 3.0]), "int3").tolist()
      [7, 3]
      >>> encode(np.array([-1.5, 0.5]), "e2m1").tolist()
      [11, 1]
    """
    values = np.asarray(values, np.float32)
    fmt, bits = parse_format(name), _bits(name)
    if _is_integer(name):
        whole = np.clip(np.nan_to_num(values), fmt.min_value, fmt.max_value)
        codes = whole.astype(np.int64) & (2**bits - 1)
    else:
        codes = _encode_floats(np.abs(values), fmt)
        codes = np.minimum(codes, 2 ** (bits - 1) - 1)
        codes |= (values < 0).astype(np.int64) << (bits - 1)
    codes = codes.astype(_unsigned(bits))
    wrong = decode(codes, name) != values
    if wrong.any():
        raise ValueError(f"values: {values[wrong][0]} is not a number of {name}")
    return codes


def decode(codes: Integer[ArrayLike, "*S"], name: str) -> Float[np.ndarray, "*S"]:
    """Returns the numbers that codes stand for, float32; the inverse of `encode`.

    Example:
      >>> decode(np.array([7, 3], np.uint8), "int3").tolist()
      [-1.0, 3.0]
    """
    codes = np.asarray(codes).astype(np.int64)
    fmt, bits = parse_format(name), _bits(name)
    if _is_integer(name):
        signed = fmt.min_value < 0
        beyond = codes > int(fmt.max_value)
        return (codes - (beyond & signed) * 2**bits).astype(np.float32)
    mantissa_bits = int(fmt.mantissa_bits)
    negative, magnitude = np.divmod(codes, 2 ** (bits - 1))
    binade, fraction = np.divmod(magnitude, 2**mantissa_bits)
    significand = fraction + 2.0**mantissa_bits * (binade > 0)
    exponent = int(fmt.min_exponent) + np.maximum(binade - 1, 0) - mantissa_bits
    return (np.ldexp(significand, exponent) * (1 - 2 * negative)).astype(np.float32)


def _encode_floats(magnitudes, fmt):
    mantissa_bits, lowest = int(fmt.mantissa_bits), int(fmt.min_exponent)
    finite = np.nan_to_num(magnitudes.astype(np.float64))
    exponent = np.where(finite, np.maximum(np.frexp(finite)[1] - 1, lowest), lowest)
    # Of subnormals, a fraction without the leading one: it carries into the binade.
    steps = np.ldexp(finite, mantissa_bits - exponent).astype(np.int64)
    return ((exponent - lowest) << mantissa_bits) + steps


def _is_integer(name: str) -> bool:
    return "int" in name


def _bits(name: str) -> int:
    return int(parse_format(name).storage_bits)


def _unsigned(bits: int) -> type[np.unsignedinteger]:
    return np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
