"""FLIQS: one training run that finds a number format for every layer.

At every step each device samples one format a decision, the network's single float
copy of the weights is trained through those formats, and a REINFORCE controller moves
its logits towards formats that lose little and meet the target cost. The last phase
trains at the best formats within the budget, so nothing is retrained.

This module says what is decided and how the search ends. The one-shot step is
`in_training.one_shot`, the controller's mathematics `fliqs_jax.controller`, the run
around it `format_search`.

Reference: Dotzel et al., FLIQS, AutoML 2024, https://arxiv.org/abs/2308.03290
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Int

from fliqs_jax.costs import CostTable, check_feasible, most_probable_within
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import calibrated_formats
from fliqs_jax.searchers.in_training.one_shot import OneShotSearch, SearchState
from fliqs_jax.train.classifier import Classifier


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fliqs(OneShotSearch):
    """A format search: L decisions of a search space, W options each.

    With `policy` given nothing is searched.
    """

    classifier: Classifier
    space: SearchSpace
    costs: CostTable
    policy: Policy | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.policy is None:
            check_feasible(self.costs, self.target)

    @property
    def formats_space(self) -> SearchSpace:
        return self.space

    @property
    def allowed(self) -> Float[np.ndarray, "L W"]:
        """0 for every option; with a policy only for its own, the others -inf."""
        shape = (self.space.num_decisions, self.space.num_options)
        if self.policy is None:
            return np.zeros(shape)
        own = self.space.options(self.policy)[:, None]
        return np.where(np.arange(shape[1]) == own, 0.0, -np.inf)

    def formats(self, state: SearchState, options: Int[Array, "L"]) -> SiteFormats:
        """Returns the sites' formats and scales for `options`, as arrays."""
        if self.settings.dynamic_scales:
            return self.space.formats(options)
        return calibrated_formats(state.calibration, self.space, options)

    def best_options(self, state: SearchState) -> Int[np.ndarray, "L"]:
        """Returns the most probable options within the budget, or the argmax (host)."""
        if not self.searching or not self.settings.within_budget:
            return np.asarray(state.controller.logits).argmax(axis=1)
        scores = np.asarray(self.controller.final_scores(state.controller))
        return most_probable_within(scores, self.costs, self.target)

    def final_policy(self, state: SearchState) -> Policy:
        """Returns the policy as run: unsigned grids for inputs never negative."""
        return self.named(state, self.current_options(state))
