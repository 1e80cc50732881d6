"""The policy that a search learns: sampling, rewards, entropy schedules, updates."""

from fliqs_jax.controller.baselines import (
    BaselineState,
    init_baseline,
    update_baseline,
    update_debiased_baseline,
)
from fliqs_jax.controller.expected_cost import meet_expected_cost
from fliqs_jax.controller.loss_model import (
    LossModelState,
    init_loss_model,
    loss_model_increment,
    option_effects,
    update_loss_model,
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
from fliqs_jax.controller.recipes import default, leave_one_out, published
from fliqs_jax.controller.rewards import (
    absolute_reward,
    hard_exponential_reward,
    one_sided_reward,
    soft_exponential_reward,
)
from fliqs_jax.controller.schedules import constant, half_cosine, heaviside, linear
from fliqs_jax.controller.update import Controller, ControllerState, Proposal

__all__ = [
    "BaselineState",
    "Controller",
    "ControllerState",
    "LossModelState",
    "Proposal",
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
    "init_loss_model",
    "joint_log_probability",
    "leave_one_out",
    "leave_one_out_advantages",
    "linear",
    "log_probability",
    "loss_model_increment",
    "meet_expected_cost",
    "one_sided_reward",
    "option_effects",
    "published",
    "reinforce_gradient",
    "sample_options",
    "soft_exponential_reward",
    "update_baseline",
    "update_debiased_baseline",
    "update_loss_model",
]
