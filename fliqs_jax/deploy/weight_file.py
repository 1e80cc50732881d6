"""A file of a quantized network's variables: packed codes, scales, other arrays.

A safetensors file, so that any language reads it. Of every weight of a site two
tensors, named by the site and the weight: `Conv_0/kernel:codes` are its codes (see
`codes`) packed as in `packing`, each in as many bits as the format has;
`Conv_0/kernel:scale` broadcasts against the weight, which is number times scale. All
other variables are stored as they are under their paths ("params/Conv_0/bias").
The metadata `weights` (JSON) has a row for each weight: names, format, shape, and its
place in the parameters.

Codebooks have a file of their own, `codebook_file`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from fliqs_jax.deploy.codes import decode, encode
from fliqs_jax.deploy.packing import pack_indices, unpack_indices
from fliqs_jax.files import replace_bytes
from fliqs_jax.formats import parse_format
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model.riding import layer_index
from fliqs_jax.quantized_model.weights import StoredWeight
from fliqs_jax.safetensors_arrays import read_safetensors
from fliqs_jax.sites import Site

_VERSION = "1"


def save_weights(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    sites: Sequence[Site],
    *,
    policy: Policy,
    stored: Mapping[tuple[str, ...], StoredWeight],
) -> None:
    """Writes a network's variables, its sites' weights in the bits of their formats.

    Args:
      path: the file, old or new; its folder must exist. Replaced in one step.
      variables: float ones, `{"params": ...}` and other collections.
      sites: of the model.
      policy: names of the formats.
      stored: the weights of all sites as numbers and scales, from `stored_weights`.

    Raises:
      ValueError: if a weight is not finite, so it has no code.
    """
    tensors, rows = {}, []
    for site in sites:
        for weight in site.weights:
            leaf = (*site.module_path, *weight.path)
            index = layer_index(
                weight.stack_axes, site.layer, np.ndim(stored[leaf].numbers)
            )
            part = StoredWeight(*(np.asarray(array)[index] for array in stored[leaf]))
            name = f"{site.path}/{weight.name}"
            format_name = policy[site.path][0]
            bits = int(parse_format(format_name).storage_bits)
            codes = encode(part.numbers, format_name)
            tensors[f"{name}:codes"] = (
                pack_indices(codes, 2**bits)
                if bits < 32
                else codes.reshape(-1).view(np.uint8)
            )
            tensors[f"{name}:scale"] = np.ascontiguousarray(part.scale)
            rows.append(
                {
                    "name": name,
                    "format": format_name,
                    "shape": list(part.numbers.shape),
                    "path": list(leaf),
                    "stack_axes": list(weight.stack_axes),
                    "layer": list(site.layer),
                }
            )
    for name, leaf in flax.traverse_util.flatten_dict(variables).items():
        if name[0] != "params" or name[1:] not in stored:
            # Not `ascontiguousarray`, which gives a scalar an axis.
            tensors["/".join(name)] = np.asarray(nn.meta.unbox(leaf), order="C")
    metadata = {"fliqs_jax_weights": _VERSION, "weights": json.dumps(rows)}
    replace_bytes(path, safetensors.numpy.save(tensors, metadata))


def load_weights(path: str | os.PathLike[str]) -> PyTree:
    """Returns the variables of a file, the weights in float32, on their grids.

    They run as they are: under a policy whose weights are fp32.

    Raises:
      ValueError: if the file is none of `save_weights`.
    """
    tensors = read_safetensors(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    if metadata.get("fliqs_jax_weights") != _VERSION:
        raise ValueError(
            f"{path} holds no weights of this library, version {_VERSION}: write it"
            " with save_weights or experiments.export"
        )
    flat: dict[tuple[str, ...], Any] = {}
    layers: dict[tuple[str, ...], list[dict]] = {}
    for row in json.loads(metadata["weights"]):
        codes, scale = (tensors.pop(f"{row['name']}:{x}") for x in ("codes", "scale"))
        row["values"] = _values(codes, row) * scale
        layers.setdefault(("params", *row["path"]), []).append(row)
    for leaf, rows in layers.items():
        flat[leaf] = _stacked(rows)
    for name, array in tensors.items():
        flat[tuple(name.split("/"))] = array
    return flax.traverse_util.unflatten_dict(flat)


def _values(packed: np.ndarray, row: dict[str, Any]) -> np.ndarray:
    bits = int(parse_format(row["format"]).storage_bits)
    if bits < 32:
        codes = unpack_indices(packed, 2**bits, row["shape"])
    else:
        codes = packed.view(np.uint32).reshape(row["shape"])
    return decode(codes, row["format"])


def _stacked(rows: list[dict[str, Any]]) -> np.ndarray:
    """Returns the leaf of a weight from its layers, or the weight itself."""
    axes = rows[0]["stack_axes"]
    if not axes:
        return rows[0]["values"]
    sizes = np.max([row["layer"] for row in rows], axis=0) + 1
    shape = list(rows[0]["shape"])
    for axis, size in zip(axes, sizes, strict=True):
        shape.insert(axis, int(size))
    leaf = np.zeros(shape, np.float32)
    for row in rows:
        leaf[layer_index(axes, row["layer"], leaf.ndim)] = row["values"]
    return leaf
