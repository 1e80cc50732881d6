r"""The expected cost of a cell under architecture weights: exact, linear, smooth.

.. math:: k(\alpha) = c + \sum_{\text{cells}} \sum_{(i,j)} \sum_o
    \mathrm{softmax}(\alpha^{(i,j)})_o \, b(o)

Summed over a network's cells, b is one table an edge and an operation. It is that of
the search network (a bottleneck, no scale or bias in batch normalisation, an edge
counts even where edges share weights) or of the network derived from it; at one-hot
probabilities the latter is the derived network's own count.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from fliqs_jax.models.cells.darts import DARTS_EDGES, DARTS_OPERATIONS, DARTS_V2
from fliqs_jax.models.cells.darts_counts import (
    DartsPlace,
    Shape,
    darts_counts,
    darts_edge_counts,
    darts_input_counts,
    darts_places,
)
from fliqs_jax.models.cells.nasbench201 import (
    NASBENCH201_EDGES,
    NASBENCH201_OPERATIONS,
    NASBENCH201_WIDTHS,
    nasbench201_counts,
)
from fliqs_jax.models.cells.operations import Counts, operation_counts
from fliqs_jax.models.cells.space import Alphas, CellSpace, Tables, narrowed

UNITS = ("parameters", "macs", "weights")  # weights: without norms and biases


@dataclasses.dataclass(frozen=True, eq=False)
class CellCost:
    """A price that is a constant plus a number for each entry of a cell.

    Example:
      >>> from fliqs_jax.models.cells import NASBENCH201
      >>> cost = nasbench201_network_counts().cost("parameters")
      >>> float(cost.of(NASBENCH201, NASBENCH201.choice(0)))
      129306.0
    """

    constant: float
    tables: Tables

    def expected(self, probabilities: Alphas) -> Float[Array, ""]:
        """Returns k for probabilities of the operations, float32, differentiable."""
        parts = [
            (probabilities[kind] * jnp.asarray(table, jnp.float32)).sum()
            for kind, table in self.tables.items()
        ]
        return self.constant + sum(parts)

    def of_alphas(self, alphas: Alphas) -> Float[Array, ""]:
        """Returns k(alpha)."""
        return self.expected(softmax(alphas))

    def of(
        self, space: CellSpace, choice: Int[np.ndarray, "*N D"]
    ) -> np.ndarray | float:
        """Returns the cost of cells, exactly where it is a whole number (float64)."""
        options = self.options(space)
        choice = np.asarray(choice)
        parts = [prices[choice[..., d]] for d, prices in enumerate(options)]
        return self.constant + sum(parts)

    def options(self, space: CellSpace) -> list[Float64[np.ndarray, "_"]]:
        """Returns what each option of each decision adds to the constant."""
        return [decision.totals(self.tables) for decision in space.decisions]

    def at(self, formats: Sequence[int] | None) -> "CellCost":
        """Returns the cost itself, which no stage's format changes (`StagedCost`)."""
        del formats
        return self

    def cheapest(self) -> "CellCost":
        """Returns the cost itself, as `at` does."""
        return self

    def span(self) -> tuple[float, float]:
        """Returns the costs of all mass on the cheapest and on the dearest entries."""
        rows = np.concatenate([*self.tables.values()])
        low, high = rows.min(axis=1).sum(), rows.max(axis=1).sum()
        return self.constant + low, self.constant + high

    def scaled(self, factor: float | int) -> "CellCost":
        """Returns the cost in another unit."""
        tables = {kind: factor * table for kind, table in self.tables.items()}
        return CellCost(factor * self.constant, tables)


