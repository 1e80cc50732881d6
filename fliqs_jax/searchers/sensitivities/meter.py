"""Sensitivities: what each option of each decision costs in quality, alone.

A table [L, K] from a trained float network and a few batches: one decision is quantized
at a time, everything else stays float. Rivals of a search, and cheap: no training, one
compiled forward pass for all entries. Not here: which options to take then
(`costs.allocation`), and the estimate from gradients (`fisher`).

The network runs in evaluation mode: what is asked is how the float network, running
statistics included, bears a format. In training mode batch norm would take its
statistics from the quantized activations and hide part of the damage.
"""

from collections.abc import Callable, Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fliqs_jax.formats import parse_format
from fliqs_jax.policy import SiteFormats
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import (
    Calibration,
    calibrated_formats,
    check_observed,
    init_calibration,
    update_calibration,
)
from fliqs_jax.train.classifier import Classifier, training_arguments
from fliqs_jax.train.losses import cross_entropy

# (logits, logits of the float network, labels) -> sensitivity, lower is better
Measure = Callable[
    [Float[Array, "B C"], Float[Array, "B C"], Int[Array, "B"]], Float[Array, ""]
]


@flax.struct.dataclass
class TrainedState:
    """A trained network's variables, as evaluation and measuring take them."""

    params: PyTree
    model_state: PyTree  # batch statistics and other collections

    @property
    def variables(self) -> PyTree:
        return {"params": self.params, **self.model_state}


def chunks(batches: Sequence[dict], size: int) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    """Yields images and labels, so many examples of a batch at a time."""
    for batch in batches:
        for start in range(0, len(batch["image"]), size):
            part = slice(start, start + size)
            yield batch["image"][part], batch["label"][part]


def loss_change(
    logits: Float[Array, "B C"], reference: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, ""]:
    r"""Returns how much the mean cross entropy rises, in nats; it may fall.

    .. math:: \Delta = \frac{1}{B} \sum_b \ell(z_b, y_b) - \ell(\bar z_b, y_b)

    Args:
      logits: z, of the quantized network.
      reference: those of the float network, same shape.
      labels: y, in 0…C-1.

    Example:
      >>> zeros, wrong = jnp.zeros((1, 2)), jnp.array([[0.0, jnp.log(3.0)]])
      >>> round(float(loss_change(wrong, zeros, jnp.array([0]))), 4)  # log 4 - log 2
      0.6931
    """
    return (cross_entropy(logits, labels) - cross_entropy(reference, labels)).mean()


def kl_divergence(
    logits: Float[Array, "B C"], reference: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, ""]:
    r"""Returns how far the predicted distribution moves, in nats. Needs no labels.

    .. math:: \frac{1}{B} \sum_b \sum_c \bar p_{bc} \log (\bar p_{bc} / p_{bc}), \quad
        p = \mathrm{softmax}(z)

    Args:
      logits: z, of the quantized network.
      reference: those of the float network, same shape.
      labels: not used.

    Reference:
      Cai et al., ZeroQ, 2020 (equation 2), https://arxiv.org/abs/2001.00281

    Example:
      >>> even, sure = jnp.zeros((1, 2)), jnp.array([[0.0, jnp.log(3.0)]])
      >>> round(float(kl_divergence(sure, even, jnp.array([0]))), 4)  # log(4 / 3) / 2
      0.1438
    """
    log_p, log_q = (
        jax.nn.log_softmax(z.astype(jnp.float32)) for z in (reference, logits)
    )
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()


def logit_error(
    logits: Float[Array, "B C"], reference: Float[Array, "B C"], labels: Int[Array, "B"]
) -> Float[Array, ""]:
    r"""Returns the mean squared error of the logits, in their unit squared.

    .. math:: \frac{1}{B C} \sum_{bc} (z_{bc} - \bar z_{bc})^2

    Args:
      logits: z, of the quantized network.
      reference: those of the float network, same shape.
      labels: not used.

    Example:
      >>> zeros = jnp.zeros((1, 2))
      >>> float(logit_error(jnp.array([[1.0, 3.0]]), zeros, jnp.array([0])))
      5.0
    """
    return jnp.square(logits.astype(jnp.float32) - reference).mean()


