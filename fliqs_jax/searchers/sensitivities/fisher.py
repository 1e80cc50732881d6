"""Sensitivities from gradients: the diagonal of the Fisher information.

The whole table of `sensitivity` from one backward pass an example, without running the
network in any of the formats.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from fliqs_jax.checks import check_at_least
from fliqs_jax.nnx_adapter import NnxModel
from fliqs_jax.quantized_model import input_errors, riding
from fliqs_jax.quantized_model.weights import quantize_weights, site_sums
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import Calibration, calibrated_formats
from fliqs_jax.searchers.sensitivities import meter
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.losses import cross_entropy


def check_estimable(model: nn.Module | NnxModel, space: SearchSpace) -> None:
    """Raises unless `FisherMeter` can serve the model and space.

    Args:
      model: from `as_model`.
      space: decisions and options.

    Raises:
      ValueError: if the model is an NNX model, or there are attention products.
    """
    if isinstance(model, NnxModel):
        raise ValueError(
            f"the Fisher estimate is of linen models only, but {model.name} is an NNX"
            " model: measure by running the network (loss, kl or mse)"
        )
    if products := [site.path for site in space.sites if site.product]:
        raise ValueError(
            f"the Fisher estimate has no place for attention products such as"
            f" {products[0]!r}: measure by running the network (loss, kl or mse),"
            " or leave attention_products out"
        )


class FisherMeter:
    r"""Estimates the loss change of every option to second order, from gradients.

    .. math:: S_{lk} = \frac{1}{2 N} \sum_n \sum_{i \in l}
        \left( \frac{\partial \ell_n}{\partial v_i} \right)^2 (Q_k(v_i) - v_i)^2

    v_i are the weights of the decision's sites and the elements of their inputs for
    example n, each where the decision sets their format. In nats, as the loss: half
    the Fisher information stands for the curvature of a trained network, whose mean
    gradient is about zero, and rounding errors are taken as uncorrelated. Gradients
    are per example and labels those of the data: where a network fits its training
    images perfectly all values are far too small, and beyond the coarsest formats their
    order says little either (rank correlation with the measured loss change 0.8 at
    int3, 0.4 at int2, 0.3 at int4 on such a ResNet-8); measure the loss there.

    FIT has the trace of the information times the mean squared error of a uniform
    grid; here each element keeps its own error, clipping included, which matters below
    4 bits.

    Args:
      classifier: the network; it runs in evaluation mode.
      state: its trained float variables.
      space: decisions and options.
      calibration: clip bounds.
      batches: dicts with uint8 `image` [B, H, W, C] and int32 `label` [B]; at least
        one.
      examples_at_once: whose gradients of all weights are in memory together; fewer
        where it does not divide B.

    Attributes:
      compile_count: programs compiled for the network; 1 once something is measured.

    Reference:
      Zandonati et al., FIT, 2022, https://arxiv.org/abs/2210.08502
    """

    def __init__(
        self,
        classifier: Classifier,
        state: meter.TrainedState,
        space: SearchSpace,
        calibration: Calibration,
        batches: Sequence[dict],
        *,
        examples_at_once: int = 16,
    ):
        check_estimable(classifier.quantized.model, space)
        if not batches:
            raise ValueError("batches must hold at least one batch, got none")
        check_at_least(1, examples_at_once=examples_at_once)
        self.compile_count = 0
        self._space = space
        self._state = state.replace(params=nn.meta.unbox(state.params))
        self._calibration = calibration
        self._batches = batches
        size = len(batches[0]["image"])
        self._chunk = max(n for n in range(1, examples_at_once + 1) if size % n == 0)

        @jax.jit
        def chunk_sums(state, calibration, images, labels):
            self.compile_count += 1  # runs when traced, not when executed
            return _site_sums(classifier, space, state, calibration, images, labels)

        self._chunk_sums = chunk_sums

    def row(self, decision: int) -> Float[np.ndarray, "K"]:
        """Returns the sensitivity of each option of a decision, float64.

        The first call computes all rows.

        Raises:
          ValueError: if one is NaN or infinite.
        """
        return meter.check_finite(self._table[decision], self._space, decision)

    @functools.cached_property
    def _table(self) -> Float[np.ndarray, "L K"]:
        sums, examples = 0.0, 0
        for images, labels in meter.chunks(self._batches, self._chunk):
            sides = self._chunk_sums(self._state, self._calibration, images, labels)
            sums = sums + np.asarray(sides, np.float64)
            examples += len(labels)
        table = np.zeros((self._space.num_decisions, self._space.num_options))
        decisions = (self._space.weight_decision, self._space.activation_decision)
        for side, of_site in zip(sums, decisions, strict=True):
            decided = of_site >= 0
            np.add.at(table, of_site[decided], side[decided])
        return table / (2.0 * examples)


def _site_sums(
    classifier: Classifier,
    space: SearchSpace,
    state: meter.TrainedState,
    calibration: Calibration,
    images: Num[Array, "B H W C"],
    labels: Int[Array, "B"],
) -> tuple[Float[Array, "S K"], Float[Array, "S K"]]:
    """Returns the sums over examples and elements, of the weights and of the inputs."""
    every = jnp.arange(space.num_options)[:, None].repeat(space.num_decisions, axis=1)
    candidates = jax.vmap(lambda o: calibrated_formats(calibration, space, o))(every)
    plain = meter.isolated_formats(calibration, space, -1, 0)
    groups = riding.group_sites(space.sites)
    flat = riding.flatten_params(state.params)
    paths = [(*group.scope, *w.path) for group in groups for w in group.weights]

    def loss(weights, zeros, image, label):
        params = riding.unflatten_params({**flat, **weights})
        params = input_errors.riding_errors(params, space.sites, zeros, candidates)
        with input_errors.carrying_errors(classifier.quantized.model):
            logits = classifier.predict(
                params, state.model_state, image[None], formats=plain
            )
        return cross_entropy(logits, label[None]).sum()

    gradients, input_sums = jax.vmap(
        jax.grad(loss, argnums=(0, 1)), in_axes=(None, None, 0, 0)
    )(
        {path: flat[path] for path in paths},
        input_errors.input_error_zeros(len(space.sites), space.num_options),
        images,
        labels,
    )
    information = jax.tree.map(lambda g: jnp.square(g).sum(axis=0), gradients)

    def weight_sums(formats):
        on_grid = quantize_weights(
            flat,
            groups,
            riding.pack_formats(formats.weight, formats.weight_clip),
            per_channel=classifier.quantized.per_channel,
            clip_gradient=True,
        )
        errors = {
            path: squares * jnp.square(on_grid[path] - flat[path])
            for path, squares in information.items()
        }
        return site_sums(errors, groups)

    return jax.vmap(weight_sums, out_axes=1)(candidates), input_sums.sum(axis=0)
