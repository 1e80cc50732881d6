"""Weights of a trained model on grids of their own: post-training quantization.

Where `weights` takes scales from a clip factor, here an observer looks at every output
channel, and integers may have a zero point. The result runs as it is, under policies
whose weights are fp32.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from fliqs_jax.formats import Format
from fliqs_jax.quantized_model.riding import (
    flatten_params,
    group_sites,
    map_layers,
    pack_formats,
    unflatten_params,
    unpack_format,
)
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

    Zeros stay zeros on every grid, so masked weights get those of the live ones.

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
