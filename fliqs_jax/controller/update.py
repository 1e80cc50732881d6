"""One update of the controller: judged samples in, moved logits out.

`Controller` fixes the order of things (warm-up, memory, gradient, Adam) and takes what
differs between methods as callables; `recipes` names two choices of them. Everything
may run inside `jit` with a traced step.

Not here: forward passes, costs, devices. Losses come in; what a gradient averages over
devices comes in as a callable.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from fliqs_jax.controller.policy_gradient import entropy, sample_options

Average = Callable[[Any], Any]  # a tree of arrays -> its mean over devices
Metrics = dict[str, Array]  # scalars to log


class ControllerState(NamedTuple):
    """All that the controller remembers; a pytree to checkpoint as it is."""

    logits: Float[Array, "L K"]
    optimizer: Any  # optax state of the logits
    memory: Any  # what the recipe's `judge` carries on: a baseline, or nothing
    num_updates: Int[Array, ""]  # times the logits were moved


class Judgement(NamedTuple):
    """What one batch says about the policy."""

    gradient: Float[Array, "L K"]  # to descend; the same on every device
    memory: Any
    metrics: Metrics


# (state, options [S, L], losses [S], step, average) -> Judgement
Judge = Callable[[ControllerState, Array, Array, Array, Average], Judgement]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
    """A policy over formats and the rule that improves it from judged samples.

    Frozen and hashable: close over it, or pass it as a static argument.
    """

    num_samples: int  # S, policies judged on one batch of one device
    judge: Judge
    init_memory: Callable[[tuple[int, int]], Any]  # from (L, K)
    optimizer: optax.GradientTransformation
    warmup_steps: int  # before this step the logits and their optimizer do not move

    def __post_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.warmup_steps < 0:
            raise ValueError(
                f"warmup_steps must not be negative, got {self.warmup_steps}"
            )

    def init(self, logits: Float[ArrayLike, "L K"]) -> ControllerState:
        """Returns the state at step 0.

        Args:
          logits: where to start; equal ones make the policy uniform, -inf marks an
            option that a decision does not have.
        """
        logits = jnp.asarray(logits, jnp.float32)
        memory = self.init_memory(logits.shape)
        state = self.optimizer.init(logits)
        return ControllerState(logits, state, memory, jnp.zeros((), jnp.int32))

    def sample(self, key: Key[Array, ""], state: ControllerState) -> Int[Array, "S L"]:
        """Draws the policies to judge on one batch."""
        keys = jax.random.split(key, self.num_samples)
        return jax.vmap(sample_options, in_axes=(0, None))(keys, state.logits)

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
          options: the policies judged, from `sample`.
          losses: the loss of each on the same batch.
          step: training step, traced or not; within the warm-up only the memory moves.
          average: mean over devices, `functools.partial(lax.pmean, axis_name="data")`
            where each device judges samples of its own.

        Returns:
          The next state, and scalars to log: `reward`, `advantage`, `entropy`,
          `entropy_weight`, `cost_ratio` (cost / target) and `gradient_norm`.
        """
        step = jnp.asarray(step, jnp.int32)
        judgement = self.judge(state, options, losses, step, average)
        active = step >= self.warmup_steps
        moved = self.apply_gradient(state, judgement.gradient)
        kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, state)
        metrics = {
            **judgement.metrics,
            "entropy": entropy(kept.logits),
            "gradient_norm": jnp.linalg.norm(judgement.gradient),
        }
        return kept._replace(memory=judgement.memory), metrics

    def apply_gradient(
        self, state: ControllerState, gradient: Float[Array, "L K"]
    ) -> ControllerState:
        """Descends one gradient, without regard to the warm-up."""
        updates, optimizer = self.optimizer.update(
            gradient, state.optimizer, state.logits
        )
        logits = optax.apply_updates(state.logits, updates)
        return state._replace(
            logits=logits, optimizer=optimizer, num_updates=state.num_updates + 1
        )
