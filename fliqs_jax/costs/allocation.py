"""Spending a budget where it saves most: options of least total sensitivity.

Sensitivities of decisions are taken to add up. The exact answer is an integer
programme, the greedy one the usual shortcut; host code in float64. How sensitivities
are measured is the searchers' business.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Num
from scipy import optimize, sparse

from fliqs_jax.costs.budget import check_within_reach, spend_rest_on_ties
from fliqs_jax.costs.cost_table import CostTable, JointChoice

# HiGHS stops at absolute gaps of 1e-6 and takes constraints to 1e-6, so both sides are
# scaled up to where that is a small part of anything.
_SCALE = 1e3
_MOST_CUTS = 50


def allocate_exact(
    values: Float[ArrayLike, "L K"] | Sequence, table: CostTable, budget: int | float
) -> Int[np.ndarray, "L"]:
    r"""Returns the options of least total value whose cost is within the budget.

    .. math:: \min_x \sum_j \sum_r v_{jr} x_{jr} \quad \text{s.t.} \quad
        \sum_r x_{jr} = 1, \quad c_0 + \sum_{jr} c_{jr} x_{jr} \le B, \quad
        x_{jr} \in \{0, 1\}

    j runs over the table's joint choices and r over their rows, so the products of
    separate weight and input formats are linear here. Solved by HiGHS, to 1e-9 of the
    range of values. The budget holds in float64, as `CostTable.exact_cost` counts.
    Among equal values of a decision the costliest that the budget allows is taken.

    Args:
      values: sensitivity of each option of each decision, lower is better; any unit,
        may be negative.
      table: prices of the search space.
      budget: B, in the unit of the table. Above the greatest cost it does nothing.

    Returns:
      Option indices, int32 of shape [L].

    Raises:
      ValueError: if no options fit the budget (it names the least reachable cost), or
        `values` has another shape or an entry that is not finite.
      RuntimeError: if the solver gives up.

    Reference:
      Yao et al., HAWQ-V3, 2021 (integer programme), https://arxiv.org/abs/2011.10680

    Example:
      >>> from fliqs_jax.costs import cost_table
      >>> from fliqs_jax.search_space import SearchSpace
      >>> from fliqs_jax.sites import Site
      >>> sites = [Site(path=path, op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2) for path in ("a", "b")]
      >>> table = cost_table(SearchSpace(sites, ["int4", "int8"]),
      ...     lambda site, w, a: site.macs * w * a)
      >>> allocate_exact([[0.3, 0.0], [0.9, 0.1]], table, 640).tolist()
      [0, 1]
    """
    values = _checked(values, table, budget)
    items = _items(table, values)
    left = budget - table.exact_constant
    options = _least_value(
        items, left, lambda options: table.exact_cost(options) <= budget
    )
    return spend_rest_on_ties(options, values, table, budget)


def allocate_rows(
    values: Float[ArrayLike, "L K"] | Sequence,
    costs: Num[ArrayLike, "L K"] | Sequence,
    budget: int | float,
) -> Int[np.ndarray, "L"]:
    r"""Returns the options of least total value within a budget, from plain tables.

    As `allocate_exact`, for choices that are no formats: what decision l costs at
    option k is `costs[l, k]`, and there is nothing else.

    Raises:
      ValueError: if the tables are not of one shape and finite, or no options fit.

    Example:
      >>> allocate_rows([[0.3, 0.0], [0.9, 0.1]], [[4, 8], [4, 8]], 12).tolist()
      [0, 1]
    """
    values, costs = np.asarray(values, np.float64), np.asarray(costs, np.float64)
    if values.ndim != 2 or values.shape != costs.shape:
        raise ValueError(
            "values and costs must have one shape, a row a decision and a column an "
            f"option, got {list(values.shape)} and {list(costs.shape)}"
        )
    if not np.isfinite([values, costs]).all():
        raise ValueError("values and costs must be finite, got NaN or infinite ones")
    least = math.fsum(costs.min(axis=1))
    if not budget >= least:  # also refuses NaN
        raise ValueError(
            f"budget {budget:g} is out of reach: the least reachable cost is {least:g}."
            " Raise the budget, or add a cheaper option"
        )
    rows, width = values.shape
    items = _Items(
        values=values.ravel(),
        costs=costs.ravel(),
        owners=np.repeat(np.arange(rows), width),
        first=np.arange(rows) * width,
        choices=tuple(
            JointChoice((row,), np.arange(width, dtype=np.int32)[:, None], costs[row])
            for row in range(rows)
        ),
        num_options=width,
    )

    def fits(options):
        return math.fsum(_taken(costs, options)) <= budget

    return _least_value(items, budget, fits)


def _least_value(
    items: "_Items", left: int | float, fits: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """Returns the options of least value whose items cost what is left at most."""
    objective = (
        items.values - np.minimum.reduceat(items.values, items.first)[items.owners]
    )
    unit = max(items.costs.max(), 1e-300) / _SCALE
    count, columns = len(items.first), np.arange(len(objective))
    one_each = sparse.csr_matrix((np.ones(len(columns)), (items.owners, columns)))
    constraints = [
        optimize.LinearConstraint(one_each, 1, 1),
        optimize.LinearConstraint(items.costs[None] / unit, -np.inf, left / unit),
    ]
    for _ in range(_MOST_CUTS):
        with _quiet():
            result = optimize.milp(
                objective * (_SCALE / max(objective.max(), 1e-300)),
                constraints=constraints,
                integrality=np.ones(len(objective)),
                bounds=optimize.Bounds(0, 1),
                options={"mip_rel_gap": 0},
            )
        if result.status == 2:  # infeasible: only the cheapest fit, and rounding hid it
            return _cheapest(items)
        if result.x is None:
            raise RuntimeError(f"no exact allocation: {result.message}")
        options = items.options(result.x)
        if fits(options):
            return options
        # Over by the solver's tolerance: this one choice is cut off.
        row = np.isin(columns, items.taken(options)).astype(float)
        constraints.append(optimize.LinearConstraint(row[None], -np.inf, count - 1))
    raise RuntimeError(f"no exact allocation within {_MOST_CUTS} attempts")


def allocate_greedy(
    values: Float[ArrayLike, "L K"] | Sequence, table: CostTable, budget: int | float
) -> Int[np.ndarray, "L"]:
    r"""Returns options within the budget, found by the best bargain at each step.

    From the cheapest options on, one joint choice after another is moved to the row
    that saves most for what it costs more, among those that still fit:

    .. math:: \max_{j, r'} \frac{v_{jr} - v_{jr'}}{c_{jr'} - c_{jr}}

    Only moves that lower the total are made; those that cost nothing come first. Where
    all steps cost the same and values fall convexly with bits this is exact, otherwise
    compare `total_value` with that of `allocate_exact`.

    Args:
      values: sensitivity of each option of each decision, lower is better.
      table: prices of the search space.
      budget: B, in the unit of the table.

    Returns:
      Option indices, int32 of shape [L].

    Raises:
      ValueError: as `allocate_exact`.
    """
    values = _checked(values, table, budget)
    items = _items(table, values)
    options = _cheapest(items)
    while True:
        spent = table.exact_cost(options)
        now = items.taken(options)[items.owners]  # row that its choice has at present
        gain, extra = items.values[now] - items.values, items.costs - items.costs[now]
        affordable = extra <= (budget - spent) + 1e-9 * abs(budget)
        moves = np.flatnonzero((gain > 0) & affordable)
        with np.errstate(divide="ignore"):
            ratio = gain[moves] / np.maximum(extra[moves], 0.0)
        for move in moves[np.argsort(-ratio, kind="stable")]:
            moved = items.with_item(options, int(move))
            if table.exact_cost(moved) <= budget:
                options = moved
                break
        else:
            return options


def total_value(
    values: Float[ArrayLike, "L K"] | Sequence, options: Int[ArrayLike, "L"] | Sequence
) -> float:
    """Returns the sum of the values of the options taken, what an allocation minimises.

    Example:
      >>> total_value([[0.3, 0.0], [0.9, 0.1]], [0, 1])
      0.4
    """
    return float(_taken(np.asarray(values, np.float64), np.asarray(options)).sum())


def monotone_values(
    values: Float[ArrayLike, "L K"] | Sequence, option_bits: Sequence[int]
) -> Float[np.ndarray, "L K"]:
    r"""Returns values that never rise with bits: noise makes a wider format look worse.

    .. math:: v'_{lk} = \min \{ v_{lk}, \; v_{lj} : b_j < b_k \}

    Formats of equal bits may differ. What a narrower format showed counts for the wider
    one, which can do no worse.

    Args:
      values: sensitivity of each option of each decision, lower is better.
      option_bits: b, storage bits of each of the K options, in any order.

    Example:
      >>> monotone_values([[0.3, 0.4, 0.1]], [2, 3, 4]).tolist()
      [[0.3, 0.3, 0.1]]
    """
    values, bits = np.array(values, np.float64), np.asarray(option_bits)
    if bits.shape != values.shape[1:]:
        raise ValueError(
            f"option_bits must name the bits of {values.shape[1]} options, got"
            f" {list(option_bits)}"
        )
    reached = values.copy()
    for option, own in enumerate(bits):
        narrower = values[:, bits < own].min(axis=1, initial=np.inf)
        reached[:, option] = np.minimum(values[:, option], narrower)
    return reached


def _checked(values, table: CostTable, budget: int | float) -> np.ndarray:
    values, space = np.asarray(values, np.float64), table.space
    expected = (space.num_decisions, space.num_options)
    if values.shape != expected:
        raise ValueError(
            f"values must have shape {list(expected)}, one row a decision and one"
            f" column an option, got {list(values.shape)}"
        )
    for row in np.flatnonzero(~np.isfinite(values).all(axis=1)):
        raise ValueError(
            f"values of decision {space.decision_names[row]!r} are not finite:"
            f" {values[row].tolist()}"
        )
    check_within_reach(table, budget)
    return values


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the process's standard output silent, native code included.

    The HiGHS in scipy has left a printf in one of its branches.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C buffers what goes into a pipe
        os.dup2(saved, 1)
        os.close(saved)


def _taken(values: np.ndarray, options: np.ndarray) -> np.ndarray:
    return values[np.arange(len(values)), options]


@dataclasses.dataclass(frozen=True, eq=False)
class _Items:
    """The rows of all joint choices as one list of n items."""

    values: np.ndarray  # float64[n], summed over the choice's decisions
    costs: np.ndarray  # float64[n]
    owners: np.ndarray  # int[n], number of the item's choice
    first: np.ndarray  # int[number of choices], its first item
    choices: tuple[JointChoice, ...]
    num_options: int

    def taken(self, options: np.ndarray) -> np.ndarray:
        """Returns each choice's item under these options."""
        rows = []
        for choice in self.choices:
            row = 0  # rows are in lexicographic order
            for decision in choice.decisions:
                row = row * self.num_options + options[decision]
            rows.append(row)
        return self.first + rows

    def with_item(self, options: np.ndarray, item: int) -> np.ndarray:
        """Returns options with the item's choice moved to it."""
        choice, moved = self.choices[self.owners[item]], options.copy()
        moved[list(choice.decisions)] = choice.options[
            item - self.first[self.owners[item]]
        ]
        return moved

    def options(self, marks: np.ndarray) -> np.ndarray:
        """Returns the options of each choice's item of largest mark."""
        options = np.empty(
            sum(len(choice.decisions) for choice in self.choices), np.int32
        )
        for choice, own in zip(
            self.choices, np.split(marks, self.first[1:]), strict=True
        ):
            options[list(choice.decisions)] = choice.options[own.argmax()]
        return options


def _items(table: CostTable, values: np.ndarray) -> _Items:
    choices = table.joint_choices
    counts = [len(choice.costs) for choice in choices]
    return _Items(
        values=np.concatenate(
            [values[list(c.decisions), c.options].sum(axis=1) for c in choices]
        ),
        costs=np.concatenate([choice.costs for choice in choices]),
        owners=np.repeat(np.arange(len(counts)), counts),
        first=np.cumsum([0, *counts[:-1]]),
        choices=choices,
        num_options=table.space.num_options,
    )


def _cheapest(items: _Items) -> np.ndarray:
    """Options of least cost; of equal costs, those of least value."""
    marks = np.empty(len(items.costs))
    marks[np.lexsort((items.values, items.costs))] = -np.arange(len(marks), dtype=float)
    return items.options(marks)
