"""Flags of launchers that choose formats for sites: what may be chosen, and by whom.

Beside `common`, whose flags every launcher has.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
from absl import flags
from flax import nnx

import fliqs_jax as fq
from experiments import common, cost_flags, parsing
from fliqs_jax import costs
from fliqs_jax.data import AugmentConfig, Dataset, augment, default_augmentation
from fliqs_jax.runs.bit_search import QBitOptSettings
from fliqs_jax.site_patterns import match_paths
from fliqs_jax.train.classifier import Augment, image_sites

FLAGS = flags.FLAGS


def define_space_flags() -> None:
    """Defines which decisions there are, and a policy to train at instead."""
    define_decision_flags()
    common.define(
        "string",
        "policy",
        None,
        "Train at this instead of searching: a format name, a policy.json, or "
        "random:SEED (a policy of the target's cost, within 3 %).",
    )


def define_decision_flags() -> None:
    """Defines which decisions there are."""
    common.define("bool", "weights_only", False, "Search the weights' formats alone.")
    common.define(
        "bool",
        "separate",
        None,
        "A decision each for weights and input (default: the method's own way).",
    )
    common.define(
        "list", "pins", [], "Fixed sites, path or regex: Conv_0=int8,Dense_0=int8."
    )
    common.define(
        "string",
        "first_last",
        "",
        "Pins the first and the last site, if --pins does not: int8, as is customary.",
    )
    common.define(
        "list", "groups", [], "Regexes; the sites each matches share a decision."
    )


def space_and_policy(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    settings: fq.FliqsSettings | QBitOptSettings,
    *,
    separate: bool = False,
    attention_products: bool = False,
) -> tuple[fq.SearchSpace, fq.Policy | None]:
    """Returns the decisions, and the policy to train at if nothing is to be searched.

    Args:
      model: the network.
      dataset: its data.
      settings: of the method.
      separate: whether weights and inputs have decisions of their own, unless the flag
        says.
      attention_products: with the products inside attention layers.
    """
    cost = cost_flags.site_cost(per_channel=settings.per_channel)
    shape = dataset.train.image_shape
    sites = image_sites(model, shape, attention_products=attention_products)
    space = search_space(sites, FLAGS.formats, separate=separate)
    policy = fixed_policy(space, cost)
    if policy is not None:
        space = search_space(sites, formats_with(policy), separate=separate)
    return space, policy


def formats_with(policy: fq.Policy) -> list[str]:
    """Returns --formats with room for those of a policy, where nothing is searched."""
    names = [name.removeprefix("u") for pair in policy.values() for name in pair]
    return list(dict.fromkeys([*FLAGS.formats, *names]))


def search_space(
    sites: tuple[fq.Site, ...], formats: list[str], *, separate: bool = False
) -> fq.SearchSpace:
    """Returns the decisions that the flags describe."""
    if FLAGS.weights_only:
        separate = False
    return fq.SearchSpace(
        sites,
        formats,
        weights_only=FLAGS.weights_only,
        separate=separate if FLAGS.separate is None else FLAGS.separate,
        groups=FLAGS.groups or None,
        pins=pins(sites) or None,
    )


def pins(sites: tuple[fq.Site, ...]) -> dict[str, str]:
    """Returns the pinned sites' formats, by path or pattern."""
    given = parsing.parse_options("pins")
    if not FLAGS.first_last:
        return given
    pinned = {
        path for pattern in given for path in match_paths(sites, pattern, role="pin")
    }
    edges = {site.path for site in (sites[0], sites[-1])} - pinned
    return {**given, **dict.fromkeys(sorted(edges), FLAGS.first_last)}


def fixed_policy(space: fq.SearchSpace, cost: costs.SiteCost) -> fq.Policy | None:
    """Returns the policy to train at, or None for a search."""
    if FLAGS.policy is None:
        return None
    if FLAGS.policy.endswith(".json"):
        return load_policy()
    if not FLAGS.policy.startswith("random:"):
        return uniform_policy(space.sites)
    table = costs.cost_table(space, cost)
    target = FLAGS.cost_target * table.reference(FLAGS.cost_reference)
    seed = parsing.seed_of("policy", FLAGS.policy)
    (options,) = costs.random_policies_of_equal_cost(table, target, count=1, seed=seed)
    return space.policy(options)


def uniform_policy(sites: tuple[fq.Site, ...]) -> fq.Policy:
    """Returns the policy of the format that --policy names, pins excepted."""
    try:
        fq.parse_format(FLAGS.policy)
    except ValueError as error:
        raise ValueError(
            f"--policy={FLAGS.policy} is no policy.json, and no format: {error}"
        ) from error
    return fq.Policy.uniform(sites, FLAGS.policy, pins=pins(sites))


def load_policy() -> fq.Policy:
    """Returns the policy in the file of --policy."""
    try:
        return fq.Policy.load(FLAGS.policy)
    except FileNotFoundError:
        raise ValueError(f"--policy={FLAGS.policy}: there is no such file") from None


def search_arguments(
    dataset: Dataset,
    settings: fq.FliqsSettings | QBitOptSettings,
    *,
    idle: Collection[str],
) -> dict[str, Any]:
    """Returns what searches inside one training run take alike from the flags.

    Args:
      dataset: that is trained on.
      settings: of the method.
      idle: flags that have no effect.
    """
    variables, record = common.initial_variables()
    return {
        "workdir": FLAGS.workdir,
        "cost_target": FLAGS.cost_target,
        "job": common.job_settings(),
        "cost": cost_flags.site_cost(per_channel=settings.per_channel),
        "cost_reference": FLAGS.cost_reference,
        "optimizer": optimizer_settings(),
        "augment": augmentation(dataset),
        "variables": variables,
        "skip_variables": FLAGS.init_skip,
        "config": {**common.run_config(idle=idle), **record},
    }


def augmentation(dataset: Dataset) -> Augment:
    """Returns what is done to training images: as the flags say, or as is usual."""
    usual = default_augmentation(dataset.name)
    if dataset.fingerprint:  # nobody knows what images of one's own can bear
        usual = AugmentConfig()
    given = {
        name: FLAGS[name].value
        for name in ("crop_padding", "flip")
        if FLAGS[name].value is not None
    }
    return functools.partial(
        augment, **dataclasses.asdict(dataclasses.replace(usual, **given))
    )


def optimizer_settings() -> fq.OptimizerSettings:
    """Returns how the weights are trained."""
    return parsing.settings_of(fq.OptimizerSettings, name=FLAGS.optimizer)
