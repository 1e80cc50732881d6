"""Numbers of a site that travel through a model inside its params tree.

A linen model passes on leaves of `params` that it does not know, and `nn.scan` slices
them with the layer axis: so each layer of a stack gets numbers of its own, in a model
that was never written for it. What the numbers mean is up to `weights` and `model`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from fliqs_jax.attention_products import KERNEL_RANK
from fliqs_jax.formats import Format
from fliqs_jax.sites import Product, Site, Weight

# Parameters by path. Boxed ones (nn.Partitioned) are leaves here.
FlatParams = dict[tuple[str, ...], Any]


class SiteGroup(NamedTuple):
    """The sites that share one place in the params tree: a layer, or a whole stack."""

    scope: tuple[str, ...]
    product: Product | None  # of an attention layer, which has two in its scope
    weights: tuple[Weight, ...]
    rank: int  # of one layer's first weight, or of an attention layer's kernels
    stack_shape: tuple[int, ...]
    rows: slice  # of arrays over all sites [L, ...]
    calls: int  # of one layer in one run of the model

    @property
    def stack_axes(self) -> tuple[int, ...]:
        """Axes of a stored leaf that index the layers of the stack."""
        stacked = self.product or (self.weights[0] if self.weights else None)
        return stacked.stack_axes if stacked else ()

    @property
    def num_layers(self) -> int:
        """Sites in the group."""
        return math.prod(self.stack_shape)

    def leaf_path(self, name: str) -> tuple[str, ...]:
        """Path of the leaf that carries the numbers called `name`."""
        return *self.scope, leaf_name(name, self.product and self.product.name)

    def leaf_shape(self, row_length: int) -> tuple[int, ...]:
        """Shape of a leaf that holds a row of numbers for each layer."""
        shape = self.row_shape(row_length)
        for axis, size in zip(self.stack_axes, self.stack_shape, strict=True):
            shape.insert(axis, size)
        return tuple(shape)

    def row_shape(self, row_length: int) -> list[int]:
        """Shape of the part of such a leaf that one layer sees."""
        # The rank of the weight: then the stacking axes stand where the weight's do.
        # Outside stacks a vector: nn.SpectralNorm takes anything else for a weight.
        return [row_length] + [1] * (self.rank - 1 if self.stack_axes else 0)


def leaf_name(name: str, product: str | None = None) -> str:
    """Returns the name of a riding leaf in its scope: a product's has its own."""
    return name if product is None else f"{name}_{product}"


def group_sites(sites: Sequence[Site]) -> tuple[SiteGroup, ...]:
    """Joins the layers of each stack; other sites are groups of one."""
    groups, start = [], 0
    place = lambda site: (site.module_path, site.product)  # noqa: E731
    for (scope, product), members in itertools.groupby(sites, place):
        *_, last = members
        # The last layer's index is one less than the stack's size along each axis.
        shape = tuple(index + 1 for index in last.layer)
        rows = slice(start, start + math.prod(shape))
        rank = KERNEL_RANK if product else len(last.weight_shape)
        groups.append(
            SiteGroup(
                scope=scope,
                product=product,
                weights=last.weights,
                rank=rank,
                stack_shape=shape,
                rows=rows,
                calls=last.calls,
            )
        )
        start = rows.stop
    return tuple(groups)


def flatten_params(params: Mapping) -> FlatParams:
    """Returns params as one flat dict, empty subtrees kept."""
    params = flax.core.unfreeze(params)
    return flax.traverse_util.flatten_dict(params, keep_empty_nodes=True)


def unflatten_params(flat: FlatParams) -> dict:
    """Undoes `flatten_params`."""
    return flax.traverse_util.unflatten_dict(flat)


def place_rows(
    flat: FlatParams,
    groups: Sequence[SiteGroup],
    name: str,
    rows: Shaped[Array, "L P"],
) -> None:
    """Adds each site's row of numbers to the params of its own scope, under `name`."""
    for group in groups:
        layer_shape = group.row_shape(rows.shape[-1])
        leaf = rows[group.rows].reshape(*group.stack_shape, *layer_shape)
        stacked_first = tuple(range(len(group.stack_axes)))
        flat[group.leaf_path(name)] = jnp.moveaxis(
            leaf, stacked_first, group.stack_axes
        )


def collect_rows(
    flat: FlatParams, groups: Sequence[SiteGroup], name: str
) -> Shaped[Array, "L P"]:
    """Undoes `place_rows`."""
    parts = []
    for group in groups:
        leaf = flat[group.leaf_path(name)]
        stacked_first = tuple(range(len(group.stack_axes)))
        leaf = jnp.moveaxis(leaf, group.stack_axes, stacked_first)
        parts.append(leaf.reshape(math.prod(group.stack_shape), -1))
    return jnp.concatenate(parts)


def pack_formats(
    formats: Format, clip: Float[Array, "L"] | None
) -> Float[Array, "L P"]:
    """Returns the formats and clips as one float32 row a site; integers are exact.

    One array a site instead of one a field keeps tracing and dispatch short.
    """
    columns = [
        formats.mantissa_bits,
        formats.min_exponent,
        formats.min_value,
        formats.max_value,
        formats.needs_scale,
    ] + ([] if clip is None else [clip])
    return jnp.stack([jnp.asarray(column, jnp.float32) for column in columns], axis=-1)


def unpack_format(
    row: Float[Array, "P"],
) -> tuple[Format, Float[Array, ""] | None]:
    """Undoes `pack_formats` for one site; storage bits do not travel and read 0."""
    mantissa_bits, min_exponent, low, high, needs_scale, *clip = jnp.unstack(row)
    fmt = Format(
        mantissa_bits=mantissa_bits.astype(jnp.int32),
        min_exponent=min_exponent.astype(jnp.int32),
        min_value=low,
        max_value=high,
        storage_bits=jnp.zeros((), jnp.int32),
        needs_scale=needs_scale > 0,
    )
    return fmt, clip[0] if clip else None


def map_layers(
    function, leaf: Any, rows: Float[Array, "N P"], group: SiteGroup, weight: Weight
) -> Any:
    """Applies function(one layer's weight, its row) to every layer of a stack."""
    rows = rows.reshape(*group.stack_shape, -1)
    # The outermost vmap takes the first axis away, so later ones have moved left.
    axes = [axis - gone for gone, axis in enumerate(weight.stack_axes)]
    for axis in reversed(axes):
        function = jax.vmap(function, in_axes=(axis, 0), out_axes=axis)
    return jax.tree.map(lambda array: function(array, rows), leaf)  # through a box


def layer_index(axes: Sequence[int], layer: Sequence[int], rank: int) -> tuple:
    """Returns what indexes one layer of a stack of them: its position in each axis.

    Example:
      >>> layer_index((0,), (2,), 3)
      (2, slice(None, None, None), slice(None, None, None))
    """
    index: list[Any] = [slice(None)] * rank
    for axis, position in zip(axes, layer, strict=True):
        index[axis] = position
    return tuple(index)
