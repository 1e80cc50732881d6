"""k-means of weights to the global optimum, by dynamic programming on the host."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, Num

from fliqs_jax.quantizers.codebook.lloyd import check_size
from fliqs_jax.quantizers.codebook.value import Codebook, as_weights, nearest

_BLOCKS = 2**12  # of points at first, to see where the best edges cannot be
_SMALLEST_BLOCK = 4  # points; there is nothing to gain by fewer


def kmeans_exact(w: Num[ArrayLike, "*S"], k: int) -> Codebook:
    r"""Finds the K free values of least squared error.

    .. math:: G_k(j) = \max_{i < j} \; G_{k-1}(i) + \frac{(S_j - S_i)^2}{W_j - W_i}

    Clusters of numbers are intervals of their sorted order. G_k(j) is what k values
    save on the first j distinct weights, S their sum and W their count up to there. The
    best i never falls as j grows, so each k takes O(P log P): the best i of every other
    j bounds those between. Work is in float64 on the host, hence not for `jit`. A C
    step of 266,200 distinct weights at K = 16 takes a few seconds; fewer distinct
    weights (bfloat16 has at most 65,280) take less.

    Args:
      w: the weights, any floating type, finite. Shape [*S]; P of them.
      k: K, at least 1. Memory is 4 P K bytes.

    Returns:
      The Codebook of K values, ascending; the largest is repeated where the weights
      have fewer distinct values, and all are 0 for no weights.

    Raises:
      TypeError: if w is traced or not of a floating type.
      ValueError: if k is below 1 or w is not finite.

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319 (the C
      step); Wu, Optimal quantization by matrix searching, 1991 (the monotony)

    Example:
      >>> kmeans_exact(jnp.array([0.0, 1.0, 10.0, 12.0]), 2).decode()
      Array([ 0.5,  0.5, 11. , 11. ], dtype=float32)
    """
    check_size(k)
    if isinstance(w, jax.core.Tracer):
        raise TypeError(f"kmeans_exact runs on the host, got {w}: use kmeans under jit")
    w = as_weights(w)
    distinct, counts = np.unique(np.asarray(w), return_counts=True)
    if len(distinct) > k:
        distinct = _best_means(distinct.astype(np.float64), counts, k)
    last = distinct[-1:] if len(distinct) else [0.0]
    values = np.append(distinct, np.repeat(last, k - len(distinct)))
    values = jnp.asarray(values.astype(np.float32) + np.float32(0))
    return Codebook(values, nearest(w, values), num_fitted=k)


class _Table(NamedTuple):
    """What is summed over the first j points, or blocks of points, for j = 0...P."""

    sums: Float[np.ndarray, "Q"]
    mass: Float[np.ndarray, "Q"]

    @classmethod
    def of(
        cls, points: Float[np.ndarray, "P"], counts: Num[np.ndarray, "P"]
    ) -> "_Table":
        return cls(
            np.concatenate([[0.0], np.cumsum(points * counts)]),
            np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)]),
        )

    def at(self, edges: Int[np.ndarray, "M"]) -> "_Table":
        """Returns the table of blocks that end at these points."""
        return _Table(self.sums[edges], self.mass[edges])

    def saved(self, first, last):
        """Returns what one value saves on the points between."""
        return (self.sums[last] - self.sums[first]) ** 2 / (
            self.mass[last] - self.mass[first]
        )


class _Span(NamedTuple):
    """Where an edge between clusters may be: positions low...high, both included."""

    low: int
    high: int


def _best_means(points: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Returns the k means of the best clusters of more than k sorted, distinct points.

    They are fewer where another cluster would save nothing in float64.
    """
    center = np.average(points, weights=counts)  # keeps digits in the sums
    points = points - center
    table = _Table.of(points, counts)
    edges = _best_edges(table, _possible_spans(points, counts, table, k))
    return np.diff(table.sums[edges]) / np.diff(table.mass[edges]) + center


def _best_edges(table: _Table, spans: list[_Span]) -> Int[np.ndarray, "L"]:
    """Returns the edges of the clusters that save most, each edge within its span."""
    end = len(table.sums) - 1
    spans = [_Span(0, 0), *spans]
    gain = np.zeros(1)  # of the present span
    firsts = []  # the edge before, for each edge of a span
    for before, here in itertools.pairwise(spans):
        gain, first = _add_cluster(gain, table, before, here)
        firsts.append(first)
    begins = np.arange(spans[-1].low, spans[-1].high + 1)
    edges = [end, int(begins[np.argmax(gain + table.saved(begins, end))])]
    for here, first in zip(spans[:0:-1], reversed(firsts), strict=True):
        edges.append(int(first[edges[-1] - here.low]))
    return np.unique(edges)


def _possible_spans(
    points: np.ndarray, counts: np.ndarray, table: _Table, k: int
) -> list[_Span]:
    """Returns a span for each of the k - 1 edges that holds the best one.

    The points are taken in blocks, ever smaller ones. With an edge somewhere in each of
    k - 1 blocks the clusters save at most what they do on the whole blocks between, and
    all that there is in the blocks of the edges; a block whose best such bound is below
    what edges between blocks save has no best edge.
    """
    count, squares = len(points), points**2 * counts
    spans = _ascending([_Span(1, count - 1)] * (k - 1), count)
    size, left = count // _BLOCKS, _width(spans)
    while left > _BLOCKS and size >= _SMALLEST_BLOCK and count > 2 * k * size:
        spans = _narrowed(spans, squares, table, size)
        before, left = left, _width(spans)
        if size < 64 and left > 0.75 * before:
            break  # with many values none is ruled out, and small blocks take long
        size //= 4
    return spans


def _width(spans: list[_Span]) -> int:
    return sum(span.high - span.low for span in spans)


