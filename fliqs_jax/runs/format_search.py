"""A format search from plain objects to a finished workdir.

Puts the pieces of a FLIQS run together: network, space, cost, controller, phases. What
happens in a step is in `fliqs`, what every search does with a searcher in `search_run`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from flax import nnx

from fliqs_jax.checks import check_positive
from fliqs_jax.costs import SiteCost, check_target, cost_table, site_bops
from fliqs_jax.data import Dataset
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs import run_folder
from fliqs_jax.runs.results import SearchResult
from fliqs_jax.runs.search_run import OptimizerSettings, run_search
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.fliqs import Fliqs
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.train.classifier import Augment, Classifier
from fliqs_jax.train.job import JobSettings


def search_formats(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    space: SearchSpace,
    *,
    workdir: str,
    cost_target: float,
    job: JobSettings,
    cost: SiteCost = site_bops,
    cost_reference: str = "int8",
    fliqs: FliqsSettings = FliqsSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
    augment: Augment | None = None,
    policy: Policy | None = None,
    variables: Mapping[str, Any] | None = None,
    skip_variables: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> SearchResult:
    """Finds a format for every site in one training run, and trains the weights.

    Run again with the same workdir and arguments, it continues where it stopped, or
    returns the finished result.

    Args:
      model: a linen or NNX module called as `model(images)` with float images
        [B, H, W, C], and `train=` or a like argument if it has one. Where it averages
        over devices (`nn.BatchNorm(axis_name=...)`), their axis is "data". Training
        starts from the values of an NNX model, and leaves the model alone.
      dataset: from `load_dataset` or `make_dataset`.
      space: what may be chosen.
      workdir: a new folder, or that of the same run.
      cost_target: budget as a fraction of the reference's cost, positive.
      job: steps, batch size, seed, and how to run.
      cost: price of one site, from `fliqs_jax.costs`: `site_bops`, `site_mean_bits`,
        `site_activation_size`, `make_site_storage()`, `make_site_latency(device)`,
        `make_table_latency(LatencyTable.load(file))`; or your own.
      cost_reference: format of the uniform policy that costs 1.
      fliqs: settings of the method.
      optimizer: of the weights.
      augment: `(key, images) -> images` for training batches, on device.
      policy: train at this policy instead of searching.
      variables: trained variables to start from, `{"params": ...}` and, if there are
        any, other collections such as `batch_stats`; `load_variables` reads them from a
        checkpoint. The optimizer's settings are not changed by it: fine-tuning wants a
        lower learning rate and fewer steps.
      skip_variables: patterns of leaves that start fresh even so, such as a new head's
        ("Dense_0/.*"); see `fliqs_jax.train.fitting`.
      config: what else identifies the run, for its `config.json`.
      say: receives what a person wants to read.

    Raises:
      ValueError: before any compilation, if an argument is out of range, the budget out
        of reach, the variables another model's, or the workdir another run's.
      TrainingDiverged: if the loss became NaN or infinite.
    """
    check_positive(cost_target=cost_target)
    costs = cost_table(space, cost)
    target = cost_target * costs.reference(cost_reference)
    if policy is None:
        check_target(costs, cost_target, cost_reference)
    phases = fliqs.make_phases(job.steps, searching=policy is None)
    classifier = Classifier.of(
        QuantizedModel(
            model,
            sites=space.sites,
            per_channel=fliqs.per_channel,
            clip_gradient=fliqs.clip_gradient,
        ),
        dataset,
        augment,
    )
    searcher = Fliqs(
        classifier=classifier,
        space=space,
        costs=costs,
        target=target,
        controller=fliqs.recipe(costs, target, phases),
        phases=phases,
        optimizer=optimizer.make(job.steps, restart_at=fliqs.restart_at(phases)),
        settings=fliqs,
        policy=policy,
        variables=variables,
        skip_variables=tuple(skip_variables),
    )
    return run_search(
        searcher,
        dataset,
        job,
        workdir=workdir,
        method="fliqs",
        cost_target=cost_target,
        cost_reference=cost_reference,
        identity={
            "phases": dataclasses.asdict(phases),
            "settings": run_folder.describe_settings(fliqs),
            "optimizer": run_folder.describe_settings(optimizer),
            "augment": run_folder.describe_settings(augment),
            "fixed_policy": run_folder.describe_policy(policy),
        },
        config=config,
        say=say,
    )
