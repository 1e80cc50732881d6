"""Losses and batch measures of image classification. No model and no state."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fliqs_jax.checks import check_positive


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


def distillation(
    logits: Float[Array, "B C"],
    teacher: Float[Array, "B C"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "B"]:
    r"""Returns each example's divergence from a teacher's softened predictions.

    .. math:: \ell_b = T^2 \sum_c p_{bc} \log (p_{bc} / q_{bc}), \quad
        p = \mathrm{softmax}(\bar z / T), \; q = \mathrm{softmax}(z / T)

    The factor keeps the gradient of one size at every temperature.

    Args:
      logits: z, of the student.
      teacher: those of the teacher, same shape; no gradient flows to them.
      temperature: T, positive.

    Returns:
      Divergence per example in nats, float32.

    Reference:
      Hinton et al., Distilling the knowledge in a neural network, 2015, section 2,
      https://arxiv.org/abs/1503.02531

    Example:
      >>> even, sure = jnp.zeros((1, 2)), jnp.array([[0.0, jnp.log(3.0)]])
      >>> round(float(distillation(sure, even)[0]), 4)  # log(4 / 3) / 2
      0.1438
    """
    check_positive(temperature=temperature)
    teacher = jax.lax.stop_gradient(teacher)
    log_p, log_q = (
        jax.nn.log_softmax(z.astype(jnp.float32) / temperature)
        for z in (teacher, logits)
    )
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def correct(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> Float[Array, "B"]:
    """Returns 1 where the largest logit is the label's, else 0.

    Example:
      >>> correct(jnp.array([[0.0, 2.0], [3.0, 1.0]]), jnp.array([1, 1])).tolist()
      [1.0, 0.0]
    """
    return (logits.argmax(-1) == labels).astype(jnp.float32)
