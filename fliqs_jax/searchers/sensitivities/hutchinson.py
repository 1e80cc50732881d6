"""Curvature of a trained network, site by site: traces of the Hessian and the Fisher.

References to hold sensitivities collected during training against, as HAWQ and FIT
compute them offline. Of the float network in evaluation mode, and of weights alone.
What rounding errors make of a curvature is `fisher`'s and the searches' business.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from fliqs_jax.checks import check_at_least, check_not_negative
from fliqs_jax.quantized_model import riding
from fliqs_jax.quantized_model.weights import site_sums
from fliqs_jax.searchers.sensitivities.meter import TrainedState, chunks
from fliqs_jax.sites import Site
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.losses import cross_entropy

_LEAST_PROBES = 10  # before a small change of the mean may stop the estimate


@dataclasses.dataclass(frozen=True, eq=False)
class HessianTraces:
    """Hutchinson's estimate for every site."""

    traces: Float[np.ndarray, "L"]  # may be negative, away from a minimum
    standard_errors: Float[np.ndarray, "L"]  # of the probes; batches are what they are
    probes: int  # that were made of every batch
    converged: bool  # False where `most_probes` ended it


def probed_diagonal(
    loss: Callable[[PyTree], Float[Array, ""]], weights: PyTree, key: Array
) -> PyTree:
    r"""Returns one random estimate of the diagonal of a loss's Hessian.

    .. math:: v \odot H v, \quad v_i = \pm 1 \text{ at random}

    Unbiased, so the sum over any part of the weights is an estimate of that part's
    trace. One Hessian-vector product, the gradient of the gradient along v: about
    two gradients' worth of time.

    Args:
      loss: of weights.
      weights: where; a pytree of floating point arrays.
      key: of the probe v.

    Returns:
      A pytree like `weights`.

    Reference:
      Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990
      Yao et al., PyHessian, 2020, https://arxiv.org/abs/1912.07145

    Example:
      >>> curvature = jnp.array([1.0, 2.0, 4.0])  # no off-diagonals: exact at once
      >>> loss = lambda w: (curvature * w**2).sum() / 2
      >>> probed_diagonal(loss, jnp.ones(3), jax.random.key(0)).tolist()
      [1.0, 2.0, 4.0]
    """
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    probe = tree.unflatten(
        jax.random.rademacher(one, leaf.shape, leaf.dtype)
        for one, leaf in zip(keys, leaves, strict=True)
    )

    def slope(weights):  # along the probe; its gradient is the product H v
        products = jax.tree.map(jnp.vdot, jax.grad(loss)(weights), probe)
        return sum(jax.tree.leaves(products))

    # Reverse mode twice: custom gradients, as our convolutions have, know no other.
    product = jax.grad(slope)(weights)
    return jax.tree.map(jnp.multiply, probe, product)


def hessian_traces(
    classifier: Classifier,
    state: TrainedState,
    sites: Sequence[Site],
    batches: Sequence[dict],
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
    most_probes: int = 100,
) -> HessianTraces:
    r"""Estimates the trace of the loss's Hessian over each site's weights.

    .. math:: t_l = \frac{1}{P} \sum_p \sum_b \frac{B_b}{N}
        \sum_{i \in l} v_{pbi} (H_b v_{pb})_i

    H_b is the Hessian of the mean cross entropy of batch b over the weights of all
    sites; all traces come from the same products, a fresh probe v for each batch. It
    ends when one more round changes the mean of no site by more than `tolerance` of its
    magnitude, or after `most_probes` rounds.

    Args:
      classifier: the network; it runs in evaluation mode, without quantization.
      state: its trained float variables.
      sites: those of the network, from `image_sites`.
      batches: dicts with uint8 `image` [B, H, W, C] and int32 `label` [B]; at least
        one. A batch of another size compiles anew.
      seed: of the probes.
      tolerance: largest relative change to stop at, not negative; at least 10 rounds
        are made.
      most_probes: P at most, at least 2.

    Returns:
      Traces in the order of the sites, in nats per squared unit of weight; 0
      for a site without weights (an attention product).

    Raises:
      ValueError: if a trace is not finite (it names the site), or an argument is not as
        said above.

    Reference:
      Dong et al., HAWQ-V2, 2020 (average trace), https://arxiv.org/abs/1911.03852
    """
    if not batches:
        raise ValueError("batches must hold at least one batch, got none")
    check_at_least(2, most_probes=most_probes)
    check_not_negative(tolerance=tolerance)
    groups = riding.group_sites(sites)

    @jax.jit
    def probe(state, images, labels, key):
        loss, weights = _loss_of_weights(classifier, state, groups, images, labels)
        return site_sums(probed_diagonal(loss, weights, key), groups)

    state = _unboxed(state)
    examples = sum(len(batch["image"]) for batch in batches)
    rounds, previous, converged = [], None, False
    for number in range(most_probes):
        total = 0.0
        for index, batch in enumerate(batches):
            key = jax.random.key(seed)
            key = jax.random.fold_in(jax.random.fold_in(key, number), index)
            sums = probe(state, batch["image"], batch["label"], key)
            share = len(batch["image"]) / examples
            total = total + share * np.asarray(sums, np.float64)
        rounds.append(_check_finite(total, sites))
        mean = np.mean(rounds, axis=0)
        if len(rounds) >= _LEAST_PROBES:
            converged = bool((abs(mean - previous) <= tolerance * abs(previous)).all())
        if converged:
            break
        previous = mean
    return HessianTraces(
        traces=mean,
        standard_errors=np.std(rounds, axis=0, ddof=1) / np.sqrt(len(rounds)),
        probes=len(rounds),
        converged=converged,
    )


