"""A cell search from plain objects to a derived genotype and its records.

Puts the pieces together: space, limits, look-up graphs, signal (a search network or a
table), repair. Training what was derived is a run of its own, by the launcher.
"""

import dataclasses
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from fliqs_jax.checks import check_at_least, check_positive, check_within
from fliqs_jax.data import Dataset
from fliqs_jax.models.cells import (
    NASBENCH201,
    ArchitectureTable,
    CellSpace,
    nasbench201_index,
)
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.searchers.cells.architecture import (
    Architecture,
    ArchitectureSettings,
    ArchitectureState,
)
from fliqs_jax.searchers.cells.expected_accuracy import search_by_table, search_grid
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.cells.look_up_graph import (
    LookUpGraph,
    random_look_up_graph,
    through,
)
from fliqs_jax.searchers.cells.repair import Repair, check_limits
from fliqs_jax.searchers.cells.stage_formats import StageFormats
from fliqs_jax.searchers.dca_nas import DcaNas, architecture_progress
from fliqs_jax.train.classifier import Augment, Classifier, image_sites
from fliqs_jax.train.job import JobSettings, run_job
from fliqs_jax.train.journal import Timer
from fliqs_jax.train.mapping import make_mesh
from fliqs_jax.train.metrics import MetricsWriter

_ROWS = 200  # of a table search's record


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellSearchSettings:
    """How a search network and its architecture are trained."""

    architecture: ArchitectureSettings = ArchitectureSettings()
    warmup_fraction: float = 0.3  # of the steps, weights alone (15 of 50 epochs)
    order: int = 1
    temperature: float | None = None  # of drawn operations; None: softmax, as in DARTS
    greedy_repair: bool = False
    clip_norm: float = 5.0  # of the weights' gradient
    label_smoothing: float = 0.0
    starts: int = 16  # of a table search; the best cell by the signal is taken

    def __post_init__(self):
        check_at_least(1, starts=self.starts)
        check_within("[0, 1)", warmup_fraction=self.warmup_fraction)
        check_within("[0, 1)", label_smoothing=self.label_smoothing)
        check_positive(clip_norm=self.clip_norm)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FoundCell:
    """How a search ended."""

    genotype: Any  # the benchmark's string, or a DartsGenotype
    repair: Repair
    state: ArchitectureState | None  # None where no gradient descended
    facts: Mapping[str, Any]  # seconds, compile_count


def with_search_bounds(
    space: CellSpace,
    limits: Sequence[Limit],
    graphs: Mapping[str, LookUpGraph],
    stages: StageFormats | None = None,
    *,
    say: Callable[[str], None] = print,
) -> tuple[Limit, ...]:
    """Returns the limits with what a search network is to be held to.

    Where its cost is another than the derived network's, the bound is read off a
    look-up graph: the one given, else one of random architecture weights. A limit
    beyond a graph of random weights is held to its nearest bound, which it says.

    Args:
      space: the space.
      limits: of derived networks, with the search network's cost.
      graphs: measured look-up graphs, by the names of limits.
      stages: whose formats are searched, too.
      say: receives a line for each limit.

    Raises:
      ValueError: if a limit is outside of the graph given for it, or a graph is given
        for no limit.
    """
    if unknown := set(graphs) - {limit.name for limit in limits}:
        raise ValueError(
            f"look-up graph for {sorted(unknown)[0]!r}, which has no limit"
        )
    bounded = []
    for limit in limits:
        if limit.name in graphs:
            limit = through(limit, graphs[limit.name])
        elif limit.search is not None:
            graph = random_look_up_graph(space, limit.search, limit.derived, stages)
            nearest = float(np.clip(limit.bound, graph.derived[0], graph.derived[-1]))
            if nearest != limit.bound:
                say(
                    f"the {limit.name} limit {limit.bound:.6g} is beyond what random"
                    f" weights derive, {graph.derived[0]:.6g} to"
                    f" {graph.derived[-1]:.6g}: held to the nearest, then repaired"
                )
            bound = graph.search_bound(nearest)
            limit = dataclasses.replace(limit, search_bound=bound)
        bounded.append(limit)
    return tuple(bounded)


