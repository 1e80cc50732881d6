"""A linear model of the loss over sampled options: the natural policy gradient.

For independent categorical decisions, the natural gradient of the expected loss is the
least-squares fit of the loss on which option each decision took (compatible function
approximation). It sees every site in every sample, where a score-function estimate
sees the other sites' choices as noise, and samples of an earlier policy still count.

Not here: turning the fit into a policy (`recipes`), drawing the samples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int


class LossModelState(NamedTuple):
    """Sums over the batches seen, of features and losses less their batch's mean."""

    gram: Float[Array, "M M"]  # M = L * K; sum of feature products
    moment: Float[Array, "M"]  # sum of feature times loss


def init_loss_model(num_decisions: int, num_options: int) -> LossModelState:
    """Returns a model that has seen nothing; its effects are all 0.

    Args:
      num_decisions: L.
      num_options: K.

    Returns:
      State of (L K)^2 floats: 56 decisions of 8 options take 0.8 MB.

    Example:
      >>> init_loss_model(3, 4).gram.shape
      (12, 12)
    """
    size = num_decisions * num_options
    return LossModelState(jnp.zeros((size, size)), jnp.zeros(size))


def loss_model_increment(
    options: Int[Array, "S L"],
    losses: Float[Array, "S"],
    num_options: int,
    *,
    present: Bool[Array, "L K"] | None = None,
) -> LossModelState:
    r"""Returns what one batch adds to the model's sums.

    .. math:: G = \sum_s \tilde x_s \tilde x_s^T, \quad g = \sum_s \tilde x_s \tilde y_s

    x is the one-hot row of a sample's options, y its loss, both less their mean over
    the batch's samples, so whatever the samples share cancels.

    Args:
      options: a, the policies judged on one batch; -1 where a decision has no effect,
        which counts as the mean of its options. (As none of them, it would share the
        effect of what left it out.)
      losses: y, the loss of each.
      num_options: K.
      present: which options each decision has; None is all.

    Returns:
      An increment to add (or first to average over devices).

    Example:
      >>> one = loss_model_increment(jnp.array([[0], [1]]), jnp.array([1.0, 3.0]), 2)
      >>> one.moment.tolist()
      [-1.0, 1.0]
    """
    if present is None:
        present = jnp.ones((options.shape[1], num_options), bool)
    mean = present / present.sum(axis=1, keepdims=True)
    taken = jax.nn.one_hot(options, num_options)
    taken = jnp.where((options < 0)[..., None], mean[None], taken)
    features = taken.reshape(options.shape[0], -1)
    features = features - features.mean(axis=0, keepdims=True)
    losses = losses - losses.mean()
    return LossModelState(features.T @ features, features.T @ losses)


def update_loss_model(
    state: LossModelState, increment: LossModelState, *, decay: Float[ArrayLike, ""]
) -> LossModelState:
    """Adds a batch's increment, after forgetting a share of what came before.

    Args:
      state: the sums so far.
      increment: from `loss_model_increment`.
      decay: in (0, 1]; 1 forgets nothing.

    Returns:
      The next sums.

    Example:
      >>> state = init_loss_model(1, 2)
      >>> one = loss_model_increment(jnp.array([[0], [1]]), jnp.array([1.0, 3.0]), 2)
      >>> update_loss_model(state, one, decay=1.0).moment.tolist()
      [-1.0, 1.0]
    """
    return jax.tree.map(lambda old, new: decay * old + new, state, increment)


def option_effects(
    state: LossModelState, shape: tuple[int, int], *, ridge: float = 1.0
) -> Float[Array, "L K"]:
    r"""Returns by how much each option raises the loss, as far as is known.

    .. math:: m = (G + \rho I)^{-1} g

    Args:
      state: the sums so far.
      shape: (L, K).
      ridge: rho, in samples: an option's effect is pulled to 0, its decision's mean,
        as strongly as that many observations would (on each device, where increments
        are averaged over several); positive.

    Returns:
      m, in units of the loss; each row sums to 0.

    Reference:
      Kakade, A natural policy gradient, 2001.

    Example:
      >>> one = loss_model_increment(jnp.array([[0], [1]]), jnp.array([1.0, 3.0]), 2)
      >>> [round(float(m), 6) for m in option_effects(one, (1, 2), ridge=1.0)[0]]
      [-0.5, 0.5]
    """
    regular = state.gram + ridge * jnp.eye(state.gram.shape[0])
    return jnp.linalg.solve(regular, state.moment).reshape(shape)
