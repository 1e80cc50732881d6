"""A categorical policy over formats: sampling, likelihood, entropy and REINFORCE.

Decisions are independent: a table of logits [L, K], softmax at temperature 1, no
network. An option that a decision does not have gets the logit -inf.

Not here: when and how logits change (`recipes`), what a sample costs, its loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample_options(key: Key[Array, ""], logits: Float[Array, "L K"]) -> Int[Array, "L"]:
    """Draws one option for every decision from the softmax of its logits.

    Args:
      key: a typed random key.
      logits: unnormalised log-probabilities.

    Returns:
      The index of the option drawn at each decision, int32.

    Example:
      >>> logits = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])
      >>> sample_options(jax.random.key(0), logits).tolist()
      [0, 1]
    """
    return jax.random.categorical(key, logits).astype(jnp.int32)


def decision_log_probabilities(
    logits: Float[Array, "L K"], options: Int[Array, "L"]
) -> Float[Array, "L"]:
    r"""Returns the log-probability of each decision's option.

    .. math:: \log \pi_l(a_l) = z_{l a_l} - \log \sum_k \exp z_{l k}

    Computed by log-softmax, so it stays finite when the policy is nearly sure.

    Args:
      logits: z.
      options: a, an index into K for every decision.

    Returns:
      Natural logarithms, at most 0.

    Example:
      >>> logits = jnp.array([[0.0, 200.0]])
      >>> decision_log_probabilities(logits, jnp.array([0])).tolist()
      [-200.0]
    """
    log_pi = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_pi, options[:, None], axis=1)[:, 0]


def log_probability(
    logits: Float[Array, "L K"], options: Int[Array, "L"]
) -> Float[Array, ""]:
    """Returns the mean over decisions of the options' log-probabilities.

    The published form: its gradient's size does not grow with the network's depth.

    Args:
      logits: unnormalised log-probabilities.
      options: an index into K for every decision.

    Returns:
      A scalar, at most 0.

    Example:
      >>> float(jnp.exp(log_probability(jnp.zeros((3, 4)), jnp.array([0, 3, 1]))))
      0.25
    """
    return decision_log_probabilities(logits, options).mean()


def joint_log_probability(
    logits: Float[Array, "L K"], options: Int[Array, "L"]
) -> Float[Array, ""]:
    """Returns the log-probability of all options together: the sum over decisions.

    Args:
      logits: unnormalised log-probabilities.
      options: an index into K for every decision.

    Returns:
      A scalar, at most 0.

    Example:
      >>> p = jnp.exp(joint_log_probability(jnp.zeros((2, 4)), jnp.array([0, 3])))
      >>> round(float(p), 6)
      0.0625
    """
    return decision_log_probabilities(logits, options).sum()


def entropy(logits: Float[Array, "L K"]) -> Float[Array, ""]:
    r"""Returns the policy's mean entropy over decisions.

    .. math:: H = \frac{1}{L} \sum_l - \sum_k \pi_{lk} \log \pi_{lk}

    Args:
      logits: unnormalised log-probabilities; -inf marks an option that is absent.

    Returns:
      Nats, from 0 (decided) to log K (uniform).

    Example:
      >>> round(float(entropy(jnp.array([[0.0, 0.0], [100.0, 0.0]]))), 4)
      0.3466
    """
    log_pi = jax.nn.log_softmax(logits)
    finite = jnp.where(jnp.isfinite(log_pi), log_pi, 0.0)  # 0 * -inf would be NaN
    return -(jnp.exp(log_pi) * finite).sum(axis=-1).mean()


def leave_one_out_advantages(rewards: Float[Array, "S"]) -> Float[Array, "S"]:
    r"""Returns each reward less the mean of the others judged beside it.

    .. math:: A_s = R_s - \frac{1}{S-1} \sum_{r \ne s} R_r

    What all samples share (an easy batch, say) cancels exactly, and the policy
    gradient stays unbiased because no sample is part of its own baseline.

    Args:
      rewards: R of S >= 2 independent samples, judged on the same batch.

    Returns:
      A, whose sum is 0.

    Raises:
      ValueError: if there are fewer than two rewards.

    Reference:
      Kool et al., Buy 4 REINFORCE samples, 2019, https://openreview.net/forum?id=r1lgTGL5DE

    Example:
      >>> leave_one_out_advantages(jnp.array([1.0, 2.0, 6.0])).tolist()
      [-3.0, -1.5, 4.5]
    """
    num_samples = rewards.shape[0]
    if num_samples < 2:
        raise ValueError(
            f"a leave-one-out baseline needs 2 or more samples, got {num_samples}"
        )
    return (rewards - rewards.mean()) * (num_samples / (num_samples - 1))


def reinforce_gradient(
    logits: Float[Array, "L K"],
    options: Int[Array, "S L"],
    advantages: Float[Array, "S"],
) -> Float[Array, "L K"]:
    r"""Returns the score-function gradient of the loss that lowers with the reward.

    .. math:: \nabla_z \, -\frac{1}{S} \sum_s A_s \frac{1}{L} \sum_l \log\pi_l(a_{sl})

    Args:
      logits: z.
      options: a, one row a sample; -1 where a decision has no effect in the sample,
        which then says nothing about it.
      advantages: A, reward less baseline, one a sample; no gradient passes through.

    Returns:
      The gradient to descend, in the shape of `logits`. Each row sums to 0.

    Reference:
      Williams, Simple statistical gradient-following algorithms, 1992.

    Example:
      >>> logits, options = jnp.zeros((1, 2)), jnp.array([[0], [1]])
      >>> reinforce_gradient(logits, options, jnp.array([1.0, -1.0])).tolist()
      [[-0.5, 0.5]]
    """
    num_decisions, num_options = logits.shape
    score = jax.nn.one_hot(options, num_options) - jax.nn.softmax(logits)[None]
    score = jnp.where((options < 0)[..., None], 0.0, score)
    return -jnp.einsum("s,slk->lk", advantages, score) / (
        advantages.shape[0] * num_decisions
    )


def entropy_gradient(logits: Float[Array, "L K"]) -> Float[Array, "L K"]:
    r"""Returns the gradient of `entropy`: zero on a decision that is exactly uniform.

    .. math:: \partial H / \partial z_{lk} = -\pi_{lk} (\log \pi_{lk} + H_l) / L

    Args:
      logits: z.

    Returns:
      The gradient in nats per unit of logit, in the shape of `logits`.

    Example:
      >>> bool((entropy_gradient(jnp.full((2, 4), 0.5)) == 0).all())
      True
    """
    gradient = jax.grad(entropy)(logits)
    # Log-softmax leaves an ulp on a uniform decision; Adam would make it a full step.
    # Absent options (-inf) do not break a tie among those that are there.
    present = jnp.where(jnp.isfinite(logits), logits, logits.max(-1, keepdims=True))
    uniform = (present == logits.max(-1, keepdims=True)).all(-1, keepdims=True)
    return jnp.where(uniform, 0.0, gradient)
