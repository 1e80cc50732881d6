"""Entropy weights over the course of a search: functions that make step -> weight.

Not here: what the weight multiplies (the policy's mean entropy, in the recipes).
Steps may be traced; the weight is float32.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

Schedule = Callable[[Real[ArrayLike, ""]], Float[Array, ""]]


def half_cosine(end: float, *, delay: int, total: int) -> Schedule:
    r"""Makes the published schedule: flat, then half a cosine up to `end`.

    .. math:: s = clip((t - delay) / (total - delay), 0, 1), \quad
              w(t) = end \, (1 - \cos \pi s) / 2

    The slope is zero at both ends, so the policy is first shaped by the reward alone.

    Args:
      end: weight from step `total` on, in units of the loss per nat; not negative.
      delay: last step with weight 0 (the end of the warm-up).
      total: first step with weight `end`; above `delay`.

    Returns:
      A function of the step (traced or not) to the weight, a scalar.

    Raises:
      ValueError: if `end` is negative or `total` is not above `delay`.

    Reference:
      Dotzel et al., FLIQS, 2024 (entropy schedule), https://arxiv.org/abs/2308.03290

    Example:
      >>> weight = half_cosine(0.5, delay=100, total=300)
      >>> [round(float(weight(t)), 6) for t in (0, 100, 200, 300, 400)]
      [0.0, 0.0, 0.25, 0.5, 0.5]
    """
    fraction = _fraction(end, delay, total)
    return lambda step: 0.5 * end * (1.0 - jnp.cos(jnp.pi * fraction(step)))


def linear(end: float, *, delay: int, total: int) -> Schedule:
    """Makes a schedule that rises in a straight line from 0 at `delay` to `end`.

    Args:
      end: weight from step `total` on, in units of the loss per nat; not negative.
      delay: last step with weight 0.
      total: first step with weight `end`; above `delay`.

    Returns:
      A function of the step (traced or not) to the weight, a scalar.

    Raises:
      ValueError: if `end` is negative or `total` is not above `delay`.

    Example:
      >>> weight = linear(0.5, delay=100, total=300)
      >>> [float(weight(t)) for t in (0, 150, 300, 400)]
      [0.0, 0.125, 0.5, 0.5]
    """
    fraction = _fraction(end, delay, total)
    return lambda step: end * fraction(step)


def constant(end: float) -> Schedule:
    """Makes a schedule that is `end` at every step.

    Args:
      end: the weight, in units of the loss per nat; not negative.

    Returns:
      A function of the step (traced or not) to the weight, a scalar.

    Raises:
      ValueError: if `end` is negative.

    Example:
      >>> float(constant(0.5)(7))
      0.5
    """
    _check_end(end)
    return lambda step: jnp.full(jnp.shape(step), end, jnp.float32)


def heaviside(end: float, *, total: int, at: float = 0.5) -> Schedule:
    """Makes a schedule that is 0, then `end` from a fraction of `total` on.

    Args:
      end: the later weight, in units of the loss per nat; not negative.
      total: steps of the run; positive.
      at: fraction of `total` at which the weight jumps, in [0, 1].

    Returns:
      A function of the step (traced or not) to the weight, a scalar.

    Raises:
      ValueError: if `end` is negative, `total` not positive or `at` outside [0, 1].

    Example:
      >>> weight = heaviside(0.5, total=100)
      >>> [float(weight(t)) for t in (0, 49, 50, 100)]
      [0.0, 0.0, 0.5, 0.5]
    """
    _check_end(end)
    if total <= 0 or not 0.0 <= at <= 1.0:
        raise ValueError(
            f"total must be positive and at within [0, 1], got total={total}, at={at}"
        )
    return lambda step: jnp.where(
        jnp.asarray(step, jnp.float32) >= at * total, jnp.float32(end), 0.0
    )


def _fraction(end: float, delay: int, total: int) -> Schedule:
    _check_end(end)
    if total <= delay:
        raise ValueError(
            f"total must be above delay (both in steps), got {total} and {delay}"
        )
    return lambda step: jnp.clip(
        (jnp.asarray(step, jnp.float32) - delay) / (total - delay), 0.0, 1.0
    )


def _check_end(end: float) -> None:
    if not end >= 0:
        raise ValueError(
            f"end must not be negative (it would reward a policy for not deciding), "
            f"got {end}"
        )
