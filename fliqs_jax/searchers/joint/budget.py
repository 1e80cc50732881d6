r"""The best architecture and formats within a budget, together.

.. math:: \max_a \sum_{l \in L(a)} s_{l, a_l} \quad \text{s.t.} \quad C(a) \le B

L(a) are the decisions that have an effect: those about a layer that is left out count
0, or leaving it out would be rewarded with the best of their scores for nothing. The
cost is no sum over decisions, so this is no knapsack. At a price for cost the
problem is one of `elimination`; the least price at which its answer fits gives an upper
bound for every architecture. In the order of these bounds each architecture gets its
best formats, by the exact knapsack of `costs.most_probable_within`, until no bound is
above what is known. Host code in float64, run once or a few times in a search.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from fliqs_jax.costs import most_probable_within
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.elimination import Elimination, elimination_order

_TOLERANCE = 1e-6  # in units of the scores, as of the knapsack
_HALVINGS = 40


class Selection(NamedTuple):
    """A vector within the budget, and how far from the best it may be."""

    options: Int[np.ndarray, "L"]
    score: float
    bound: float  # no vector within the budget has a larger score
    architectures: int  # whose formats were looked for


def joint_extremes(
    costs: JointCost, allowed: Float[np.ndarray, "L W"]
) -> tuple[float, float]:
    """Returns the least and the greatest cost that any allowed vector has.

    Args:
      costs: of the joint space.
      allowed: 0 for options that may be taken, minus infinity for others.
    """
    problem = _Problem(costs, np.where(np.isneginf(allowed), -np.inf, 0.0))
    ends = (problem.at_price(sign).best() for sign in (1.0, -1.0))
    least, greatest = (costs.exact_cost(vector) for vector in ends)
    return least, greatest


def best_within(
    scores: Float[ArrayLike, "L W"],
    costs: JointCost,
    budget: float,
    *,
    most_architectures: int = 100,
) -> Selection:
    """Returns the vector of the largest total score within the budget.

    Exact if `score` and `bound` agree to 1e-6, which is proven on the way; else
    `most_architectures` were looked at, and the difference is what may be lost. The
    budget holds in float64, by the small network's own sites.

    Args:
      scores: of each option of each decision, larger is better, 0 being as good as none
        at all; minus infinity where it may not be taken.
      costs: of the joint space.
      budget: B, in the unit of the costs. Of formats of equal score the costliest that
        it allows is taken.
      most_architectures: to find formats for.

    Raises:
      ValueError: if nothing allowed fits the budget (it names the least reachable
        cost), or `scores` are of another shape or NaN.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != costs.present.shape:
        raise ValueError(
            f"scores must have shape {list(costs.present.shape)}, a row a decision, got"
            f" {list(scores.shape)}"
        )
    if np.isnan(scores[costs.present]).any():
        raise ValueError("scores are NaN")
    problem, budget = _Problem(costs, scores), float(budget)
    least = costs.exact_cost(problem.at_price(None).best())
    if least > budget:
        raise ValueError(
            f"budget {budget!r} is out of reach: the least reachable cost is {least!r}."
            " Raise the budget, or add a smaller option or a cheaper format"
        )
    return problem.best_within(budget, most_architectures)


