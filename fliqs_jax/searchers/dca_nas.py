r"""DCA-NAS: a cell searched by gradient descent inside a device's limits.

Two batches a step: one held out moves the architecture, one of training images the
weights.

.. math:: \min_\alpha \max_{\lambda \ge 0} \; L_{val}(w^*(\alpha), \alpha) + \sum_m
    \lambda_m \, k_m(\alpha) / K_m, \qquad w^* \approx \arg\min_w L_{train}(w, \alpha)

This module is the bi-level step. Limits and multipliers are in `cells.limits`, their
step in `cells.architecture`, what makes a derived cell hold them in `cells.repair`, the
job around it in `fliqs_jax.train.job`. Without limits it is DARTS.

Reference: Liu, Simonyan and Yang, DARTS, 2019, https://arxiv.org/abs/1806.09055; the
constraint after DCA-NAS (device-constraints-aware differentiable search).
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from fliqs_jax.models.cells import ARCHITECTURE, FORMATS, Alphas, CellSpace, softmax
from fliqs_jax.policy import FormatMixture
from fliqs_jax.searchers.cells.architecture import Architecture, ArchitectureState
from fliqs_jax.searchers.cells.repair import derived_formats
from fliqs_jax.searchers.cells.stage_formats import StageFormats
from fliqs_jax.sites import Site
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.job import Hook
from fliqs_jax.train.losses import correct, cross_entropy
from fliqs_jax.train.mapping import AXIS, Step, device_keys

ORDERS = (1, 2)


@typing.no_type_check  # eval_shape and others put other leaves in the fields
@flax.struct.dataclass
class CellState:
    """Everything a step changes; equal on all devices, saved in every checkpoint."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    weights: PyTree  # w, all parameters but the alphas
    architecture: ArchitectureState
    model_state: PyTree  # batch statistics
    opt_state: PyTree  # of the weights

    @property
    def params(self) -> PyTree:
        """All parameters of the search network."""
        return with_shares(self.weights, softmax(self.architecture.alphas))


def with_shares(weights: PyTree, shares: Alphas) -> PyTree:
    """Returns the search network's parameters; those of formats are none of them."""
    own = {kind: table for kind, table in shares.items() if kind != FORMATS}
    return {**weights, ARCHITECTURE: own}


