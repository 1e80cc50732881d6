"""Flags of searches inside one training run: the controller's form, its phases, scales.

Beside `common`, whose flags every launcher has, and `search_flags`, those of formats.
"""

import dataclasses
import inspect

from absl import flags

from experiments import common
from fliqs_jax import controller
from fliqs_jax.searchers.in_training.controllers import Recipe, recipe
from fliqs_jax.searchers.in_training.settings import PUBLISHED, FliqsSettings
from fliqs_jax.train.losses import correct

FLAGS = flags.FLAGS

FORMS = {
    "default": controller.default,
    "leave_one_out": controller.leave_one_out,
    "published": controller.published,
}
REWARDS = {
    "absolute": controller.absolute_reward,
    "one_sided": controller.one_sided_reward,
    "soft_exponential": controller.soft_exponential_reward,
    "hard_exponential": controller.hard_exponential_reward,
}
SCHEDULES = {
    "cosine": controller.half_cosine,
    "linear": controller.linear,
    "constant": lambda end, *, delay, total: controller.constant(end),
    "heaviside": lambda end, *, delay, total: controller.heaviside(end, total=total),
}

# What a run at a fixed policy (--policy) has no use for.
SEARCH_FLAGS = (
    "policy_every", "policy_samples", "policy_temperature", "policy_ridge",
    "policy_learning_rate", "entropy_weight", "entropy_schedule", "reward", "cost_beta",
    "quality", "judge_on_validation", "warmup_fraction", "final_fraction",
    "restart_schedule", "selection",
)  # fmt: skip


def define_one_shot_flags() -> None:
    """Defines how the search goes; None is the form's own setting."""
    common.define("enum", "form", "default", "Of the controller.", values=FORMS)
    common.define("integer", "policy_every", None, "Steps between controller updates.")
    common.define("integer", "policy_samples", None, "Policies judged on one batch.")
    common.define(
        "float", "policy_temperature", None, "First temperature (default form)."
    )
    common.define("float", "policy_ridge", None, "Of the loss model (default form).")
    common.define("float", "policy_learning_rate", None, "Adam's, on the logits.")
    common.define("float", "entropy_weight", None, "At the end of the search.")
    common.define("enum", "entropy_schedule", None, "To that weight.", values=SCHEDULES)
    common.define("enum", "reward", None, "From quality, cost.", values=REWARDS)
    common.define(
        "float", "cost_beta", None, "Loss that a cost error of 100 % is worth."
    )
    common.define(
        "enum",
        "quality",
        "loss",
        "Policies are judged by.",
        values=["loss", "accuracy"],
    )
    common.define(
        "bool", "judge_on_validation", False, "Judge policies on held-out batches."
    )
    common.define(
        "float", "warmup_fraction", None, "Of the steps, with uniform policies."
    )
    common.define("float", "final_fraction", None, "Of the steps, at the policy found.")
    common.define(
        "bool",
        "restart_schedule",
        None,
        "Those have a learning-rate schedule of their own (FLIQNAS does).",
    )
    common.define(
        "enum",
        "selection",
        None,
        "Of the final policy.",
        values=["within_budget", "argmax"],
    )
    common.define(
        "enum",
        "scales",
        None,
        "Clip bounds by squared error, or absmax.",
        values=["calibrated", "absmax"],
    )
    common.define(
        "integer", "calibrate_every", 100, "Steps between updates of the clip bounds."
    )
    common.define("bool", "per_channel", None, "One weight scale an output channel.")
    common.define("bool", "clip_gradient", None, "No gradient to clipped values.")


def search_settings(base: FliqsSettings) -> FliqsSettings:
    """Returns the settings of the form, changed by the flags given.

    Args:
      base: those of the forms that are not the published one.
    """
    base = PUBLISHED if FLAGS.form == "published" else base
    fields = {
        "judge_every": FLAGS.policy_every,
        "final_fraction": FLAGS.final_fraction,
        "restart_schedule": FLAGS.restart_schedule,
        "per_channel": FLAGS.per_channel,
        "clip_gradient": FLAGS.clip_gradient,
        "within_budget": _chosen(FLAGS.selection, "within_budget"),
        "dynamic_scales": _chosen(FLAGS.scales, "absmax"),
        "quality": correct if FLAGS.quality == "accuracy" else None,
        "warmup_fraction": FLAGS.warmup_fraction,
        "calibrate_every": FLAGS.calibrate_every,
        "label_smoothing": FLAGS.label_smoothing,
        "recipe": controller_recipe(),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return dataclasses.replace(base, **given)


def idle_flags(settings: FliqsSettings, *, given: str | None) -> dict[str, str]:
    """Returns the flags that change nothing in this run, and why.

    Notes, not errors: `compare` runs one preset with and without a fixed policy.

    Args:
      settings: of the run.
      given: the flags that leave nothing to search, if any do.
    """
    idle = {}
    if given is not None:
        idle = dict.fromkeys(SEARCH_FLAGS, f"{given} leaves nothing to search")
    elif not settings.final_fraction:
        idle["restart_schedule"] = "no steps are left at what is found"
    if settings.dynamic_scales:
        idle["calibrate_every"] = "absmax scales need no calibration"
    return idle


def controller_recipe() -> Recipe:
    """Returns the controller of --form; a flag that it does not have is an error."""
    make = FORMS[FLAGS.form]
    accepted = inspect.signature(make).parameters
    flag_of = {
        "num_samples": "policy_samples",
        "learning_rate": "policy_learning_rate",
        "entropy_weight": "entropy_weight",
        "entropy_schedule": "entropy_schedule",
        "reward": "reward",
        "beta": "cost_beta",
        "temperature": "policy_temperature",
        "ridge": "policy_ridge",
    }
    functions = {"entropy_schedule": SCHEDULES, "reward": REWARDS}
    given = {}
    for name, flag in flag_of.items():
        value = FLAGS[flag].value
        if value is None:
            continue
        if name not in accepted:
            raise ValueError(f"--{flag} has no meaning for --form={FLAGS.form}")
        given[name] = functions[name][value] if name in functions else value
    exponential = FLAGS.reward in ("soft_exponential", "hard_exponential")
    if exponential and FLAGS.quality != "accuracy":
        raise ValueError(
            f"--reward={FLAGS.reward} needs a quality that is never negative: add "
            "--quality=accuracy"
        )
    return recipe(make, **given)


def _chosen(value: str | None, name: str) -> bool | None:
    return None if value is None else value == name
