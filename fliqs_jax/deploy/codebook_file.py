"""A file of compressed parameters: packed indices, their codebooks, other arrays.

Layout, little-endian throughout:

* 16 bytes: `FQCB`, the version, the CRC-32 of all that follows, and the length of the
  header (each uint32).
* The header, JSON: `codebooks`, rows [K, num_fitted]; `leaves`, rows of the path (a
  list of keys), the shape, and the codebook's number or the array's type (null for an
  empty dict).
* The values of the codebooks (float32), then the leaves, in the header's order: packed
  indices (see `packing`), or the array's bytes in C order.

So a file has `compressed_bits` of its adaptive codebooks and other arrays, in whole
bytes a leaf, and the header: about 40 bytes a leaf and its path.
"""

import json
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fliqs_jax.deploy.compression import codebook_identity
from fliqs_jax.deploy.packing import pack_indices, packed_bytes, unpack_indices
from fliqs_jax.files import replace_bytes
from fliqs_jax.quantizers.codebook import Codebook

_MAGIC, _VERSION = b"FQCB", 1
_START = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")


def save_codebooks(path: str | os.PathLike[str], params: Mapping[str, Any]) -> None:
    """Writes parameters whose compressed leaves are Codebooks to one file.

    Equal codebooks are stored once. The file is replaced in one step.

    Args:
      path: the file, old or new; its folder must exist.
      params: nested dicts with string keys; leaves are Codebooks of float32 values, or
        arrays of any number type.

    Raises:
      TypeError: if params is no dict, a key no string or a leaf no array of numbers.
      ValueError: if an index is outside of its codebook, or Codebooks are stacked.

    Example:
      >>> import tempfile
      >>> from fliqs_jax.quantizers.codebook import kmeans_exact
      >>> params = {"Dense_0": {"kernel": kmeans_exact(jnp.arange(4.0), 2)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_codebooks(f"{folder}/net.fqcb", params)
      ...     loaded = load_codebooks(f"{folder}/net.fqcb")
      >>> loaded["Dense_0"]["kernel"].decode().tolist()
      [0.5, 0.5, 2.5, 2.5]
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict, got {type(params).__name__}")
    numbers: dict[tuple[int, bytes], int] = {}  # of codebooks, by identity
    codebooks, leaves, values, data = [], [], [], []
    for keys, leaf in _flatten(params, ()):
        if isinstance(leaf, Codebook):
            identity = codebook_identity(leaf)
            if identity not in numbers:
                numbers[identity] = len(codebooks)
                codebooks.append([len(leaf.values), leaf.num_fitted])
                values.append(np.asarray(leaf.values, "<f4").tobytes())
            leaves.append([keys, np.shape(leaf.indices), numbers[identity]])
            packed = pack_indices(np.asarray(leaf.indices), len(leaf.values))
            data.append(packed.tobytes())
        elif isinstance(leaf, Mapping):
            leaves.append([keys, [], None])
        else:
            array = _as_array(keys, leaf)
            leaves.append([keys, array.shape, array.dtype.name])
            data.append(_little_endian(array).tobytes())
    text = json.dumps({"codebooks": codebooks, "leaves": leaves}, separators=(",", ":"))
    header = text.encode("utf-8")
    rest = b"".join([_LENGTH.pack(len(header)), header, *values, *data])
    replace_bytes(path, _START.pack(_MAGIC, _VERSION, zlib.crc32(rest)) + rest)


def load_codebooks(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save_codebooks` wrote.

    Args:
      path: the file.

    Returns:
      The nested dicts, with NumPy leaves; see `decode_params` for plain weights.

    Raises:
      ValueError: if it is another kind of file, of a newer version, cut short or
        damaged.
    """
    content = memoryview(pathlib.Path(path).read_bytes())
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError(
            f"{path} is no file of codebooks: it starts with "
            f"{bytes(content[: len(_MAGIC)])!r}, not with {_MAGIC!r}"
        )
    if len(content) < _START.size:
        raise ValueError(f"{path} is cut short: it has {len(content)} bytes")
    _, version, checksum = _START.unpack_from(content)
    if version != _VERSION:
        raise ValueError(
            f"{path} has version {version}; this release reads {_VERSION}: update it"
        )
    rest = content[_START.size :]
    if zlib.crc32(rest) != checksum:
        raise ValueError(
            f"{path} is cut short or damaged: the checksum of its {len(content)} bytes "
            "is another; copy it again"
        )
    header_end = _LENGTH.size + _LENGTH.unpack_from(rest)[0]
    header = json.loads(bytes(rest[_LENGTH.size : header_end]))
    return _read(header, rest[header_end:])


def _read(header: dict[str, Any], data: memoryview) -> dict[str, Any]:
    position = 0

    def take(dtype, shape):
        nonlocal position
        begin = position
        position += math.prod(shape) * dtype.itemsize
        array = np.frombuffer(data[begin:position], dtype.newbyteorder("<"))
        return array.reshape(shape).astype(dtype)  # a copy, aligned and writable

    values = [take(np.dtype("f4"), (size,)) for size, _ in header["codebooks"]]
    params: dict[str, Any] = {}
    for keys, shape, what in header["leaves"]:
        folder = params
        for key in keys[:-1]:
            folder = folder.setdefault(key, {})
        if what is None:
            leaf = {}
        elif isinstance(what, str):
            leaf = take(jnp.dtype(what), tuple(shape))
        else:
            size, num_fitted = header["codebooks"][what]
            packed = take(np.dtype("u1"), (packed_bytes(math.prod(shape), size),))
            indices = unpack_indices(packed, size, shape)
            leaf = Codebook(values[what], indices, num_fitted=num_fitted)
        folder[keys[-1]] = leaf
    return params


def _flatten(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the leaves of nested dicts, empty dicts too, with their keys."""
    if not isinstance(node, Mapping) or (keys and not node):
        yield keys, node
        return
    for key, child in node.items():
        if not isinstance(key, str):
            raise TypeError(f"params must have string keys, got {key!r} in {keys}")
        yield from _flatten(child, (*keys, key))


def _as_array(keys: tuple[str, ...], leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(
            f"params leaf {'/'.join(keys)!r} must be a Codebook or an array of "
            f"numbers, got {type(leaf).__name__}"
        )
    return array


def _little_endian(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
