r"""Learning-Compression: weights that are trained onto their codebooks.

.. math:: \min_{w, \Theta} L(w) \quad \text{s.t.} \quad w = \Delta(\Theta)

Theta are the values of the codebooks and the index of every weight, Delta reads the
weights off them. The augmented Lagrangian of the constraint is minimised by turns:

.. math::
    \text{L step:} \quad & w \leftarrow \arg\min_w L(w)
        - \lambda^T (w - \Delta(\Theta)) + \tfrac{\mu}{2} \|w - \Delta(\Theta)\|^2 \\
    \text{C step:} \quad & \Theta \leftarrow \Pi(w - \lambda / \mu) \\
    & \lambda \leftarrow \lambda - \mu \, (w - \Delta(\Theta))

with mu growing. An L step is ordinary training with a pull on the weights; a C step
looks at no data and is exact (`quantizers.codebook`). The result is Delta(Theta), never
w.

The equations are functions of their own, for any pytree of parameters and any optimizer
(`compression.lagrangian`). `LearningCompression` is the method as `fliqs_jax.train.job`
runs it, all of its L steps by one compiled training step.

Reference: Carreira-Perpinan, Model compression as constrained optimization, part I:
general framework, 2017, https://arxiv.org/abs/1707.01209; and Idelbayev, part II:
quantization, 2017, https://arxiv.org/abs/1707.04319
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from fliqs_jax.checks import check_not_negative
from fliqs_jax.searchers.compression import lagrangian
from fliqs_jax.searchers.compression.history import Best, History, init_history, record
from fliqs_jax.searchers.compression.rules import Scope, scope_weights, with_codebooks
from fliqs_jax.searchers.compression.schedule import VARIANTS, LSteps, Variant
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.fitting import start_state
from fliqs_jax.train.job import Hook
from fliqs_jax.train.losses import correct, cross_entropy
from fliqs_jax.train.mapping import AXIS, Step, device_keys, place

# Steps of straight-through training between two fits of the values, which sort weights;
# assignments are of every step.
_REFIT_EVERY = 20


@typing.no_type_check  # eval_shape and others put other leaves in the fields
@flax.struct.dataclass
class LCState:
    """Everything a step changes; equal on all devices, saved in every checkpoint."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    params: PyTree  # w, and what is not compressed
    model_state: PyTree  # batch statistics and other collections
    opt_state: PyTree
    compression: lagrangian.Compression
    l_step: Int[Array, ""]  # number of the present one
    best: Best  # Delta(Theta) of least training loss so far
    history: History


