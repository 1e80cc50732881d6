"""A cell space as a search sees it: edges, operations, and choices that make a cell.

Architecture weights alpha are logits, a row of operations for each edge of each kind of
cell: {"cell": [6, 5]} in NAS-Bench-201, {"normal": [14, 8], "reduce": [14, 8]} in
DARTS. A cell is one option of every decision: an edge's operation in NAS-Bench-201, a
node's two edges with an operation each in DARTS. What an option scores or costs is the
sum of a table over its entries (edge, operation), which derivation and repair build on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float64, Int, Key, Shaped

from fliqs_jax.models.cells.darts import (
    DARTS_EDGES,
    DARTS_NODES,
    DARTS_OPERATIONS,
    DartsGenotype,
    darts_genotype,
)
from fliqs_jax.models.cells.nasbench201 import (
    NASBENCH201_EDGES,
    NASBENCH201_OPERATIONS,
    nasbench201_all,
    nasbench201_connected,
    nasbench201_operations,
    nasbench201_string,
)

Alphas = dict[str, Float[ArrayLike, "E O"]]
Tables = dict[str, Float64[np.ndarray, "E O"]]  # a number for each entry
Entries = tuple[tuple[int, str], ...]  # (edge, operation) of one decision


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """One of the independent choices that make a cell.

    Option n sets the entries (edges[n, m], operations[n, m]), all indices.
    """

    kind: str  # of cell
    edges: Int[np.ndarray, "N M"]
    operations: Int[np.ndarray, "N M"]

    def __len__(self) -> int:
        return len(self.edges)

    def totals(self, tables: Tables) -> Float64[np.ndarray, "N"]:
        """Returns the sum of each option's entries in its kind's table."""
        return tables[self.kind][self.edges, self.operations].sum(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CellSpace:
    """Edges, operations and decisions of a space; genotypes to choices and back.

    A choice is int[D], the option of every decision. A genotype is what the rest of the
    package takes: the benchmark's string, or a `DartsGenotype`.

    Example:
      >>> NASBENCH201.genotype(NASBENCH201.choice(9))
      '|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'
      >>> DARTS.choice("DARTS_V2").shape
      (8,)
    """

    name: str
    kinds: tuple[str, ...]  # of cells
    edges: tuple[tuple[int, int], ...]  # (source, target), of every kind
    operations: tuple[str, ...]
    decisions: tuple[Decision, ...]
    _read: Callable[[Any], list[Entries]]
    _write: Callable[[list[Entries]], Any]
    _usable: Callable[[], np.ndarray] | None = None

    @property
    def usable(self) -> Bool[np.ndarray, "*O"] | None:
        """Which cells connect input and output, by choice; None where not listed."""
        return None if self._usable is None else self._usable()

    def init_alphas(
        self, key: Key[Array, ""], *, scale: Float[ArrayLike, ""] = 1e-3
    ) -> Alphas:
        """Returns architecture weights of nearly equal probabilities."""
        shape = (len(self.edges), len(self.operations))
        keys = jax.random.split(key, len(self.kinds))
        return {
            kind: scale * jax.random.normal(key, shape)
            for kind, key in zip(self.kinds, keys, strict=True)
        }

    def equal_shares(self) -> Alphas:
        """Returns the probabilities of operations that are all as likely."""
        size = len(self.operations)
        shape = (len(self.edges), size)
        return {kind: jnp.full(shape, 1 / size) for kind in self.kinds}

    def choice(self, genotype: Any) -> Int[np.ndarray, "D"]:
        """Returns the options of a genotype; ValueError where it is none."""
        indices = []
        decisions = zip(self.decisions, self._read(genotype), strict=True)
        for decision, entries in decisions:
            edges, names = zip(*sorted(entries), strict=True)
            operations = [self.operations.index(name) for name in names]
            same = (decision.edges == edges) & (decision.operations == operations)
            indices.append(int(same.all(axis=1).argmax()))
        return np.array(indices)

    def genotype(self, choice: Int[np.ndarray, "D"]) -> Any:
        """Returns the genotype of a choice."""
        entries = []
        for decision, option in zip(self.decisions, choice, strict=True):
            edges, operations = decision.edges[option], decision.operations[option]
            names = [self.operations[operation] for operation in operations]
            entries.append(tuple(zip(edges.tolist(), names, strict=True)))
        return self._write(entries)

    def one_hot(self, choice: Int[np.ndarray, "D"]) -> Tables:
        """Returns the probabilities of a cell: 1 at its entries, `none` on the rest."""
        shape = (len(self.edges), len(self.operations))
        tables = {kind: np.zeros(shape) for kind in self.kinds}
        for table in tables.values():
            table[:, self.operations.index("none")] = 1.0
        for decision, option in zip(self.decisions, choice, strict=True):
            edges, table = decision.edges[option], tables[decision.kind]
            table[edges] = 0.0
            table[edges, decision.operations[option]] = 1.0
        return tables

    def scores(self, alphas: Alphas) -> list[Float64[np.ndarray, "_"]]:
        r"""Returns how well each option of each decision fits (host, float64).

        .. math:: \sum_{(e, o) \in \text{entries}} \log \mathrm{softmax}(\alpha_e)_o
        """
        logs = {kind: log_softmax(alpha) for kind, alpha in alphas.items()}
        return [decision.totals(logs) for decision in self.decisions]

    def derive(self, alphas: Alphas) -> Int[np.ndarray, "D"]:
        """Returns the choice of the largest scores; of equals the first.

        In DARTS that is the published rule: each node keeps the two edges whose best
        operation other than `none` is most probable.
        """
        return np.array([int(scores.argmax()) for scores in self.scores(alphas)])


def nasbench201_grid(
    values: Shaped[np.ndarray, "N"],
) -> Shaped[np.ndarray, "O O O O O O"]:
    """Returns a column over all cells, by index, as a grid over the six operations.

    Example:
      >>> grid = nasbench201_grid(np.arange(15_625))
      >>> int(grid[tuple(NASBENCH201.choice(9))])
      9
    """
    grid = np.empty(
        (len(NASBENCH201_OPERATIONS),) * len(NASBENCH201_EDGES), values.dtype
    )
    number = {name: index for index, name in enumerate(NASBENCH201_OPERATIONS)}
    cells = [[number[name] for name in names] for names in nasbench201_all()]
    grid[tuple(np.transpose(cells))] = values
    return grid


def log_softmax(logits: Float[Any, "E O"]) -> Float64[np.ndarray, "E O"]:
    """Returns the logarithms of row-wise softmax, in float64 on the host."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _nasbench201_entries(cell: Any) -> list[Entries]:
    return [((edge, name),) for edge, name in enumerate(nasbench201_operations(cell))]


