"""Fake quantization of weights: as a map over the params tree, and one by one."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, PyTree

from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model.riding import (
    FlatParams,
    SiteGroup,
    flatten_params,
    group_sites,
    map_layers,
    pack_formats,
    unpack_format,
)
from fliqs_jax.quantizers import (
    absmax_bound,
    fake_quantize,
    learned_scale,
    lsq,
    scale_of_bound,
)
from fliqs_jax.quantizers.rounding import LARGEST_SCALE, SMALLEST_SCALE
from fliqs_jax.sites import Site


class StoredWeight(NamedTuple):
    """A weight as `numbers * scale`, the numbers being those of its format."""

    numbers: Float[Array, "..."]  # of the weight's shape
    scale: Float[Array, "..."]  # broadcasts against them


def quantize_weights(
    flat: FlatParams,
    groups: Sequence[SiteGroup],
    rows: Float[Array, "L P"],
    *,
    per_channel: bool,
    clip_gradient: bool,
    learned_clips: bool = False,
) -> FlatParams:
    """Returns flat params whose site weights lie on their formats' grids.

    Args:
      flat: parameters by path.
      groups: the sites' places in it.
      rows: formats and clips of the weights, from `pack_formats`.
      per_channel: one scale for each output channel instead of one for the tensor.
      clip_gradient: see `fake_quantize`.
      learned_clips: let the gradient reach the clips, as LSQ's step sizes.

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
                bound = _bound(layer, row, contracted)
                fmt, clip = unpack_format(row)
                if learned_clips and clip is not None:
                    return lsq(layer, learned_scale(bound, fmt), fmt)
                scale = scale_of_bound(bound, fmt)
                return fake_quantize(
                    layer, fmt, scale=scale, clip_gradient=clip_gradient
                )

            quantized[path] = map_layers(
                quantize, flat[path], rows[group.rows], group, weight
            )
    return quantized


def mix_weights(
    options: Sequence[FlatParams],
    groups: Sequence[SiteGroup],
    probabilities: Float[Array, "L F"],
) -> FlatParams:
    r"""Returns flat params whose site weights are means over options.

    .. math:: \bar w_l = \sum_f q_{lf} \, w_l^{(f)}

    Args:
      options: F times the params of one model, from `quantize_weights`.
      groups: the sites' places in them.
      probabilities: q, of each option at each site.
    """

    def share_of(layer, share):
        return layer * share[0].astype(layer.dtype)

    mixed = dict(options[0])
    for group in groups:
        for weight in group.weights:
            path = (*group.scope, *weight.path)
            shares = probabilities[group.rows]
            parts = [
                map_layers(share_of, flat[path], shares[:, n : n + 1], group, weight)
                for n, flat in enumerate(options)
            ]
            mixed[path] = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    return mixed


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
    scale = scale_of_bound(_bound(x, row, example), fmt)
    return fake_quantize(x, fmt, scale=scale, clip_gradient=clip_gradient)


def stored_weights(
    params: PyTree,
    sites: Sequence[Site],
    formats: SiteFormats,
    *,
    per_channel: bool,
) -> dict[tuple[str, ...], StoredWeight]:
    """Returns the weights of all sites as hardware stores them: numbers and scales.

    Args:
      params: of the model.
      sites: its sites.
      formats: of its policy, with clip bounds if it has any.
      per_channel: as the `QuantizedModel` has it.

    Returns:
      By path in the params, numbers and scale whose product is, bit for bit, the
      weight with which a `QuantizedModel` of the same arguments runs.
    """
    flat = flatten_params(params)
    rows = pack_formats(formats.weight, formats.weight_clip)
    numbers, scales = {}, {}
    for group in group_sites(sites):
        for weight in group.weights:

            def scale_of(layer, row, weight=weight):
                contracted = weight.contracted_axes if per_channel else None
                scale = scale_of_bound(
                    _bound(layer, row, contracted), unpack_format(row)[0]
                )
                scale = jnp.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)
                return scale.reshape(scale.shape or (1,) * layer.ndim)

            def number_of(layer, row, scale_of=scale_of):
                fmt, _ = unpack_format(row)
                scale = scale_of(layer, row)
                on_grid = fake_quantize(layer, fmt, scale=scale)
                return fake_quantize(on_grid / scale, fmt, scale=1.0)

            path = (*group.scope, *weight.path)
            leaf = nn.meta.unbox(flat[path]).astype(jnp.float32)
            numbers[path], scales[path] = (
                map_layers(function, leaf, rows[group.rows], group, weight)
                for function in (number_of, scale_of)
            )
    return {path: StoredWeight(numbers[path], scales[path]) for path in numbers}


