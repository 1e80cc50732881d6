r"""The best vector of a sum of small tables, and the next best ones: exact.

.. math:: \max_a \sum_f T_f[a_{d_1(f)}, \dots, a_{d_m(f)}]

Decisions are eliminated one by one: the tables that know of a decision are added up and
replaced by their maximum over it. What that costs depends on how decisions meet in
tables, not on how many there are; layers in a chain are cheap.

Reference: Dechter, Bucket elimination, 1999
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Tables = Sequence[tuple[tuple[int, ...], np.ndarray]]  # decisions, values by axis

_LARGEST = 50_000_000  # entries of a table


class _Bucket(NamedTuple):
    decision: int
    context: tuple[int, ...]  # decisions eliminated later
    values: np.ndarray  # axes: the context, then the decision


def elimination_order(
    scopes: Sequence[tuple[int, ...]],
    counts: Sequence[int],
    *,
    first: Sequence[int] = (),
) -> list[int]:
    """Returns an order that keeps tables small: always the decision of the smallest.

    Args:
      scopes: the decisions of each table.
      counts: number of options of each decision.
      first: decisions to eliminate before all others.

    Raises:
      ValueError: if too many decisions meet for a table to be held.

    Example:
      >>> elimination_order([(0, 1), (1, 2)], [2, 2, 2], first=[1])
      [1, 0, 2]
    """
    met = {d: {d} for d in range(len(counts))}
    for scope in scopes:
        for decision in scope:
            met[decision] |= set(scope)
    order = []
    for group in (set(first), set(met) - set(first)):
        while group:
            sizes = {d: math.prod(counts[e] for e in met[d]) for d in group}
            chosen = min(group, key=lambda d: (sizes[d], d))
            if sizes[chosen] > _LARGEST:
                raise ValueError(
                    f"decisions meet in too many sites: a table of {sizes[chosen]}"
                    " entries would be needed; share fewer formats (groups) over the"
                    " whole network"
                )
            group.remove(chosen)
            order.append(chosen)
            neighbours = met.pop(chosen) - {chosen}
            for decision in neighbours:
                met[decision] = (met[decision] | neighbours) - {chosen}
    return order


class Elimination:
    """All decisions eliminated; answers follow from the tables that came up.

    Args:
      tables: whose sum is to be maximised; entries may be minus infinity.
      counts: number of options of each decision.
      order: in which decisions are eliminated, from `elimination_order`.
      num_first: `descending` runs over all but so many of the first in `order`, each
        of its vectors standing for the best of these.

    Attributes:
      maximum: the largest sum.

    Example:
      >>> tables = [((0, 1), np.array([[0.0, 3.0], [2.0, 1.0]])),
      ...           ((1, 2), np.array([[5.0, 0.0], [0.0, 1.0]]))]
      >>> found = Elimination(tables, [2, 2, 2], [1, 2, 0], num_first=2)
      >>> found.maximum, found.best().tolist()
      (7.0, [1, 0, 0])
      >>> [(value, vector.tolist()) for value, vector in found.descending()]
      [(7.0, [1, 0, 0]), (5.0, [0, 0, 0])]
    """

    def __init__(
        self,
        tables: Tables,
        counts: Sequence[int],
        order: Sequence[int],
        *,
        num_first: int = 0,
    ):
        self._counts, self._first, self.maximum = list(counts), num_first, 0.0
        self._buckets: list[_Bucket] = []
        alive = [(tuple(d), np.asarray(values, float)) for d, values in tables]
        for decision in order:
            alive = self._eliminate(alive, decision)

    def best(self) -> Int[np.ndarray, "L"]:
        """Returns a vector of the largest sum."""
        vector = np.full(len(self._counts), -1)
        self._complete(vector, self._buckets)
        return vector

    def descending(self) -> Iterator[tuple[float, Int[np.ndarray, "L"]]]:
        """Yields the largest sums in descending order, with a vector for each.

        Vectors differ in the decisions that were not eliminated first.
        """
        order = self._buckets[self._first :][::-1]
        ties = itertools.count()
        heap = [(-self.maximum, next(ties), ())]
        while heap:
            negated, _, taken = heapq.heappop(heap)
            vector = np.full(len(self._counts), -1)
            for bucket, option in zip(order, taken, strict=False):
                vector[bucket.decision] = option
            if len(taken) == len(order):
                self._complete(vector, self._buckets[: self._first])
                yield -negated, vector
                continue
            bucket = order[len(taken)]
            values = bucket.values[tuple(vector[list(bucket.context)])]
            # What is lost against the best completion, which the parent's sum counts.
            for option, loss in enumerate(values.max() - values):
                if math.isfinite(loss):
                    row = (negated + float(loss), next(ties), (*taken, option))
                    heapq.heappush(heap, row)

    def _complete(self, vector: np.ndarray, buckets: list[_Bucket]) -> None:
        for bucket in buckets[::-1]:
            values = bucket.values[tuple(vector[list(bucket.context)])]
            vector[bucket.decision] = values.argmax()

    def _eliminate(self, alive: list, decision: int) -> list:
        met = [table for table in alive if decision in table[0]]
        kept = [table for table in alive if decision not in table[0]]
        scope = set().union(*(set(decisions) for decisions, _ in met))
        axes = (*sorted(scope - {decision}), decision)
        total = np.zeros([self._counts[d] for d in axes])
        for decisions, values in met:
            places = [axes.index(d) for d in decisions]
            order = np.argsort(places)
            shape = [self._counts[d] if d in decisions else 1 for d in axes]
            total += values.transpose(order).reshape(shape)
        self._buckets.append(_Bucket(decision, axes[:-1], total))
        message = total.max(axis=-1)
        if len(axes) > 1:
            return [*kept, (axes[:-1], message)]
        self.maximum += float(message)
        return kept