def _nasbench201_genotype(entries: list[Entries]) -> str:
    return nasbench201_string([name for ((_, name),) in entries])


def _nasbench201_decisions() -> tuple[Decision, ...]:
    operations = np.arange(len(NASBENCH201_OPERATIONS))[:, None]
    return tuple(
        Decision("cell", np.full_like(operations, edge), operations)
        for edge in range(len(NASBENCH201_EDGES))
    )


@functools.cache
def _nasbench201_usable() -> Bool[np.ndarray, "O O O O O O"]:
    connected = [nasbench201_connected(cell) for cell in nasbench201_all()]
    return nasbench201_grid(np.array(connected))


_DARTS_KINDS = ("normal", "reduce")


def _darts_entries(genotype: Any) -> list[Entries]:
    genotype = darts_genotype(genotype)
    entries = []
    for kind in _DARTS_KINDS:
        pairs = getattr(genotype, kind)
        for number, node in enumerate(DARTS_NODES):
            kept = pairs[2 * number : 2 * number + 2]
            edges = [(DARTS_EDGES.index((source, node)), name) for name, source in kept]
            entries.append(tuple(edges))
    return entries


def _darts_genotype(entries: list[Entries]) -> DartsGenotype:
    pairs = [
        (name, DARTS_EDGES[edge][0]) for decision in entries for edge, name in decision
    ]
    return DartsGenotype(*(tuple(pairs[start : start + 8]) for start in (0, 8)))


def _darts_decisions() -> tuple[Decision, ...]:
    some = range(DARTS_OPERATIONS.index("none") + 1, len(DARTS_OPERATIONS))
    decisions = []
    for kind, node in itertools.product(_DARTS_KINDS, DARTS_NODES):
        edges = [index for index, edge in enumerate(DARTS_EDGES) if edge[1] == node]
        options = [
            (pair, operations)
            for pair in itertools.combinations(edges, 2)
            for operations in itertools.product(some, repeat=2)
        ]
        decisions.append(Decision(kind, *map(np.array, zip(*options, strict=True))))
    return tuple(decisions)


NASBENCH201 = CellSpace(
    name="nasbench201",
    kinds=("cell",),
    edges=NASBENCH201_EDGES,
    operations=NASBENCH201_OPERATIONS,
    decisions=_nasbench201_decisions(),
    _read=_nasbench201_entries,
    _write=_nasbench201_genotype,
    _usable=_nasbench201_usable,
)
DARTS = CellSpace(
    name="darts",
    kinds=_DARTS_KINDS,
    edges=DARTS_EDGES,
    operations=DARTS_OPERATIONS,
    decisions=_darts_decisions(),
    _read=_darts_entries,
    _write=_darts_genotype,
)
CELL_SPACES = {space.name: space for space in (NASBENCH201, DARTS)}


def narrowed(channels: int, bottleneck: int) -> int:
    """Returns the channels within a bottleneck; ValueError if they do not divide."""
    if bottleneck < 1 or channels % bottleneck:
        raise ValueError(
            f"bottleneck must divide the {channels} channels of every stage, got"
            f" {bottleneck}: 1 is none, 2 and 4 are usual"
        )
    return channels // bottleneck
