"""Number formats as data: what a format is, how its name is read, which values it has.

Not here: rounding a tensor to a format (`fliqs_jax.quantizers`), and which layer gets
which format (`fliqs_jax.policy`).
"""

import re
import typing
from collections.abc import Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

# OCP / ml_dtypes grids that spend codes on infinity or NaN; every other eXmY name uses
# all of its codes for finite values.
_LARGEST_VALUE = {"e4m3": 448.0, "e5m2": 57344.0, "e3m4": 15.5}
_ACCEPTED = (
    "use int2...int16, uint2...uint16, eXmY with X in 1...8 and Y in 0...22 (as e4m3), "
    "bf16, fp16 or fp32"
)


@typing.no_type_check  # in_axes trees and eval_shape put other leaves in the fields
@flax.struct.dataclass
class Format:
    """A number grid as a pytree of arrays; formats stack, gather and trace.

    The values in the binade [2**e, 2**(e + 1)) are 2**(e - mantissa_bits) apart, where
    e is at least `min_exponent`: below 2**min_exponent the step is constant. An
    integer format lies below 2**min_exponent as a whole, with step 1. All fields have
    one shape "*K", and min_value <= 0 < max_value.

    Example:
      >>> parse_format("e2m1").values().tolist()[7:]
      [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """

    mantissa_bits: Int[Array, "*K"]  # 23 marks fp32, which leaves a tensor untouched
    min_exponent: Int[Array, "*K"]
    min_value: Float[Array, "*K"]
    max_value: Float[Array, "*K"]
    storage_bits: Int[Array, "*K"]
    needs_scale: Bool[
        Array, "*K"
    ]  # False (eight exponent bits, fp16): dynamic scales are 1

    def __getitem__(self, index) -> "Format":
        """Indexes every leaf; a traced index is a gather."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], self)

    def __len__(self) -> int:
        """Number of formats along the leading axis."""
        if not np.ndim(self.mantissa_bits):
            raise TypeError("a single Format has no length: stack_formats makes one")
        return np.shape(self.mantissa_bits)[0]

    def __iter__(self) -> Iterator["Format"]:
        # jnp clamps an index past the end, so the default iteration would never stop.
        return (self[index] for index in range(len(self)))

    def values(self) -> np.ndarray:
        """Returns every finite value in ascending order, float32, one zero.

        Raises:
          ValueError: if the format is stacked or stored in more than 8 bits.
        """
        if np.ndim(self.mantissa_bits):
            shape = np.shape(self.mantissa_bits)
            raise ValueError(f"values() needs one format, got shape {shape}: index it")
        bits = int(self.storage_bits)
        if bits > 8:
            raise ValueError(f"values() needs at most 8 storage bits, got {bits}")
        mantissa_bits = int(self.mantissa_bits)
        # Codes of a float of `bits` bits, or of an integer read as one: both count up
        # from zero in the order of their values.
        codes = np.arange(2**bits)
        binade, fraction = np.divmod(codes, 2**mantissa_bits)
        exponent = int(self.min_exponent) + np.maximum(binade - 1, 0) - mantissa_bits
        significand = fraction + 2.0**mantissa_bits * (binade > 0)
        magnitudes = np.ldexp(significand, exponent)
        values = np.unique(np.concatenate([-magnitudes, magnitudes + 0.0]))
        inside = (values >= self.min_value) & (values <= self.max_value)
        return (values[inside] + 0.0).astype(np.float32)  # + 0.0: never minus zero


def _format(
    *, mantissa_bits, min_exponent, min_value, max_value, storage_bits, needs_scale
) -> Format:
    # NumPy leaves: a format made at import time starts no device.
    return Format(
        mantissa_bits=np.asarray(mantissa_bits, np.int32),
        min_exponent=np.asarray(min_exponent, np.int32),
        min_value=np.asarray(min_value, np.float32),
        max_value=np.asarray(max_value, np.float32),
        storage_bits=np.asarray(storage_bits, np.int32),
        needs_scale=np.asarray(needs_scale, np.bool_),
    )


def _integer(bits: int, signed: bool) -> Format:
    magnitude_bits = bits - signed
    return _format(
        mantissa_bits=magnitude_bits,
        min_exponent=magnitude_bits,
        min_value=-(2.0**magnitude_bits) if signed else 0.0,
        max_value=2.0**magnitude_bits - 1.0,
        storage_bits=bits,
        needs_scale=True,
    )


def _float(
    exponent_bits: int,
    mantissa_bits: int,
    *,
    largest: float | None = None,
    needs_scale: bool | None = None,
) -> Format:
    bias = 2 ** (exponent_bits - 1) - 1
    # With 8 exponent bits the topmost binade starts at 2**128: not a float32.
    max_exponent = min(2**exponent_bits - 1 - bias, 127)
    if largest is None:
        largest = 2.0**max_exponent * (2.0 - 2.0**-mantissa_bits)
    return _format(
        mantissa_bits=mantissa_bits,
        min_exponent=1 - bias,
        min_value=-largest,
        max_value=largest,
        storage_bits=1 + exponent_bits + mantissa_bits,
        # Eight exponent bits are float32's own range.
        needs_scale=exponent_bits < 8 if needs_scale is None else needs_scale,
    )


def parse_format(name: str) -> Format:
    """Reads a format's name.

    `intN` is two's complement, `uintN` starts at zero, `eXmY` has a sign bit, X
    exponent bits of bias 2**(X-1) - 1, Y mantissa bits and subnormals. `e4m3` is
    ml_dtypes' float8_e4m3fn (largest 448), `e5m2` and `e3m4` are the IEEE-like ones
    (57344 and 15.5); any other eXmY uses every code for a finite value. Values beyond
    the largest float32 are left out of e8mY. Formats of eight exponent bits, and fp16,
    need no scale: a dynamic one is 1, which makes them casts.

    Args:
      name: int2...int16, uint2...uint16, eXmY (1 <= X <= 8, 0 <= Y <= 22), bf16, fp16
        or fp32.

    Returns:
      The Format, with scalar NumPy leaves.

    Raises:
      ValueError: if the name is none of these.

    Reference:
      OCP 8-bit floating point (OFP8) 1.0 and OCP microscaling formats (MX) 1.0

    Example:
      >>> float(parse_format("e4m3").max_value), float(parse_format("int4").min_value)
      (448.0, -8.0)
    """
    if name == "bf16":
        return _float(8, 7)
    if name == "fp16":
        return _float(5, 10, largest=65504.0, needs_scale=False)
    if name == "fp32":
        return _float(8, 23)
    if match := re.fullmatch(r"(u?)int([1-9][0-9]?)", name):
        bits = int(match[2])
        if 2 <= bits <= 16:
            return _integer(bits, signed=not match[1])
    if match := re.fullmatch(r"e([1-8])m([0-9]|1[0-9]|2[0-2])", name):
        return _float(int(match[1]), int(match[2]), largest=_LARGEST_VALUE.get(name))
    raise ValueError(f"unknown format {name!r}: {_ACCEPTED}")


def stack_formats(formats: Sequence[str | Format]) -> Format:
    """Stacks formats, given by name or as Format, along a new leading axis K.

    Raises:
      ValueError: if the sequence is empty, is one string, or holds an unknown name.

    Example:
      >>> len(stack_formats(["int4", "e2m1", "bf16"]))
      3
    """
    if isinstance(formats, str):
        raise ValueError(f"formats must be a sequence of names, got {formats!r}")
    if not len(formats):
        raise ValueError("formats must hold at least one format, got none")
    parsed = [parse_format(f) if isinstance(f, str) else f for f in formats]
    leaves = jax.tree.leaves(parsed)
    concrete = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    stack = np.stack if concrete else jnp.stack
    return jax.tree.map(lambda *parts: stack(parts), *parsed)


def as_unsigned(fmt: Format, nonnegative: Bool[ArrayLike, "*K"]) -> Format:
    """Trades the sign of integer formats for one more bit of range, where allowed.

    Where `nonnegative` is true, intN becomes the uintN grid of as many bits; floats and
    unsigned formats stay. Everything may be traced.

    Args:
      fmt: formats of shape [*K].
      nonnegative: whether the tensor has no negative value; a bool or shape [*K].

    Returns:
      Formats of shape [*K].

    Example:
      >>> as_unsigned(parse_format("int4"), True).values().max().item()
      15.0
    """
    max_value = jnp.asarray(fmt.max_value)
    # Only two's complement reaches one step further below zero than above.
    signed_integer = max_value + fmt.min_value == -1.0
    change = jnp.asarray(nonnegative) & signed_integer
    extra = change.astype(jnp.int32)
    return fmt.replace(
        mantissa_bits=fmt.mantissa_bits + extra,
        min_exponent=fmt.min_exponent + extra,
        min_value=jnp.where(change, 0.0, fmt.min_value),
        max_value=jnp.where(change, 2.0 * max_value + 1.0, max_value),
    )


def unsigned_name(name: str) -> str:
    """Returns "uint4" for "int4"; any other format name unchanged.

    Example:
      >>> unsigned_name("int4"), unsigned_name("e4m3")
      ('uint4', 'e4m3')
    """
    return f"u{name}" if name.startswith("int") else name
