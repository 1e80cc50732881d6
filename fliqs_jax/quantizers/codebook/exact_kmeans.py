"""k-means of weights to the global optimum, by dynamic programming on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Num

from fliqs_jax.quantizers.codebook.lloyd import check_size
from fliqs_jax.quantizers.codebook.value import Codebook, as_weights, nearest


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
    """What is summed over the first j distinct points, for j = 0...P."""

    sums: Float[np.ndarray, "Q"]
    mass: Float[np.ndarray, "Q"]

    def saved(self, first, last):
        """Returns what one value saves on the points between."""
        return (self.sums[last] - self.sums[first]) ** 2 / (
            self.mass[last] - self.mass[first]
        )


def _best_means(points: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Returns the k means of the best clusters of more than k sorted, distinct points.

    They are fewer where another cluster would save nothing in float64.
    """
    center = np.average(points, weights=counts)  # keeps digits in the sums
    table = _Table(
        np.concatenate([[0.0], np.cumsum((points - center) * counts)]),
        np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)]),
    )
    num_points = len(points)
    gain = np.zeros(num_points + 1)
    gain[1:] = table.saved(0, np.arange(1, num_points + 1))
    firsts = []  # of the last cluster, for each number of clusters and each end
    for _ in range(k - 2):
        gain, first = _add_cluster(gain, table)
        firsts.append(first)
    edges = [num_points]
    if k > 1:  # of the last cluster only one end is asked for
        begins = np.arange(num_points)
        edges.append(int(np.argmax(gain[:-1] + table.saved(begins, num_points))))
    for first in reversed(firsts):
        edges.append(int(first[edges[-1]]))
    edges = np.unique([0, *edges])
    return np.diff(table.sums[edges]) / np.diff(table.mass[edges]) + center


def _add_cluster(gain: np.ndarray, table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns G_k and the best i from G_{k-1}, for every j.

    From coarse to fine: the j between two known ones have their i between the two known
    i, so a level has at most 2 P candidates.
    """
    num_points = len(gain) - 1
    best = gain.copy()
    first = np.zeros(num_points + 1, np.int32)
    stride = 1 << num_points.bit_length()
    while stride := stride // 2:
        ends = np.arange(stride, num_points + 1, 2 * stride)
        right = ends + stride
        low = first[ends - stride]
        high = np.where(right > num_points, num_points, first[right % len(first)])
        high = np.minimum(high, ends - 1)
        # In parts that fit a cache: twice as fast.
        parts = np.cumsum(high - low + 1) // 2**16
        cuts = np.flatnonzero(np.diff(parts)) + 1
        for batch in zip(*(np.split(x, cuts) for x in (ends, low, high)), strict=True):
            best[batch[0]], first[batch[0]] = _best_begins(gain, table, *batch)
    return best, first


def _best_begins(gain, table, ends, low, high):
    """Returns the largest gain of each end j over i in low...high, and its first i."""
    lengths = high - low + 1
    offsets = np.cumsum(lengths) - lengths  # where each end's candidates begin
    begins = np.arange(lengths.sum()) + np.repeat(low - offsets, lengths)
    # As table.saved, but in place.
    candidates = np.repeat(table.sums[ends], lengths)
    candidates -= table.sums[begins]
    candidates *= candidates
    candidates /= np.repeat(table.mass[ends], lengths) - table.mass[begins]
    candidates += gain[begins]
    best = np.maximum.reduceat(candidates, offsets)
    hits = np.flatnonzero(candidates == np.repeat(best, lengths))
    return best, begins[hits[np.searchsorted(hits, offsets)]]
