"""Weights of a trained model on grids of their own: post-training quantization.

Where `weights` takes scales from a clip factor, here an observer looks at every output
channel, and integers may have a zero point. The result runs as it is, under policies
whose weights are fp32; `find_scale` tells its grid from its values.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from fliqs_jax.formats import Format
from fliqs_jax.quantized_model.riding import (
    flatten_params,
    group_sites,
    layer_index,
    map_layers,
    pack_formats,
    unflatten_params,
    unpack_format,
)
from fliqs_jax.quantized_model.weights import StoredWeight
from fliqs_jax.quantizers.observers import Observer, affine_grid
from fliqs_jax.quantizers.straight_through import fake_quantize
from fliqs_jax.sites import Site


def quantize_tensor(
    x: Float[Array, "..."],
    fmt: Format,
    observer: Observer,
    *,
    symmetric: Bool[ArrayLike, ""],
    contracted_axes: tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Returns a tensor on the grid that an observer chooses, one for each channel.

    Args:
      x: the tensor.
      fmt: one format, may be traced; fp32 leaves the tensor as it is.
      observer: one of `quantizers.observers`.
      symmetric: False gives integers a zero point; may be traced.
      contracted_axes: all axes but those of the channels; None is one grid for all.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> from fliqs_jax.quantizers.observers import minmax_range
      >>> x = jnp.array([[0.0, -10.0], [3.0, 20.0]])
      >>> quantize_tensor(x, parse_format("int2"), minmax_range, symmetric=False,
      ...     contracted_axes=(0,)).round(1).tolist()
      [[0.0, -10.0], [3.0, 20.0]]
    """
    axes = tuple(range(x.ndim)) if contracted_axes is None else contracted_axes
    channels = [axis for axis in range(x.ndim) if axis not in axes]
    first = jnp.transpose(x, (*channels, *axes))
    rows = first.reshape(math.prod(x.shape[axis] for axis in channels), -1)

    def one(row):
        grid, scale = affine_grid(observer(row, fmt, symmetric, 1.0), fmt, symmetric)
        return fake_quantize(row, grid, scale=scale)

    back = np.argsort([*channels, *axes])
    return jnp.transpose(jax.vmap(one)(rows).reshape(first.shape), back)


def quantize_weights_by(
    params: PyTree,
    sites: Sequence[Site],
    formats: Format,
    observer: Observer,
    *,
    symmetric: Bool[ArrayLike, "L"],
    per_channel: bool = True,
) -> PyTree:
    """Returns params, the weights of all sites on the grids that an observer chooses.

    Zeros stay zeros on every grid, so masked weights change none of `minmax` and `mse`;
    those of `percentile` and `kl` count them.

    Args:
      params: of the model.
      sites: its sites.
      formats: of their weights, fields of shape [L], may be traced.
      observer: one of `quantizers.observers`.
      symmetric: for each site, False gives integers a zero point; may be traced.
      per_channel: one grid for each output channel instead of one for the tensor.
    """
    flat = flatten_params(params)
    # One row a site, the mode in the column of the clip.
    modes = jnp.broadcast_to(jnp.asarray(symmetric, jnp.float32), (len(sites),))
    rows = pack_formats(formats, modes)
    for group in group_sites(sites):
        for weight in group.weights:

            def quantize(layer, row, weight=weight):
                fmt, mode = unpack_format(row)
                return quantize_tensor(
                    layer,
                    fmt,
                    observer,
                    symmetric=mode > 0,
                    contracted_axes=weight.contracted_axes if per_channel else None,
                )

            path = (*group.scope, *weight.path)
            flat[path] = map_layers(
                quantize, flat[path], rows[group.rows], group, weight
            )
    return unflatten_params(flat)


def stored_static_weights(
    params: PyTree,
    sites: Sequence[Site],
    formats: Format,
    *,
    per_channel: bool = True,
) -> dict[tuple[str, ...], StoredWeight]:
    """Returns weights that are on their grids as numbers and scales (host).

    Args:
      params: from `quantize_weights_by`, symmetric.
      sites: of the model.
      formats: of their weights, fields of shape [L].
      per_channel: as they were quantized.

    Raises:
      ValueError: if a weight is on no such grid; it names the site.
    """
    flat, stored = flatten_params(nn.meta.unbox(params)), {}
    for site, fmt in zip(sites, formats, strict=True):
        for weight in site.weights:
            path = (*site.module_path, *weight.path)
            leaf = np.asarray(flat[path], np.float32)
            index = layer_index(weight.stack_axes, site.layer, leaf.ndim)
            axes = weight.contracted_axes if per_channel else None
            try:
                scale = find_scale(leaf[index], fmt, contracted_axes=axes)
            except ValueError as error:
                raise ValueError(f"the weights of {site.path!r}: {error}") from error
            if path not in stored:
                shape = list(scale.shape)
                for axis in weight.stack_axes:
                    shape.insert(axis, leaf.shape[axis])
                empty = np.zeros_like(leaf), np.ones(shape, np.float32)
                stored[path] = StoredWeight(*empty)
            numbers = fake_quantize(leaf[index] / scale, fmt, scale=1.0)
            stored[path].numbers[index] = numbers
            stored[path].scale[index] = scale
    return stored


def find_scale(
    x: np.ndarray, fmt: Format, *, contracted_axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """Returns the scale of each channel of a tensor that is on its grid (host).

    The largest magnitude of a channel is some value v of the format times the scale:
    the largest v is taken by which all of the channel is on the grid.

    Args:
      x: the tensor, float32.
      fmt: one format of at most 8 bits; of a wider one its two ends alone are tried,
        and one that needs no scale has 1.
      contracted_axes: all axes but those of the channels; None is one grid for all.

    Returns:
      Positive scales that broadcast against x.

    Raises:
      ValueError: if a channel is on no such grid, as one with a zero point.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> x = np.array([-1.5, 0.5, 1.0], np.float32)
      >>> find_scale(x, parse_format("int3")).tolist()
      [0.5]
    """
    axes = tuple(range(x.ndim)) if contracted_axes is None else contracted_axes
    largest = np.abs(x).max(axis=axes, keepdims=True)
    values = (
        fmt.values()
        if int(fmt.storage_bits) <= 8
        else np.array([fmt.min_value, fmt.max_value])
    )
    scale, known = np.ones_like(largest), largest == 0.0
    if not fmt.needs_scale:
        return scale
    for value in np.unique(np.abs(values[values != 0.0]))[::-1]:
        tried = np.where(known, scale, largest / value)
        error = np.abs(np.asarray(fake_quantize(x, fmt, scale=tried)) - x)
        fits = (error <= 1e-4 * tried).all(axis=axes, keepdims=True)
        scale, known = np.where(fits & ~known, tried, scale), known | fits
        if known.all():
            return scale.astype(np.float32)
    raise ValueError(f"{np.count_nonzero(~known)} channels are on no symmetric grid")
