"""What a joint search leaves in its workdir: the front, the point taken, the numbers.

The search itself is in `simq_nas`; every point taken is a finished run of its own
(`extracted_point`), so another one can be taken later.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from fliqs_jax.data import Dataset
from fliqs_jax.policy import Policy
from fliqs_jax.report import sites_table, write_front_plot, write_front_report
from fliqs_jax.report.reading import read_run
from fliqs_jax.runs import extracted_point
from fliqs_jax.runs.results import versions
from fliqs_jax.searchers.joint import front
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.searchers.simq_nas import FoundFront, SimqSettings, front_summary
from fliqs_jax.train import processes
from fliqs_jax.train.metrics import MetricsWriter
from fliqs_jax.train.workdir import write_json


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SmallNetwork:
    """A point's network in float, for training on at its formats."""

    model: nn.Module
    variables: Mapping[str, Any]
    policy: Policy
    network: Mapping[str, Any]  # how `load_network` makes it


# From a network, and the name of a folder for it, to the folder and its summary.
Finetune = Callable[[SmallNetwork, str], tuple[str, Mapping[str, Any]]]


def write_search(
    found: FoundFront,
    state: TrainedState,
    dataset: Dataset,
    *,
    folder: pathlib.Path,
    settings: SimqSettings,
    selection: front.Selection,
    finetune: Finetune | None,
    batch_size: int,
    seed: int,
    training: Mapping[str, Any],
    network: Mapping[str, Any],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes a search's results, takes a point, and returns the summary.

    Args:
      found: the search.
      state: of the full network, in float.
      dataset: its data.
      folder: of the run.
      settings: of the search.
      selection: which point to take.
      finetune: trains a point on; None leaves it as quantized.
      batch_size: of all passes.
      seed: of the search.
      training: summary of the super-network's training: `seconds`, `steps`,
        `compile_count`.
      network: how the super-network is made.
      config: what a point's `config.json` should hold.
      facts: what else the summary should, once the point is taken.
      say: receives what a person wants to read.

    Raises:
      ValueError: if no point is within the limits. The front and the report are
        written even so.
    """
    say = processes.spoken_once(say)
    cost = found.result.objectives[1]
    reference = found.full[selection.reference]

    def write_found():
        front.write_front(folder / "front.csv", found.space, found.points)
        _write_metrics(folder, found)

    processes.on_main(write_found)
    summary = {
        "accuracy": None,
        "supernet": network["supernet"],
        "dataset": dataset.name,
        **front_summary(found),
        **_compared(found),
        "population": settings.population,
        "accuracy_reference": selection.reference,
        "point": None,
        "steps": training["steps"],
        "seconds": training["seconds"] + sum(found.seconds.values()),
        "seconds_of_search": found.seconds.get("search", 0.0),
        "seconds_by_phase": {"supernet": training["seconds"], **found.seconds},
        "compile_count": training["compile_count"] + found.compile_count,
        "seed": seed,
        "versions": versions(),
    }
    for line in reduction_lines(summary["fold_reductions"]):
        say(line)
    try:
        index = front.select_point(found.points, selection, reference, cost=cost)
    except ValueError:
        _write(folder, summary)
        raise
    point, why = found.points[index], _selection_words(selection, found, index)
    say(f"took point {index} of front.csv: {why}")
    name = f"points/{extracted_point.point_name(point.vector)}"
    taken = extracted_point.save_point(
        folder / name,
        found.space,
        point.vector,
        dataset,
        quantized=found.quantized,
        batch_size=batch_size,
        prices=point.prices,
        seed=seed,
        network=network,
        config=config,
    )
    target = selection.limits.get(cost)
    summary |= {
        "accuracy": taken["accuracy"],
        "accuracy_quantized": taken["accuracy"],
        "cost": point.prices[cost],
        "cost_target": target,
        "cost_ratio": None if target is None else point.prices[cost] / target,
        "point": index,
        "selection": why,
        "architecture": front.architecture_words(found.space, point.vector),
        "chosen": name,
        **facts,
    }
    source = "quantized after training, no retraining"
    if finetune is not None:
        small = _small_network(found.space, state, point.vector, dataset, network)
        summary["chosen"], result = finetune(small, name)
        summary["accuracy"] = result["accuracy"]
        summary["seconds"] += result["seconds"]
        summary["finetune_steps"] = result["steps"]
        source = f"fine-tuned for {result['steps']} steps at its formats"
    summary["accuracy_source"] = f"test set, {source}"
    policy = found.space.policy(point.vector)
    processes.on_main(lambda: policy.save(folder / "policy.json"))
    _write(folder, summary)
    run = processes.on_main(lambda: read_run(folder / name))
    say(sites_table(run.config.sites, run.policy, cost=run.config.cost))
    chosen = folder / summary["chosen"]
    say(f"test accuracy {summary['accuracy']:.2%} ({source}), in {chosen}")
    say(f"report: {folder / 'report.html'}")
    return summary


def _compared(found: FoundFront) -> dict[str, Any]:
    """Returns the front's points, and how they stand beside uniform formats."""
    objectives = found.result.objectives[1:]

    def described(points):
        return [front.describe_point(point) for point in points]

    return {
        "prices_searched": [front.UNITS[name][0] for name in objectives],
        "front": described(found.points),
        "full_network": {n: front.describe_point(p) for n, p in found.full.items()},
        "subnetworks": {n: described(p) for n, p in found.subnetworks.items()},
        "dominated": {
            name: [front.count_dominated(found.points, p, objectives), len(p)]
            for name, p in found.subnetworks.items()
        },
        "fold_reductions": _reductions(found),
    }


def _small_network(space, state, vector, dataset, network) -> SmallNetwork:
    model, own = extracted_point.small_network(space, state, vector)
    return SmallNetwork(
        model=model,
        variables=own.variables,
        policy=space.policy(vector),
        network=extracted_point.extracted_network(space, vector, dataset, network),
    )


def _write(folder: pathlib.Path, summary: Mapping[str, Any]) -> None:
    def write():
        write_json(folder / "summary.json", summary)
        write_front_plot(folder / "front.png", summary)
        write_front_report(folder)

    processes.on_main(write)


def _reductions(found: FoundFront) -> dict[str, Any]:
    """Fold reductions against the int8 full network, by split and price."""
    whole = found.full["int8"]
    by_split = {
        "validation": lambda point: point.validation_accuracy,
        "test": lambda point: point.test_accuracy,
    }
    return {
        split: {
            front.UNITS[name][0]: row
            for name, row in front.fold_reductions(
                found.points, whole, accuracy
            ).items()
        }
        for split, accuracy in by_split.items()
    }


def reduction_lines(reductions: Mapping[str, Any]) -> list[str]:
    """Returns fold reductions as lines to print."""
    lines = []
    for split, found in reductions.items():
        for name, row in found.items():
            start = (
                f"{name} at no loss of {split} accuracy against the int8 full network"
            )
            if row is None:
                lines.append(f"{start}: none, every point loses")
            else:
                lines.append(
                    f"{start}: {row['factor']:.2f} times less (point {row['point']},"
                    f" test accuracy {row['test_gain']:+.2f} points)"
                )
    return lines


def _selection_words(selection: front.Selection, found: FoundFront, index: int) -> str:
    if selection.point is not None:
        return "the point that was named"
    point, against = found.points[index], f"the full network at {selection.reference}"
    loss = front.accuracy_loss(point, found.full[selection.reference])
    if selection.accuracy_loss is not None or (not selection.limits and loss <= 1e-9):
        most = selection.accuracy_loss or 0.0
        limit = f"loses at most {most:g} points of validation accuracy to {against}"
        within = " within the other limits" if selection.limits else ""
        return f"the cheapest point{within} that {limit}"
    if selection.limits:
        return "the most accurate point on the validation split within the limits"
    return f"the most accurate point on the validation split: all lose to {against}"


def _write_metrics(folder: pathlib.Path, found: FoundFront) -> None:
    """Writes metrics.jsonl: the hypervolume, evaluation by evaluation."""
    best = np.maximum.accumulate(1.0 - found.result.values[:, 0])
    with MetricsWriter(folder, resume_step=None) as writer:
        for row, (volume, accuracy) in enumerate(zip(found.curve, best, strict=True)):
            values = {"hypervolume": volume, "best_validation_accuracy": accuracy}
            writer.write("search", row + 1, values)
