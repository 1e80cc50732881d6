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

This module is the method: the one-shot step and what happens between steps. The run
around it is `network_search`.

Reference: Dotzel et al., FLIQS, 2024, https://arxiv.org/abs/2308.03290 (section on
FLIQNAS); Bender et al., TuNAS, 2020, https://arxiv.org/abs/2008.06120
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
from jaxtyping import Array, ArrayLike, Float, Int, Key
from scipy import special

from fliqs_jax.controller import Controller, entropy
from fliqs_jax.models.supernets import live_sites
from fliqs_jax.policy import Policy
from fliqs_jax.searchers.in_training.calibration import (
    Calibration,
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
from fliqs_jax.searchers.joint.budget import Selection, best_within
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.subnetwork_classifier import (
    Subnetwork,
    SubnetworkClassifier,
)
from fliqs_jax.train.fitting import start_variables
from fliqs_jax.train.job import Hook
from fliqs_jax.train.mapping import AXIS, Step, device_keys, place

_KEYS = ("options", "augment", "dropout", "warmup")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fliqnas:
    """A search for a network: what `fliqs_jax.train.job` runs (see its `Searcher`).

    A joint vector holds the option of every decision, A about the architecture, then D
    about formats. Decisions in `fixed` are not searched: all about the architecture
    makes it a search for formats alone, all about formats one for an architecture, and
    all together a training at what is given, through the same code.
    """

    classifier: SubnetworkClassifier
    costs: JointCost
    target: float  # in the unit of `costs`
    controller: Controller
    phases: Phases
    optimizer: optax.GradientTransformation
    fixed: Int[np.ndarray, "L"] | None = None  # an option each; -1 is searched
    judge_every: int = 8  # steps between two updates of the controller
    calibrate_every: int = 100  # steps between two updates of the clip bounds
    label_smoothing: float = 0.0
    quality: Quality = negated_loss  # by which samples are judged
    within_budget: bool = True  # final choice: best within budget, or argmax
    dynamic_scales: bool = False  # absmax of every tensor instead of clip bounds
    variables: Mapping[str, Any] | None = None  # to start from; None is fresh ones
    skip_variables: tuple[str, ...] = ()  # patterns of what starts fresh even so

    def __post_init__(self):
        for name in ("judge_every", "calibrate_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.searching and self.phases.search_end:
            raise ValueError(
                "fixed leaves nothing to search: phases.search_end must be 0, got "
                f"{self.phases.search_end}"
            )

    @property
    def allowed(self) -> Float[np.ndarray, "L W"]:
        """0 for every option that may be taken, minus infinity for the others."""
        return allowed_options(self.costs, self.fixed)

    @property
    def open(self) -> np.ndarray:
        """Which decisions are searched, bool[L]."""
        return np.isfinite(self.allowed).sum(axis=1) > 1

    @property
    def searching(self) -> bool:
        """Whether any decision is."""
        return bool(self.open.any())

    def init(self, key: Key[Array, ""], images: ArrayLike) -> SearchState:
        """Returns the state before the first step."""
        init_key, run_key = jax.random.split(key)
        params, model_state = start_variables(
            self.variables,
            *self.classifier.init(init_key, images),
            skip=self.skip_variables,
        )
        return SearchState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            model_state=model_state,
            opt_state=self.optimizer.init(params),
            controller=self.controller.init(self.allowed),
            calibration=init_calibration(self.costs.space.space),
            fixed_options=jnp.asarray(self.allowed.argmax(axis=1), jnp.int32),
        )

    def subnetwork(self, state: SearchState, options: Int[Array, "L"]) -> Subnetwork:
        """Returns what a joint vector stands for, as data of the compiled step."""
        choice, own = self._parts(options)
        formats = self.costs.space.space
        if self.dynamic_scales:
            return Subnetwork(choice, formats.formats(own))
        return Subnetwork(choice, calibrated_formats(state.calibration, formats, own))

    def step(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """Trains weights and controller on one batch; runs per device (axis `data`).

        Sample, forward, backward, weight update, reward, controller update.
        """
        keys = device_keys(state.key, state.step, _KEYS)
        images = self.classifier.training_images(keys["augment"], batch["image"])
        samples, options = self.draw(state, keys)
        subnetwork = self.subnetwork(state, options)

        trained = training_pass(
            self,
            state,
            batch["label"],
            images=images,
            formats=subnetwork,
            dropout_key=keys["dropout"],
        )
        # Weight decay is the optimizer's, of the parameters it is shown: the live ones.
        live = self.classifier.net.mask(state.params, subnetwork.choice)
        live = lax.pmean(live, AXIS)
        updates, opt_state = self.optimizer.update(
            trained.gradients, state.opt_state, live
        )
        controller, judged = state.controller, {}
        if self.searching:
            # Decisions about what a sample leaves out are marked: it tells nothing of
            # them, and whatever runs takes any option of theirs.
            controller, judged = judge_samples(
                self,
                state,
                batch,
                images=images,
                samples=jax.vmap(self.costs.marked)(samples),
                trained=trained.quality,
                formats=functools.partial(self.subnetwork, state),
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

    def draw(
        self, state: SearchState, keys: Mapping[str, Key[Array, ""]]
    ) -> tuple[Int[Array, "S L"], Int[Array, "L"]]:
        """Returns the controller's samples, and what is trained at this step."""
        samples = self.controller.sample(keys["options"], state.controller)
        samples = samples.at[0].set(
            self.warmed_up(keys["warmup"], samples[0], state.step)
        )
        searching = state.step < self.phases.search_end
        return samples, jnp.where(searching, samples[0], state.fixed_options)

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
        of_architecture = np.arange(len(self.open)) < self._num_choices
        swapped = jax.random.bernoulli(key, jnp.clip(share, 0, 1), options.shape)
        swapped &= jnp.asarray(of_architecture & self.open)
        return jnp.where(swapped, largest, options)

    def calibrate(self, state: SearchState, batch: dict) -> tuple[SearchState, dict]:
        """Moves the clip bounds towards what this batch asks for; runs per device.

        Those of sites that no device's sub-network has stay as they are.
        """
        keys = device_keys(state.key, state.step, _KEYS)
        _, options = self.draw(state, keys)
        subnetwork = self.subnetwork(state, options)
        seen = self.classifier.observe(
            state.params,
            state.model_state,
            self.classifier.training_images(keys["augment"], batch["image"]),
            formats=subnetwork,
            dropout_key=keys["dropout"],
        )
        live = live_sites(self.classifier.net, subnetwork.choice).weight_count > 0
        minimum = lax.pmin(jnp.where(live, seen.minimum, jnp.inf), AXIS)
        fresh = update_calibration(
            state.calibration,
            self.costs.space.space,
            seen.replace(minimum=minimum),
        )
        calibration = of_live_sites(state.calibration, fresh, live)
        return state.replace(calibration=calibration), {}

    def select(self, state: SearchState) -> Selection:
        """Returns the best choice so far: what the search would end with now (host)."""
        logits = np.asarray(state.controller.logits)
        if not self.searching or not self.within_budget:
            options = logits.argmax(axis=1)
            score = float(special.log_softmax(logits, axis=1).max(axis=1).sum())
            return Selection(options, score, score, 0)
        scores = np.asarray(self.controller.final_scores(state.controller))
        return best_within(scores, self.costs, self.target)

    def fix_choice(self, state: SearchState) -> SearchState:
        """Ends the search: the best choice so far is trained from here on (host)."""
        options = np.asarray(self.select(state).options, np.int32)
        return state.replace(fixed_options=place(options, state.step.sharding))

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns the work between steps: clip bounds, and the end of the search."""
        hooks = []
        if not self.dynamic_scales:
            calibrate = compile(self.calibrate)
            hooks += calibration_hooks(calibrate, steps, every=self.calibrate_every)
        if self.searching:
            hooks.append(
                Hook(
                    frozenset({self.phases.search_end}),
                    lambda state, batch: self.fix_choice(state),
                )
            )
        return hooks

    def current_options(self, state: SearchState) -> Int[np.ndarray, "L"]:
        """Returns the fixed options; while searching, the best ones so far (host)."""
        if int(state.step) >= self.phases.search_end:
            return np.asarray(state.fixed_options)
        return np.asarray(self.select(state).options, np.int32)

    def current_formats(self, state: SearchState) -> Subnetwork:
        """Returns the sub-network of `current_options`."""
        return self.subnetwork(state, jnp.asarray(self.current_options(state)))

    def full_policy(self, state: SearchState) -> Policy:
        """Returns the formats of all sites of the full network as run.

        Unsigned grids for inputs never negative; `subnetwork_policy` is the small
        network's part.
        """
        _, own = self._parts(self.current_options(state))
        policy = self.costs.space.space.policy(own)
        if self.dynamic_scales:
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


def of_live_sites(old: Calibration, fresh: Calibration, live: Array) -> Calibration:
    """Returns fresh bounds, averaged over the devices whose sub-networks have a site.

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
