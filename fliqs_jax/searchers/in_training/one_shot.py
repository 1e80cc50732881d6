"""What searches inside one training run share: phases, state, judging of samples.

Of methods that train one set of weights through whatever a controller samples and end
at a fixed choice. What the decisions are about is the method's: formats (`fliqs`), or
architecture and formats (`fliqnas`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fliqs_jax.controller import Controller, ControllerState
from fliqs_jax.searchers.in_training.calibration import Calibration
from fliqs_jax.train.job import Hook
from fliqs_jax.train.losses import correct, cross_entropy
from fliqs_jax.train.mapping import AXIS, Step

# (logits, labels) -> quality of each example, higher is better
Quality = Callable[[Float[Array, "B C"], Int[Array, "B"]], Float[Array, "B"]]


def negated_loss(
    logits: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, "B"]:
    """Returns minus the cross entropy: smoother than accuracy, and never positive."""
    return -cross_entropy(logits, labels)


@flax.struct.dataclass
class SearchState:
    """Everything a step changes; equal on all devices, saved in every checkpoint."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    params: PyTree  # the one float copy of the weights
    model_state: PyTree  # batch statistics and other collections
    opt_state: PyTree
    controller: ControllerState
    calibration: Calibration
    fixed_options: Int[Array, "D"]  # used from the end of the search on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
    """Step numbers at which the run changes: uniform warm-up, search, fixed policy."""

    warmup_end: int  # first step at which the controller learns
    search_end: int  # first step at the fixed policy
    steps: int

    def __post_init__(self):
        if not 0 <= self.warmup_end <= self.search_end <= self.steps or not self.steps:
            raise ValueError(
                "phases must satisfy 0 <= warmup_end <= search_end <= steps, got "
                f"{self.warmup_end}, {self.search_end}, {self.steps}"
            )

    @classmethod
    def of(
        cls, steps: int, *, warmup_fraction: float = 0.25, final_fraction: float = 0.2
    ) -> "Phases":
        """Returns phases as fractions of the run."""
        for name, value in (
            ("warmup_fraction", warmup_fraction),
            ("final_fraction", final_fraction),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        return cls(
            warmup_end=round(warmup_fraction * steps),
            search_end=round((1.0 - final_fraction) * steps),
            steps=steps,
        )


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


@runtime_checkable
class OneShot(Protocol):
    """What training and judging take of a one-shot search."""

    classifier: Any  # `Classifier`, or one of sub-networks
    controller: Controller
    quality: Quality
    phases: Phases
    judge_every: int
    label_smoothing: float


@flax.struct.dataclass
class Trained:
    """What a training pass leaves: means over the devices, but for the quality."""

    gradients: PyTree
    model_state: PyTree
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    quality: Float[Array, ""]  # of the sample that this device trained


def training_pass(
    search: OneShot,
    state: SearchState,
    labels: Int[Array, "B"],
    *,
    images: Float[Array, "B H W C"],
    formats: Any,
    dropout_key: Key[Array, ""],
) -> Trained:
    """Returns the gradients of the weights, each device's through its own sample.

    Args:
      search: whose step it is.
      state: before the step.
      labels: of the images.
      images: normalised and augmented.
      formats: what the classifier runs with.
      dropout_key: of this step and device.
    """

    def objective(params):
        logits, model_state = search.classifier.train_forward(
            params,
            state.model_state,
            images,
            formats=formats,
            dropout_key=dropout_key,
        )
        loss = cross_entropy(
            logits, labels, label_smoothing=search.label_smoothing
        ).mean()
        quality = search.quality(logits, labels).mean()
        return loss, (model_state, correct(logits, labels).mean(), quality)

    (loss, (model_state, accuracy, quality)), gradients = jax.value_and_grad(
        objective, has_aux=True
    )(state.params)
    means = lax.pmean((gradients, model_state, loss, accuracy), AXIS)
    return Trained(*means, quality)


def judge_samples(
    search: OneShot,
    state: SearchState,
    batch: Mapping[str, Array],
    *,
    images: Float[Array, "B H W C"],
    samples: Int[Array, "S D"],
    trained: Float[Array, ""],
    formats: Callable[[Int[Array, "D"]], Any],
    dropout_key: Key[Array, ""],
) -> tuple[ControllerState, dict[str, Array]]:
    """Judges samples by the weights before the step; see `judge`.

    Args:
      search: whose step it is.
      state: before the step.
      batch: with held-out examples where those are to judge (`judge_image`).
      images: as the training pass saw them.
      samples: of the controller, the first one trained.
      trained: its quality in the training pass.
      formats: from options to what the classifier runs with.
      dropout_key: the same mask as in training: common noise cancels.
    """
    known, labels = [trained], batch["label"]
    if "judge_image" in batch:  # of which the training pass tells nothing
        known, labels = [], batch["judge_label"]
        images = search.classifier.normalise(batch["judge_image"])

    def quality_of(options):
        logits, _ = search.classifier.train_forward(
            state.params,
            state.model_state,
            images,
            formats=formats(options),
            dropout_key=dropout_key,
        )
        return search.quality(logits, labels).mean()

    return judge(
        search.controller,
        state.controller,
        samples,
        known=known,
        quality_of=quality_of,
        step=state.step,
        due=judges_at(state.step, search.controller, search.phases, search.judge_every),
    )


def calibration_hooks(calibrate: Step, steps: int, *, every: int) -> list[Hook]:
    """Returns the hooks that keep clip bounds up to date.

    Args:
      calibrate: a mapped step that moves the bounds.
      steps: of the run.
      every: steps between two updates.
    """

    def start(state, batch):
        # Bounds follow the inputs, and the inputs of deep sites the bounds.
        for _ in range(3):
            state, _ = calibrate(state, batch)
        return state

    later = range(every, steps, every)
    return [
        Hook(frozenset({0}), start),
        Hook(frozenset(later), lambda state, batch: calibrate(state, batch)[0]),
    ]


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
