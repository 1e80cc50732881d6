"""Fake quantization of weights: as a map over the params tree, and one by one."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fliqs_jax.quantized_model.riding import (
    FlatParams,
    SiteGroup,
    map_layers,
    unpack_format,
)
from fliqs_jax.quantizers import absmax_bound, fake_quantize, scale_of_bound


def quantize_weights(
    flat: FlatParams,
    groups: Sequence[SiteGroup],
    rows: Float[Array, "L P"],
    *,
    per_channel: bool,
    clip_gradient: bool,
) -> FlatParams:
    """Returns flat params whose site weights lie on their formats' grids.

    Args:
      flat: parameters by path.
      groups: the sites' places in it.
      rows: formats and clips of the weights, from `pack_formats`.
      per_channel: one scale for each output channel instead of one for the tensor.
      clip_gradient: see `fake_quantize`.

    Raises:
      ValueError: if a site's weight is not in `flat`.
    """
    quantized = dict(flat)
    for group in groups:
        for weight in group.weights:
            path = (*group.scope, *weight.path)
            if path not in flat:
                raise ValueError(
                    f"variables['params'] has no {'/'.join(path)!r}, the weight of a"
                    " site: give the sites and variables of the same model"
                )

            def quantize(layer, row, weight=weight):
                contracted = weight.contracted_axes if per_channel else None
                scale = _scale(layer, row, contracted)
                fmt, _ = unpack_format(row)
                return fake_quantize(
                    layer, fmt, scale=scale, clip_gradient=clip_gradient
                )

            quantized[path] = map_layers(
                quantize, flat[path], rows[group.rows], group, weight
            )
    return quantized


def quantize_second_operand(
    x: Float[Array, "*B K heads size"], row: Float[Array, "P"], *, clip_gradient: bool
) -> Float[Array, "*B K heads size"]:
    """Returns the key or value of an attention product on its format's grid.

    As a weight: a clip counts in units of the RMS, here of each example. So no
    statistics of earlier batches are needed, and where clips are given, what an example
    gives does not depend on the others of its batch. Without, one scale a tensor.
    """
    fmt, clip = unpack_format(row)
    example = None if clip is None else tuple(range(x.ndim - 3, x.ndim))
    scale = _scale(x, row, example)
    return fake_quantize(x, fmt, scale=scale, clip_gradient=clip_gradient)


def _scale(
    layer: Float[Array, "..."],
    row: Float[Array, "P"],
    contracted: tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    r"""Returns the scale of one layer's weight.

    .. math:: s = \min(\max |w|, c \, \sqrt{\overline{w^2}}) / v_{max}

    Maximum and mean run over the contracted axes, or over the tensor. Without a clip
    factor c the maximum decides alone.
    """
    fmt, clip = unpack_format(row)
    layer = lax.stop_gradient(layer)
    kept = None
    if contracted is not None:
        kept = tuple(a for a in range(layer.ndim) if a not in contracted)
    bound = absmax_bound(layer, axis=kept)
    if clip is not None:
        square = jnp.square(layer.astype(jnp.float32))
        rms = jnp.sqrt(jnp.mean(square, axis=contracted, keepdims=kept is not None))
        bound = jnp.minimum(bound, clip * rms)
    return scale_of_bound(bound, fmt)
