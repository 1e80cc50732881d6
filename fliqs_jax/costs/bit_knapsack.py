"""The integer programme of bit allocation, solved around its linear relaxation.

Each quantizer takes some of its steps (bits above the least), each step gains less than
the one before and all weigh the same. Because gains fall, the linear relaxation takes
the steps in order of gain per weight, and the best integers differ from it in a few
quantizers near the break only. Whole numbers throughout on the side of the budget.
"""

import math

import numpy as np
from jaxtyping import Float, Int

# Partial choices carried on at once, and looked at in all. A narrow search is often
# complete; if not, what it finds lets the wide one leave out more.
_NARROW, _WIDE = (1_000, 300_000), (20_000, 1_500_000)
# Part of the best loss by which a better choice must win to be looked for, and part of
# a step's gain that is rounding.
_TOLERANCE, _ROUNDING = 1e-12, 1e-15
# Loss of what cannot be done. Not infinite: no weight times infinity would be NaN.
_NEVER = 1e200


def best_steps(
    gains: Float[np.ndarray, "L K"],
    weights: Int[np.ndarray, "L"],
    capacity: int,
    start: Int[np.ndarray, "L"],
) -> Int[np.ndarray, "L"]:
    r"""Returns how many steps to take of each quantizer for the greatest gain.

    .. math:: \max_s \sum_i \sum_{k < s_i} g_{ik} \quad \text{s.t.} \quad
        \sum_i w_i s_i \le c, \quad 0 \le s_i \le K

    With the multiplier of the linear relaxation, a choice falls short of the bound by
    the sum of its departures from the relaxation's steps and the multiplier times the
    capacity left. Quantizers are let depart one after another, those first whose
    departure costs least per weight; partial choices end where another is as light and
    gains as much, or where even what is left to depart cannot better the best choice.
    Where more than 20,000 partial choices are left undecided, or 1.5 million have been
    looked at (half a second), the rest is a beam search: that takes dozens of
    quantizers whose gains are in proportion to their weights, and then there are many
    choices all but equal to the bound.

    Args:
      gains: g, of each further step, positive and falling along K.
      weights: w, positive.
      capacity: c, not negative.
      start: steps within the capacity, the choice to beat. It is returned unless a
        better one is found.

    Reference:
      Pisinger, A minimal algorithm for the multiple-choice knapsack problem, 1995
    """
    shared = math.gcd(*weights.tolist())
    weights, capacity = weights // shared, capacity // shared
    relaxed = _linear_relaxation(gains, weights, capacity)
    if relaxed is None:
        return np.full_like(start, gains.shape[1])
    multiplier, steps = relaxed
    departures = _departures(gains, weights, multiplier, steps)
    left = capacity - int(weights @ steps)
    best = multiplier * (capacity - int(weights @ start))
    best += departures[np.arange(len(start)), start].sum()
    if (found := multiplier * left) < best:
        start, best = steps, found
    search = _Search(weights, multiplier, steps, left, departures)
    for width, most in (_NARROW, _WIDE):
        start, best, complete = search.run(start, best, width, most)
        if complete:
            break
    return start


def _linear_relaxation(
    gains: np.ndarray, weights: np.ndarray, capacity: int
) -> tuple[float, np.ndarray] | None:
    """Returns the multiplier and the whole steps taken; None if all steps fit."""
    per_weight = (gains / weights[:, None]).ravel()
    order = np.argsort(-per_weight, kind="stable")  # of equal ones the first are taken
    owners = order // gains.shape[1]
    filled = np.cumsum(weights[owners])
    if filled[-1] <= capacity:
        return None
    broken = int(np.searchsorted(filled, capacity, side="right"))
    steps = np.bincount(owners[:broken], minlength=len(weights))
    return float(per_weight[order[broken]]), steps


def _departures(
    gains: np.ndarray, weights: np.ndarray, multiplier: float, steps: np.ndarray
) -> np.ndarray:
    """What taking k steps instead of the relaxation's loses, for k in 0…K. [L, K+1].

    Added up from the relaxation's steps outwards: sums from 0 would lose the small
    differences near the break in the large gains of the first steps.
    """
    net = gains - multiplier * weights[:, None]
    taken = np.arange(gains.shape[1]) < steps[:, None]
    losses = np.zeros((len(weights), gains.shape[1] + 1))
    losses[:, 1:] = np.cumsum(np.where(taken, 0.0, -net), axis=1)
    losses[:, :-1] += np.cumsum(np.where(taken, net, 0.0)[:, ::-1], axis=1)[:, ::-1]
    return np.maximum(losses, 0.0)


