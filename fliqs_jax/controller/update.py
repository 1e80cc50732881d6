"""One update of the controller: judged samples in, moved logits out.

`Controller` fixes the order of things (memory, warm-up, logits) and takes what differs
between methods as callables; `recipes` names the choices of them. Everything may run
inside `jit` with a traced step.

Not here: forward passes, costs, devices. Losses come in; the mean over devices comes
in as a callable.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from fliqs_jax.checks import check_at_least, check_not_negative
from fliqs_jax.controller.policy_gradient import entropy, sample_options

Average = Callable[[Any], Any]  # a tree of arrays -> its mean over devices
Metrics = dict[str, Array]  # scalars to log


class ControllerState(NamedTuple):
    """All that the controller remembers; a pytree to checkpoint as it is."""

    logits: Float[Array, "L K"]
    optimizer: Any  # optax state of the logits; () where there is no optimizer
    memory: Any  # what was learned from rewards: a baseline, or a model of the loss
    num_updates: Int[Array, ""]  # times the logits were moved


class Proposal(NamedTuple):
    """What a method makes of one batch's judged samples; the same on every device."""

    logits: Float[Array, "L K"]  # taken after the warm-up only, like `optimizer`
    optimizer: Any
    memory: Any  # always taken
    metrics: Metrics


# (state, options [S, L], losses [S], step, average) -> Proposal
Propose = Callable[[ControllerState, Array, Array, Array, Average], Proposal]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
    """A policy over formats and the rule that improves it from judged samples.

    Frozen and hashable: close over it, or pass it as a static argument.
    """

    num_samples: int  # S, policies judged on one batch of one device
    warmup_steps: int  # before this step the logits and their optimizer do not move
    init_optimizer: Callable[[Array], Any]  # logits -> its state
    init_memory: Callable[[tuple[int, int]], Any]  # (L, K) -> memory
    propose: Propose
    score: Callable[[ControllerState], Array]  # see `final_scores`

    def __post_init__(self):
        check_at_least(1, num_samples=self.num_samples)
        check_not_negative(warmup_steps=self.warmup_steps)

    def init(self, logits: Float[ArrayLike, "L K"]) -> ControllerState:
        """Returns the state at step 0.

        Args:
          logits: where to start; equal ones make the policy uniform, -inf marks an
            option that a decision does not have.
        """
        logits = jnp.asarray(logits, jnp.float32)
        return ControllerState(
            logits=logits,
            optimizer=self.init_optimizer(logits),
            memory=self.init_memory(logits.shape),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def sample(self, key: Key[Array, ""], state: ControllerState) -> Int[Array, "S L"]:
        """Draws the policies to judge on one batch."""
        keys = jax.random.split(key, self.num_samples)
        return jax.vmap(sample_options, in_axes=(0, None))(keys, state.logits)

    def final_scores(self, state: ControllerState) -> Float[Array, "L K"]:
        """Returns how good each option is held to be, its cost left aside.

        The policy to end with has the largest sum of these within the budget, an exact
        knapsack. (The policy's own probabilities may already hold a price for cost; by
        them a part of the budget would stay unspent.) 0 is as good as a decision
        without any effect; -inf marks an absent option.
        """
        scores = self.score(state)
        return jnp.where(jnp.isneginf(state.logits), -jnp.inf, scores)

    def update(
        self,
        state: ControllerState,
        options: Int[Array, "S L"],
        losses: Float[Array, "S"],
        step: Int[ArrayLike, ""],
        *,
        average: Average = lambda tree: tree,
    ) -> tuple[ControllerState, Metrics]:
        """Moves the logits by what this batch's judged samples say.

        Args:
          state: before the update.
          options: the policies judged, from `sample`; -1 marks a decision that has no
            effect in one of them.
          losses: the loss of each on the same batch.
          step: training step, traced or not; within the warm-up only the memory moves.
          average: mean over devices, `functools.partial(lax.pmean, axis_name="data")`
            where each device judges samples of its own.

        Returns:
          The next state, and scalars to log: `reward` (mean of the samples'),
          `advantage` (their spread), `cost_ratio` (cost / target), `entropy` (nats) and
          `entropy_weight`, or `temperature` where there is one.
        """
        step = jnp.asarray(step, jnp.int32)
        proposal = self.propose(state, options, losses, step, average)
        active = step >= self.warmup_steps
        moved = (proposal.logits, proposal.optimizer, state.num_updates + 1)
        still = (state.logits, state.optimizer, state.num_updates)
        logits, optimizer, num_updates = jax.tree.map(
            lambda new, old: jnp.where(active, new, old), moved, still
        )
        state = ControllerState(logits, optimizer, proposal.memory, num_updates)
        return state, {**proposal.metrics, "entropy": entropy(logits)}


def descend(
    optimizer: optax.GradientTransformation,
    state: ControllerState,
    gradient: Float[Array, "L K"],
) -> tuple[Float[Array, "L K"], Any]:
    """Returns the logits and the optimizer's state after one gradient step.

    Args:
      optimizer: whose state `state.optimizer` is.
      state: before the step.
      gradient: to descend, already averaged over devices.

    Example:
      >>> state = ControllerState(jnp.ones((1, 2)), optax.sgd(1.0).init(0.0), (), 0)
      >>> descend(optax.sgd(1.0), state, jnp.array([[0.5, -0.5]]))[0].tolist()
      [[0.5, 1.5]]
    """
    updates, new_state = optimizer.update(gradient, state.optimizer, state.logits)
    return optax.apply_updates(state.logits, updates), new_state
