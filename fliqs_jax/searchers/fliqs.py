"""FLIQS: one training run that finds a number format for every layer.

At every step each device samples one format a decision, the network's single float
copy of the weights is trained through those formats, and a REINFORCE controller moves
its logits towards formats that lose little and meet the target cost. The last phase
trains at the best formats within the budget, so nothing is retrained.

This module is the method: the one-shot step and what happens between steps. State and
phases are in `in_training.one_shot`, the job around it (data, checkpoints, logging) in
`fliqs_jax.train.job`, the controller's mathematics in `fliqs_jax.controller`.

Reference: Dotzel et al., FLIQS, AutoML 2024, https://arxiv.org/abs/2308.03290
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Int, Key

from fliqs_jax.controller import Controller, entropy
from fliqs_jax.costs import CostTable, check_feasible, most_probable_within
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import (
    calibrated_formats,
    init_calibration,
    unsigned_inputs,
    update_calibration,
)
from fliqs_jax.searchers.in_training.one_shot import (
    Phases,
    Quality,
    SearchState,
    calibration_hooks,
    judge_samples,
    negated_loss,
    training_pass,
)
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.fitting import start_variables
from fliqs_jax.train.job import Hook
from fliqs_jax.train.mapping import AXIS, Step, device_keys, place


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fliqs:
    """A format search: what `fliqs_jax.train.job` runs (see its `Searcher`).

    With `policy` given nothing is searched: the network trains at those formats from
    the first step, through the same code, which is what a search is compared with.
    """

    classifier: Classifier
    space: SearchSpace
    costs: CostTable
    target: float  # in the unit of `costs`
    controller: Controller
    phases: Phases
    optimizer: optax.GradientTransformation
    judge_every: int = 8  # steps between two updates of the controller
    calibrate_every: int = 100  # steps between two updates of the clip bounds
    label_smoothing: float = 0.0
    quality: Quality = negated_loss  # by which policies are judged
    within_budget: bool = True  # final policy: best within budget, or argmax
    dynamic_scales: bool = False  # absmax of every tensor instead of clip bounds
    policy: Policy | None = None
    variables: Mapping[str, Any] | None = None  # to start from; None is fresh ones
    skip_variables: tuple[str, ...] = ()  # patterns of what starts fresh even so

    def __post_init__(self):
        for name in ("judge_every", "calibrate_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.policy is None:
            check_feasible(self.costs, self.target)
        elif self.phases.search_end:
            raise ValueError(
                "policy is given, so there is nothing to search: phases.search_end "
                f"must be 0, got {self.phases.search_end}"
            )

    def init(self, key: Key[Array, ""], images: ArrayLike) -> SearchState:
        """Returns the state before the first step."""
        init_key, run_key = jax.random.split(key)
        params, model_state = start_variables(
            self.variables,
            *self.classifier.init(init_key, images),
            skip=self.skip_variables,
        )
        shape = (self.space.num_decisions, self.space.num_options)
        fixed = np.zeros(shape[0], np.int32)
        if self.policy is not None:
            fixed = self.space.options(self.policy)
        return SearchState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            model_state=model_state,
            opt_state=self.optimizer.init(params),
            controller=self.controller.init(jnp.zeros(shape)),
            calibration=init_calibration(self.space),
            fixed_options=jnp.asarray(fixed, jnp.int32),
        )

    def formats(self, state: SearchState, options: Int[Array, "D"]) -> SiteFormats:
        """Returns the sites' formats and scales for `options`, as arrays."""
        if self.dynamic_scales:
            return self.space.formats(options)
        return calibrated_formats(state.calibration, self.space, options)

    def step(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """Trains weights and controller on one batch; runs per device (axis `data`).

        Sample, forward, backward, weight update, reward, controller update.
        """
        keys = self._keys(state)
        images = self.classifier.training_images(keys["augment"], batch["image"])
        samples = self.controller.sample(keys["options"], state.controller)
        searching = state.step < self.phases.search_end
        options = jnp.where(searching, samples[0], state.fixed_options)

        trained = training_pass(
            self,
            state,
            batch["label"],
            images=images,
            formats=self.formats(state, options),
            dropout_key=keys["dropout"],
        )
        updates, opt_state = self.optimizer.update(
            trained.gradients, state.opt_state, state.params
        )
        controller, judged = state.controller, {}
        if self.policy is None:
            controller, judged = judge_samples(
                self,
                state,
                batch,
                images=images,
                samples=samples,
                trained=trained.quality,
                formats=functools.partial(self.formats, state),
                dropout_key=keys["dropout"],
            )
        metrics = {"loss": trained.loss, "accuracy": trained.accuracy, **judged}
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

    def calibrate(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """Moves the clip bounds towards what this batch asks for; runs per device."""
        keys = self._keys(state)
        sampled = self.controller.sample(keys["options"], state.controller)[0]
        searching = state.step < self.phases.search_end
        seen = self.classifier.observe(
            state.params,
            state.model_state,
            self.classifier.training_images(keys["augment"], batch["image"]),
            formats=self.formats(
                state, jnp.where(searching, sampled, state.fixed_options)
            ),
            dropout_key=keys["dropout"],
        )
        seen = seen.replace(minimum=lax.pmin(seen.minimum, AXIS))
        calibration = update_calibration(state.calibration, self.space, seen)
        # Each device saw its share of the batch: the bound is the mean of theirs.
        clip = lax.pmean(calibration.activation_clip, AXIS)
        return state.replace(calibration=calibration.replace(activation_clip=clip)), {}

    def fix_policy(self, state: SearchState) -> SearchState:
        """Ends the search: the best policy so far is trained from here on (host)."""
        if self.policy is not None:
            return state
        if self.within_budget:
            scores = np.asarray(self.controller.final_scores(state.controller))
            options = most_probable_within(scores, self.costs, self.target)
        else:
            options = np.asarray(state.controller.logits).argmax(axis=1)
        fixed = place(np.asarray(options, np.int32), state.step.sharding)
        return state.replace(fixed_options=fixed)

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns the work between steps: clip bounds, and the end of the search."""
        hooks = []
        if not self.dynamic_scales:
            calibrate = compile(self.calibrate)
            hooks += calibration_hooks(calibrate, steps, every=self.calibrate_every)
        if self.policy is None:
            hooks.append(
                Hook(
                    frozenset({self.phases.search_end}),
                    lambda state, batch: self.fix_policy(state),
                )
            )
        return hooks

    def current_options(self, state: SearchState) -> Int[np.ndarray, "D"]:
        """Returns the fixed options; while searching, the best ones so far (host)."""
        if self.policy is not None or int(state.step) >= self.phases.search_end:
            return np.asarray(state.fixed_options)
        return np.asarray(self.fix_policy(state).fixed_options)

    def current_formats(self, state: SearchState) -> SiteFormats:
        """Returns formats and scales of `current_options`."""
        return self.formats(state, jnp.asarray(self.current_options(state)))

    def final_policy(self, state: SearchState) -> Policy:
        """Returns the policy as run: unsigned grids for inputs never negative."""
        policy = self.space.policy(self.current_options(state))
        if self.dynamic_scales:
            return policy
        return unsigned_inputs(policy, np.asarray(state.calibration.nonnegative))

    def progress(self, state: SearchState) -> dict[str, Any]:
        """Returns entropy, expected cost over target, and the probabilities."""
        if self.policy is not None:
            return {}
        if int(state.step) > self.phases.search_end:
            cost = self.costs.exact_cost(np.asarray(state.fixed_options))
            return {"expected_cost_ratio": cost / self.target}
        probabilities = jax.nn.softmax(state.controller.logits)
        return {
            "entropy": float(entropy(state.controller.logits)),
            "expected_cost_ratio": float(self.costs.expected(probabilities))
            / self.target,
            "probabilities": np.asarray(probabilities).round(4),
        }

    def summary(self, state: SearchState) -> dict[str, Any]:
        """Returns the entropy that is left: None where nothing was searched."""
        if self.policy is not None:
            return {"entropy": None}
        return {"entropy": float(entropy(state.controller.logits))}

    def _keys(self, state: SearchState) -> dict[str, Key[Array, ""]]:
        return device_keys(state.key, state.step, ("options", "augment", "dropout"))