def drawn_shares(key: Key[Array, ""], alphas: Alphas, temperature: float) -> Alphas:
    r"""Draws one operation an edge, with a gradient as if it were a mean.

    .. math:: p = \mathrm{onehot}(\arg\max_o (\alpha_o + g_o)), \qquad
        \nabla p = \nabla \, \mathrm{softmax}((\alpha + g) / \tau)

    g is Gumbel noise, so that o is drawn with probability softmax(alpha)_o.

    Args:
      key: of the noise.
      alphas: architecture weights.
      temperature: tau.

    Reference:
      Dong and Yang, Searching for a Robust Neural Architecture in Four GPU Hours
      (GDAS), 2019, equations 5 to 7, https://arxiv.org/abs/1910.04465
    """
    keys = jax.random.split(key, len(alphas))
    drawn = {}
    for key, (kind, alpha) in zip(keys, sorted(alphas.items()), strict=True):
        perturbed = alpha + jax.random.gumbel(key, alpha.shape)
        soft = jax.nn.softmax(perturbed / temperature)
        hard = jax.nn.one_hot(perturbed.argmax(axis=1), alpha.shape[1])
        drawn[kind] = soft + lax.stop_gradient(hard - soft)
    return drawn


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DcaNas:
    """A search of cells: what `fliqs_jax.train.job` runs (see its `Searcher`).

    Its batches need `judge_image` and `judge_label`, held-out examples
    (`JobSettings.judge_on_validation`). At second order the architecture sees the
    weights after the step that the optimizer would take, and its gradient goes through
    that step exactly: DARTS takes a central difference there.
    """

    classifier: Classifier  # of a search network
    space: CellSpace
    architecture: Architecture
    optimizer: optax.GradientTransformation  # of the weights
    steps: int
    warmup_steps: int  # the weights train, the architecture does not
    order: int = 1
    temperature: float | None = None  # of drawn operations; None: softmax, as in DARTS
    label_smoothing: float = 0.0
    stages: StageFormats | None = None  # whose formats are searched, too
    sites: tuple[Site, ...] = ()  # of the search network, for them

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order must be 1 or 2, got {self.order}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps must be 0 to {self.steps - 1}, fewer than the steps, got"
                f" {self.warmup_steps}"
            )

    def init(self, key: Key[Array, ""], images: ArrayLike) -> CellState:
        """Returns the state before the first step."""
        init_key, run_key = jax.random.split(key)
        weights, model_state = self.classifier.init(init_key, images)
        del weights[ARCHITECTURE]
        alphas = self.space.init_alphas(jax.random.fold_in(init_key, 2))
        if self.stages is not None:
            format_key = jax.random.fold_in(init_key, 1)
            alphas = {**alphas, FORMATS: self.stages.init_logits(format_key)}
        return CellState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            weights=weights,
            architecture=self.architecture.init(alphas),
            model_state=model_state,
            opt_state=self.optimizer.init(weights),
        )

    def step(self, state: CellState, batch: dict) -> tuple[CellState, dict]:
        """Moves the architecture, then the weights; runs per device (axis `data`)."""
        names = ("train", "judge", "dropout", "train_draw", "judge_draw")
        keys = device_keys(state.key, state.step, names)
        images = self.classifier.training_images
        training = images(keys["train"], batch["image"]), batch["label"], "train_draw"
        held_out = images(keys["judge"], batch["judge_image"]), batch["judge_label"]
        held_out = (*held_out, "judge_draw")

        def loss(weights, alphas, examples):
            logits, model_state = self.classifier.train_forward(
                with_shares(weights, self._shares(keys[examples[2]], alphas)),
                state.model_state,
                examples[0],
                formats=self._formats(alphas),
                dropout_key=keys["dropout"],
            )
            each = cross_entropy(
                logits, examples[1], label_smoothing=self.label_smoothing
            )
            accuracy = correct(logits, examples[1]).mean()
            return each.mean(), (model_state, accuracy)

        def weights_after(alphas):
            gradient = jax.grad(loss, has_aux=True)(state.weights, alphas, training)[0]
            updates, _ = self.optimizer.update(
                lax.pmean(gradient, AXIS), state.opt_state, state.weights
            )
            return optax.apply_updates(state.weights, updates)

        def validation_loss(alphas):
            weights = state.weights if self.order == 1 else weights_after(alphas)
            return loss(weights, alphas, held_out)

        def search(architecture):
            (value, (_, accuracy)), gradient = jax.value_and_grad(
                validation_loss, has_aux=True
            )(architecture.alphas)
            value, accuracy, gradient = lax.pmean((value, accuracy, gradient), AXIS)
            searched = state.step - self.warmup_steps
            progress = searched / (self.steps - self.warmup_steps)
            moved = self.architecture.step(architecture, gradient, progress)
            return moved, {"held_out_loss": value, "held_out_accuracy": accuracy}

        def wait(architecture):
            nothing = jnp.full((), jnp.nan, jnp.float32)
            return architecture, {
                "held_out_loss": nothing,
                "held_out_accuracy": nothing,
            }

        architecture, judged = lax.cond(
            state.step >= self.warmup_steps, search, wait, state.architecture
        )
        (value, (model_state, accuracy)), gradient = jax.value_and_grad(
            loss, has_aux=True
        )(state.weights, architecture.alphas, training)
        value, accuracy, model_state, gradient = lax.pmean(
            (value, accuracy, model_state, gradient), AXIS
        )
        updates, opt_state = self.optimizer.update(
            gradient, state.opt_state, state.weights
        )
        return (
            state.replace(
                step=state.step + 1,
                weights=optax.apply_updates(state.weights, updates),
                architecture=architecture,
                model_state=model_state,
                opt_state=opt_state,
            ),
            {"loss": value, "accuracy": accuracy, **judged},
        )

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns no work between steps: all of it is in the step."""
        return []

    def _shares(self, key: Key[Array, ""], alphas: Alphas) -> Alphas:
        if self.temperature is None:
            return softmax(alphas)
        return drawn_shares(key, alphas, self.temperature)

    def _formats(self, alphas: Alphas) -> FormatMixture | None:
        if self.stages is None:
            return None
        return self.stages.mixture(alphas[FORMATS], self.sites)

    def current_formats(self, state: CellState) -> FormatMixture | None:
        """Returns the mixture that the search network runs with; None: it is float."""
        return self._formats(state.architecture.alphas)

    def progress(self, state: CellState) -> dict[str, Any]:
        """Returns expected and derived cost over the bounds, and the probabilities."""
        return architecture_progress(
            self.architecture, self.space, jax.device_get(state.architecture)
        )


def architecture_progress(
    architecture: Architecture, space: CellSpace, state: ArchitectureState
) -> dict[str, Any]:
    """Returns what to log of an architecture: numbers, and rows of probabilities.

    Of each limit NAME: NAME_ratio (the search network's expected cost over its bound),
    NAME_derived_ratio (that of the cell that would be derived now, before any repair,
    over the limit), NAME_multiplier.
    """
    numbers = {name: float(x) for name, x in architecture.report(state).items()}
    derived, formats = space.derive(state.alphas), derived_formats(state.alphas)
    for limit in architecture.limits:
        ratio = limit.at(formats).cost(space, derived) / limit.bound
        numbers[f"{limit.name}_derived_ratio"] = ratio
    return {**numbers, "probabilities": probability_rows(space, softmax(state.alphas))}


def probability_rows(
    space: CellSpace, probabilities: Alphas
) -> Float[np.ndarray, "R K"]:
    """Returns the rows of all kinds of cell, one below the other (`row_names`).

    Formats of stages come last; NaN stands where a row has fewer options than others.
    """
    kinds = [kind for kind in (*space.kinds, FORMATS) if kind in probabilities]
    tables = [np.asarray(probabilities[kind], np.float64) for kind in kinds]
    width = max(table.shape[1] for table in tables)
    padded = [
        np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=np.nan)
        for t in tables
    ]
    return np.concatenate(padded).round(4)


def row_names(space: CellSpace, stages: int = 0) -> list[str]:
    """Returns a name for each row of `probability_rows`: "normal 0 to 2"."""
    several = len(space.kinds) > 1
    edges = [
        f"{kind + ' ' if several else ''}{source} to {target}"
        for kind in space.kinds
        for source, target in space.edges
    ]
    return edges + [f"format of stage {stage + 1}" for stage in range(stages)]