def search_cell_by_network(
    model: nn.Module,
    space: CellSpace,
    dataset: Dataset,
    limits: tuple[Limit, ...],
    *,
    folder: pathlib.Path,
    job: JobSettings,
    settings: CellSearchSettings = CellSearchSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
    augment: Augment | None = None,
    stages: StageFormats | None = None,
    say: Callable[[str], None] = print,
) -> FoundCell:
    """Trains a search network under limits and derives a cell within them.

    Args:
      model: `NasBench201SearchNetwork` or `DartsSearchNetwork`.
      space: its space.
      dataset: its validation split moves the architecture, half of the images as
        published.
      limits: from `with_search_bounds`.
      folder: of the run, claimed already; resumed where it has checkpoints.
      job: steps, batch size, seed, and how to run.
      settings: of the method.
      optimizer: of the weights.
      augment: `(key, images) -> images` for training and held-out batches, on device.
      stages: whose formats are searched together with the operations.
      say: receives what a person wants to read.

    Raises:
      ValueError: before any compilation, if no cell is within the limits, or stages
        have formats and the repair is to be greedy.
      TrainingDiverged: if the loss became NaN or infinite.
    """
    if stages is not None and settings.greedy_repair:
        raise ValueError(
            "greedy_repair=True knows no formats of stages, which are searched here:"
            " leave it out for the exact repair"
        )
    check_limits(space, limits)
    sites = image_sites(model, dataset.train.image_shape) if stages else ()
    architecture = Architecture(limits, settings.architecture)
    classifier = Classifier.of(QuantizedModel(model), dataset, augment)
    searcher = DcaNas(
        classifier=classifier,
        space=space,
        architecture=architecture,
        optimizer=optax.chain(
            optax.clip_by_global_norm(settings.clip_norm), optimizer.make(job.steps)
        ),
        steps=job.steps,
        warmup_steps=int(settings.warmup_fraction * job.steps),
        order=settings.order,
        temperature=settings.temperature,
        label_smoothing=settings.label_smoothing,
        stages=stages,
        sites=sites,
    )
    state, _, facts = run_job(
        searcher,
        dataset,
        dataclasses.replace(job, judge_on_validation=True),
        workdir=str(folder),
        mesh=make_mesh(),
        say=say,
    )
    ended = jax.device_get(state.architecture)
    return _found(space, architecture, ended, facts, greedy=settings.greedy_repair)


def search_cell_by_table(
    table: ArchitectureTable,
    column: str,
    limits: tuple[Limit, ...],
    *,
    folder: pathlib.Path,
    job: JobSettings,
    settings: CellSearchSettings,
) -> FoundCell:
    """Searches NAS-Bench-201 by the exact expected accuracy of a table, in seconds.

    From several starts at once; of their cells, each within the limits, the one with
    the best accuracy in the same column is taken.

    Args:
      table: with the columns.
      column: a validation accuracy in percent.
      limits: of derived networks, which are the search's own here.
      folder: of the run; gets the record.
      job: steps of Adam on the alphas, and the seed.
      settings: the architecture's count.

    Raises:
      ValueError: if no cell is within the limits, or the column may not be searched.
    """
    grid = search_grid(table.search_values(column))
    check_limits(NASBENCH201, limits)
    architecture, timer = Architecture(limits, settings.architecture), Timer()

    def search(key, scale):
        return search_by_table(
            grid, architecture, key=key, steps=job.steps, scale=scale
        )

    keys = jax.random.split(jax.random.key(job.seed), settings.starts)
    # From equal probabilities once; elsewhere gradient descent ends in other optima.
    scales = np.where(np.arange(settings.starts) == 0, 1e-3, 1.0)
    ends = jax.device_get(jax.vmap(search)(keys, scales))
    runs = [jax.tree.map(operator.itemgetter(n), ends) for n in range(settings.starts)]
    facts = {"seconds": timer.total(), "compile_count": 1}
    found = [
        _found(NASBENCH201, architecture, state, facts, greedy=settings.greedy_repair)
        for state, _ in runs
    ]
    best = max(range(len(found)), key=lambda n: grid[tuple(found[n].repair.choice)])
    _write_trace(folder, architecture, runs[best][1], job.steps)
    return found[best]