def calibrate_inputs(
    classifier: Classifier,
    state: TrainedState,
    space: SearchSpace,
    batches: Sequence[dict],
) -> Calibration:
    """Returns the clip bounds that the float network's own inputs ask for.

    The bounds of a search, from the network in evaluation mode.

    Args:
      classifier: the network.
      state: its trained variables.
      space: the search space whose formats are meant.
      batches: dicts with uint8 `image` [B, H, W, C]; at least one.

    Raises:
      ValueError: naming sites whose inputs cannot be observed.
    """
    model = classifier.quantized.model

    @jax.jit
    def update(calibration, variables, images):
        seen = classifier.quantized.observe(
            variables,
            classifier.normalise(images),
            **training_arguments(model, train=False),
        )
        unseen = jnp.isnan(seen.absmax)
        return update_calibration(calibration, space, seen), unseen

    calibration = init_calibration(space)
    for batch in batches:
        calibration, unseen = update(calibration, state.variables, batch["image"])
    every = np.ones((space.num_decisions, space.num_options), bool)
    check_observed(np.asarray(unseen), space, every)
    return calibration


def isolated_formats(
    calibration: Calibration,
    space: SearchSpace,
    decision: Int[ArrayLike, ""],
    option: Int[ArrayLike, ""],
) -> SiteFormats:
    """Returns the formats of one decision at one option, all others at fp32.

    Pins and fixed inputs keep their formats. Both arguments may be traced.

    Args:
      calibration: clip bounds.
      space: the decisions.
      decision: which one to quantize; -1 is none, the reference.
      option: its option; any where there is no decision.
    """
    options = jnp.full(space.num_decisions, option, jnp.int32)
    formats = calibrated_formats(calibration, space, options)
    fp32 = parse_format("fp32")

    def keep(decisions, side):
        kept = jnp.asarray((decisions < 0) | (decisions == decision))
        return jax.tree.map(
            lambda leaf, plain: jnp.where(kept, leaf, plain), side, fp32
        )

    return formats.replace(
        weight=keep(space.weight_decision, formats.weight),
        activation=keep(space.activation_decision, formats.activation),
    )


class SensitivityMeter:
    """Measures sensitivities by running the network, a row of the table at a time.

    Args:
      classifier: the network.
      state: its trained float variables.
      space: decisions and options.
      calibration: clip bounds, from `calibrate_inputs`.
      batches: dicts with uint8 `image` [B, H, W, C] and int32 `label` [B], all of one
        shape; they are kept. At least one.
      measure: `loss_change`, `kl_divergence`, `logit_error` or one of your own; it is
        averaged over the batches.

    Attributes:
      compile_count: programs compiled for the network; 1 once something is measured.
    """

    def __init__(
        self,
        classifier: Classifier,
        state: TrainedState,
        space: SearchSpace,
        calibration: Calibration,
        batches: Sequence[dict],
        *,
        measure: Measure = loss_change,
    ):
        if not batches:
            raise ValueError("batches must hold at least one batch, got none")
        self.compile_count = 0
        self._space = space
        self._measure = jax.jit(measure)

        @jax.jit
        def predict(state, calibration, images, decision, option):
            self.compile_count += 1  # runs when traced, not when executed
            return classifier.predict(
                state.params,
                state.model_state,
                images,
                formats=isolated_formats(calibration, space, decision, option),
            )

        def logits(images, decision, option):
            # int32 scalars: a Python number would be of another type, to compile for.
            which = (np.int32(decision), np.int32(option))
            return predict(state, calibration, images, *which)

        self._logits = logits
        self._batches = [(batch["image"], batch["label"]) for batch in batches]
        self._references = [logits(images, -1, 0) for images, _ in self._batches]

    def row(self, decision: int) -> Float[np.ndarray, "K"]:
        """Returns the sensitivity of each option of a decision, float64.

        Raises:
          ValueError: if one is NaN or infinite.
        """
        values = np.zeros(self._space.num_options)
        for option in range(self._space.num_options):
            values[option] = np.mean(
                [self._value(i, decision, option) for i in range(len(self._batches))]
            )
        return check_finite(values, self._space, decision)

    def _value(self, number: int, decision: int, option: int) -> float:
        images, labels = self._batches[number]
        logits = self._logits(images, decision, option)
        return float(self._measure(logits, self._references[number], labels))


def check_finite(
    values: Float[np.ndarray, "K"], space: SearchSpace, decision: int
) -> Float[np.ndarray, "K"]:
    """Returns the values; ValueError names the option of one not finite."""
    for option in np.flatnonzero(~np.isfinite(values)):
        raise ValueError(
            f"the sensitivity of {space.decision_names[decision]!r} at"
            f" {space.option_names[option]} is {values[option]}: the network's weights"
            " or logits are not finite"
        )
    return values
