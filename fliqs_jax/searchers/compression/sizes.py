"""Codebooks of mixed sizes under a model-size budget: how many values each layer gets.

The distortion of every size in every layer, of the reference network's weights, is the
table of an exact allocation.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fliqs_jax.costs import allocate_rows, monotone_values
from fliqs_jax.deploy import codebook_bits
from fliqs_jax.quantizers.codebook import kmeans
from fliqs_jax.searchers.compression.rules import Scope, kmeans_step, scope_weights

SIZES = (2, 4, 8, 16, 32, 64, 128, 256)


def distortions(
    weights: Sequence[Float[Array, "..."]], sizes: Sequence[int] = SIZES
) -> Float[np.ndarray, "L K"]:
    r"""Returns the squared error that k-means of each size leaves in each layer.

    .. math:: d_{lk} = \min_{c, z} \sum_i (w_{li} - c_{z_i})^2

    Args:
      weights: a vector a layer.
      sizes: K, ascending. A larger codebook counts as no worse (k-means may miss).
    """
    table = np.zeros((len(weights), len(sizes)))
    for row, w in enumerate(weights):
        for column, size in enumerate(sizes):
            error = np.asarray(w - kmeans(w, size).decode(), np.float64)
            table[row, column] = (error**2).sum()
    return monotone_values(table, sizes)


def size_bits(
    counts: Sequence[int], sizes: Sequence[int] = SIZES
) -> Int[np.ndarray, "L K"]:
    """Returns the bits of each layer at each size, values of the codebook included.

    Args:
      counts: weights of each layer.
      sizes: K.

    Example:
      >>> size_bits([1000], [2, 16]).tolist()
      [[1064, 4512]]
    """
    return np.array(
        [
            [codebook_bits(count, size, num_fitted=size) for size in sizes]
            for count in counts
        ],
        np.int64,
    )


def choose_sizes(
    params: PyTree,
    scopes: Sequence[Scope],
    budget_bits: int | float,
    sizes: Sequence[int] = SIZES,
) -> tuple[Scope, ...]:
    r"""Returns scopes of adaptive codebooks whose sizes fit a budget best.

    .. math:: \min_K \sum_l d_l(K_l) \quad \text{s.t.} \quad
        \sum_l P_l \lceil \log_2 K_l \rceil + 32 K_l \le B

    Solved exactly (`allocate_rows`).

    Args:
      params: the reference network's.
      scopes: whose C steps are replaced.
      budget_bits: B.
      sizes: that a codebook may have, ascending.

    Raises:
      ValueError: if the budget is out of reach; it names the least reachable bits.
    """
    weights = scope_weights(params, scopes)
    costs = size_bits([len(w) for w in weights], sizes)
    options = allocate_rows(distortions(weights, sizes), costs, budget_bits)
    return tuple(
        Scope(scope.name, scope.paths, kmeans_step(sizes[option]))
        for scope, option in zip(scopes, options, strict=True)
    )
