"""Cells within their limits: the derived one where it is, else the best that is.

A limit on the search network cannot guarantee the derived network's, so what was
derived is repaired: the cell of the largest score, the sum of log softmax over its
entries, among all within the limits. Score and costs are sums over decisions, so the
exact answer takes milliseconds even among the 10^18 cells of DARTS. Where the stages'
formats are searched, too, every combination of them is tried with its best cell.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from fliqs_jax.models.cells import FORMATS, Alphas, CellSpace, log_softmax
from fliqs_jax.searchers.cells.limits import Limit

_UNKNOWN = 1e12  # excess of a cell whose cost nobody measured: far above all others
Choice = Int[np.ndarray, "D"]
Formats = tuple[int, ...] | None
Options = Sequence[Float[np.ndarray, "_"]]  # a number for each option, by decision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repair:
    """A cell as derived, and as it may be used; costs by the names of the limits."""

    derived: Choice
    choice: Choice
    derived_costs: dict[str, float]
    costs: dict[str, float]
    violations: tuple[str, ...]  # of the derived cell; "disconnected" where it is
    score_lost: float  # log probability, by the ranking
    formats: Formats = None  # of the stages: options; None where they are not searched
    derived_formats: Formats = None


def repair(
    space: CellSpace,
    alphas: Alphas,
    limits: Sequence[Limit],
    *,
    ranking: Alphas | None = None,
    greedy: bool = False,
) -> Repair:
    """Returns the derived cell if it is within the limits, else the nearest that is.

    Args:
      space: the space.
      alphas: architecture weights.
      limits: all must hold.
      ranking: logits that score other cells where the derived one may not be used; None
        is `alphas`.
      greedy: take the change of one decision that loses least score per excess that it
        saves, over and over, instead of the exact optimum.

    Raises:
      ValueError: if no cell is within the limits; names each one's floor.
    """
    formats = derived_formats(alphas)
    if greedy and formats is not None:
        raise ValueError("greedy repair knows no formats of stages: leave it out")
    check_limits(space, limits)
    derived = space.derive(alphas)
    ranking = alphas if ranking is None else ranking
    scores = space.scores(ranking)
    held = [limit.at(formats) for limit in limits]
    violations = broken(space, derived, held)
    found = (derived, formats)
    if violations and formats is not None:
        found = _best_with_formats(space, scores, log_softmax(ranking[FORMATS]), limits)
    elif violations:
        choice = _greedy(space, scores, derived, held) if greedy else None
        choice = best_within(space, scores, held) if choice is None else choice
        found = (choice, None)
    choice, chosen = found
    within = [limit.at(chosen) for limit in limits]
    assert not broken(space, choice, within)
    lost = _total(scores, derived) - _total(scores, choice)
    if formats is not None:
        rows = list(log_softmax(ranking[FORMATS]))
        lost += _total(rows, formats) - _total(rows, chosen)
    return Repair(
        derived=derived,
        choice=choice,
        derived_costs={limit.name: limit.cost(space, derived) for limit in held},
        costs={limit.name: limit.cost(space, choice) for limit in within},
        violations=violations,
        score_lost=float(lost),
        formats=chosen,
        derived_formats=formats,
    )


def derived_formats(alphas: Alphas) -> Formats:
    """Returns the most probable format of every stage; None without logits of them."""
    if FORMATS not in alphas:
        return None
    return tuple(np.asarray(alphas[FORMATS]).argmax(axis=1).tolist())


def _best_with_formats(
    space: CellSpace,
    scores: Options,
    rows: Float64[np.ndarray, "S F"],
    limits: Sequence[Limit],
) -> tuple[Choice, Formats]:
    """Returns the cell and formats of the largest score within the limits."""
    stages, count = rows.shape
    combinations = np.array(list(itertools.product(range(count), repeat=stages)))
    totals = rows[np.arange(stages), combinations].sum(axis=1)
    ceiling = sum(score.max() for score in scores)
    best, found = -np.inf, None
    for index in np.argsort(-totals, kind="stable"):
        if totals[index] + ceiling <= best:
            break  # the less likely ones cannot win even with the best cell
        formats = tuple(combinations[index].tolist())
        choice = best_within(space, scores, [limit.at(formats) for limit in limits])
        if choice is not None and totals[index] + _total(scores, choice) > best:
            best, found = totals[index] + _total(scores, choice), (choice, formats)
    assert found is not None  # `check_limits` has seen to it
    return found


def broken(
    space: CellSpace, choice: Choice, limits: Sequence[Limit]
) -> tuple[str, ...]:
    """Returns the names of the limits that a cell breaks; an unknown cost breaks its.

    A cell whose input does not reach its output is "disconnected", whatever the limits.
    """
    names = [
        limit.name for limit in limits if not limit.cost(space, choice) <= limit.bound
    ]
    if space.usable is not None and not space.usable[tuple(choice)]:
        names.append("disconnected")
    return tuple(names)


def check_limits(space: CellSpace, limits: Sequence[Limit]) -> None:
    """Refuses limits that no cell of the space is within.

    Formats of stages count at their cheapest.

    Raises:
      ValueError: naming each limit with its floor, the least that a cell costs.
    """
    flat = [np.zeros(len(decision)) for decision in space.decisions]
    limits = [
        dataclasses.replace(limit, derived=limit.derived.cheapest()) for limit in limits
    ]
    if best_within(space, flat, limits) is not None:
        return
    floors = [(limit, _floor(space, flat, limit)) for limit in limits]
    stated = "; ".join(
        f"{limit.name} {limit.bound:.12g} (the smallest cell has {floor:.12g})"
        for limit, floor in floors
    )
    together = (
        "" if any(limit.bound < floor for limit, floor in floors) else " together"
    )
    raise ValueError(
        f"no cell of {space.name} is within these limits{together}: {stated}. Raise"
        " them"
    )


def _floor(space: CellSpace, flat: Options, limit: Limit) -> float:
    if space.usable is not None:
        return float(np.nanmin(np.where(space.usable, cost_grid(space, limit), np.nan)))
    return limit.derived.constant + sum(p.min() for p in limit.derived.options(space))


def best_within(
    space: CellSpace, scores: Options, limits: Sequence[Limit]
) -> Choice | None:
    """Returns the choice of the largest score within the limits, None without any.

    Exact: all cells are looked at where they are listed, else decisions are merged one
    by one (`merge`). Of equal scores it is the first choice, in the options' order.
    """
    if space.usable is None:
        prices = [limit.derived.options(space) for limit in limits]
        room = [limit.bound - limit.derived.constant for limit in limits]
        return merge(scores, prices, room)
    allowed = functools.reduce(
        np.logical_and,
        (cost_grid(space, limit) <= limit.bound for limit in limits),
        space.usable,
    )
    if not allowed.any():
        return None
    totals = np.where(allowed, functools.reduce(np.add.outer, scores), -np.inf)
    return np.array(np.unravel_index(totals.argmax(), totals.shape))


def cost_grid(space: CellSpace, limit: Limit) -> Float[np.ndarray, "*O"]:
    """The cost of every cell of a listed space; NaN is never within a bound."""
    if limit.measured is not None:
        return limit.measured
    prices = functools.reduce(np.add.outer, limit.derived.options(space))
    return limit.derived.constant + prices


def merge(
    scores: Options, prices: Sequence[Options], room: Sequence[float]
) -> Choice | None:
    """Returns the options, one a decision, of the largest sum of scores within room.

    Decisions are taken one after the other. Of all partial choices only those survive
    that can still end within the room, and that no other one beats in score without
    costing more in anything.

    Args:
      scores: of each option of each decision.
      prices: for each limit the cost of each option of each decision, not negative.
      room: for each limit the most that the sum may be.

    Returns:
      int[D], or None if nothing is within.

    Example:
      >>> scores = [np.array([0.0, 3.0]), np.array([0.0, 2.0])]
      >>> prices = [[np.array([1.0, 4.0]), np.array([1.0, 2.0])]]
      >>> merge(scores, prices, [5.0]), merge(scores, prices, [1.0])
      (array([1, 0]), None)
    """
    count = len(scores)
    costs = [
        np.array([p[d] for p in prices]).reshape(len(prices), -1) for d in range(count)
    ]
    least = np.array([c.min(axis=1) for c in costs])  # [D, M]
    total, spent = np.zeros(1), np.zeros((len(prices), 1))
    taken = np.zeros((1, 0), np.int64)
    for d in range(count):
        score = (total[:, None] + scores[d]).ravel()
        cost = (spent[:, :, None] + costs[d][:, None, :]).reshape(len(prices), -1)
        rest = np.asarray(room, float) - least[d + 1 :].sum(axis=0)
        kept = np.flatnonzero((cost <= rest[:, None]).all(axis=0))
        kept = kept[_undominated(score[kept], cost[:, kept])]
        before, option = np.divmod(kept, len(scores[d]))
        taken = np.c_[taken[before], option]
        total, spent = score[kept], cost[:, kept]
    return taken[total.argmax()] if len(total) else None


def _undominated(
    score: Float64[np.ndarray, "N"], cost: Float64[np.ndarray, "M N"]
) -> Int[np.ndarray, "S"]:
    """Returns the points that no other one beats; of equal points the first.

    By score, falling, a point survives if it costs less in something than each better
    survivor. With one cost that is a running minimum, with none it is the best point.
    """
    order = np.lexsort((*cost, -score))  # cheapest first among equal scores
    if not len(cost):
        return order[:1]
    if len(cost) == 1:
        prices = cost[0, order]
        before = np.minimum.accumulate(np.r_[np.inf, prices[:-1]])
        return order[prices < before]
    survivors: list[int] = []
    front = np.empty((len(cost), 0))
    for point in order:
        if not (front <= cost[:, [point]]).all(axis=0).any():
            survivors.append(point)
            front = np.c_[front, cost[:, point]]
    return np.array(survivors, np.int64)


def _greedy(
    space: CellSpace, scores: Options, choice: Choice, limits: Sequence[Limit]
) -> Choice | None:
    """One decision at a time; None where no single change saves anything."""
    while broken(space, choice, limits):
        best_rate, best = np.inf, None
        for d, score in enumerate(scores):
            over = [
                limit.costs_along(space, choice, d) / limit.bound for limit in limits
            ]
            excess = np.maximum(np.array(over) - 1.0, 0.0).sum(axis=0)
            excess = np.where(np.isnan(excess), _UNKNOWN, excess)
            saved = excess[choice[d]] - excess
            lost = score[choice[d]] - score
            rate = np.full(len(score), np.inf)
            np.divide(lost, saved, out=rate, where=saved > 0)
            option = int(rate.argmin())
            if rate[option] < best_rate:
                best_rate, best = rate[option], (d, option)
        if best is None:
            return None
        choice = choice.copy()
        choice[best[0]] = best[1]
    return choice


def _total(scores: Options, choice: Choice | Formats) -> float:
    return float(sum(part[option] for part, option in zip(scores, choice, strict=True)))