def softmax(alphas: Alphas) -> Alphas:
    """Returns the probabilities of the operations, a row an edge."""
    return {kind: jax.nn.softmax(alpha) for kind, alpha in alphas.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkCounts:
    """Parameters, MACs and weights (the last axis) of all cells a network can have.

    Exact: the constant is what is outside of the cells, tables are by stage, a stage
    being the cells between two reductions (a DARTS reduction cell opens its own).
    """

    constant: Float64[np.ndarray, "U"]
    tables: dict[str, Float64[np.ndarray, "S E O U"]]

    def cost(self, unit: str) -> CellCost:
        """Returns the price in "parameters", "macs" or "weights".

        Weights are the parameters of contractions: without those of batch normalisation
        and the classifier's bias. Times the bits of a format they are `model_bits`.
        """
        column = UNITS.index(unit)
        tables = {
            kind: table[..., column].sum(axis=0) for kind, table in self.tables.items()
        }
        return CellCost(float(self.constant[column]), tables)


def nasbench201_network_counts(
    num_classes: int = 10,
    *,
    width: int = 16,
    num_cells: int = 5,
    image_shape: Shape = (32, 32, 3),
    bottleneck: int = 1,
    affine: bool = True,
) -> NetworkCounts:
    """Returns what `NasBench201Network`, or the search network, costs by operation.

    Args:
      num_classes: length of the logits.
      width: channels of the first stage.
      num_cells: cells in each of the three stages.
      image_shape: height, width and channels of an example.
      bottleneck: of the search network: cells have a share 1 / `bottleneck` of the
        channels, between two 1x1 convolutions. 1 is none.
      affine: batch normalisations in cells have scale and bias (not when searching).

    Example:
      >>> nasbench201_network_counts().cost("macs").constant
      7783040.0
    """
    layout = {"width": width, "num_cells": num_cells, "image_shape": image_shape}
    none = ("none",) * len(NASBENCH201_EDGES)
    floor = nasbench201_counts(none, num_classes, **layout)
    last = width * NASBENCH201_WIDTHS[-1]
    norms = 2 * width + 4 * width * sum(NASBENCH201_WIDTHS[1:]) + 2 * last
    parts = [_with_vectors(floor, norms + num_classes)]
    tables = []
    rows, columns = image_shape[:2]
    for stage, multiple in enumerate(NASBENCH201_WIDTHS):
        if stage:
            rows, columns = -(-rows // 2), -(-columns // 2)
        outer = width * multiple
        inner = narrowed(outer, bottleneck)
        if bottleneck > 1:
            weights = 2 * outer * inner
            vectors = 2 * (outer + inner) * affine
            squeeze = Counts(weights + vectors, weights * rows * columns)
            parts.append(num_cells * _with_vectors(squeeze, vectors))
        prices = [
            num_cells * _operation(name, inner, affine, pixels=rows * columns)
            for name in NASBENCH201_OPERATIONS
        ]
        tables.append(np.stack([prices] * len(NASBENCH201_EDGES)))
    return NetworkCounts(sum(parts), {"cell": np.stack(tables)})


def darts_network_counts(
    num_classes: int = 10,
    *,
    channels: int = 36,
    layers: int = 20,
    dataset: str = "cifar10",
    image_shape: Shape | None = None,
    bottleneck: int = 1,
    affine: bool = True,
) -> NetworkCounts:
    """Returns what `DartsNetwork`, or the search network, costs by operation.

    Args:
      num_classes: length of the logits.
      channels: of a node in the first cell.
      layers: number of cells.
      dataset: "cifar10" or "imagenet", as for `darts_counts`.
      image_shape: height, width and channels of an example; None is the data set's.
      bottleneck: of the search network: nodes have a share 1 / `bottleneck` of the
        channels, and a 1x1 convolution restores the output's. 1 is none.
      affine: batch normalisations in cells have scale and bias (not when searching).

    Example:
      >>> cost = darts_network_counts(channels=16, layers=8, affine=False).cost(
      ...     "parameters")
      >>> cost.constant
      99450.0
    """
    imagenet = dataset == "imagenet"
    shape = image_shape or ((224, 224, 3) if imagenet else (32, 32, 3))
    places = darts_places(channels, layers, shape, imagenet_stem=imagenet)
    floor = darts_counts(
        _FREE, channels, layers, num_classes, dataset, image_shape=shape
    )
    stem = 2 * (channels // 2 + 2 * channels) if imagenet else 6 * channels
    inputs = sum(4 * place.channels for place in places)
    parts = [_with_vectors(floor, stem + inputs + num_classes)]
    parts += [-_inputs(place, True) for place in places]
    stages = sum(place.reduction for place in places) + 1
    grid = (stages, len(DARTS_EDGES), len(DARTS_OPERATIONS), len(UNITS))
    tables = {"normal": np.zeros(grid), "reduce": np.zeros(grid)}
    stage = 0
    for place in places:
        stage += place.reduction
        inner = place._replace(channels=narrowed(place.channels, bottleneck))
        parts.append(_inputs(inner, affine))
        if bottleneck > 1:
            outer = 4 * place.channels
            weights = 4 * inner.channels * outer
            restore = Counts(
                weights + 2 * outer * affine, weights * place.output_pixels
            )
            parts.append(_with_vectors(restore, 2 * outer * affine))
        table = tables["reduce" if place.reduction else "normal"][stage]
        for edge, (source, _) in enumerate(DARTS_EDGES):
            for number, name in enumerate(DARTS_OPERATIONS):
                whole = darts_edge_counts(inner, name, source, affine=affine)
                bare = darts_edge_counts(inner, name, source, affine=False)
                table[edge, number] += [*whole, bare.parameters]
    return NetworkCounts(sum(parts), tables)


# Pools and skips between nodes have no parameters.
_FREE = dataclasses.replace(
    DARTS_V2,
    normal=(("avg_pool_3x3", 0), ("avg_pool_3x3", 1)) * 4,
    reduce=(("avg_pool_3x3", 0), ("avg_pool_3x3", 1)) * 4,
)


def _operation(name: str, channels: int, affine: bool, **where) -> np.ndarray:
    whole = operation_counts(name, channels, affine=affine, **where)
    bare = operation_counts(name, channels, affine=False, **where)
    return np.array([*whole, bare.parameters], np.float64)


def _inputs(place: DartsPlace, affine: bool) -> np.ndarray:
    bare = darts_input_counts(place, affine=False).parameters
    return np.array([*darts_input_counts(place, affine=affine), bare], np.float64)


def _with_vectors(counts: Counts, vectors: int) -> np.ndarray:
    """Returns counts and their weights: the parameters but those in vectors."""
    return np.array([*counts, counts.parameters - vectors], np.float64)


def marked_cost(space: CellSpace, operation: str) -> CellCost:
    """Returns the number of edges that have an operation, as a cost.

    A limit on "skip_connect" is the usual guard against cells of nothing else.
    """
    table = np.zeros((len(space.edges), len(space.operations)))
    table[:, space.operations.index(operation)] = 1.0
    return CellCost(0.0, dict.fromkeys(space.kinds, table))


def fitted_cost(
    space: CellSpace, choices: Int[np.ndarray, "N D"], values: Float64[np.ndarray, "N"]
) -> tuple[CellCost, float]:
    r"""Fits a measured quantity as a sum over edges, and says how well that holds.

    .. math:: v \approx c + \sum_{e} b_e(o_e)

    By least squares, of least norm as an edge's indicators sum to one. For the search
    alone: what was found is judged by the measurement itself.

    Args:
      space: of one entry a decision (NAS-Bench-201).
      choices: cells.
      values: of these cells; rows without a value (NaN) are left out.

    Returns:
      The cost, and the share of the variance that it explains, R^2.

    Raises:
      ValueError: if no more cells have a value than there are coefficients.
    """
    known = np.isfinite(values)
    size = len(space.operations)
    columns = np.eye(size)[choices[known]].reshape(known.sum(), -1)
    if len(columns) <= columns.shape[1]:
        raise ValueError(
            f"values must be known of more than {columns.shape[1]} cells to fit a cost,"
            f" got {len(columns)}"
        )
    # The mean of all coefficients of an edge belongs to the constant.
    columns = np.c_[np.ones(len(columns)), columns - 1 / size]
    solution = np.linalg.lstsq(columns, values[known], rcond=None)[0]
    residual = values[known] - columns @ solution
    table = solution[1:].reshape(len(space.edges), size)
    constant = solution[0] - table.sum() / size
    r_squared = 1 - residual.var() / values[known].var()
    return CellCost(float(constant), {space.kinds[0]: table}), float(r_squared)
