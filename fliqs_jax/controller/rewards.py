"""Rewards: one number from a candidate's quality and its cost.

Not here: what quality and cost are; both come in as arrays, in units of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from jaxtyping import ArrayLike as Numbers

# An exponential reward with a negative exponent diverges as the cost goes to nothing,
# and 0 * inf is NaN; no format is a million times cheaper than another.
_SMALLEST_RATIO = 1e-6


def absolute_reward(
    quality: Float[Numbers, "*N"],
    cost: Float[Numbers, "*N"],
    *,
    target: float,
    beta: float,
) -> Float[Array, "*N"]:
    r"""Returns each candidate's quality less a penalty for missing the target cost.

    .. math:: R_n = Q_n - \beta \, | C_n / C^* - 1 |

    The penalty has two sides, so a search settles on the target, not far below it.

    Args:
      quality: Q, higher is better (accuracy in [0, 1] or a negated loss). Shape [*N].
      cost: C, in the unit of `target` (BOPs per example, bytes or seconds). Same shape.
      target: C*, the cost to reach; a positive Python number, static under `jit`.
      beta: quality given up for a cost error of 100 %; not negative.

    Returns:
      R, in the unit and shape of `quality`, float32.

    Raises:
      ValueError: if `target` is not positive or `beta` is negative.

    Reference:
      Bender et al., TuNAS, 2020 (absolute reward), https://arxiv.org/abs/2008.06120

    Example:
      >>> quality, cost = jnp.array([0.75, 0.75]), jnp.array([1.0, 1.5])
      >>> absolute_reward(quality, cost, target=1.0, beta=0.5).tolist()
      [0.75, 0.5]
    """
    _check_target(target)
    _check_penalty(beta)
    return _float32(quality) - beta * jnp.abs(_float32(cost) / target - 1.0)


def one_sided_reward(
    quality: Float[Numbers, "*N"],
    cost: Float[Numbers, "*N"],
    *,
    target: float,
    beta: float,
) -> Float[Array, "*N"]:
    r"""Returns each candidate's quality less a penalty for exceeding the target cost.

    .. math:: R_n = Q_n - \beta \max(0, C_n / C^* - 1)

    Inside the budget the reward is the quality, so a cheaper candidate is no worse.

    Args:
      quality: Q, higher is better. Shape [*N].
      cost: C, in the unit of `target`. Same shape.
      target: C*, the cost not to exceed; a positive Python number.
      beta: quality given up for a cost 100 % above the target; not negative.

    Returns:
      R, in the unit and shape of `quality`, float32.

    Raises:
      ValueError: if `target` is not positive or `beta` is negative.

    Reference:
      Bender et al., TuNAS, 2020, https://arxiv.org/abs/2008.06120

    Example:
      >>> quality, cost = jnp.array([0.75, 0.75]), jnp.array([0.5, 1.5])
      >>> one_sided_reward(quality, cost, target=1.0, beta=0.5).tolist()
      [0.75, 0.5]
    """
    _check_target(target)
    _check_penalty(beta)
    over = jnp.maximum(0.0, _float32(cost) / target - 1.0)
    return _float32(quality) - beta * over


def soft_exponential_reward(
    quality: Float[Numbers, "*N"],
    cost: Float[Numbers, "*N"],
    *,
    target: float,
    beta: float,
) -> Float[Array, "*N"]:
    r"""Returns each candidate's quality scaled by a power of its cost.

    .. math:: R_n = Q_n \, (C_n / C^*)^\beta

    A negative beta punishes cost and rewards staying below the target. Multiplying
    turns the order of negative qualities around, so they are refused; under `jit`,
    where values cannot be read, a negative quality counts as 0.

    Args:
      quality: Q >= 0, higher is better (an accuracy, never a negated loss). Shape [*N].
      cost: C, in the unit of `target`; ratios below 1e-6 count as 1e-6. Same shape.
      target: C*, the cost at which the reward is the quality; a positive number.
      beta: exponent; negative to punish cost (MnasNet: -0.07).

    Returns:
      R, in the unit and shape of `quality`, float32; finite for finite arguments.

    Raises:
      ValueError: if `target` is not positive, or a known quality is negative.

    Reference:
      Tan et al., MnasNet, 2019 (soft constraint), https://arxiv.org/abs/1807.11626

    Example:
      >>> quality, cost = jnp.array([0.75, 0.75]), jnp.array([0.5, 2.0])
      >>> soft_exponential_reward(quality, cost, target=1.0, beta=-1.0).tolist()
      [1.5, 0.375]
    """
    _check_target(target)
    _check_quality(quality)
    ratio = jnp.maximum(_float32(cost) / target, _SMALLEST_RATIO)
    return jnp.maximum(_float32(quality), 0.0) * ratio**beta


def hard_exponential_reward(
    quality: Float[Numbers, "*N"],
    cost: Float[Numbers, "*N"],
    *,
    target: float,
    beta: float,
) -> Float[Array, "*N"]:
    r"""Returns each candidate's quality scaled by a power of its excess cost.

    .. math:: R_n = Q_n \, \max(1, C_n / C^*)^\beta

    As `soft_exponential_reward`, but inside the budget the reward is the quality.

    Args:
      quality: Q >= 0, higher is better (an accuracy, never a negated loss). Shape [*N].
      cost: C, in the unit of `target`. Same shape.
      target: C*, the cost not to exceed; a positive Python number.
      beta: exponent; negative to punish cost.

    Returns:
      R, in the unit and shape of `quality`, float32; finite for finite arguments.

    Raises:
      ValueError: if `target` is not positive, or a known quality is negative.

    Reference:
      Tan et al., MnasNet, 2019 (hard constraint), https://arxiv.org/abs/1807.11626

    Example:
      >>> quality, cost = jnp.array([0.75, 0.75]), jnp.array([0.5, 2.0])
      >>> hard_exponential_reward(quality, cost, target=1.0, beta=-1.0).tolist()
      [0.75, 0.375]
    """
    _check_target(target)
    _check_quality(quality)
    ratio = jnp.maximum(_float32(cost) / target, 1.0)
    return jnp.maximum(_float32(quality), 0.0) * ratio**beta


def _float32(x: Numbers) -> Array:
    return jnp.asarray(x, jnp.float32)


def _check_target(target: float) -> None:
    if not target > 0:
        raise ValueError(f"target must be positive (a cost to reach), got {target}")


def _check_penalty(beta: float) -> None:
    if not beta >= 0:
        raise ValueError(
            f"beta must not be negative (it would reward a missed target), got {beta}"
        )


def _check_quality(quality: Numbers) -> None:
    try:
        known = np.asarray(quality)
    except jax.errors.TracerArrayConversionError:
        return  # inside jit the values are not known; the rewards say what then
    if (known < 0).any():
        raise ValueError(
            "an exponential reward needs quality >= 0, got "
            f"{known.min()}: use an accuracy, or absolute_reward for a negated loss"
        )