def _write_trace(folder, architecture, trace, steps):
    """Writes metrics.jsonl, as a job would have."""
    with MetricsWriter(folder, resume_step=None) as writer:
        for step in np.unique(np.linspace(1, steps, min(steps, _ROWS)).astype(int)):
            row = {name: values[step - 1] for name, values in trace.items()}
            probabilities = row.pop("probabilities")
            derived = probabilities.argmax(axis=1)
            for limit in architecture.limits:
                cost = limit.cost(NASBENCH201, derived)
                row[f"{limit.name}_derived_ratio"] = cost / limit.bound
            writer.write("train", int(step), row)
            rows = {"probabilities": np.asarray(probabilities, np.float64).round(4)}
            writer.write("policy", int(step), rows)


def _found(space, architecture, state, facts, *, greedy) -> FoundCell:
    repaired = architecture.derive(space, state, greedy=greedy)
    progress = architecture_progress(architecture, space, state)
    return FoundCell(
        genotype=space.genotype(repaired.choice),
        repair=repaired,
        state=state,
        facts={**facts, "entropy": progress["entropy"]},
    )


def cell_summary(
    space: CellSpace,
    limits: Sequence[Limit],
    found: FoundCell,
    counts: Sequence[int],
    table: ArchitectureTable | None,
    stages: StageFormats | None = None,
) -> dict[str, Any]:
    """Returns what `summary.json` says of a found cell.

    Args:
      space: the space.
      limits: as searched.
      found: the search's end.
      counts: parameters and MACs of the network that is made of it.
      table: of which all columns are given; None is none.
      stages: whose formats were searched, too.
    """
    repaired = found.repair
    # Looked at anew: what is written down must be true of the cell itself.
    costs = {
        limit.name: limit.at(repaired.formats).cost(space, repaired.choice)
        for limit in limits
    }
    broken = [limit.name for limit in limits if not costs[limit.name] <= limit.bound]
    summary = {
        "space": space.name,
        "genotype": str(found.genotype),
        "cells": _edges(space, repaired.choice),
        "parameters": counts[0],
        "macs": counts[1],
        "limits": {limit.name: limit.bound for limit in limits},
        "search_bounds": {limit.name: limit.search_bound for limit in limits},
        "costs": costs,
        "violations": broken,
        "derived_genotype": str(space.genotype(repaired.derived)),
        "derived_costs": repaired.derived_costs,
        "derived_violations": list(repaired.violations),
        "repaired": bool(repaired.violations),
        "score_lost": repaired.score_lost,
        **found.facts,
    }
    if found.state is not None:
        names = (limit.name for limit in limits)
        multipliers = map(float, found.state.multipliers)
        summary["multipliers"] = dict(zip(names, multipliers, strict=True))
    if stages is not None:
        summary["stage_formats"] = [stages.options[n] for n in repaired.formats]
        derived = [stages.options[n] for n in repaired.derived_formats]
        summary["derived_stage_formats"] = derived
    if limits:
        first = limits[0]
        summary |= {
            "cost": costs[first.name],
            "cost_target": first.bound,
            "cost_ratio": costs[first.name] / first.bound,
        }
    if space is NASBENCH201:
        summary["index"] = nasbench201_index(found.genotype)
    if table is not None:
        values = {
            name: float(table.judged_values(name)[summary["index"]])
            for name in table.columns
        }
        summary["table"] = values
    return summary


def _edges(space: CellSpace, choice) -> dict[str, list[tuple[int, int, str]]]:
    """Returns the edges that do something, by kind: (source, target, operation)."""
    edges = {kind: [] for kind in space.kinds}
    for kind, table in space.one_hot(choice).items():
        for edge, operation in enumerate(table.argmax(axis=1)):
            if space.operations[operation] != "none":
                edges[kind].append((*space.edges[edge], space.operations[operation]))
    return edges
