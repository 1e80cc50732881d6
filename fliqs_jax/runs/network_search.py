"""A search for a network and its formats, from plain objects to a finished workdir.

Puts the pieces of a FLIQNAS run together, and at its end takes the small network out of
the super-network: an ordinary model that is tested, saved and loaded as any other. What
happens in a step is in `fliqnas`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Int

from fliqs_jax.checks import check_positive
from fliqs_jax.costs import SiteCost, check_fraction, site_bops
from fliqs_jax.data import Dataset
from fliqs_jax.models.supernets import SupernetRecord, architecture_record
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.report import write_network_report
from fliqs_jax.runs import results, run_folder
from fliqs_jax.runs.found_network import FoundNetwork, write_network_results
from fliqs_jax.runs.network import save_network
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.searchers.fliqnas import Fliqnas, allowed_options
from fliqs_jax.searchers.in_training.settings import FLIQNAS, FliqsSettings
from fliqs_jax.searchers.joint.budget import joint_extremes
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.subnetwork_classifier import SubnetworkClassifier
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import Augment, Classifier
from fliqs_jax.train.job import JobSettings, run_job
from fliqs_jax.train.mapping import make_mesh


def search_network(
    space: JointSpace,
    dataset: Dataset,
    *,
    workdir: str,
    cost_target: float,
    job: JobSettings,
    cost: SiteCost = site_bops,
    cost_reference: str = "int8",
    settings: FliqsSettings = FLIQNAS,
    optimizer: OptimizerSettings = OptimizerSettings(),
    augment: Augment | None = None,
    architecture: Int[ArrayLike, "A"] | None = None,
    policy: Policy | None = None,
    variables: Mapping[str, Any] | None = None,
    skip_variables: Sequence[str] = (),
    made_by: SupernetRecord | None = None,
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> results.SearchResult:
    """Finds an architecture and formats in one training run, and trains the weights.

    Run again with the same workdir and arguments, it continues where it stopped, or
    returns the finished result.

    Args:
      space: the super-network and the formats of its sites, without weight modes.
      dataset: from `load_dataset`.
      workdir: a new folder, or that of the same run.
      cost_target: budget as a fraction of what the full network costs with the format
        `cost_reference` everywhere; positive.
      job: steps, batch size, seed, and how to run.
      cost: price of one site.
      cost_reference: format of the full network that costs 1.
      settings: of the method.
      optimizer: of the weights.
      augment: `(key, images) -> images` for training batches, on device.
      architecture: option indices: formats alone are searched, for this sub-network.
      policy: formats of the full network's sites: the architecture alone is searched.
        With both there is nothing to search, and no budget: the network is trained.
      variables: trained ones of the full network to start from; None starts fresh.
      skip_variables: patterns of leaves that start fresh even so.
      made_by: how the super-network was created, which lets `load_network` make the
        small one; None leaves that to its caller.
      config: what else identifies the run, for its `config.json`.
      say: receives what a person wants to read.

    Returns:
      The result; its policy is about the small network's sites, its summary has the
      `architecture`.

    Raises:
      ValueError: before any compilation, if an argument is out of range, the budget out
        of reach, the variables another model's, or the workdir another run's.
      TrainingDiverged: if the loss became NaN or infinite.
    """
    say = processes.spoken_once(say)
    mesh, costs = make_mesh(), JointCost(space, cost)
    check_positive(cost_target=cost_target)
    fixed = _fixed(space, architecture, policy)
    reference = costs.reference(cost_reference)
    least, most = joint_extremes(costs, allowed_options(costs, fixed))
    searching = bool((fixed < 0).any())
    if searching:
        check_fraction(
            cost_target,
            f"the full network in uniform {cost_reference}",
            unit=reference,
            least=least,
            most=most,
            num_decisions=int((fixed < 0).sum()),
        )
    phases = settings.make_phases(job.steps, searching=searching)
    target = cost_target * reference
    quantized = QuantizedModel(
        space.net.model,
        sites=space.net.sites,
        per_channel=settings.per_channel,
        clip_gradient=settings.clip_gradient,
    )
    classifier = Classifier.of(quantized, dataset, augment)
    searcher = Fliqnas(
        classifier=SubnetworkClassifier(classifier, space.net),
        costs=costs,
        target=target,
        controller=settings.recipe(costs, target, phases),
        phases=phases,
        optimizer=optimizer.make(job.steps, restart_at=settings.restart_at(phases)),
        fixed=fixed,
        settings=settings,
        variables=variables,
        skip_variables=tuple(skip_variables),
    )
    made_by = made_by or SupernetRecord(
        None, {}, dataset.num_classes, dataset.train.image_shape
    )
    identity = {
        "method": "fliqnas",
        **run_folder.describe_data(dataset),
        "sites": results.describe_sites(space.net.sites),
        "decisions": list(space.counts),
        "options": list(space.space.option_names),
        # Of the decisions about the architecture, which come first.
        "architecture_options": {d.name: list(d.options) for d in space.net.decisions},
        "fixed": fixed.tolist(),
        **run_folder.describe_cost(cost, reference=reference, least=least, most=most),
        "cost_reference": cost_reference,
        "cost_target": cost_target,
        "phases": dataclasses.asdict(phases),
        "settings": run_folder.describe_settings(settings),
        "optimizer": run_folder.describe_settings(optimizer),
        "augment": run_folder.describe_settings(augment),
        **run_folder.describe_job(job, mesh),
        "network": run_folder.describe_network(
            dataset, space.net.sites, per_channel=settings.per_channel
        ),
        **run_folder.describe_start(
            searcher.classifier, dataset, variables, skip_variables, say
        ),
    }
    with run_folder.open_run(workdir, identity, config) as (folder, finished):
        if finished:
            results.say_finished(folder, say, write_page=write_network_report)
            return results.finished_result(folder)
        state, _, facts = run_job(
            searcher, dataset, job, workdir=str(folder), mesh=mesh, say=say
        )
        found = FoundNetwork.of(searcher, state, dataset, job, mesh)
        save_network(folder, found.variables, found.formats, found.classifier)
        summary = {
            **found.summary(),
            "cost_target": target,
            "cost_ratio": found.price / target,
            "cost_of_reference": reference,
            "steps": job.steps,
            "seed": job.seed,
            **searcher.summary(state),
            **facts,
        }
        record = architecture_record(space.net, made_by, found.choice)
        processes.on_main(
            lambda: write_network_results(folder, found, record, summary, say)
        )
        return results.finished_result(folder)


def _fixed(
    space: JointSpace, architecture: Int[ArrayLike, "A"] | None, policy: Policy | None
) -> Int[np.ndarray, "L"]:
    """Returns the options made beforehand, -1 where there is a search."""
    choice = np.full(len(space.net.counts), -1, np.int32)
    options = np.full(space.space.num_decisions, -1, np.int32)
    if architecture is not None:
        choice = space.net.check_choice(architecture)
    if policy is not None:
        options = space.space.options(policy)
    return np.concatenate([choice, options])
