r"""What a network costs whose stages have number formats of their own.

.. math:: k(\alpha, \beta) = c + \sum_s \Big( \sum_f \mathrm{softmax}(\beta_s)_f \,
    \pi_f \Big) \sum_{(i,j)} \sum_o \mathrm{softmax}(\alpha^{(i,j)})_o \, b_s(o)

b_s is counted in stage s, a stage being the cells between two reductions; pi_f is what
a format makes of a count: its bits, for the size of weights, or bits times bits, for
bit operations. Decided formats leave a `CellCost`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from fliqs_jax.models.cells.expected_counts import (
    UNITS,
    CellCost,
    NetworkCounts,
    softmax,
)

FORMATS = "formats"  # the stages' logits, beside those of the kinds of cells


@dataclasses.dataclass(frozen=True, eq=False)
class StagedCost:
    """A price by stage, which the formats of the stages multiply."""

    constant: float  # outside of the cells' edges
    tables: dict[str, Float64[np.ndarray, "S E O"]]
    prices: Float64[np.ndarray, "F"]  # pi, ascending or not

    def of_alphas(self, alphas: dict[str, Any]) -> Float[Array, ""]:
        """Returns k for logits of operations, and of formats under `FORMATS`."""
        prices = jax.nn.softmax(alphas[FORMATS]) @ jnp.asarray(self.prices, jnp.float32)
        probabilities = softmax({kind: alphas[kind] for kind in self.tables})
        parts = [
            jnp.einsum("s,seo,eo", prices, jnp.asarray(table, jnp.float32), p)
            for table, p in zip(
                self.tables.values(), probabilities.values(), strict=True
            )
        ]
        return self.constant + sum(parts)

    def at(self, formats: Sequence[int]) -> CellCost:
        """Returns the cost under decided formats, the option of every stage."""
        prices = self.prices[list(formats)]
        tables = {
            kind: np.tensordot(prices, table, 1) for kind, table in self.tables.items()
        }
        return CellCost(self.constant, tables)

    def cheapest(self) -> CellCost:
        """Returns the cost with every stage at the cheapest format."""
        return self.at([int(self.prices.argmin())] * self._stages)

    def span(self) -> tuple[float, float]:
        """Returns the costs of the cheapest and of the dearest entries and formats."""
        dearest = self.at([int(self.prices.argmax())] * self._stages)
        return self.cheapest().span()[0], dearest.span()[1]

    @property
    def _stages(self) -> int:
        return len(next(iter(self.tables.values())))

    def scaled(self, factor: float | int) -> "StagedCost":
        """Returns the cost in another unit."""
        return StagedCost(factor * self.constant, self.tables, factor * self.prices)


def staged_cost(
    counts: NetworkCounts,
    unit: str,
    prices: Float64[np.ndarray, "F"],
    outside: float,
) -> StagedCost:
    """Returns the cost of a network whose stages choose among formats.

    Args:
      counts: of the network.
      unit: "macs" or "weights".
      prices: pi, of each format.
      outside: pi of the fixed format outside of the cells' edges.
    """
    column = UNITS.index(unit)
    return StagedCost(
        outside * float(counts.constant[column]),
        {kind: table[..., column] for kind, table in counts.tables.items()},
        np.asarray(prices, np.float64),
    )
