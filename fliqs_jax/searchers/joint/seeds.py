"""First candidates of a joint search, and a column for its predictors.

From sensitivities, measured once on the full network: which formats it bears at each
budget is a fair guess for its sub-networks. How sensitivities are measured is in
`sensitivities.table`, what a search makes of candidates is `linas`'s.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from fliqs_jax.costs import (
    SiteCost,
    allocate_exact,
    cost_table,
    monotone_values,
    storage_bits,
)
from fliqs_jax.searchers.joint.space import JointSpace

_GOLDEN = (5**0.5 - 1) / 2
_LEAST = 1e-6  # nats; of a sum of sensitivities, before its logarithm


def uniform_vectors(
    space: JointSpace, choice: Int[np.ndarray, "A"], options: list[int]
) -> Int[np.ndarray, "N D"]:
    """Returns one sub-network with one option everywhere, for each of some options.

    Weights are on symmetric grids; pins keep their formats.

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> from fliqs_jax.search_space import SearchSpace
      >>> net = create_supernet("vit_cifar", num_layers=1)
      >>> space = JointSpace(net, SearchSpace(net.sites, ["int4", "int8"]))
      >>> uniform_vectors(space, net.full, [0, 1])[:, -2:].tolist()
      [[0, 0], [1, 1]]
    """
    vectors = np.zeros((len(options), len(space.counts)), np.int64)
    first = len(space.net.counts)
    vectors[:, :first] = choice
    last = first + space.space.num_decisions
    vectors[:, first:last] = np.asarray(options, np.int64)[:, None]
    return vectors


def sensitivity_seeds(
    space: JointSpace, table: Float[np.ndarray, "L K"], cost: SiteCost, *, count: int
) -> Int[np.ndarray, "N D"]:
    r"""Returns candidates of all sizes whose formats lose least by the sensitivities.

    .. math:: o_n = \arg\min_o \sum_l S_{l o_l} \quad \text{s.t.} \quad
        C(o) \le C_{min} + b_n (C_{max} - C_{min})

    exactly. The sub-networks grow evenly in all decisions from the smallest to the full
    one, and take over the formats of their sites; the budgets b are the multiples of
    the golden ratio, less their whole part, so any few cover the range.

    Args:
      space: the decisions.
      table: S, of the full network.
      cost: C, of the full network's sites.
      count: N.
    """
    formats, net, first = space.space, space.net, len(space.net.counts)
    values = monotone_values(table, [storage_bits(x) for x in formats.option_names])
    costs = cost_table(formats, cost)
    low, high = costs.minimum(), costs.maximum()
    vectors = np.zeros((count, len(space.counts)), np.int64)
    for number, growth in enumerate(np.linspace(0.0, 1.0, count)):
        budget = low + (number + 1) * _GOLDEN % 1 * (high - low)
        vectors[number, :first] = np.rint(growth * net.full)
        options = allocate_exact(values, costs, budget)
        vectors[number, first : first + formats.num_decisions] = options
    return vectors


def sensitivity_features(
    space: JointSpace, table: Float[np.ndarray, "L K"]
) -> Callable[[Int[np.ndarray, "N D"]], Float[np.ndarray, "N 2"]]:
    """Returns a function from vectors to columns for predictors: `linas`'s `features`.

    The sum of the sensitivities of what is live, and its logarithm: the error rises
    with the one where it is small and with the other where it is large.

    Args:
      space: the decisions.
      table: sensitivities of the full network.
    """
    first = len(space.net.counts)
    last = first + space.space.num_decisions

    def features(vectors):
        options = vectors[:, first:last]
        live = space.active(vectors)[:, first:last]
        sums = (table[np.arange(last - first), options] * live).sum(axis=1)
        return np.stack([sums, np.log10(np.maximum(sums, _LEAST))], axis=1)

    return features
