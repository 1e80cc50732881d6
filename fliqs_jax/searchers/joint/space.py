"""Architecture and formats as one integer vector: the space of a joint search.

For `linas.search` and its rivals: option counts by name, and which decisions are dead
given the others (those about layers that are left out). What a vector is worth is
`subnetwork_evaluation`'s.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fliqs_jax.costs import SiteCost, policy_cost
from fliqs_jax.models.supernets import (
    SuperNetwork,
    live_mask,
    subnetwork_policy,
    subnetwork_sites,
)
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace


class Candidates(NamedTuple):
    """Joint vectors taken apart; N candidates, or one without the leading axis."""

    choice: Int[np.ndarray, "*N A"]  # of the architecture
    options: Int[np.ndarray, "*N D"]  # of the formats
    symmetric: Bool[np.ndarray, "*N L"]  # at each site, the weights' grid


class JointSpace:
    """The decisions about an architecture, then those about its sites' formats.

    Args:
      net: the super-network.
      space: formats of its sites (`SearchSpace(net.sites, ...)`).
      weight_modes: also choose symmetric or asymmetric grids for the weights, a
        decision for each that sets weights' formats; else all are symmetric.

    Attributes:
      counts: number of options by decision, in the order of a vector's entries.

    Raises:
      ValueError: if the space is about other sites, or two decisions have one name.

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> space = JointSpace(net, SearchSpace(net.sites, ["int4", "int8"]))
      >>> shallow = np.zeros((1, len(space.counts)), np.int64)
      >>> dead = ~space.active(shallow)[0]  # all about the second layer
      >>> [name for name, off in zip(space.counts, dead) if off][:2]
      ['layer1/heads', 'layer1/mlp']
    """

    def __init__(
        self, net: SuperNetwork, space: SearchSpace, *, weight_modes: bool = False
    ):
        if space.sites != net.sites:
            raise ValueError(
                "space must be about the sites of the full network, got"
                f" {len(space.sites)} sites instead of its {len(net.sites)}:"
                " SearchSpace(net.sites, ...)"
            )
        self.net, self.space = net, space
        self._moded = np.unique(space.weight_decision[space.weight_decision >= 0])
        if not weight_modes:
            self._moded = self._moded[:0]
        names = list(space.decision_names)
        counts: Mapping[str, int] = {
            **net.counts,
            **dict.fromkeys(names, space.num_options),
            **{f"{names[number]}/asymmetric": 2 for number in self._moded},
        }
        if len(counts) < len(net.counts) + len(names) + len(self._moded):
            twice = sorted(net.counts.keys() & set(names))
            raise ValueError(
                f"architecture and formats have decisions of one name: {twice}; rename"
                " those of the architecture"
            )
        self.counts = counts
        self._uses = np.stack(
            [
                (space.weight_decision == number)
                | (space.activation_decision == number)
                for number in range(space.num_decisions)
            ],
            axis=1,
        )

    def split(self, vectors: Int[np.ndarray, "*N D"]) -> Candidates:
        """Takes vectors apart."""
        first = len(self.net.counts)
        second = first + self.space.num_decisions
        choice, options = vectors[..., :first], vectors[..., first:second]
        asymmetric = np.zeros((*vectors.shape[:-1], self.space.num_decisions), bool)
        asymmetric[..., self._moded] = vectors[..., second:] > 0
        decided = self.space.weight_decision
        symmetric = ~(asymmetric[..., decided] & (decided >= 0))
        return Candidates(choice, options, symmetric)

    def active(self, vectors: Int[np.ndarray, "N D"]) -> Bool[np.ndarray, "N D"]:
        """Returns which decisions have an effect; the `active` of `linas.search`."""
        choice = self.split(vectors).choice
        used = live_mask(self.net, choice).astype(np.int64) @ self._uses > 0
        return np.concatenate(
            [self.net.active(choice), used, used[:, self._moded]], axis=1
        )

    def policy(self, vector: Int[np.ndarray, "D"]) -> Policy:
        """Returns the formats that a vector gives the sites of its sub-network."""
        choice, options, _ = self.split(np.asarray(vector))
        return subnetwork_policy(self.net, choice, self.space.policy(options))

    def prices(
        self, vector: Int[np.ndarray, "D"], costs: Mapping[str, SiteCost]
    ) -> dict[str, float]:
        """Returns what a vector's sub-network costs in its formats, exactly."""
        sites = subnetwork_sites(self.net, self.split(vector).choice)
        policy = self.policy(vector)
        return {
            name: float(policy_cost(cost, sites, policy))
            for name, cost in costs.items()
        }