def oscillation_penalty(
    flat: FlatParams,
    groups: Sequence[SiteGroup],
    rows: Float[Array, "L P"],
    *,
    per_channel: bool,
) -> Float[Array, ""]:
    r"""Returns how far the weights are from their grids: what keeps them from flipping.

    .. math:: \sum_i (\mathrm{clip}(w_i; s v_{min}, s v_{max}) - s \, Q(w_i / s))^2

    The quantized weights count as constants; clipped ones have no gradient.

    Args:
      flat: parameters by path.
      groups: the sites' places in it.
      rows: formats and clips of the weights, from `pack_formats`.
      per_channel: as in `quantize_weights`.

    Reference:
      Nagel et al., Overcoming Oscillations in Quantization-Aware Training, 2022,
      section 4.1, https://arxiv.org/abs/2203.11086
    """

    def penalty(layer, row, weight):
        contracted = weight.contracted_axes if per_channel else None
        fmt, _ = unpack_format(row)
        scale = scale_of_bound(_bound(layer, row, contracted), fmt)
        on_grid = lax.stop_gradient(fake_quantize(layer, fmt, scale=scale))
        bounded = jnp.clip(layer, fmt.min_value * scale, fmt.max_value * scale)
        return jnp.square(bounded - on_grid)

    total = jnp.zeros(())
    for group in groups:
        for weight in group.weights:
            function = functools.partial(penalty, weight=weight)
            leaf = nn.meta.unbox(flat[(*group.scope, *weight.path)])
            squares = map_layers(function, leaf, rows[group.rows], group, weight)
            total += squares.sum(dtype=jnp.float32)
    return total


def site_sums(values: FlatParams, groups: Sequence[SiteGroup]) -> Float[Array, "L"]:
    """Sums an element-wise quantity of the weights over the weights of each site.

    Args:
      values: shaped as the parameters, by path; entries that no site has are ignored.
      groups: the sites' places. A site without weights has the sum 0.
    """
    parts = []
    for group in groups:
        total = jnp.zeros(group.num_layers)
        for weight in group.weights:
            value = nn.meta.unbox(values[(*group.scope, *weight.path)])
            layers = set(weight.stack_axes)
            axes = tuple(a for a in range(value.ndim) if a not in layers)
            total += value.sum(axis=axes, dtype=jnp.float32).reshape(-1)
        parts.append(total)
    return jnp.concatenate(parts)


def _bound(
    layer: Float[Array, "..."],
    row: Float[Array, "P"],
    contracted: tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    r"""Returns the largest magnitude that one layer's weight keeps.

    .. math:: \min(\max |w|, c \, \sqrt{\overline{w^2}})

    Maximum and mean run over the contracted axes, or over the tensor. Without a clip
    factor c the maximum decides alone. The gradient is that of the second operand.
    """
    _, clip = unpack_format(row)
    layer = lax.stop_gradient(layer)
    kept = None
    if contracted is not None:
        kept = tuple(a for a in range(layer.ndim) if a not in contracted)
    bound = absmax_bound(layer, axis=kept)
    if clip is not None:
        square = jnp.square(layer.astype(jnp.float32))
        rms = jnp.sqrt(jnp.mean(square, axis=contracted, keepdims=kept is not None))
        # A learned clip beyond the maximum must find its way back: the gradient passes.
        reach = clip * rms
        capped = lax.stop_gradient(jnp.minimum(bound, reach))
        bound = capped + (reach - lax.stop_gradient(reach))
    return bound