def _narrowed(
    spans: list[_Span], squares: Float[np.ndarray, "P"], table: _Table, size: int
) -> list[_Span]:
    """Returns the spans as far as blocks of so many points do not rule them out."""
    count = len(squares)
    borders = np.unique(np.append(np.arange(0, count, size), count))
    blocks, last = table.at(borders), len(borders) - 1
    squares = np.add.reduceat(squares, borders[:-1])
    # From edges between blocks, about where the spans are.
    between = [_Span(span.low // size, -(-span.high // size)) for span in spans]
    edges = _best_edges(blocks, _ascending(between, last))
    known = blocks.saved(edges[:-1], edges[1:]).sum()
    known -= 1e-9 * squares.sum()  # what rounding may take
    inside = [_Span(span.low // size, (span.high - 1) // size) for span in spans]
    left = _bounds(blocks, squares, inside)
    mirrored = _Table(
        blocks.sums[-1] - blocks.sums[::-1], blocks.mass[-1] - blocks.mass[::-1]
    )
    backwards = [_Span(last - 1 - high, last - 1 - low) for low, high in inside[::-1]]
    right = _bounds(mirrored, squares[::-1], backwards)[::-1]
    narrowed = []
    for span, within, before, after in zip(spans, inside, left, right, strict=True):
        own = squares[within.low : within.high + 1]
        possible = within.low + np.flatnonzero(before + own + after[::-1] >= known)
        low, high = borders[possible[0]], borders[possible[-1] + 1]
        narrowed.append(_Span(max(span.low, int(low)), min(span.high, int(high))))
    return _ascending(narrowed, count)


def _ascending(spans: list[_Span], count: int) -> list[_Span]:
    """Returns the spans without places that leave no room for other edges' clusters."""
    lows = itertools.accumulate(
        (span.low for span in spans), lambda before, low: max(before + 1, low)
    )
    highs = itertools.accumulate(
        (min(span.high, count - 1) for span in reversed(spans)),
        lambda after, high: min(after - 1, high),
    )
    return [
        _Span(max(low, 1), high)
        for low, high in zip(lows, reversed(list(highs)), strict=True)
    ]


def _bounds(
    table: _Table, squares: Float[np.ndarray, "M"], spans: list[_Span]
) -> list[Float[np.ndarray, "_"]]:
    """Returns what clusters left of each edge save at most, for each block of its span.

    Blocks with other edges count as saved wholly.
    """
    lefts = np.arange(spans[0].low, spans[0].high + 1)  # the left side of a block
    bound = np.zeros(len(lefts))
    bound[lefts > 0] = table.saved(0, lefts[lefts > 0])
    bounds = [bound]
    for before, here in itertools.pairwise(spans):
        through = bound + squares[before.low : before.high + 1]
        bound = np.full(here.high - here.low + 1, -np.inf)
        # The edge before is in this block, or in the one before, with no point between.
        for shift in (0, 1):
            same = _Span(
                max(here.low, before.low + shift), min(here.high, before.high + shift)
            )
            if same.low <= same.high:
                own = bound[same.low - here.low : same.high - here.low + 1]
                begin = same.low - shift - before.low
                np.maximum(own, through[begin : begin + len(own)], out=own)
        # Or further left: the cluster begins right of its block.
        begins = _Span(before.low + 1, before.high + 1)
        ends = _Span(max(here.low, begins.low + 1), here.high)
        if ends.low <= ends.high:
            best, _ = _add_cluster(through, table, begins, ends)
            own = bound[ends.low - here.low :]
            np.maximum(own, best, out=own)
        bounds.append(bound)
    return bounds


def _add_cluster(
    gain: Float[np.ndarray, "I"], table: _Table, before: _Span, here: _Span
) -> tuple[Float[np.ndarray, "J"], Int[np.ndarray, "J"]]:
    """Returns G_k(j) and the best i for every j of `here`, from G_{k-1} of `before`.

    From coarse to fine: the j between two known ones have their i between the two known
    i, so a level has at most as many candidates as both spans have points.
    """
    num_ends = here.high - here.low + 1
    best = np.empty(num_ends)
    first = np.empty(num_ends, np.int64)
    stride = 1 << num_ends.bit_length()
    while stride := stride // 2:
        rows = np.arange(stride - 1, num_ends, 2 * stride)
        ends = here.low + rows
        left, right = rows - stride, rows + stride
        low = np.where(left < 0, before.low, first[left])
        high = np.where(
            right >= num_ends, before.high, first[np.minimum(right, num_ends - 1)]
        )
        high = np.minimum(high, ends - 1)
        # In parts that fit a cache: twice as fast.
        parts = np.cumsum(high - low + 1) // 2**16
        cuts = np.flatnonzero(np.diff(parts)) + 1
        for part in zip(
            *(np.split(x, cuts) for x in (rows, ends, low, high)), strict=True
        ):
            best[part[0]], first[part[0]] = _best_begins(
                gain, table, before.low, *part[1:]
            )
    return best, first


def _best_begins(gain, table, start, ends, low, high):
    """Returns the largest gain of each end j over i in low...high, and its first i."""
    lengths = high - low + 1
    offsets = np.cumsum(lengths) - lengths  # where each end's candidates begin
    begins = np.arange(lengths.sum()) + np.repeat(low - offsets, lengths)
    # As table.saved, but in place.
    candidates = np.repeat(table.sums[ends], lengths)
    candidates -= table.sums[begins]
    candidates *= candidates
    candidates /= np.repeat(table.mass[ends], lengths) - table.mass[begins]
    candidates += gain[begins - start]
    best = np.maximum.reduceat(candidates, offsets)
    hits = np.flatnonzero(candidates == np.repeat(best, lengths))
    return best, begins[hits[np.searchsorted(hits, offsets)]]