# What Delta(Theta) is worth: losses and errors by name (see `compression.history`).
Measure = Callable[[LCState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LearningCompression:
    """A compression of weights: what `fliqs_jax.train.job` runs, a `Searcher`."""

    classifier: Classifier
    scopes: tuple[Scope, ...]
    l_steps: LSteps
    optimizer: optax.GradientTransformation  # made with a learning rate of 1
    learning_rate: Callable[[Int[Array, ""]], Float[ArrayLike, ""]]  # by L step
    variant: Variant = VARIANTS["lc"]
    tolerance: float = 1e-3  # of the residual: the run ends below it; 0 is never
    clip_learning_rate: bool = True
    label_smoothing: float = 0.0
    variables: Mapping[str, Any] | None = None  # the reference; None is fresh ones
    measure: Measure | None = None  # of states at Delta(Theta); None keeps the last

    def __post_init__(self):
        if not self.scopes:
            raise ValueError("scopes must hold at least one, got none: add a rule")
        check_not_negative(tolerance=self.tolerance)

    def init(self, key: Key[Array, ""], images: ArrayLike) -> LCState:
        """Returns the state before the first step; nothing is compressed yet."""
        start = start_state(self, key, images)
        params = start["params"]
        shapes = jax.eval_shape(
            lambda params: lagrangian.compress(params, self.scopes), params
        )
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return LCState(
            **start,
            compression=empty,
            l_step=jnp.zeros((), jnp.int32),
            best=Best(
                params=jax.tree.map(jnp.zeros_like, params),
                codebooks=jax.tree.map(jnp.zeros_like, empty.codebooks),
                loss=jnp.full((), jnp.inf),
                l_step=jnp.full((), -1, jnp.int32),
            ),
            history=init_history(empty.codebooks, len(self.l_steps.ends)),
        )

    def step(self, state: LCState, batch: dict) -> tuple[LCState, dict]:
        """Takes a step of the L step on one batch; runs per device (axis `data`)."""
        keys = device_keys(state.key, state.step, ("augment", "dropout"))
        images = self.classifier.training_images(keys["augment"], batch["image"])
        labels = batch["label"]
        compression = state.compression
        if self.variant.straight_through:
            compression = lax.cond(
                state.step % _REFIT_EVERY == 0,
                lambda: lagrangian.c_step(state.params, compression, self.scopes),
                lambda: lagrangian.assign(state.params, compression, self.scopes),
            )

        def objective(params):
            if self.variant.straight_through:
                params = lagrangian.straight_through(params, compression, self.scopes)
            logits, model_state = self.classifier.train_forward(
                params,
                state.model_state,
                images,
                formats=None,
                dropout_key=keys["dropout"],
            )
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            return loss.mean(), (model_state, correct(logits, labels).mean())

        (loss, (model_state, accuracy)), gradients = jax.value_and_grad(
            objective, has_aux=True
        )(state.params)
        gradients, model_state, loss, accuracy = lax.pmean(
            (gradients, model_state, loss, accuracy), AXIS
        )
        pull = lagrangian.penalty_gradient(state.params, compression, self.scopes)
        updates, opt_state = self.optimizer.update(
            jax.tree.map(jnp.add, gradients, pull), state.opt_state, state.params
        )
        rate = self.learning_rate(state.l_step)
        if self.clip_learning_rate:
            rate = lagrangian.clipped_learning_rate(rate, compression.mu)
        updates = jax.tree.map(lambda x: (rate * x).astype(x.dtype), updates)
        return (
            state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                model_state=model_state,
                opt_state=opt_state,
                compression=compression,
            ),
            {"loss": loss, "accuracy": accuracy},
        )

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns the work between steps: the C steps."""
        assert steps == self.l_steps.ends[-1]
        return [
            Hook(frozenset({0}), lambda state, batch: self.start(state)),
            Hook(
                frozenset(self.l_steps.ends),
                lambda state, batch: self.end_l_step(state),
                ends_run=self.converged,
            ),
        ]

    def start(self, state: LCState) -> LCState:
        """Compresses the reference directly; the first L step starts (host)."""
        params = jax.device_get(state.params)
        compression = lagrangian.compress(params, self.scopes)
        return self._next_l_step(state, params, compression, number=0)

    def end_l_step(self, state: LCState) -> LCState:
        """Takes C step and multiplier step, and starts the next L step (host).

        After the last one the weights become the best Delta(Theta) of the run.
        """
        params, before = jax.device_get((state.params, state.compression))
        compression = lagrangian.c_step(params, before, self.scopes)
        if self.variant.multipliers:
            compression = lagrangian.multiplier_step(params, compression, self.scopes)
        number = int(state.l_step) + 1
        state = self._next_l_step(state, params, compression, number)
        if number == len(self.l_steps.ends) or self.converged(state):
            return state.replace(params=_own_copy(state.best.params, state))
        return state

    def _next_l_step(self, state, params, compression, number):
        """Returns the state at the start of an L step, after what came before it."""
        decoded = lagrangian.decode(params, compression, self.scopes)
        measured = {}
        if self.measure is not None:
            at_decoded = _own_copy(decoded, state)
            measured = self.measure(state.replace(params=at_decoded))
        weights = scope_weights(params, self.scopes)
        history = record(
            jax.device_get(state.history),
            number,
            weights=weights,
            codebooks=compression.codebooks,
            residual=lagrangian.residual(params, compression, self.scopes),
            mu=compression.mu,
            measured=measured,
        )
        best = jax.device_get(state.best)
        loss = np.float32(measured.get("train_loss", -np.inf))
        if loss <= best.loss:
            best = Best(decoded, compression.codebooks, loss, np.int32(number))
        more = number < len(self.l_steps.ends)
        if self.variant.penalty and more:
            mu = np.float32(self.l_steps.mu_of(number))
            compression = compression.replace(mu=mu)
        if self.variant.restart:
            params = decoded
        fresh = {
            "params": params,
            # Moments belong to the old target: the new one is somewhere else.
            "opt_state": self.optimizer.init(state.params),
            "compression": compression,
            "l_step": np.int32(number),
            "best": best,
            "history": history,
        }
        return state.replace(**_own_copy(fresh, state))

    def converged(self, state: LCState) -> bool:
        """Returns whether the weights have met their codebooks (host)."""
        number = int(state.l_step)
        return number > 0 and float(state.history.residual[number]) < self.tolerance

    def compressed_params(self, state: LCState) -> PyTree:
        """Returns the best parameters, a Codebook for each compressed leaf (host)."""
        best = jax.device_get(state.best)
        return with_codebooks(best.params, self.scopes, best.codebooks)

    def current_formats(self, state: LCState) -> None:
        """Returns no formats: compressed weights are plain numbers."""
        return None

    def progress(self, state: LCState) -> dict[str, Any]:
        """Returns the residual and the mu of the L step before."""
        number = int(state.l_step)
        return {
            "l_step": number,
            "residual": float(state.history.residual[number]),
            "mu": float(state.compression.mu),
        }

    def summary(self, state: LCState) -> dict[str, Any]:
        """Returns how the run ended."""
        number = int(state.l_step)
        return {
            "l_steps": number,
            "residual": float(state.history.residual[number]),
            "best_l_step": int(state.best.l_step),
            "steps_taken": int(state.step),
        }


def _own_copy(tree: PyTree, state: LCState) -> PyTree:
    """Returns arrays placed as the state's are, sharing no memory with others."""
    copies = jax.tree.map(lambda x: np.array(jax.device_get(x)), tree)
    return place(copies, state.step.sharding)
