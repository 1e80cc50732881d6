"""Packing indices: ceil(log2 K) bits each, one after the other.

Bit order: index i takes bits i b ... i b + b - 1 of a stream, its least significant bit
first; bit n of the stream is bit n % 8 of byte n // 8, counted from the byte's least
significant. Unused bits of the last byte are zero.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Int, Integer, UInt8

from fliqs_jax.checks import check_at_least


def index_bits(num_values: int) -> int:
    r"""Returns the bits of an index into K values.

    .. math:: b = \lceil \log_2 K \rceil

    Args:
      num_values: K, at least 1.

    Raises:
      ValueError: if `num_values` is below 1.

    Example:
      >>> [index_bits(k) for k in (1, 2, 3, 4, 5)]
      [0, 1, 2, 2, 3]
    """
    check_at_least(1, num_values=num_values)
    return (num_values - 1).bit_length()


def packed_bytes(num_indices: int, num_values: int) -> int:
    """Returns the whole bytes that packed indices take."""
    return (num_indices * index_bits(num_values) + 7) // 8


def pack_indices(
    indices: Integer[ArrayLike, "*S"], num_values: int
) -> UInt8[np.ndarray, "N"]:
    """Packs indices into bytes, in the bit order of this module.

    Args:
      indices: in 0...K - 1, any shape.
      num_values: K, at least 1.

    Returns:
      ceil(P ceil(log2 K) / 8) bytes for P indices; none for K = 1.

    Raises:
      ValueError: if an index is out of range or `num_values` is below 1.

    Example:
      >>> [f"{byte:08b}" for byte in pack_indices(np.array([1, 2, 0, 3, 2]), 4)]
      ['11001001', '00000010']
    """
    width = index_bits(num_values)
    flat = np.asarray(indices).reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < num_values:
        raise ValueError(
            f"indices must be in 0...{num_values - 1}, got {flat.min()} to {flat.max()}"
        )
    shifts = np.arange(width, dtype=np.uint32)
    bits = ((flat.astype(np.uint32)[:, None] >> shifts) & 1).astype(np.uint8)
    return np.packbits(bits, bitorder="little")


def unpack_indices(
    packed: UInt8[ArrayLike, "N"], num_values: int, shape: Sequence[int]
) -> Int[np.ndarray, "..."]:
    """Returns what `pack_indices` packed, int32 in the given shape.

    Args:
      packed: the bytes.
      num_values: K, at least 1.
      shape: of the indices.

    Raises:
      ValueError: if the number of bytes does not fit, a code is no index below K, or
        the unused last bits are not zero.

    Example:
      >>> packed = np.array([0b11001001, 0b00000010], np.uint8)
      >>> unpack_indices(packed, 4, (5,)).tolist()
      [1, 2, 0, 3, 2]
    """
    size = int(np.prod(shape, dtype=np.int64))
    width = index_bits(num_values)
    packed = np.asarray(packed)
    expected = packed_bytes(size, num_values)
    if packed.size != expected:
        raise ValueError(
            f"packed must have {expected} bytes for {size} indices of {width} bits, "
            f"got {packed.size}"
        )
    stream = np.unpackbits(packed, bitorder="little")
    if stream[size * width :].any():
        raise ValueError("packed has bits set after its last index: it is damaged")
    bits = stream[: size * width].reshape(size, width)
    indices = np.zeros(size, np.int32)
    for position in range(width):  # over bits, not weights
        indices |= bits[:, position].astype(np.int32) << position
    if size and indices.max() >= num_values:
        raise ValueError(
            f"packed holds the index {indices.max()}, but there are only {num_values} "
            "values: it is damaged, or of another codebook"
        )
    return indices.reshape(shape)
