"""How a controller's samples are judged: when, by what quality, on the same batch."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fliqs_jax.controller import Controller, ControllerState
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.train.losses import cross_entropy
from fliqs_jax.train.mapping import AXIS

# (logits, labels) -> quality of each example, higher is better
Quality = Callable[[Float[Array, "B C"], Int[Array, "B"]], Float[Array, "B"]]


def negated_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """Returns minus the cross entropy: smoother than accuracy, and never positive."""
    return -cross_entropy(logits, labels)


def judges_at(
    step: Int[Array, ""], controller: Controller, phases: Phases, judge_every: int
) -> Bool[Array, ""]:
    """Returns whether the controller's samples are judged at this step."""
    # A single sample costs no forward pass of its own, so its baseline can follow
    # the warm-up, as published; several would cost passes that teach nothing.
    start = 0 if controller.num_samples == 1 else phases.warmup_end
    within = (step >= start) & (step < phases.search_end)
    return within & ((step - start) % judge_every == 0)


def judge(
    controller: Controller,
    state: ControllerState,
    samples: Int[Array, "S D"],
    *,
    known: Sequence[Float[Array, ""]],
    quality_of: Callable[[Int[Array, "D"]], Float[Array, ""]],
    step: Int[Array, ""],
    due: Bool[Array, ""],
) -> tuple[ControllerState, dict[str, Array]]:
    """Returns the next controller state, and its metrics (NaN where none judged).

    Args:
      controller: whose samples they are.
      state: before the update.
      samples: the options judged on this device's batch.
      known: qualities of the first samples that a training pass has given already.
      quality_of: a forward pass that gives the quality of others, on the same batch.
      step: of the training.
      due: whether there is an update at this step at all.
    """
    quality_of = jax.jit(quality_of)  # traced and lowered once for all samples

    def update(state):
        others = _map_samples(quality_of, samples[len(known) :])
        return controller.update(
            state,
            samples,
            -jnp.concatenate([jnp.array(known), others]),
            step,
            average=functools.partial(lax.pmean, axis_name=AXIS),
        )

    def skip(state):
        _, metrics = jax.eval_shape(update, state)
        return state, jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), metrics
        )

    return lax.cond(due, update, skip, state)


def _map_samples(
    quality_of: Callable[[Int[Array, "D"]], Float[Array, ""]],
    samples: Int[Array, "N D"],
) -> Float[Array, "N"]:
    """Returns the quality of each sample: unrolled on CPU, a loop elsewhere.

    A convolution inside a loop is 20 to 35 times slower on CPU; elsewhere a loop keeps
    one candidate's activations in memory and one copy of the network in the program.
    """
    if not len(samples):
        return jnp.zeros(0)
    if jax.default_backend() == "cpu":
        return jnp.stack([quality_of(options) for options in samples])
    return lax.map(quality_of, samples)
