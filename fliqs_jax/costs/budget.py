"""Hard budgets: is one in reach, and which policy within it is the most probable.

Host code in float64, run once or a few times in a search, not in the training step.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from fliqs_jax.costs.cost_table import CostTable

# Smaller log-probabilities all count as this: e**-40 is never sampled, and a bounded
# range keeps the sums of the search well conditioned.
_LEAST_LOG_PROBABILITY = -40.0
# Nats that a better choice must gain to be worth looking for.
_TOLERANCE = 1e-6


def check_feasible(table: CostTable, target: int | float) -> None:
    """Raises unless some options reach the target and others miss it.

    Args:
      table: prices of the search space.
      target: the cost to reach, in the unit of the table.

    Raises:
      ValueError: if `target` is below the least reachable cost, or above the greatest,
        where it would do nothing. The message names that cost.
    """
    count = table.space.num_decisions
    _check_between(target, table.minimum(), table.maximum(), count)


def _check_between(
    target: int | float, least: float, most: float, num_decisions: int
) -> None:
    if not target >= least:  # also refuses NaN
        raise ValueError(
            f"target {_number(target)} is out of reach: the least reachable cost is"
            f" {_number(least)}, with all {num_decisions} decisions at their cheapest"
            " option. Raise the target, add a cheaper format, or pin fewer sites"
        )
    if target > most:
        raise ValueError(
            f"target {_number(target)} does nothing: the greatest reachable cost is"
            f" {_number(most)}, with all {num_decisions} decisions at their dearest"
            " option. Lower the target, or add a wider format"
        )


def check_target(table: CostTable, fraction: float, reference: str) -> None:
    """Raises unless a fraction of the reference's cost is a budget worth searching at.

    As `check_feasible`, in the words of a launcher: fractions of the cost of the
    uniform policy of the format `reference`.

    Raises:
      ValueError: if the fraction is not positive, or the budget is out of reach or does
        nothing. The message names the fractions that the space reaches.
    """
    check_fraction(
        fraction,
        f"uniform {reference}",
        unit=table.reference(reference),
        least=table.minimum(),
        most=table.maximum(),
        num_decisions=table.space.num_decisions,
    )


def check_fraction(
    fraction: float,
    of: str,
    *,
    unit: float,
    least: float,
    most: float,
    num_decisions: int,
) -> None:
    """Raises unless a fraction of some cost is a budget worth searching at.

    Args:
      fraction: the budget, in units of `unit`.
      of: what costs `unit`, in words.
      unit: a cost.
      least: least cost that the search can reach.
      most: greatest one.
      num_decisions: of the search.

    Raises:
      ValueError: as `check_target`.
    """
    try:
        if not fraction > 0 or not math.isfinite(fraction):
            raise ValueError(f"cost_target must be positive, got {fraction}")
        _check_between(fraction * unit, least, most, num_decisions)
    except ValueError as error:
        raise ValueError(
            f"cost_target {fraction:.4g} of {of}: {error}. As fractions, the space"
            f" reaches {least / unit:.4g} to {most / unit:.4g}"
        ) from None


def check_within_reach(table: CostTable, budget: int | float) -> None:
    """Raises ValueError, naming the least reachable cost, if no options fit."""
    if not budget >= table.minimum():  # also refuses NaN
        raise ValueError(
            f"budget {_number(budget)} is out of reach: the least reachable cost is"
            f" {_number(table.minimum())}. Raise the budget, or add a cheaper format"
        )


def most_probable_within(
    log_probabilities: Float[ArrayLike, "L K"], table: CostTable, budget: int | float
) -> Int[np.ndarray, "L"]:
    r"""Returns the most probable options whose cost does not exceed the budget.

    .. math:: \arg\max_o \sum_l \log p_{l, o_l} \quad \text{s.t.} \quad C(o) \le B

    A multiple-choice knapsack. Partial choices are extended decision by decision and
    dropped as soon as another is as cheap and as probable, or a Lagrangian bound shows
    that they cannot end better than what is known by 1e-6 nats. The result is the best
    to that precision, unless more than 5,000 partial choices are left undecided: that
    takes log-probabilities almost proportional to the costs, and then it is still the
    best of a wide beam. The budget holds in float64, as `CostTable.exact_cost` counts.
    Among equally probable options of a decision the costliest that the budget allows is
    taken, earlier decisions first.

    Args:
      log_probabilities: of each option of each decision, shape [L, K]. Values below
        -40, minus infinity included, count as -40.
      table: prices of the search space; separate decisions included.
      budget: B, in the unit of the table. Above the greatest cost it does nothing.

    Returns:
      Option indices, int32 of shape [L].

    Raises:
      ValueError: if no options fit the budget, or `log_probabilities` has another shape
        or a NaN.

    Reference:
      Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11
    """
    values = np.asarray(log_probabilities, np.float64)
    space = table.space
    expected = (space.num_decisions, space.num_options)
    if values.shape != expected:
        raise ValueError(
            f"log_probabilities must have shape {list(expected)}, one row a decision"
            f" and one column an option, got {list(values.shape)}"
        )
    if np.isnan(values).any():
        row = int(np.isnan(values).any(axis=1).argmax())
        raise ValueError(
            f"log_probabilities are NaN for decision {space.decision_names[row]!r}"
        )
    check_within_reach(table, budget)
    values = np.maximum(values, _LEAST_LOG_PROBABILITY)
    classes = [
        _Class(
            costs=choice.costs,
            values=values[list(choice.decisions), choice.options].sum(axis=1),
        )
        for choice in table.joint_choices
    ]
    capacity = budget - table.exact_constant
    # The search adds costs up with rounding. First with some slack, so that a choice of
    # exactly the budget is not lost; if what it finds is over, with a margin instead.
    for slack in (1e-12 * abs(budget), -1e-12 * abs(budget), -math.inf):
        rows = _best_rows(classes, capacity + slack)
        options = np.empty(space.num_decisions, np.int32)
        for choice, row in zip(table.joint_choices, rows, strict=True):
            options[list(choice.decisions)] = choice.options[row]
        if table.exact_cost(options) <= budget:
            break
    return spend_rest_on_ties(options, values, table, budget)


def _number(value: int | float) -> str:
    """All digits, so that the value can be pasted back as a target."""
    whole = math.isfinite(value) and value == int(value)
    return f"{int(value)}" if whole else repr(float(value))


@dataclasses.dataclass(frozen=True, eq=False)
class _Class:
    """One class of the knapsack: exactly one of its n items is taken."""

    costs: np.ndarray  # [n]
    values: np.ndarray  # [n]


def _efficient(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Indices of the items that no other beats in both respects, cheapest first."""
    order = np.lexsort((-values, costs))  # stable: of equal items the first stays
    best_before = np.maximum.accumulate(np.append(-np.inf, values[order][:-1]))
    return order[values[order] > best_before]


