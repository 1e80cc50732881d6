"""The one-shot step: weights and a controller trained together, in one run.

What FLIQS and FLIQNAS share, which is all but what their decisions are about: formats
(`fliqs`), or architecture and formats (`fliqnas`). At every step each device samples an
option of every decision; the one float copy of the weights is trained through the
sample, and the controller moves towards options that lose little at the target cost.
The last phase trains the best options within the budget, so nothing is retrained.

Not here: when samples are judged (`judging`), what the controller makes of it
(`fliqs_jax.controller`), the job around the step (`fliqs_jax.train.job`).
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree
from scipy import special

from fliqs_jax.controller import Controller, ControllerState, entropy
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import (
    Calibration,
    check_observed,
    init_calibration,
    unsigned_inputs,
    update_calibration,
)
from fliqs_jax.searchers.in_training.judging import judge, judges_at
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.train.fitting import start_state
from fliqs_jax.train.job import Hook
from fliqs_jax.train.losses import correct, cross_entropy
from fliqs_jax.train.mapping import AXIS, Step, device_keys, place


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
    fixed_options: Int[Array, "L"]  # used from the end of the search on


@flax.struct.dataclass
class Trained:
    """What a training pass leaves: means over the devices, but for the quality."""

    gradients: PyTree
    model_state: PyTree
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    quality: Float[Array, ""]  # of the sample that this device trained


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OneShotSearch(abc.ABC):
    """A search inside one training run, over L decisions of up to W options.

    What `fliqs_jax.train.job` runs (see its `Searcher`). Where nothing is left to
    search, the network trains at what is given from the first step, through the same
    code, which is what a search is compared with.
    """

    classifier: Any  # `Classifier`, or one of sub-networks
    costs: Any  # prices of vectors of options
    target: float  # in the unit of `costs`
    controller: Controller
    phases: Phases
    optimizer: optax.GradientTransformation
    settings: FliqsSettings = FliqsSettings()
    variables: Mapping[str, Any] | None = None  # to start from; None is fresh ones
    skip_variables: tuple[str, ...] = ()  # patterns of what starts fresh even so

    def __post_init__(self):
        if not self.searching and self.phases.search_end:
            raise ValueError(
                "everything is given, so there is nothing to search:"
                f" phases.search_end must be 0, got {self.phases.search_end}"
            )

    # What the decisions are about, which a method says.

    @property
    @abc.abstractmethod
    def formats_space(self) -> SearchSpace:
        """The decisions about the formats of the classifier's sites."""

    @property
    @abc.abstractmethod
    def allowed(self) -> Float[np.ndarray, "L W"]:
        """0 for every option that may be taken, minus infinity for the others."""

    @abc.abstractmethod
    def formats(self, state: SearchState, options: Int[Array, "L"]) -> Any:
        """Returns what the classifier runs with for `options`, as arrays."""

    @abc.abstractmethod
    def best_options(self, state: SearchState) -> Int[np.ndarray, "L"]:
        """Returns what the search would end with now (host)."""

    @abc.abstractmethod
    def final_policy(self, state: SearchState) -> Policy:
        """Returns the formats of all sites as run (see `named`)."""

    @property
    def key_names(self) -> tuple[str, ...]:
        """The random keys of a step, one for each use of chance."""
        return ("options", "augment", "dropout")

    def judged(self, samples: Int[Array, "S L"]) -> Int[Array, "S L"]:
        """Returns the samples as the controller learns of them."""
        return samples

    def trained_options(
        self, state: SearchState, sample: Int[Array, "L"], keys: Mapping[str, Array]
    ) -> Int[Array, "L"]:
        """Returns the controller's first sample as it is trained while searching."""
        return sample

    def decaying(self, params: PyTree, formats: Any) -> PyTree:
        """Returns the parameters as shown to the optimizer, whose decay they get."""
        return params

    def live(self, formats: Any) -> Bool[Array, "sites"]:
        """Returns which sites this device's sample has."""
        return jnp.ones(len(self.formats_space.sites), bool)

    # The step, and what happens between steps.

    @property
    def open(self) -> Bool[np.ndarray, "L"]:
        """Which decisions are searched."""
        return np.isfinite(self.allowed).sum(axis=1) > 1

    @property
    def searching(self) -> bool:
        """Whether any decision is."""
        return bool(self.open.any())

    def init(self, key: Key[Array, ""], images: ArrayLike) -> SearchState:
        """Returns the state before the first step."""
        return SearchState(
            **start_state(self, key, images, skip=self.skip_variables),
            controller=self.controller.init(jnp.asarray(self.allowed, jnp.float32)),
            calibration=init_calibration(self.formats_space),
            fixed_options=jnp.asarray(self.allowed.argmax(axis=1), jnp.int32),
        )

    def step(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """Trains weights and controller on one batch; runs per device (axis `data`).

        Sample, forward, backward, weight update, reward, controller update.
        """
        keys = device_keys(state.key, state.step, self.key_names)
        images = self.classifier.training_images(keys["augment"], batch["image"])
        samples, options = self.draw(state, keys)
        formats = self.formats(state, options)
        trained = self._train(
            state,
            batch["label"],
            images=images,
            formats=formats,
            dropout_key=keys["dropout"],
        )
        updates, opt_state = self.optimizer.update(
            trained.gradients, state.opt_state, self.decaying(state.params, formats)
        )
        controller, judgement = state.controller, {}
        if self.searching:
            controller, judgement = self._judge(
                state,
                batch,
                images=images,
                samples=self.judged(samples),
                trained=trained.quality,
                dropout_key=keys["dropout"],
            )
        metrics = {"loss": trained.loss, "accuracy": trained.accuracy, **judgement}
        return (
            state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                model_state=trained.model_state,
                opt_state=opt_state,
                controller=controller,
            ),
            metrics,
        )

    def draw(
        self, state: SearchState, keys: Mapping[str, Array]
    ) -> tuple[Int[Array, "S L"], Int[Array, "L"]]:
        """Returns the controller's samples, and what is trained at this step."""
        samples = self.controller.sample(keys["options"], state.controller)
        samples = samples.at[0].set(self.trained_options(state, samples[0], keys))
        searching = state.step < self.phases.search_end
        return samples, jnp.where(searching, samples[0], state.fixed_options)

    def _train(
        self,
        state: SearchState,
        labels: Int[Array, "B"],
        *,
        images: Float[Array, "B H W C"],
        formats: Any,
        dropout_key: Key[Array, ""],
    ) -> Trained:
        """Returns the gradients of the weights, each device's through its sample."""

        def objective(params):
            logits, model_state = self.classifier.train_forward(
                params,
                state.model_state,
                images,
                formats=formats,
                dropout_key=dropout_key,
            )
            loss = cross_entropy(
                logits, labels, label_smoothing=self.settings.label_smoothing
            ).mean()
            quality = self.settings.quality(logits, labels).mean()
            return loss, (model_state, correct(logits, labels).mean(), quality)

        (loss, (model_state, accuracy, quality)), gradients = jax.value_and_grad(
            objective, has_aux=True
        )(state.params)
        means = lax.pmean((gradients, model_state, loss, accuracy), AXIS)
        return Trained(*means, quality)

    def _judge(
        self,
        state: SearchState,
        batch: Mapping[str, Array],
        *,
        images: Float[Array, "B H W C"],
        samples: Int[Array, "S L"],
        trained: Float[Array, ""],
        dropout_key: Key[Array, ""],
    ) -> tuple[ControllerState, dict[str, Array]]:
        """Judges samples by the weights before the step; see `judging.judge`.

        Args:
          state: before the step.
          batch: with held-out examples where those are to judge (`judge_image`).
          images: as the training pass saw them.
          samples: of the controller, the first one trained.
          trained: its quality in the training pass.
          dropout_key: the same mask as in training: common noise cancels.
        """
        known, labels = [trained], batch["label"]
        if "judge_image" in batch:  # of which the training pass tells nothing
            known, labels = [], batch["judge_label"]
            images = self.classifier.normalise(batch["judge_image"])

        def quality_of(options):
            logits, _ = self.classifier.train_forward(
                state.params,
                state.model_state,
                images,
                formats=self.formats(state, options),
                dropout_key=dropout_key,
            )
            return self.settings.quality(logits, labels).mean()

        return judge(
            self.controller,
            state.controller,
            samples,
            known=known,
            quality_of=quality_of,
            step=state.step,
            due=judges_at(
                state.step, self.controller, self.phases, self.settings.judge_every
            ),
        )

    def calibrate(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """Moves the clip bounds towards what this batch asks for; runs per device.

        Those of sites that no device's sample has stay as they are.
        """
        keys = device_keys(state.key, state.step, self.key_names)
        _, options = self.draw(state, keys)
        formats = self.formats(state, options)
        seen = self.classifier.observe(
            state.params,
            state.model_state,
            self.classifier.training_images(keys["augment"], batch["image"]),
            formats=formats,
            dropout_key=keys["dropout"],
        )
        live = self.live(formats)
        minimum = lax.pmin(jnp.where(live, seen.minimum, jnp.inf), AXIS)
        fresh = update_calibration(
            state.calibration, self.formats_space, seen.replace(minimum=minimum)
        )
        calibration = of_live_sites(state.calibration, fresh, live)
        unseen = lax.pmax(jnp.isnan(seen.absmax) & live, AXIS)
        return state.replace(calibration=calibration), {"unseen": unseen}

    def fix_options(self, state: SearchState) -> SearchState:
        """Ends the search: the best options so far are trained from here on (host)."""
        options = np.asarray(self.best_options(state), np.int32)
        return state.replace(fixed_options=place(options, state.step.sharding))

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns the work between steps: clip bounds, and the end of the search."""
        hooks = []
        if not self.settings.dynamic_scales:
            calibrate, space = compile(self.calibrate), self.formats_space

            def start(state, batch):
                # Bounds follow the inputs, and the inputs of deep sites the bounds.
                for _ in range(3):
                    state, metrics = calibrate(state, batch)
                first = len(self.allowed) - space.num_decisions  # formats come last
                allowed = np.isfinite(self.allowed[first:, : space.num_options])
                check_observed(jax.device_get(metrics["unseen"]), space, allowed)
                return state

            every = self.settings.calibrate_every
            later = range(every, steps, every)
            hooks += [
                Hook(frozenset({0}), start),
                Hook(frozenset(later), lambda state, batch: calibrate(state, batch)[0]),
            ]
        if self.searching:
            hooks.append(
                Hook(
                    frozenset({self.phases.search_end}),
                    lambda state, batch: self.fix_options(state),
                )
            )
        return hooks

    # What a run reports.

    def current_options(self, state: SearchState) -> Int[np.ndarray, "L"]:
        """Returns the fixed options; while searching, the best ones so far (host)."""
        if int(state.step) >= self.phases.search_end:
            return np.asarray(state.fixed_options)
        return np.asarray(self.best_options(state), np.int32)

    def current_formats(self, state: SearchState) -> Any:
        """Returns what the classifier runs with for `current_options`."""
        return self.formats(state, jnp.asarray(self.current_options(state)))

    def named(self, state: SearchState, options: Int[np.ndarray, "D"]) -> Policy:
        """Returns formats by name: unsigned grids for inputs never negative."""
        policy = self.formats_space.policy(options)
        if self.settings.dynamic_scales:
            return policy
        return unsigned_inputs(policy, np.asarray(state.calibration.nonnegative))

    def progress(self, state: SearchState) -> dict[str, Any]:
        """Returns entropy, expected cost over target, and the probabilities."""
        if not self.searching:
            return {}
        if int(state.step) > self.phases.search_end:
            cost = self.costs.exact_cost(np.asarray(state.fixed_options))
            return {"expected_cost_ratio": cost / self.target}
        logits = np.asarray(state.controller.logits)
        probabilities = special.softmax(logits, axis=1)
        expected = float(self.costs.expected(probabilities))
        # Options that a decision lacks are no options of probability 0.
        shown = np.where(self.costs.present, probabilities, np.nan)
        return {
            "entropy": self._entropy(state),
            "expected_cost_ratio": expected / self.target,
            "probabilities": shown.round(4),
        }

    def summary(self, state: SearchState) -> dict[str, Any]:
        """Returns the entropy that is left: None where nothing was searched."""
        return {"entropy": self._entropy(state) if self.searching else None}

    def _entropy(self, state: SearchState) -> float:
        return float(entropy(jnp.asarray(state.controller.logits)[self.open]))


def of_live_sites(old: Calibration, fresh: Calibration, live: Array) -> Calibration:
    """Returns fresh bounds, averaged over the devices whose samples have a site.

    The old ones where none has it; runs per device.
    """
    devices = lax.psum(live.astype(jnp.float32), AXIS)
    bounds = jnp.where(live[:, None], fresh.activation_clip, 0.0)
    mean = lax.psum(bounds, AXIS) / jnp.maximum(devices, 1.0)[:, None]
    known = devices > 0
    return fresh.replace(
        activation_clip=jnp.where(known[:, None], mean, old.activation_clip),
        nonnegative=jnp.where(known, fresh.nonnegative, old.nonnegative),
    )