def _alternating(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Order of the quantizers: the cheapest to raise, to lower, to raise, and so on.

    So the few that can be lowered at no loss are soon dealt with, and do not keep alive
    all that is over the capacity. Equally cheap ones come in random order, so that
    their weights are mixed.
    """
    mixed = np.random.default_rng(0).permutation(len(up))
    order = np.lexsort((mixed, np.round(np.minimum(up, down), 9)))
    raised = (up <= down)[order]
    rank = np.where(raised, np.cumsum(raised), np.cumsum(~raised))
    return order[np.argsort(rank, kind="stable")]


class _Search:
    """Choices around the relaxation's steps, which those not yet reached still take."""

    def __init__(self, weights, multiplier, steps, left, departures):
        self.multiplier, self.left = multiplier, left
        self.weights, self.steps, self.departures = weights, steps, departures
        rows, most = np.arange(len(weights)), departures.shape[1] - 1
        up = departures[rows, np.minimum(steps + 1, most)] / weights
        down = departures[rows, np.maximum(steps - 1, 0)] / weights
        up, down = np.where(steps < most, up, _NEVER), np.where(steps, down, _NEVER)
        self.order = _alternating(up / multiplier, down / multiplier)
        # The least that giving or taking a unit of weight loses, from here on.
        self.up_rest, self.down_rest = (
            np.append(np.minimum.accumulate(side[self.order][::-1])[::-1], _NEVER)[1:]
            for side in (up, down)
        )

    def run(
        self, choice: np.ndarray, best: float, width: int, most: int
    ) -> tuple[np.ndarray, float, bool]:
        """Searches for a choice that loses less than `best`, which `choice` loses.

        Returns:
          The best choice known, what it loses, and whether there is no better one.
        """
        left, losses = np.array([self.left]), np.zeros(1)
        history, looked_at, complete = [], 0, True
        for number, row in enumerate(self.order):
            rounding = _ROUNDING * self.multiplier * self.weights[row]
            if best <= rounding:
                return choice, best, True
            if looked_at > most:
                return choice, best, False
            own, count = self.departures[row], len(left)
            allowed = np.flatnonzero(own < best)
            moves = self.weights[row] * (allowed - self.steps[row])
            left = (left - moves[:, None]).ravel()
            losses = (losses + own[allowed][:, None]).ravel()
            looked_at += len(left)

            totals = np.where(left >= 0, losses + self.multiplier * left, np.inf)
            winner = int(totals.argmin())
            if totals[winner] < best:
                best = float(totals[winner])
                move, parent = divmod(winner, count)
                choice = self._trace(history, parent)
                choice[row] = allowed[move]

            kept, bounds = self._worth_extending(left, losses, best, number)
            if len(kept) > width:
                complete = False
                far = abs(left[kept])
                near = np.flatnonzero(far <= max(far.min(), 2 * self.weights.max()))
                spread = near[np.linspace(0, len(near) - 1, width // 2).astype(int)]
                promising = np.argsort(bounds[kept], kind="stable")[: width // 2]
                kept = kept[np.union1d(promising, spread)]
            if not len(kept):
                break
            left, losses = left[kept], losses[kept]
            move, parent = np.divmod(kept, count)
            history.append(
                (row, parent.astype(np.int32), allowed[move].astype(np.int8))
            )
        return choice, best, complete

    def _worth_extending(self, left, losses, best, number):
        """Indices of partial choices to extend, the heaviest last; all their bounds."""
        bounds = losses + np.where(
            left >= 0,
            left * min(self.up_rest[number], self.multiplier),
            -left * self.down_rest[number],
        )
        alive = np.flatnonzero(bounds < best * (1.0 - _TOLERANCE))
        # The lightest first; one must gain more than all before it.
        alive = alive[np.argsort(-left[alive], kind="stable")]
        short = losses[alive] + self.multiplier * left[alive]
        before = np.minimum.accumulate(np.append(np.inf, short[:-1]))
        return alive[short < before], bounds

    def _trace(self, history, state: int) -> np.ndarray:
        choice = self.steps.copy()
        for row, parents, taken in reversed(history):
            choice[row] = taken[state]
            state = parents[state]
        return choice
