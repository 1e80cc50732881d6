"""FLIQNAS: one training run that finds an architecture and its formats together.

At every step each device samples one option of every decision about a super-network
(kernel, expansion, channels, depth, ...) and one format for every site, from one
controller. The super-network's single float copy of the weights is trained through the
sampled part in the sampled formats; the controller's logits move towards options that
lose little at the target cost, of which the joint expectation is exact
(`joint.cost`). The last phase trains at the best architecture and formats within the
budget, so nothing is retrained.

As in TuNAS: decisions about the architecture start at their largest options, and give
way to the sampled ones with a probability that rises linearly over the warm-up; batch
norm uses the batch's statistics while searching; the weights decay only where they are
live. A smaller kernel is the centre of the largest one here, so that no kernels have to
be averaged in the warm-up.

This module says what is decided, what of a sample is alive and how the search ends. The
one-shot step is `in_training.one_shot`, the run around it `network_search`.

Reference: Dotzel et al., FLIQS, 2024, https://arxiv.org/abs/2308.03290 (section on
FLIQNAS); Bender et al., TuNAS, 2020, https://arxiv.org/abs/2008.06120
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from scipy import special

from fliqs_jax.models.supernets import live_sites
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import calibrated_formats
from fliqs_jax.searchers.in_training.one_shot import OneShotSearch, SearchState
from fliqs_jax.searchers.joint.budget import Selection, best_within
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.subnetwork_classifier import (
    Subnetwork,
    SubnetworkClassifier,
)
from fliqs_jax.train.mapping import AXIS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fliqnas(OneShotSearch):
    """A search for a network: A decisions about the architecture, then D about formats.

    A joint vector holds the option of every decision. Decisions in `fixed` are not
    searched: all about the architecture makes it a search for formats alone, all about
    formats one for an architecture, and all together a training at what is given.
    """

    classifier: SubnetworkClassifier
    costs: JointCost
    fixed: Int[np.ndarray, "L"] | None = None  # an option each; -1 is searched

    @property
    def formats_space(self) -> SearchSpace:
        return self.costs.space.space

    @property
    def allowed(self) -> Float[np.ndarray, "L W"]:
        """0 for every option that may be taken, minus infinity for the others."""
        return allowed_options(self.costs, self.fixed)

    @property
    def key_names(self) -> tuple[str, ...]:
        return (*super().key_names, "warmup")

    def formats(self, state: SearchState, options: Int[Array, "L"]) -> Subnetwork:
        """Returns what a joint vector stands for, as data of the compiled step."""
        choice, own = self._parts(options)
        space = self.formats_space
        if self.settings.dynamic_scales:
            return Subnetwork(choice, space.formats(own))
        return Subnetwork(choice, calibrated_formats(state.calibration, space, own))

    def trained_options(
        self, state: SearchState, sample: Int[Array, "L"], keys: Mapping[str, Array]
    ) -> Int[Array, "L"]:
        """Returns the sample `warmed_up`."""
        return self.warmed_up(keys["warmup"], sample, state.step)

    def warmed_up(
        self, key: Key[Array, ""], options: Int[Array, "L"], step: Int[Array, ""]
    ) -> Int[Array, "L"]:
        r"""Returns options with some of the architecture's at their largest.

        .. math:: P(\mathrm{largest}) = \max(0, 1 - t / t_w)

        Each searched decision for itself, so that early steps train all weights.

        Args:
          key: of this step and device.
          options: as sampled.
          step: t; t_w is the end of the warm-up.
        """
        share = 1.0 - step / max(1, self.phases.warmup_end)
        largest = jnp.asarray(self.costs.counts - 1)
        of_architecture = np.arange(len(self.costs.counts)) < self._num_choices
        swapped = jax.random.bernoulli(key, jnp.clip(share, 0, 1), options.shape)
        swapped &= jnp.asarray(of_architecture & self.open)
        return jnp.where(swapped, largest, options)

    def judged(self, samples: Int[Array, "S L"]) -> Int[Array, "S L"]:
        """Returns samples with decisions about what they leave out marked.

        A sample tells nothing of those, and whatever runs takes any option of theirs.
        """
        return jax.vmap(self.costs.marked)(samples)

    def decaying(self, params: PyTree, formats: Subnetwork) -> PyTree:
        """Returns the live parameters, averaged over the devices; per device."""
        return lax.pmean(self.classifier.net.mask(params, formats.choice), AXIS)

    def live(self, formats: Subnetwork) -> Bool[Array, "sites"]:
        """Returns which sites this device's sub-network has."""
        return live_sites(self.classifier.net, formats.choice).weight_count > 0

    def select(self, state: SearchState) -> Selection:
        """Returns the best choice so far: what the search would end with now (host)."""
        logits = np.asarray(state.controller.logits)
        if not self.searching or not self.settings.within_budget:
            options = logits.argmax(axis=1)
            score = float(special.log_softmax(logits, axis=1).max(axis=1).sum())
            return Selection(options, score, score, 0)
        scores = np.asarray(self.controller.final_scores(state.controller))
        return best_within(scores, self.costs, self.target)

    def best_options(self, state: SearchState) -> Int[np.ndarray, "L"]:
        """Returns the options of `select` (host)."""
        return self.select(state).options

    def final_policy(self, state: SearchState) -> Policy:
        """Returns the formats of all sites of the full network as run.

        Unsigned grids for inputs never negative; `subnetwork_policy` is the small
        network's part.
        """
        _, own = self._parts(self.current_options(state))
        return self.named(state, own)

    @property
    def _num_choices(self) -> int:
        return len(self.costs.space.net.counts)

    def _parts(self, options):
        return options[: self._num_choices], options[self._num_choices :]


def allowed_options(
    costs: JointCost, fixed: Int[np.ndarray, "L"] | None = None
) -> Float[np.ndarray, "L W"]:
    """Returns 0 for every option that may be taken, minus infinity for the others.

    Args:
      costs: of the joint space.
      fixed: an option for decisions made beforehand, -1 for the others.

    Raises:
      ValueError: if a fixed option is none of its decision's.
    """
    allowed = costs.present.copy()
    if fixed is not None:
        fixed = np.asarray(fixed)
        if fixed.shape != costs.counts.shape or (fixed >= costs.counts).any():
            raise ValueError(
                f"fixed must hold {len(costs.counts)} options, each below its entry of"
                f" {costs.counts.tolist()} (or -1), got {fixed.tolist()}"
            )
        made = fixed >= 0
        allowed[made] = np.arange(allowed.shape[1]) == fixed[made, None]
    return np.where(allowed, 0.0, -np.inf)
