"""The leaves of a training state as plain numpy arrays by name, and back.

What becomes of jax's own types (typed PRNG keys, shardings, uncommitted arrays) in a
checkpoint is decided here; nothing about files is.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fliqs_jax.train.mapping import place

# By the name of their dtype: jax gives a key's implementation for concrete keys only.
_KEY_IMPLEMENTATIONS = {
    "key<fry>": "threefry2x32",
    "key<rbg>": "rbg",
    "key<urbg>": "unsafe_rbg",
}

Path = tuple[str, ...]


def flatten(tree: PyTree) -> dict[Path, Any]:
    """Returns the leaves by the names (attributes, keys, positions) on their way."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in leaves
    }


def nest(arrays: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    """Returns nested dicts with an array at each path."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = array
    return tree


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(leaf: Any, path: Path) -> dict[str, Any]:
    """Returns what states of one structure share; refuses leaves that have no such."""
    if isinstance(leaf, bool | int | float):
        return {"shape": [], "dtype": type(leaf).__name__}
    unknown_key = _is_key(leaf) and str(leaf.dtype) not in _KEY_IMPLEMENTATIONS
    if unknown_key or not hasattr(leaf, "dtype") or leaf.dtype == object:
        raise ValueError(
            f"state leaf {'/'.join(path)} is {leaf!r}, a {type(leaf).__name__}: keep "
            "arrays, jax's own PRNG keys and numbers in the state, the rest elsewhere"
        )
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def to_host(leaf: Any) -> np.ndarray:
    """Returns the whole leaf on this host; a PRNG key as its uint32 data."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def rebuild(example: PyTree, arrays: Mapping[Path, np.ndarray]) -> PyTree:
    """Returns the arrays in the structure, types and shardings of the example."""
    leaves = [_place(arrays[path], leaf) for path, leaf in flatten(example).items()]
    return jax.tree.unflatten(jax.tree.structure(example), leaves)


def _place(array: np.ndarray, like: Any) -> Any:
    """Returns the array as the example has it: type, key implementation, sharding."""
    if isinstance(like, bool | int | float):
        return type(like)(array.item())
    if isinstance(like, np.ndarray | np.generic):
        return array
    # An uncommitted array must stay so, or a jit over several devices would refuse it.
    if like.sharding is None or not getattr(like, "committed", True):
        value = jnp.asarray(array)
    else:
        value = place(array, like.sharding)
    if not _is_key(like):
        return value
    implementation = _KEY_IMPLEMENTATIONS[str(like.dtype)]
    return jax.random.wrap_key_data(value, impl=implementation)


def digest(tree: PyTree) -> bytes:
    """Returns a text that is the same for trees equal bit for bit."""
    prints = {
        "/".join(path): fingerprint(to_host(leaf))
        for path, leaf in flatten(tree).items()
    }
    return json.dumps(prints, sort_keys=True).encode()


def fingerprint(array: np.ndarray) -> dict[str, Any]:
    """Returns shape, dtype and checksum: the same for arrays equal bit for bit."""
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "crc32": zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8)),
    }
