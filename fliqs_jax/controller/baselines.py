"""Running means of the reward, which a policy gradient subtracts to lose variance.

Not here: baselines from other candidates of the same batch (`policy_gradient`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fliqs_jax.checks import check_within


class BaselineState(NamedTuple):
    """A running mean of rewards."""

    mean: Float[Array, ""]  # 0 before the first reward
    num_rewards: Int[Array, ""]  # rewards seen


def init_baseline() -> BaselineState:
    """Returns a baseline that has seen no reward.

    Example:
      >>> int(init_baseline().num_rewards)
      0
    """
    return BaselineState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def update_baseline(
    state: BaselineState, reward: Float[Array, ""], *, decay: float = 0.99
) -> BaselineState:
    r"""Returns the exponential mean after one more reward; the first one starts it.

    .. math:: b_1 = R_1, \quad b_n = b_{n-1} + (1 - d)(R_n - b_{n-1})

    The form with one product leaves a constant reward's mean bit for bit; written as
    d*b + (1 - d)*R it is off by one ulp, which Adam blows up to a full step.

    Args:
      state: the mean so far.
      reward: R, a scalar, averaged over devices.
      decay: d in [0, 1): 0.99 remembers about 100 rewards.

    Returns:
      The next state; its `mean` includes `reward`.

    Raises:
      ValueError: if `decay` is outside [0, 1).

    Reference:
      The FLIQS authors' published code (baseline updated before the advantage).

    Example:
      >>> state = update_baseline(init_baseline(), jnp.float32(2.0), decay=0.75)
      >>> float(update_baseline(state, jnp.float32(4.0), decay=0.75).mean)
      2.5
    """
    _check_decay(decay)
    rate = jnp.where(state.num_rewards == 0, 1.0, 1.0 - decay)
    return _move(state, reward, rate)


def update_debiased_baseline(
    state: BaselineState, reward: Float[Array, ""], *, decay: float = 0.95
) -> BaselineState:
    r"""Returns the zero-debiased exponential mean after one more reward.

    .. math:: b_n = \sum_{i \le n} d^{n-i} R_i \Big/ \sum_{i \le n} d^{n-i}

    Early on it is the plain average, so the first reward has no lasting weight.

    Args:
      state: the mean so far.
      reward: R, a scalar, averaged over devices.
      decay: d in [0, 1): 0.95 remembers about 20 rewards.

    Returns:
      The next state; its `mean` includes `reward`.

    Raises:
      ValueError: if `decay` is outside [0, 1).

    Reference:
      Bender et al., TuNAS, 2020, https://arxiv.org/abs/2008.06120

    Example:
      >>> state = update_debiased_baseline(init_baseline(), jnp.float32(3.0), decay=0.5)
      >>> float(update_debiased_baseline(state, jnp.float32(6.0), decay=0.5).mean)
      5.0
    """
    _check_decay(decay)
    weights_sum = 1.0 - jnp.float32(decay) ** (state.num_rewards + 1)
    # The first rate is 1 but for rounding, which would leave the mean off by an ulp.
    rate = jnp.where(state.num_rewards == 0, 1.0, (1.0 - decay) / weights_sum)
    return _move(state, reward, rate)


def _move(state: BaselineState, reward: Array, rate: Array) -> BaselineState:
    mean = state.mean + rate * (reward - state.mean)
    return BaselineState(mean, state.num_rewards + 1)


def _check_decay(decay: float) -> None:
    check_within("[0, 1)", decay=decay)
