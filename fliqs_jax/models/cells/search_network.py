r"""The search network: every operation on every edge, each with its share.

.. math:: \bar o^{(i,j)}(x_i) = \sum_o p^{(i,j)}_o \; o(x_i; w_o^{(i)})

Operations belong to the node that an edge leaves, so that each is computed once for all
the nodes that take it: 3 x 5 in a NAS-Bench-201 cell, 5 x 8 in a DARTS cell, instead of
6 x 5 and 14 x 8 (`share=False`, as published for DARTS). A bottleneck narrows the cells
between 1x1 convolutions. The shares p are a parameter like others, "architecture", one
table for all cells of a kind; what they are, softmax of architecture weights or drawn,
is the search's (`fliqs_jax.searchers.dca_nas`).
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.cells.darts_counts import darts_places, darts_stride
from fliqs_jax.models.cells.nasbench201 import NASBENCH201_WIDTHS
from fliqs_jax.models.cells.nasbench201_network import ReductionBlock
from fliqs_jax.models.cells.operations import (
    FactorizedReduce,
    Norm,
    ReluConvNorm,
    convolution,
    make_operation,
)
from fliqs_jax.models.cells.space import (
    DARTS,
    NASBENCH201,
    Alphas,
    CellSpace,
    narrowed,
)

ARCHITECTURE = "architecture"  # the name of the shares among the parameters

Images = Float[jax.Array, "B H W C"]


class _Pooled(nn.Module):
    """A pool with batch normalisation behind it, so that no scale sets it apart."""

    operation: str
    stride: int
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w C"]:
        pool = make_operation(
            self.operation, norm=self.norm, stride=self.stride, dtype=self.dtype
        )
        return self.norm()(pool(images))


class MixedEdges(nn.Module):
    """The edges of a cell: nodes from its inputs, by mixed operations.

    An operation's path is its name and source, "nor_conv_3x3_0", or with `share=False`
    its name, source and target, as in a derived network's cell.
    """

    space: CellSpace
    norm: Norm
    stride: Callable[[int], int]  # of the operations of a source
    share: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, nodes: Sequence[Images], shares: Float[jax.Array, "E O"]
    ) -> list[Float[jax.Array, "B h w c"]]:
        """Returns all nodes, those given first."""
        nodes, computed = list(nodes), {}

        def outputs(source, target):
            key = (source,) if self.share else (source, target)
            if key not in computed:
                computed[key] = [
                    self._operation(name, key)(nodes[source])
                    for name in self.space.operations
                ]
            return computed[key]

        for target in range(len(nodes), 1 + self.space.edges[-1][1]):
            terms = []
            for edge, (source, end) in enumerate(self.space.edges):
                if end == target:
                    weights = shares[edge].astype(self.dtype)
                    terms += map(operator.mul, weights, outputs(source, target))
            nodes.append(functools.reduce(operator.add, terms))
        return nodes

    def _operation(self, operation: str, key: tuple[int, ...]) -> nn.Module:
        stride = self.stride(key[0])
        name = "_".join([operation, *map(str, key)])
        # As published: pools of the DARTS space have batch normalisation behind them.
        if "pool" in operation and self.space.name == "darts":
            return _Pooled(operation, stride, self.norm, self.dtype, name=name)
        return make_operation(
            operation, norm=self.norm, stride=stride, dtype=self.dtype, name=name
        )


class _SearchNetwork(nn.Module):
    """What both spaces have: fields, norms, shares."""

    num_classes: int = 10
    bottleneck: int = 4
    share: bool = True
    dtype: Any = jnp.float32

    def _norms(self, train: bool) -> tuple[Norm, Norm]:
        """Batch normalisation as usual, and the cells', without scale and bias."""
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        return norm, functools.partial(norm, affine=False)

    def _shares(self, space: CellSpace) -> Alphas:
        return self.param(ARCHITECTURE, lambda key: space.equal_shares())