def fisher_traces(
    classifier: Classifier,
    state: TrainedState,
    sites: Sequence[Site],
    batches: Sequence[dict],
    *,
    examples_at_once: int = 16,
) -> Float[np.ndarray, "L"]:
    r"""Returns the trace of the empirical Fisher information over each site's weights.

    .. math:: \frac{1}{N} \sum_n \sum_{i \in l}
        \left( \frac{\partial \ell_n}{\partial w_i} \right)^2

    Gradients are per example: what a gradient of the batch's mean gives, B times its
    square, adds (B - 1) times the squared mean gradient. Near a minimum it stands for
    the Hessian's trace. `FisherMeter` weighs every element with its own rounding error.

    Args:
      classifier: the network; it runs in evaluation mode, without quantization.
      state: its trained float variables.
      sites: those of the network, from `image_sites`.
      batches: dicts with uint8 `image` [B, H, W, C] and int32 `label` [B]; at least
        one.
      examples_at_once: whose gradients of all weights are in memory together.

    Returns:
      Traces in the order of the sites, float64; 0 for a site without weights.

    Raises:
      ValueError: as `hessian_traces`.

    Reference:
      Zandonati et al., FIT, 2022, https://arxiv.org/abs/2210.08502
    """
    if not batches:
        raise ValueError("batches must hold at least one batch, got none")
    check_at_least(1, examples_at_once=examples_at_once)
    groups = riding.group_sites(sites)

    @jax.jit
    def chunk_sums(state, images, labels):
        def gradient(image, label):
            loss, weights = _loss_of_weights(
                classifier, state, groups, image[None], label[None]
            )
            return jax.grad(loss)(weights)

        squares = jax.tree.map(jnp.square, jax.vmap(gradient)(images, labels))
        sums = jax.tree.map(lambda square: square.sum(axis=0), squares)
        return site_sums(sums, groups)

    state = _unboxed(state)
    total, examples = 0.0, 0
    for images, labels in chunks(batches, examples_at_once):
        total = total + np.asarray(chunk_sums(state, images, labels), np.float64)
        examples += len(labels)
    return _check_finite(total / examples, sites)


def _loss_of_weights(classifier, state, groups, images, labels):
    """The mean loss as a function of the sites' weights by path, and those weights."""
    flat = riding.flatten_params(state.params)
    paths = [(*group.scope, *w.path) for group in groups for w in group.weights]

    def loss(weights):
        params = riding.unflatten_params({**flat, **weights})
        logits = classifier.predict(params, state.model_state, images, formats=None)
        return cross_entropy(logits, labels).mean()

    return loss, {path: flat[path] for path in paths}


def _unboxed(state: TrainedState) -> TrainedState:
    return state.replace(params=nn.meta.unbox(state.params))


def _check_finite(traces: np.ndarray, sites: Sequence[Site]) -> np.ndarray:
    for index in np.flatnonzero(~np.isfinite(traces)):
        raise ValueError(
            f"the trace of {sites[index].path!r} is {traces[index]}: the network's"
            " weights or logits are not finite"
        )
    return traces
