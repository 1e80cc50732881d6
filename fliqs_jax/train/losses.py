"""Losses and batch measures of image classification. No model and no state."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B C"],
    labels: Int[Array, "B"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, "B"]:
    r"""Returns each example's cross entropy, in nats.

    .. math:: \ell_b = -\sum_c t_{bc} \log \mathrm{softmax}(z_b)_c, \quad
        t_b = (1 - \epsilon) \, e_{y_b} + \epsilon / C

    Args:
      logits: z, any float type; the loss is computed in float32.
      labels: y, in 0…C-1.
      label_smoothing: epsilon, in [0, 1).

    Returns:
      Loss per example, float32.

    Example:
      >>> loss = cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))
      >>> round(float(loss[0]), 4)  # log 4
      1.3863
    """
    logits = logits.astype(jnp.float32)
    targets = optax.smooth_labels(
        jnp.asarray(labels[:, None] == jnp.arange(logits.shape[-1])[None], jnp.float32),
        label_smoothing,
    )
    return optax.softmax_cross_entropy(logits, targets)


def correct(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> Float[Array, "B"]:
    """Returns 1 where the largest logit is the label's, else 0.

    Example:
      >>> correct(jnp.array([[0.0, 2.0], [3.0, 1.0]]), jnp.array([1, 1])).tolist()
      [1.0, 0.0]
    """
    return (logits.argmax(-1) == labels).astype(jnp.float32)