class NasBench201SearchNetwork(_SearchNetwork):
    """The search network of NAS-Bench-201: `NasBench201Network` with mixed edges.

    Its counts are `nasbench201_network_counts(bottleneck=..., affine=False)`, an edge
    counting on its own.

    Args:
      num_classes: length of the logits.
      bottleneck: cells have a share 1 / `bottleneck` of the channels; 1 is none.
      share: operations belong to a source instead of an edge.
      width: channels of the first stage.
      num_cells: cells in each of the three stages.
      dtype: of the computation.

    Example:
      >>> model = NasBench201SearchNetwork(width=4, num_cells=1)
      >>> images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    width: int = 16
    num_cells: int = 5

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics."""
        norm, bare = self._norms(train)
        shares = self._shares(NASBENCH201)["cell"]
        stem = convolution(self.width, 3, dtype=self.dtype, name="stem")
        x = norm()(stem(jnp.asarray(images)))
        for stage, multiple in enumerate(NASBENCH201_WIDTHS):
            features = multiple * self.width
            if stage:
                x = ReductionBlock(features, norm, self.dtype, name=f"reduce_{stage}")(
                    x
                )
            for number in range(stage * self.num_cells, (stage + 1) * self.num_cells):
                x = self._cell(x, shares, bare, f"cell_{number}")
        pooled = nn.relu(norm()(x)).mean((1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(pooled).astype(jnp.float32)

    def _cell(self, x, shares, norm, name):
        conv = functools.partial(ReluConvNorm, 1, norm, self.dtype, 1)
        features = x.shape[-1]
        if self.bottleneck != 1:
            x = conv(narrowed(features, self.bottleneck), name=f"{name}_narrow")(x)
        edges = MixedEdges(
            NASBENCH201, norm, lambda source: 1, self.share, self.dtype, name=name
        )
        x = edges([x], shares)[-1]
        return conv(features, name=f"{name}_widen")(x) if self.bottleneck != 1 else x


class DartsSearchNetwork(_SearchNetwork):
    """The search network of DARTS: `DartsNetwork` with mixed edges, CIFAR's stem.

    The 1x1 convolutions of a cell's inputs are its narrowing ones. Its counts are
    `darts_network_counts(bottleneck=..., affine=False)`.

    Args:
      num_classes: length of the logits.
      bottleneck: nodes have a share 1 / `bottleneck` of the channels; 1 is none.
      share: operations belong to a source instead of an edge.
      channels: of a node in the first cell, before the bottleneck.
      layers: number of cells.
      dtype: of the computation.

    Example:
      >>> model = DartsSearchNetwork(channels=8, layers=3)
      >>> images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    channels: int = 16
    layers: int = 8

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics."""
        norm, bare = self._norms(train)
        shares = self._shares(DARTS)
        images = jnp.asarray(images)
        stem = convolution(3 * self.channels, 3, dtype=self.dtype, name="stem")
        before = last = norm()(stem(images))
        places = darts_places(self.channels, self.layers, images.shape[1:])
        for layer, place in enumerate(places):
            cell = self._cell(before, last, place, shares, bare, f"cell_{layer}")
            before, last = last, cell
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(last.mean((1, 2)))
        return logits.astype(jnp.float32)

    def _cell(self, before, last, place, shares, norm, name):
        features = narrowed(place.channels, self.bottleneck)
        conv = functools.partial(ReluConvNorm, 1, norm, self.dtype, 1)
        if place.after_reduction:
            first = FactorizedReduce(features, norm, self.dtype, name=f"{name}_input_0")
        else:
            first = conv(features, name=f"{name}_input_0")
        inputs = [first(before), conv(features, name=f"{name}_input_1")(last)]
        stride = functools.partial(darts_stride, place.reduction)
        edges = MixedEdges(DARTS, norm, stride, self.share, self.dtype, name=name)
        kind = "reduce" if place.reduction else "normal"
        joined = jnp.concatenate(edges(inputs, shares[kind])[2:], -1)
        if self.bottleneck == 1:
            return joined
        return conv(4 * place.channels, name=f"{name}_widen")(joined)
