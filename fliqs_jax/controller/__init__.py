"""The policy that a search learns: sampling, rewards, entropy schedules, updates."""

from fliqs_jax.controller.baselines import (
    BaselineState,
    init_baseline,
    update_baseline,
    update_debiased_baseline,
)
from fliqs_jax.controller.policy_gradient import (
    decision_log_probabilities,
    entropy,
    entropy_gradient,
    joint_log_probability,
    leave_one_out_advantages,
    log_probability,
    reinforce_gradient,
    sample_options,
)
from fliqs_jax.controller.recipes import default, published
from fliqs_jax.controller.rewards import (
    absolute_reward,
    hard_exponential_reward,
    one_sided_reward,
    soft_exponential_reward,
)
from fliqs_jax.controller.schedules import constant, half_cosine, heaviside, linear
from fliqs_jax.controller.update import Controller, ControllerState, Judgement

__all__ = [
    "BaselineState",
    "Controller",
    "ControllerState",
    "Judgement",
    "absolute_reward",
    "constant",
    "decision_log_probabilities",
    "default",
    "entropy",
    "entropy_gradient",
    "half_cosine",
    "hard_exponential_reward",
    "heaviside",
    "init_baseline",
    "joint_log_probability",
    "leave_one_out_advantages",
    "linear",
    "log_probability",
    "one_sided_reward",
    "published",
    "reinforce_gradient",
    "sample_options",
    "soft_exponential_reward",
    "update_baseline",
    "update_debiased_baseline",
]
