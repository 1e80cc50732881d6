"""Finds a number format for every layer in one training run (FLIQS).

  python -m experiments.fliqs --workdir=runs/digits \
      --flagfile=experiments/presets/digits.flags

Run again with the same workdir to resume. With --policy it trains at that policy instead
of searching. Writes policy.json, summary.json, metrics.jsonl, report.html, checkpoints/.
"""

import functools

from absl import app, flags

import fliqs_jax as fq
from experiments import common
from fliqs_jax import costs
from fliqs_jax.data import augment, default_augmentation
from fliqs_jax.searchers.format_search import (
    PUBLISHED,
    FliqsSettings,
    OptimizerSettings,
    default_recipe,
    published_recipe,
    search_formats,
)
from fliqs_jax.train.classifier import image_sites

FLAGS = flags.FLAGS

common.define_common_flags(steps=5000)
common.define(
    "enum",
    "form",
    "default",
    "Of the controller.",
    enum_values=["default", "published"],
)
common.define(
    "integer", "policy_every", None, "Steps between updates of the controller."
)
common.define("integer", "policy_samples", None, "Policies judged on one batch.")
common.define("float", "policy_learning_rate", None, "Adam's, on the logits.")
common.define("float", "entropy_weight", None, "At the end of the search.")
common.define("float", "cost_beta", None, "Loss that a cost error of 100 % is worth.")
common.define("float", "warmup_fraction", 0.25, "Of the steps, with uniform policies.")
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
common.define("bool", "weights_only", False, "Search the weights' formats alone.")
common.define("bool", "separate", False, "A decision each for weights and input.")
common.define(
    "list", "pins", [], "Fixed sites, path or regex: Conv_0=int8,Dense_0=int8."
)
common.define("list", "groups", [], "Regexes; the sites each matches share a decision.")
common.define(
    "string",
    "policy",
    None,
    "Train at this instead of searching: a format name, a policy.json, or random:SEED (of the cost target, within 3 %).",
)


def main(argv: list[str]) -> None:
    common.run_or_exit(argv, run)


def run() -> None:
    """Turns the flags into objects and searches."""
    job = common.job_settings()
    settings = fliqs_settings()
    dataset = common.dataset()
    model = common.model(dataset.num_classes)
    sites = image_sites(model, dataset.train.image_shape)
    space = search_space(sites, FLAGS.formats)
    policy = fixed_policy(space)
    if policy is not None:
        # Room for the policy's own formats; nothing is searched.
        names = [name.removeprefix("u") for pair in policy.values() for name in pair]
        space = search_space(sites, list(dict.fromkeys([*FLAGS.formats, *names])))
    augmentation = default_augmentation(FLAGS.dataset)
    search_formats(
        model,
        dataset,
        space,
        workdir=FLAGS.workdir,
        cost_target=FLAGS.cost_target,
        job=job,
        cost=common.site_cost(),
        cost_reference=FLAGS.cost_reference,
        fliqs=settings,
        optimizer=OptimizerSettings(
            name=FLAGS.optimizer,
            learning_rate=FLAGS.learning_rate,
            weight_decay=FLAGS.weight_decay,
        ),
        augment=functools.partial(
            augment, crop_padding=augmentation.crop_padding, flip=augmentation.flip
        ),
        policy=policy,
        config=common.run_config(),
    )


def search_space(sites: tuple[fq.Site, ...], formats: list[str]) -> fq.SearchSpace:
    """Returns the decisions that the flags describe."""
    return fq.SearchSpace(
        sites,
        formats,
        weights_only=FLAGS.weights_only,
        separate=FLAGS.separate,
        groups=FLAGS.groups or None,
        pins=common.parse_options(FLAGS.pins) or None,
    )


def fliqs_settings() -> FliqsSettings:
    """Returns the method's settings: those of the form, changed by the flags given."""
    recipe_flags = {
        "num_samples": FLAGS.policy_samples,
        "learning_rate": FLAGS.policy_learning_rate,
        "entropy_weight": FLAGS.entropy_weight,
        "beta": FLAGS.cost_beta,
    }
    given = {name: value for name, value in recipe_flags.items() if value is not None}
    if FLAGS.form == "published":
        base, make = PUBLISHED, published_recipe
        if given.pop("num_samples", 1) != 1:
            raise ValueError("--policy_samples: the published form draws 1 a step")
    else:
        base, make = FliqsSettings(), default_recipe
    fields = {
        "judge_every": FLAGS.policy_every,
        "final_fraction": FLAGS.final_fraction,
        "per_channel": FLAGS.per_channel,
        "clip_gradient": FLAGS.clip_gradient,
        "within_budget": _chosen(FLAGS.selection, "within_budget"),
        "dynamic_scales": _chosen(FLAGS.scales, "absmax"),
    }
    changed = {name: value for name, value in fields.items() if value is not None}
    return FliqsSettings(
        **{
            **{name: getattr(base, name) for name in base.__dataclass_fields__},
            **changed,
            "recipe": make(**given),
            "warmup_fraction": FLAGS.warmup_fraction,
            "calibrate_every": FLAGS.calibrate_every,
            "label_smoothing": FLAGS.label_smoothing,
        }
    )


def fixed_policy(space: fq.SearchSpace) -> fq.Policy | None:
    """Returns the policy to train at, or None for a search."""
    if FLAGS.policy is None:
        return None
    if FLAGS.policy.endswith(".json"):
        return fq.Policy.load(FLAGS.policy)
    if not FLAGS.policy.startswith("random:"):
        return fq.Policy.uniform(space.sites, FLAGS.policy)
    table = costs.cost_table(space, common.site_cost())
    target = FLAGS.cost_target * table.reference(FLAGS.cost_reference)
    seed = int(FLAGS.policy.removeprefix("random:"))
    (options,) = costs.random_policies_of_equal_cost(table, target, count=1, seed=seed)
    return space.policy(options)


def _chosen(value: str | None, name: str) -> bool | None:
    return None if value is None else value == name


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