class _Problem:
    def __init__(self, costs: JointCost, scores: np.ndarray):
        self.costs, self.counts = costs, costs.counts.tolist()
        self.scores = [
            _score_table(costs, row, scores[row, :count])
            for row, count in enumerate(self.counts)
        ]
        self.num_choices = len(costs.space.net.counts)
        self.formats = range(self.num_choices, len(self.counts))
        self.order = elimination_order(
            [d for d, _ in self.scores] + [table.decisions for table in costs.factors],
            self.counts,
            first=self.formats,
        )
        rows = scores[self.num_choices :, : costs.space.space.num_options]
        self.format_scores = rows
        self.open = np.isfinite(rows).sum(axis=1) > 1  # more than one option left
        # Costs of about 1 keep the sums of costs and scores well conditioned.
        self.unit = max(sum(factor.values.max() for factor in costs.factors), 1e-300)

    def at_price(self, price: float | None) -> Elimination:
        """Returns the problem with cost at a price a unit; None is cost alone."""
        scores, factor = self.scores, -1.0 if price is None else -price
        if price is None:
            scores = [(d, np.where(np.isfinite(s), 0.0, s)) for d, s in scores]
        priced = [
            (f.decisions, factor * f.values / self.unit) for f in self.costs.factors
        ]
        return Elimination(
            [*scores, *priced], self.counts, self.order, num_first=len(self.formats)
        )

    def total(self, vector: np.ndarray) -> float:
        return float(sum(s[tuple(vector[list(d)])] for d, s in self.scores))

    def best_within(self, budget: float, most: int) -> Selection:
        free = self.at_price(0.0)
        vector = free.best()
        if self.costs.exact_cost(vector) <= budget:
            return self._selection(vector, budget, free.maximum, 1)
        price, solved, best = self._price(budget)
        room = price * (budget - self.costs.constant) / self.unit
        score, bound, count = self.total(best), solved.maximum + room, 0
        for value, vector in solved.descending():
            bound = value + room
            if bound <= score + _TOLERANCE or count == most:
                break
            count += 1
            found = self._formats(vector, budget)
            if found is not None and self.total(found) > score:
                best, score = found, self.total(found)
        else:
            bound = score  # every architecture was looked at
        return self._selection(best, budget, bound, count)

    def _selection(
        self, vector: np.ndarray, budget: float, bound: float, count: int
    ) -> Selection:
        # Once more by the knapsack: it spends what is left on formats of equal score.
        found = self._formats(vector, budget)
        if found is not None and self.total(found) >= self.total(vector) - _TOLERANCE:
            vector = found
        score = self.total(vector)
        return Selection(vector, score, max(bound, score), count)

    def _price(self, budget: float) -> tuple[float, Elimination, np.ndarray]:
        """Returns the least price (about) at which the best vector fits, and it."""
        low, high = 0.0, 1.0
        while True:
            solved = self.at_price(high)
            known = solved.best()
            if self.costs.exact_cost(known) <= budget:
                break
            low, high = high, 4.0 * high
            if high > 1e12:  # only the cheapest fits, and ties hid it
                return high, solved, self.at_price(None).best()
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            tried = self.at_price(middle)
            vector = tried.best()
            if self.costs.exact_cost(vector) <= budget:
                high, solved, known = middle, tried, vector
            else:
                low = middle
            if high - low <= 1e-9 * high:
                break
        return high, solved, known

    def _formats(self, vector: np.ndarray, budget: float) -> np.ndarray | None:
        """Returns the vector with its architecture's best formats, if any fit."""
        if not self.open.any():
            return vector if self.costs.exact_cost(vector) <= budget else None
        table = self.costs.formats_table(vector[: self.num_choices].astype(np.int32))
        if table.minimum() > budget:
            return None
        rows = self.format_scores
        idle = np.where(np.isfinite(rows), 0.0, rows)
        values = np.where(self._live(vector)[:, None], rows, idle)
        values -= values.max(axis=1, keepdims=True)
        # Within the range in which the knapsack tells scores apart.
        reach = -np.where(np.isfinite(values), values, 0.0).min(axis=1).sum()
        values *= min(1.0, 39.0 / max(reach, 1e-300))
        chosen = most_probable_within(values, table, budget)
        found = np.concatenate([vector[: self.num_choices], chosen])
        fits = self.costs.exact_cost(found) <= budget
        return found if fits and np.isfinite(self.total(found)) else None

    def _live(self, vector: np.ndarray) -> np.ndarray:
        """Returns which decisions about formats have an effect, bool[D]."""
        live = np.ones(len(self.formats), bool)
        for number in self.costs.effects.keys() & set(self.formats):
            own = self.costs.effects[number]
            taken = own.values[tuple(vector[list(own.decisions)])]
            live[number - self.num_choices] = taken > 0
        return live


def _score_table(
    costs: JointCost, row: int, scores: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Returns a decision's scores as a table, 0 where it has no effect."""
    if row not in costs.effects:
        return (row,), scores
    own = costs.effects[row]
    idle = np.where(np.isfinite(scores), 0.0, scores)
    table = np.where(own.values[..., None] > 0, scores, idle)
    return (*own.decisions, row), table
