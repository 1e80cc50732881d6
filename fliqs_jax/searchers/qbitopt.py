r"""QBitOpt: bit widths re-allocated during training, never beyond the budget.

A network is trained with learned step sizes at some bit width for every quantizer,
weights and inputs apart. The backward pass yields, almost for free, how sensitive the
loss is to noise at each of them; every few hundred steps these sensitivities and the
noise of every width go into an integer programme, whose answer is trained next:

.. math:: \min_b \sum_i \tfrac12 \, \mathrm{tr}(F_i) \, \epsilon_i^2(b_i)
    \quad \text{s.t.} \quad C(b) \le B

This module is the method: step and re-allocation. Its state is in `bit_state`, the
budget's mathematics are in `fliqs_jax.costs` (`allocate` and `relax` here are its
closed problem), the job around it in `fliqs_jax.train.job`.

Reference: Peters et al., QBitOpt, 2023, https://arxiv.org/abs/2307.04535
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from fliqs_jax.checks import check_within
from fliqs_jax.costs import (
    CostTable,
    allocate,
    allocate_exact,
    average_activation_bits,
    average_bits,
    check_feasible,
    monotone_values,
    relax,
    storage_bits,
    total_value,
)
from fliqs_jax.formats import as_unsigned
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import riding
from fliqs_jax.quantized_model.weights import oscillation_penalty, site_sums
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.bit_state import (
    BitState,
    Clips,
    Traces,
    UpdateSteps,
)
from fliqs_jax.searchers.in_training.calibration import (
    calibrated_formats,
    check_observed,
    init_calibration,
    unsigned_inputs,
    update_calibration,
)
from fliqs_jax.searchers.sensitivities.noise import quantization_noise
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.fitting import start_state
from fliqs_jax.train.job import Hook
from fliqs_jax.train.loop import TrainingDiverged
from fliqs_jax.train.losses import correct, cross_entropy
from fliqs_jax.train.mapping import AXIS, Step, device_keys, place

# Allocation as such: bits from sensitivities, sizes and a limit on the average.
__all__ = ["BitState", "Clips", "QBitOpt", "Traces", "UpdateSteps", "allocate", "relax"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QBitOpt:
    """A search of bit widths: what `fliqs_jax.train.job` runs (see its `Searcher`).

    With `policy` given nothing is re-allocated: the network trains at those formats
    with the same learned steps, which is what a search is compared with.

    The loss's gradient to an input is taken behind its quantizer, to a weight before
    it, where clipped weights have none. Traces of inputs are means over examples, exact
    for any number of devices; that of a weight is the whole batch's B |g|^2, g being
    the gradient of the mean loss: unbiased where the mean gradient is about zero.
    """

    classifier: Classifier  # with learned clips
    space: SearchSpace
    costs: CostTable
    target: float  # in the unit of `costs`
    updates: UpdateSteps
    optimizer: optax.GradientTransformation  # of the weights
    clip_optimizer: optax.GradientTransformation
    trace_decay: float = 0.99  # of the moving average, a step
    least_gain: float = 0.01  # of the objective, for bits to change
    rescale_range: bool = False  # on a change of bits, by the ratio of best clips
    damping: Callable[[Int[Array, ""]], Float[Array, ""]] | None = None  # by step
    label_smoothing: float = 0.0
    policy: Policy | None = None
    variables: Mapping[str, Any] | None = None  # to start from; None is fresh ones
    skip_variables: tuple[str, ...] = ()  # patterns of what starts fresh even so

    def __post_init__(self):
        if not self.classifier.quantized.learned_clips:
            raise ValueError("classifier.quantized needs learned_clips=True")
        check_within("[0, 1)", trace_decay=self.trace_decay)
        if products := [site.path for site in self.space.sites if site.product]:
            raise ValueError(
                f"QBitOpt has no sensitivity for attention products such as"
                f" {products[0]!r}: leave attention_products out"
            )
        if self.policy is None:
            check_feasible(self.costs, self.target)

    def init(self, key: Key[Array, ""], images: ArrayLike) -> BitState:
        """Returns the state before the first step; its clips await the first batch."""
        sites = len(self.space.sites)
        clips = Clips(weight=jnp.zeros(sites), activation=jnp.zeros(sites))
        return BitState(
            **start_state(self, key, images, skip=self.skip_variables),
            clips=clips,
            clip_opt_state=self.clip_optimizer.init(clips),
            traces=Traces(weight=jnp.zeros(sites), activation=jnp.zeros(sites)),
            trace_weight=jnp.zeros(()),
            options=jnp.asarray(self._first_options(), jnp.int32),
            calibration=init_calibration(self.space),
            reallocations=jnp.zeros((), jnp.int32),
        )

    def _first_options(self) -> Int[np.ndarray, "D"]:
        """The widest option that all decisions can have within the budget."""
        if self.policy is not None:
            return self.space.options(self.policy)
        count = self.space.num_decisions
        uniform = [np.full(count, k, np.int32) for k in range(self.space.num_options)]
        prices = [self.costs.exact_cost(options) for options in uniform]
        within = [k for k, price in enumerate(prices) if price <= self.target]
        if within:
            return uniform[max(within, key=lambda k: prices[k])]
        flat = np.zeros((count, self.space.num_options))
        return allocate_exact(flat, self.costs, self.target)

    def trained_formats(self, state: BitState) -> SiteFormats:
        """Returns the formats trained at present, with their learned clips."""
        formats = self.space.formats(state.options)
        nonnegative = state.calibration.nonnegative
        return formats.replace(
            activation=as_unsigned(formats.activation, nonnegative),
            weight_clip=jnp.exp(state.clips.weight),
            activation_clip=jnp.exp(state.clips.activation),
        )

    def formats(self, state: BitState, options: Int[Array, "D"]) -> SiteFormats:
        """Returns the sites' formats and clip bounds for `options`, as arrays.

        Formats that are not trained at present have the best bounds for their inputs.
        """
        trained = self.trained_formats(state)
        best = calibrated_formats(state.calibration, self.space, options)
        now = self.space.format_indices(state.options)
        wanted = self.space.format_indices(options)
        return best.replace(
            weight_clip=jnp.where(
                wanted[0] == now[0], trained.weight_clip, best.weight_clip
            ),
            activation_clip=jnp.where(
                wanted[1] == now[1], trained.activation_clip, best.activation_clip
            ),
        )

    def step(self, state: BitState, batch: dict) -> tuple[BitState, dict]:
        """Trains weights and clips on one batch; runs per device (axis `data`)."""
        keys = self._keys(state)
        images = self.classifier.training_images(keys["augment"], batch["image"])
        zeros = {path: jnp.zeros(()) for path in self._watched_inputs()}

        def objective(params, clips, zeros):
            formats = self.trained_formats(state.replace(clips=clips))
            logits, model_state = self.classifier.train_forward(
                params,
                state.model_state,
                images,
                formats=formats,
                dropout_key=keys["dropout"],
                gradient_zeros=zeros,
            )
            labels = batch["label"]
            loss = cross_entropy(
                logits, labels, label_smoothing=self.label_smoothing
            ).mean()
            return loss, (model_state, correct(logits, labels).mean())

        (loss, (model_state, accuracy)), (gradients, clip_gradients, squares) = (
            jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)(
                state.params, state.clips, zeros
            )
        )
        # A device's examples are B of the mean loss: B sum(g^2) is their mean trace.
        squares = jax.tree.map(lambda x: x * len(images), squares)
        gradients, clip_gradients, squares, model_state, loss, accuracy = lax.pmean(
            (gradients, clip_gradients, squares, model_state, loss, accuracy), AXIS
        )
        examples = len(images) * lax.axis_size(AXIS)
        traces = Traces(
            weight=examples * self._weight_squares(gradients),
            activation=jnp.stack(
                [squares.get(site.path, jnp.zeros(())) for site in self.space.sites]
            ),
        )
        if self.damping is not None:  # no part of the loss whose traces these are
            gradients, clip_gradients = jax.tree.map(
                jnp.add, (gradients, clip_gradients), self._damping_gradients(state)
            )
        updates, opt_state = self.optimizer.update(
            gradients, state.opt_state, state.params
        )
        clip_updates, clip_opt_state = self.clip_optimizer.update(
            clip_gradients, state.clip_opt_state, state.clips
        )
        decay = self.trace_decay
        average = lambda old, new: decay * old + (1.0 - decay) * new  # noqa: E731
        return (
            state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                model_state=model_state,
                opt_state=opt_state,
                clips=optax.apply_updates(state.clips, clip_updates),
                clip_opt_state=clip_opt_state,
                traces=jax.tree.map(average, state.traces, traces),
                trace_weight=average(state.trace_weight, 1.0),
            ),
            {"loss": loss, "accuracy": accuracy},
        )

    def _watched_inputs(self) -> list[str]:
        """Sites whose input's bits are to be decided."""
        if self.policy is not None:
            return []
        decided = self.space.activation_decision >= 0
        return [s.path for s, own in zip(self.space.sites, decided, strict=True) if own]

    def _weight_squares(self, gradients: PyTree) -> Float[Array, "S"]:
        squares = jax.tree.map(jnp.square, riding.flatten_params(gradients))
        return site_sums(squares, riding.group_sites(self.space.sites))

    def _damping_gradients(self, state: BitState) -> tuple[PyTree, Clips]:
        """Returns the gradients of the oscillation penalty, alike on all devices."""

        def penalty(params, clips):
            formats = self.trained_formats(state.replace(clips=clips))
            return self.damping(state.step) * self._oscillations(params, formats)

        return jax.grad(penalty, argnums=(0, 1))(state.params, state.clips)

    def _oscillations(self, params: PyTree, formats: SiteFormats) -> Float[Array, ""]:
        return oscillation_penalty(
            riding.flatten_params(params),
            riding.group_sites(self.space.sites),
            riding.pack_formats(formats.weight, formats.weight_clip),
            per_channel=self.classifier.quantized.per_channel,
        )

    def observe(self, state: BitState, batch: dict) -> tuple[BitState, dict]:
        """Looks at this batch's inputs: best clips, and the noise of every format.

        Runs per device. The metrics hold `noise`, mean squared errors [2, S, F] of the
        weights and of the inputs, and `unseen` [S], the sites without an input.
        """
        keys = self._keys(state)
        seen = self.classifier.observe(
            state.params,
            state.model_state,
            self.classifier.training_images(keys["augment"], batch["image"]),
            formats=self.trained_formats(state),
            dropout_key=keys["dropout"],
        )
        seen = seen.replace(minimum=lax.pmin(seen.minimum, AXIS))
        calibration = update_calibration(state.calibration, self.space, seen)
        clip = lax.pmean(calibration.activation_clip, AXIS)
        calibration = calibration.replace(activation_clip=clip)
        noise = quantization_noise(
            state.params, seen, calibration, self.space, self.classifier.quantized
        )
        state = state.replace(calibration=calibration)
        unseen = lax.pmax(jnp.isnan(seen.absmax), AXIS)
        return state, {"noise": lax.pmean(noise, AXIS), "unseen": unseen}

    def sensitivity(
        self, state: BitState, noise: Float[ArrayLike, "2 S F"]
    ) -> Float[np.ndarray, "D K"]:
        r"""Returns the loss that each option of each decision costs (host, float64).

        .. math:: \Omega_{dk} = \sum_{i \in d} \tfrac12 \, \mathrm{tr}(F_i) \,
            \epsilon_i^2(k)

        FIT: the trace of the Fisher information times the mean squared error, which
        counts as never rising with bits. The factor makes it nats, to second order.

        Raises:
          TrainingDiverged: if a trace or an error is not finite; it names the site.

        Reference:
          Zandonati et al., FIT, 2022, https://arxiv.org/abs/2210.08502
        """
        traces = np.asarray([state.traces.weight, state.traces.activation], np.float64)
        traces /= max(float(state.trace_weight), np.finfo(np.float32).tiny)
        noise = np.asarray(noise, np.float64)[..., : self.space.num_options]
        costs = 0.5 * traces[..., None] * noise
        table = np.zeros((self.space.num_decisions, self.space.num_options))
        sides = (
            ("weights", self.space.weight_decision),
            ("input", self.space.activation_decision),
        )
        for (word, decisions), rows in zip(sides, costs, strict=True):
            decided = decisions >= 0
            for site in np.flatnonzero(decided & ~np.isfinite(rows).all(axis=1)):
                raise TrainingDiverged(
                    f"the sensitivity of the {word} of {self.space.sites[site].path!r}"
                    f" is not finite at step {int(state.step)}: lower the learning rate"
                    " or leave out the narrowest formats; the last checkpoint is kept"
                )
            np.add.at(table, decisions[decided], rows[decided])
        bits = [storage_bits(name) for name in self.space.option_names]
        return monotone_values(table, bits)

    def reallocate(self, state: BitState, noise: Float[ArrayLike, "2 S F"]) -> BitState:
        """Gives the budget's bits to those who need them most (host).

        Bits stay where the objective would fall by less than `least_gain`. Where they
        change, the range stays (or is rescaled), and the moments of the clips'
        optimizer start anew.
        """
        values = self.sensitivity(state, noise)
        now = np.asarray(state.options)
        options = allocate_exact(values, self.costs, self.target)
        worth = (1.0 - self.least_gain) * total_value(values, now)
        affordable = self.costs.exact_cost(now) <= self.target
        if affordable and total_value(values, options) >= worth:
            return state
        clips = self._carried_over(state, jnp.asarray(options, jnp.int32))
        fresh = state.replace(
            options=jnp.asarray(options, jnp.int32),
            clips=clips,
            clip_opt_state=_fresh_moments(
                self.clip_optimizer, clips, state.clip_opt_state
            ),
            reallocations=state.reallocations + 1,
        )
        return place(fresh, state.step.sharding)

    def _carried_over(self, state: BitState, options: Int[Array, "D"]) -> Clips:
        if not self.rescale_range:
            return state.clips
        old, new = self._best_clips(state), self._best_clips(state, options)
        return jax.tree.map(
            lambda clip, old, new: clip + jnp.log(new / old), state.clips, old, new
        )

    def _best_clips(
        self, state: BitState, options: Int[Array, "D"] | None = None
    ) -> Clips:
        """The calibrated bounds themselves, of the options trained or others."""
        options = state.options if options is None else options
        best = calibrated_formats(state.calibration, self.space, options)
        return Clips(weight=best.weight_clip, activation=best.activation_clip)

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns the work between steps: first clips, and the re-allocations."""
        observe = compile(self.observe)

        def start(state, batch):
            # Bounds follow the inputs, and the inputs of deep sites the bounds.
            for _ in range(3):
                state, metrics = observe(self._at_best_clips(state), batch)
            allowed = np.ones((self.space.num_decisions, self.space.num_options), bool)
            if self.policy is not None:
                own = self.space.options(self.policy)[:, None]
                allowed = np.arange(self.space.num_options) == own
            check_observed(jax.device_get(metrics["unseen"]), self.space, allowed)
            return self._at_best_clips(state)

        def update(state, batch):
            state, metrics = observe(state, batch)
            return self.reallocate(state, jax.device_get(metrics["noise"]))

        hooks = [Hook(frozenset({0}), start)]
        if self.policy is None:
            due = {step for step in self.updates.steps() if step < steps}
            hooks.append(Hook(frozenset(due), update))
        return hooks

    def _at_best_clips(self, state: BitState) -> BitState:
        clips = jax.tree.map(jnp.log, self._best_clips(state))
        return state.replace(clips=place(clips, state.step.sharding))

    def current_options(self, state: BitState) -> Int[np.ndarray, "D"]:
        """Returns the options trained at present (host)."""
        return np.asarray(state.options)

    def current_formats(self, state: BitState) -> SiteFormats:
        """Returns formats and learned clips as trained at present."""
        return self.trained_formats(state)

    def final_policy(self, state: BitState) -> Policy:
        """Returns the policy as run: unsigned grids for inputs never negative."""
        policy = self.space.policy(self.current_options(state))
        return unsigned_inputs(policy, np.asarray(state.calibration.nonnegative))

    def progress(self, state: BitState) -> dict[str, Any]:
        """Returns mean bits, cost over target, and the options of all decisions."""
        if self.policy is not None:
            return {}
        options = self.current_options(state)
        policy, sites = self.space.policy(options), self.space.sites
        return {
            "weight_bits": average_bits(sites, policy),
            "input_bits": average_activation_bits(sites, policy),
            "cost_ratio": self.costs.exact_cost(options) / self.target,
            "options": options.tolist(),
        }

    def summary(self, state: BitState) -> dict[str, Any]:
        """Returns how often bits were re-allocated."""
        return {"reallocations": int(state.reallocations)}

    def _keys(self, state: BitState) -> dict[str, Key[Array, ""]]:
        return device_keys(state.key, state.step, ("augment", "dropout"))


def _fresh_moments(
    optimizer: optax.GradientTransformation, clips: Clips, opt_state: PyTree
) -> PyTree:
    """Returns the optimizer's state as at the start, its schedule's step apart."""
    fresh = optimizer.init(clips)
    moments = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    return jax.tree.map(
        lambda old, new: new if moments(old) else old, opt_state, fresh, is_leaf=moments
    )
