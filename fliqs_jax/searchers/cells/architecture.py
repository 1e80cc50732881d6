r"""Architecture weights under limits: what moves them, whatever tells them their loss.

.. math:: \tilde L(\alpha, \lambda) = L(\alpha) + \sum_m \lambda_m \, k_m(\alpha) / K_m
    + w(t) \, H(\alpha)

One step descends in alpha and ascends in lambda. L is the caller's: the validation loss
of a search network (`dca_nas`) or an expected accuracy (`expected_accuracy`). H is the
mean entropy of the edges, whose weight grows late so that the search ends decided.
"""

import dataclasses
import math
import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from fliqs_jax.checks import check_within
from fliqs_jax.models.cells import Alphas, CellSpace, softmax
from fliqs_jax.searchers.cells.limits import (
    Limit,
    MultiplierSettings,
    entropy,
    penalty,
    ratios,
    update_multipliers,
)
from fliqs_jax.searchers.cells.repair import Repair, repair


@typing.no_type_check  # eval_shape and others put other leaves in the fields
@flax.struct.dataclass
class ArchitectureState:
    """All that an architecture step changes."""

    alphas: Alphas
    multipliers: Float[Array, "M"]  # lambda, of each limit
    opt_state: PyTree  # of Adam on the alphas
    mean: Alphas  # of the probabilities, over all steps
    steps: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchitectureSettings:
    """How architecture weights move. The defaults are for a search network.

    The published decay of 1e-3 pulls alphas to equal, small ones.
    """

    learning_rate: float = 3e-4  # Adam's, with betas 0.5 and 0.999
    weight_decay: float = 1e-3  # L2, on alphas
    entropy_weight: float = 1.0  # w at the end, in units of the loss a nat
    entropy_start: float = 0.5  # of the search, where w starts to grow from 0
    multipliers: MultiplierSettings = MultiplierSettings()

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "entropy_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        check_within("[0, 1)", entropy_start=self.entropy_start)


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
    """The Lagrangian's step in architecture weights and multipliers."""

    limits: tuple[Limit, ...]
    settings: ArchitectureSettings = ArchitectureSettings()

    def __post_init__(self):
        names = [limit.name for limit in self.limits]
        if len(set(names)) < len(names):
            raise ValueError(f"limits must have different names, got {names}")

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam on the alphas, with decay as a part of the gradient, as published."""
        return optax.chain(
            optax.add_decayed_weights(self.settings.weight_decay),
            optax.adam(self.settings.learning_rate, b1=0.5, b2=0.999),
        )

    def init(self, alphas: Alphas) -> ArchitectureState:
        """Returns the state of these alphas: lambda = 0."""
        return ArchitectureState(
            alphas=alphas,
            multipliers=jnp.zeros(len(self.limits)),
            opt_state=self.optimizer.init(alphas),
            mean=softmax(alphas),
            steps=jnp.ones(()),
        )

    def regulariser(
        self,
        alphas: Alphas,
        multipliers: Float[Array, "M"],
        progress: Float[ArrayLike, ""],
    ) -> Float[Array, ""]:
        """Returns what limits and entropy add to the loss, `progress` in [0, 1]."""
        pressed = penalty(
            multipliers, ratios(self.limits, alphas), self.settings.multipliers
        )
        start = self.settings.entropy_start
        share = jnp.maximum(0.0, (progress - start) / (1.0 - start))
        return pressed + self.settings.entropy_weight * share * entropy(alphas)

    def step(
        self,
        state: ArchitectureState,
        loss_gradient: Alphas,
        progress: Float[ArrayLike, ""],
    ) -> ArchitectureState:
        """Descends in alpha, then ascends in lambda.

        Args:
          state: before.
          loss_gradient: of L in the alphas.
          progress: share of the search that is over, in [0, 1].
        """
        own = jax.grad(self.regulariser)(state.alphas, state.multipliers, progress)
        gradient = jax.tree.map(jnp.add, loss_gradient, own)
        updates, opt_state = self.optimizer.update(
            gradient, state.opt_state, state.alphas
        )
        alphas = optax.apply_updates(state.alphas, updates)
        multipliers = update_multipliers(
            state.multipliers, ratios(self.limits, alphas), self.settings.multipliers
        )
        steps = state.steps + 1
        mean = jax.tree.map(
            lambda mean, p: mean + (p - mean) / steps, state.mean, softmax(alphas)
        )
        return ArchitectureState(alphas, multipliers, opt_state, mean, steps)

    def derive(
        self, space: CellSpace, state: ArchitectureState, *, greedy: bool = False
    ) -> Repair:
        """Returns the cell of the last alphas, repaired by the mean probabilities.

        At the end all operations but one are close to zero on every edge, and which of
        them is next is noise; the mean over the search knows.
        """
        floor = np.finfo(np.float32).tiny
        ranking = {
            kind: np.log(np.maximum(mean, floor)) for kind, mean in state.mean.items()
        }
        return repair(space, state.alphas, self.limits, ranking=ranking, greedy=greedy)

    def report(self, state: ArchitectureState) -> dict[str, Array]:
        """Returns entropy, and k_s / K_s and lambda of each limit by name."""
        found = ratios(self.limits, state.alphas)
        numbers = {"entropy": entropy(state.alphas)}
        for index, limit in enumerate(self.limits):
            numbers[f"{limit.name}_ratio"] = found[index]
            numbers[f"{limit.name}_multiplier"] = state.multipliers[index]
        return numbers
