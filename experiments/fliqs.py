"""Finds a number format for every layer in one training run (FLIQS).

  python -m experiments.fliqs --workdir=runs/digits \
      --flagfile=experiments/presets/digits.flags

Run again with the same workdir to resume. With --policy it trains at that policy
instead of searching; with --init_from the weights start from a checkpoint. Writes
policy.json, summary.json, metrics.jsonl, report.html and checkpoints/.
"""

import dataclasses
import inspect

import flax.linen as nn
from absl import app, flags
from flax import nnx

import fliqs_jax as fq
from experiments import common, search_flags
from fliqs_jax import controller
from fliqs_jax.data import Dataset
from fliqs_jax.searchers.format_search import (
    PUBLISHED,
    FliqsSettings,
    Recipe,
    recipe,
    search_formats,
)
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
    "quality", "judge_on_validation", "warmup_fraction", "final_fraction", "selection",
)  # fmt: skip

common.define_common_flags(steps=5000)
common.define_start_flags()
common.define_process_flags()
common.define("enum", "form", "default", "Of the controller.", enum_values=[*FORMS])
common.define("integer", "policy_every", None, "Steps between controller updates.")
common.define("integer", "policy_samples", None, "Policies judged on one batch.")
common.define("float", "policy_temperature", None, "First temperature (default form).")
common.define("float", "policy_ridge", None, "Of the loss model (default form).")
common.define("float", "policy_learning_rate", None, "Adam's, on the logits.")
common.define("float", "entropy_weight", None, "At the end of the search.")
common.define(
    "enum", "entropy_schedule", None, "To that weight.", enum_values=[*SCHEDULES]
)
common.define("enum", "reward", None, "From quality, cost.", enum_values=[*REWARDS])
common.define("float", "cost_beta", None, "Loss that a cost error of 100 % is worth.")
common.define(
    "enum",
    "quality",
    "loss",
    "Policies are judged by.",
    enum_values=["loss", "accuracy"],
)
common.define(
    "bool", "judge_on_validation", False, "Judge policies on held-out batches."
)
common.define("float", "warmup_fraction", None, "Of the steps, with uniform policies.")
common.define("float", "final_fraction", None, "Of the steps, at the policy found.")
common.define(
    "enum",
    "selection",
    None,
    "Of the final policy.",
    enum_values=["within_budget", "argmax"],
)
common.define(
    "enum",
    "scales",
    None,
    "Clip bounds by squared error, or absmax.",
    enum_values=["calibrated", "absmax"],
)
common.define(
    "integer", "calibrate_every", 100, "Steps between updates of the clip bounds."
)
common.define("bool", "per_channel", None, "One weight scale an output channel.")
common.define("bool", "clip_gradient", None, "No gradient to clipped values.")
search_flags.define_space_flags()
common.define(
    "bool",
    "attention_products",
    False,
    "Formats for q k^T and softmax(.) v, too, the products in attention layers.",
)


def main(argv: list[str]) -> None:
    common.run_or_exit(argv, run, distributed=True)


def run() -> None:
    """Turns the flags into objects and searches."""
    common.job_settings()  # a mistake there shows before data is read
    settings = fliqs_settings()
    for note in idle_flags(settings):
        common.say(note)
    dataset = common.dataset()
    model = common.model(dataset.num_classes)
    space, policy = search_flags.space_and_policy(
        model,
        dataset.train.image_shape,
        common.site_cost(per_channel=settings.per_channel),
        attention_products=FLAGS.attention_products,
    )
    train(model, dataset, space, workdir=FLAGS.workdir, policy=policy)


def train(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    space: fq.SearchSpace,
    *,
    workdir: str,
    policy: fq.Policy | None,
) -> None:
    """Searches, or trains at a policy, as the flags say."""
    settings = fliqs_settings()
    variables, record = common.initial_variables()
    search_formats(
        model,
        dataset,
        space,
        workdir=workdir,
        cost_target=FLAGS.cost_target,
        job=common.job_settings(),
        cost=common.site_cost(per_channel=settings.per_channel),
        cost_reference=FLAGS.cost_reference,
        fliqs=settings,
        optimizer=search_flags.optimizer_settings(),
        augment=search_flags.augmentation(),
        policy=policy,
        variables=variables,
        skip_variables=FLAGS.init_skip,
        config={**common.run_config(), **record},
    )


def fliqs_settings() -> FliqsSettings:
    """Returns the method's settings: those of the form, changed by the flags given."""
    base = PUBLISHED if FLAGS.form == "published" else FliqsSettings()
    fields = {
        "judge_every": FLAGS.policy_every,
        "final_fraction": FLAGS.final_fraction,
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


def idle_flags(settings: FliqsSettings) -> list[str]:
    """Returns a note for each flag given that changes nothing in this run.

    Notes, not errors: `compare` runs one preset with and without a fixed policy.
    """
    idle = {}
    if FLAGS.policy is not None:
        idle = dict.fromkeys(SEARCH_FLAGS, "--policy leaves nothing to search")
    if settings.dynamic_scales:
        idle["calibrate_every"] = "absmax scales need no calibration"
    return [
        f"note: --{name} has no effect: {reason}"
        for name, reason in idle.items()
        if FLAGS[name].present
    ]


def controller_recipe() -> Recipe:
    """Returns the controller of --form; a flag that it does not have is an error."""
    make = FORMS[FLAGS.form]
    accepted = inspect.signature(make).parameters
    arguments = {
        "num_samples": ("policy_samples", FLAGS.policy_samples),
        "learning_rate": ("policy_learning_rate", FLAGS.policy_learning_rate),
        "entropy_weight": ("entropy_weight", FLAGS.entropy_weight),
        "entropy_schedule": (
            "entropy_schedule",
            SCHEDULES.get(FLAGS.entropy_schedule),
        ),
        "reward": ("reward", REWARDS.get(FLAGS.reward)),
        "beta": ("cost_beta", FLAGS.cost_beta),
        "temperature": ("policy_temperature", FLAGS.policy_temperature),
        "ridge": ("policy_ridge", FLAGS.policy_ridge),
    }
    given = {}
    for name, (flag, value) in arguments.items():
        if value is None:
            continue
        if name not in accepted:
            raise ValueError(f"--{flag} has no meaning for --form={FLAGS.form}")
        given[name] = value
    exponential = FLAGS.reward in ("soft_exponential", "hard_exponential")
    if exponential and FLAGS.quality != "accuracy":
        raise ValueError(
            f"--reward={FLAGS.reward} needs a quality that is never negative: add "
            "--quality=accuracy"
        )
    return recipe(make, **given)


def _chosen(value: str | None, name: str) -> bool | None:
    return None if value is None else value == name


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