def _best_rows(classes: list[_Class], capacity: float) -> list[int]:
    """Item of each class of the best choice; the cheapest if not even that one fits."""
    kept = [_efficient(item.costs, item.values) for item in classes]
    classes = [
        _Class(item.costs[rows], item.values[rows])
        for item, rows in zip(classes, kept, strict=True)
    ]
    if math.fsum(item.costs[0] for item in classes) >= capacity:
        best = [0] * len(classes)
    else:
        price, best = _lagrangian(classes, capacity)
        if price > 0.0:  # otherwise the most probable items fit as they are
            # A narrow search is often complete; if not, it gives the wide one a bound.
            for width in (500, 5_000):
                best, complete = _extend(classes, capacity, price, best, width)
                if complete:
                    break
    return [int(rows[item]) for rows, item in zip(kept, best, strict=True)]


def _lagrangian(classes: list[_Class], capacity: float) -> tuple[float, list[int]]:
    """Returns the least price of a unit of cost at which a choice fits, and the choice.

    Each class takes its best item at that price. The higher the price, the cheaper the
    choice, so the price is found by bisection.
    """

    def choose(price: float) -> tuple[list[int], bool]:
        rows = [int((item.values - price * item.costs).argmax()) for item in classes]
        cost = math.fsum(
            item.costs[row] for item, row in zip(classes, rows, strict=True)
        )
        return rows, cost <= capacity

    rows, fits = choose(0.0)
    if fits:
        return 0.0, rows
    # Far below any price that matters, as no item can gain more than 80 nats.
    low, high = 0.0, 1e-3 / math.fsum(item.costs[-1] for item in classes)
    while not choose(high)[1]:
        low, high = high, 2.0 * high
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if choose(middle)[1] else (middle, high)
    return high, choose(high)[0]


def _extend(
    classes: list[_Class], capacity: float, price: float, best: list[int], width: int
) -> tuple[list[int], bool]:
    """Searches for a choice better than `best`, class by class.

    At most `width` partial choices are carried on: those of highest bound, and others
    spread over the costs.

    Returns:
      The best choice known, and whether nothing was cut off.
    """
    value = math.fsum(item.values[row] for item, row in zip(classes, best, strict=True))
    # After each class: the least cost, and the bound on value, of what is to come.
    least = [item.costs[0] for item in classes]
    gain = [(item.values - price * item.costs).max() for item in classes]
    least_rest = np.append(np.cumsum(least[::-1])[::-1], 0.0)
    gain_rest = np.append(np.cumsum(gain[::-1])[::-1], 0.0)

    costs, values, history, complete = np.zeros(1), np.zeros(1), [], True
    for number, item in enumerate(classes):
        costs = (costs[:, None] + item.costs[None, :]).ravel()
        values = (values[:, None] + item.values[None, :]).ravel()
        rest = capacity - costs
        bound = values + price * rest + gain_rest[number + 1]
        alive = np.flatnonzero(
            (rest >= least_rest[number + 1]) & (bound > value + _TOLERANCE)
        )
        alive = alive[_efficient(costs[alive], values[alive])]
        if len(alive) > width:
            complete = False
            promising = np.argsort(-bound[alive], kind="stable")[: width // 2]
            spread = np.linspace(0, len(alive) - 1, width // 2).astype(int)
            alive = alive[np.union1d(promising, spread)]
        if not len(alive):
            return best, complete
        costs, values = costs[alive], values[alive]
        history.append(np.divmod(alive, len(item.costs)))
    if values.max() <= value:
        return best, complete
    state, rows = int(values.argmax()), []
    for parents, taken in reversed(history):
        rows.append(int(taken[state]))
        state = parents[state]
    return rows[::-1], complete


def spend_rest_on_ties(
    options: np.ndarray, values: np.ndarray, table: CostTable, budget: int | float
) -> np.ndarray:
    """Moves decisions to costlier options of equal value while the budget lasts."""
    for decision, row in enumerate(values):
        best, best_cost = options[decision], table.exact_cost(options)
        for option in np.flatnonzero(row == row[options[decision]]):
            options[decision] = option
            cost = table.exact_cost(options)
            if best_cost < cost <= budget:
                best, best_cost = option, cost
        options[decision] = best
    return options
