"""Searches a cell by gradient descent inside a device's limits (DCA-NAS).

  python -m experiments.dca_nas --workdir=runs/cell --space=nasbench201 \
      --signal=table --table=nasbench201_cifar10.csv --parameter_limit=0.4e6

  python -m experiments.dca_nas --workdir=runs/darts --space=darts --dataset=cifar10 \
      --parameter_limit=2.5e6 --validation_fraction=0.5 --steps=20000

The signal is a search network trained on the data set; or scores of untrained cells on
its images, which cost a few gradients each (--signal=training_free, NAS-Bench-201); or
a table: its expected validation accuracy, never a test accuracy. The derived
cell is within every limit, whatever the search made of it; limits that no cell holds
are refused with the smallest cell's cost. Then the derived network is trained
(--final_steps) in WORKDIR/derived, a run of its own: `accuracy` is its test accuracy,
or with --final_steps=0 that of the table (--test_column), as `accuracy_source` says.
Without limits this is DARTS. --stage_formats lets each stage of cells have a number
format, searched together with the operations under limits on bits. Run again with the
same workdir to resume.

Writes policy.json, summary.json, metrics.jsonl, report.html and checkpoints/.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import flags

import fliqs_jax as fq
from experiments import common, cost_flags, parsing, program, search_flags
from experiments.cell_limits import (
    LAYOUT,
    check_table,
    define_limit_flags,
    load_table,
    make_limits,
    network_counts,
    stage_formats,
)
from experiments.trained_network import train_network
from fliqs_jax.checks import check_at_least
from fliqs_jax.data import Dataset
from fliqs_jax.models import cells
from fliqs_jax.report import write_cell_report
from fliqs_jax.runs.cell_search import (
    CellSearchSettings,
    FoundCell,
    cell_summary,
    search_cell_by_network,
    search_cell_by_table,
)
from fliqs_jax.runs.results import say_finished, versions
from fliqs_jax.runs.run_folder import check_same_images, describe_data
from fliqs_jax.runs.scored_search import search_cell_by_scores
from fliqs_jax.searchers.cells.architecture import ArchitectureSettings
from fliqs_jax.searchers.cells.baselines import cells_within, judged_baselines
from fliqs_jax.searchers.cells.expected_accuracy import TABLE_SETTINGS, search_grid
from fliqs_jax.searchers.cells.limits import Limit, MultiplierSettings
from fliqs_jax.searchers.cells.stage_formats import StageFormats
from fliqs_jax.searchers.cells.training_free import CellScorer
from fliqs_jax.searchers.dca_nas import row_names
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import image_sites
from fliqs_jax.train.workdir import open_workdir, read_json, write_json

FLAGS = flags.FLAGS

SEARCH_NETWORKS = {
    "nasbench201": cells.NasBench201SearchNetwork,
    "darts": cells.DartsSearchNetwork,
}
DERIVED = "derived"  # folder of the network found and trained
GENOTYPE_FIELDS = {"nasbench201": "cell", "darts": "genotype"}
# What the scores of an untrained cell depend on.
SCORED_BY = (
    *("dataset", "image_size", "validation_fraction", "seed", "dtype"),
    *("model_options", "search_options"),
)
# Common flags that say nothing to a search of cells.
IDLE = {
    "model": "--space names the network",
    "cost": "limits have flags of their own",
    "cost_target": "limits have flags of their own",
    "cost_reference": "limits have flags of their own",
    "formats": "--stage_formats names those of a cell search",
}

common.define_common_flags()
common.define("enum", "space", "nasbench201", "Of the cells.", values=cells.CELL_SPACES)
common.define(
    "enum",
    "signal",
    "network",
    "What tells how good a cell is: a search network, scores of untrained cells, or a "
    "table's expected accuracy.",
    values=["network", "training_free", "table"],
)
define_limit_flags()
common.define("string", "table", None, "CSV file of NAS-Bench-201 cells.")
common.define(
    "string",
    "accuracy_column",
    "cifar10_valid_accuracy_12_epochs",
    "Of the table, for --signal=table: a validation accuracy in percent.",
)
common.define("string", "test_column", None, "Of the table: `accuracy`, in percent.")
common.define(
    "list", "search_options", [], "Fields of the search network: bottleneck=4,layers=8."
)
common.define("integer", "order", None, "1, or 2: through a step of the weights.")
common.define(
    "float",
    "draw_temperature",
    None,
    "Of operations that are drawn, one an edge and step; none: all at once (DARTS).",
)
common.define("float", "warmup_fraction", None, "Of the steps, weights alone.")
common.define("float", "architecture_learning_rate", None, "Adam's, on the alphas.")
common.define("float", "entropy_weight", None, "At the end, in loss a nat.")
common.define("float", "multiplier_rate", None, "Of the multipliers' ascent.")
common.define("bool", "hinge", None, "Multipliers press above a limit only.")
common.define("bool", "use_limits", None, "Reward cost while there is room for it.")
common.define("float", "augmentation", None, "Quadratic term above a limit.")
common.define("integer", "starts", None, "Of --signal=table: the best cell is taken.")
common.define(
    "integer", "scored_cells", 100, "Of --signal=training_free, drawn at random."
)
common.define(
    "list", "scores", [], "Their scores.csv of other runs, same data, network and seed."
)
common.define("bool", "greedy_repair", None, "Repair step by step, not exactly.")
common.define(
    "integer",
    "final_steps",
    None,
    "Of the derived network (default: --steps, 0 for --signal=table).",
)


def run() -> None:
    """Turns the flags into objects, searches, trains what was found."""
    idle = idle_flags()
    program.say_idle(idle)
    space, settings = cells.CELL_SPACES[FLAGS.space], cell_settings()
    if FLAGS.signal == "training_free" and space is not cells.NASBENCH201:
        raise ValueError(
            "--signal=training_free predicts the scores of all cells of a space, which"
            f" {space.name} has too many of: use --signal=network"
        )
    table = load_table()
    dataset = common.dataset()
    check_scores(dataset)
    search_model = SEARCH_NETWORKS[space.name](
        num_classes=dataset.num_classes, **search_options()
    )
    if FLAGS.signal == "table":
        check_table(space, dataset, table)
    stages = stage_formats(space, dataset)
    limits, facts = make_limits(space, dataset, table, search_model, stages)
    config = {
        "method": "dca_nas",
        **describe_data(dataset),
        "decisions": row_names(space, stages.num_stages if stages else 0),
        "options": list(space.operations),
        "stage_formats": list(FLAGS.stage_formats),
        "limits": {limit.name: limit.bound for limit in limits},
        **common.run_config(idle=idle),
        "model": space.name,
        "network": None,
        **cost_flags.table_identity("table"),
    }
    with open_workdir(FLAGS.workdir, config, volatile=("session",)) as folder:
        if (folder / "summary.json").exists():
            say_finished(folder, program.say, write_page=write_cell_report)
            return
        found = search(
            space, dataset, table, limits, search_model, settings, stages, folder
        )
        finish(space, dataset, table, limits, found, facts, stages, folder)


def search(space, dataset, table, limits, model, settings, stages, folder) -> FoundCell:
    """Returns the cell that the signal and the limits lead to."""
    job = common.job_settings()
    if FLAGS.signal == "table":
        return search_cell_by_table(
            table,
            FLAGS.accuracy_column,
            limits,
            folder=folder,
            job=job,
            settings=settings,
        )
    if FLAGS.signal == "training_free":
        scorer = CellScorer(model, space, dataset, seed=FLAGS.seed)
        found = search_cell_by_scores(
            scorer,
            limits,
            network_counts(space, dataset).cost("parameters"),
            folder=folder,
            count=FLAGS.scored_cells,
            seed=FLAGS.seed,
            known=[pathlib.Path(file) for file in FLAGS.scores],
            say=program.say,
        )
        facts = {**found.facts, "compile_count": scorer.compile_count}
        return dataclasses.replace(found, facts=facts)
    return search_cell_by_network(
        model,
        space,
        dataset,
        limits,
        folder=folder,
        job=job,
        settings=settings,
        optimizer=search_flags.optimizer_settings(),
        augment=search_flags.augmentation(dataset),
        stages=stages,
        say=program.say,
    )


def check_scores(dataset: Dataset) -> None:
    """Refuses --scores of other data, another network or seed.

    Raises:
      ValueError: if a file is of such, or its run's config.json is not beside it.
    """
    for file in map(pathlib.Path, FLAGS.scores):
        config = file.with_name("config.json")
        if not config.exists():
            raise ValueError(
                f"--scores={file}: config.json is not beside it, which tells of what"
                " data, network and seed they are: give the file in its run's workdir"
            )
        record = read_json(config)
        theirs = record["flags"]
        check_same_images(record, dataset, owner=f"--scores={file}")
        for name in SCORED_BY:
            if theirs[name] != FLAGS[name].value:
                raise ValueError(
                    f"--scores={file} are of --{name}={theirs[name]}, this run's is"
                    f" {FLAGS[name].value}: leave them out"
                )


def finish(
    space: cells.CellSpace,
    dataset: Dataset,
    table: cells.ArchitectureTable | None,
    limits: tuple[Limit, ...],
    found: FoundCell,
    facts: dict[str, Any],
    stages: StageFormats | None,
    folder: pathlib.Path,
) -> None:
    """Trains the derived network, looks the cell up, writes the results."""
    costs = map(network_counts(space, dataset).cost, ("parameters", "macs"))
    counts = [int(cost.of(space, found.repair.choice)) for cost in costs]
    summary = cell_summary(space, limits, found, counts, table, stages)
    program.say(f"found {summary['genotype']}")
    options = {
        **common.model_options(),
        GENOTYPE_FIELDS[space.name]: str(found.genotype),
    }
    model = fq.create_model(space.name, num_classes=dataset.num_classes, **options)
    sites = image_sites(model, dataset.train.image_shape)
    policy = fq.Policy.uniform(sites, "fp32")
    if stages is not None:
        policy = stages.policy(found.repair.formats, sites)
        program.say(f"at {', '.join(summary['stage_formats'])}")
    processes.on_main(lambda: policy.save(folder / "policy.json"))
    accuracy, source, seconds = None, None, 0.0
    if final_steps():
        summary["chosen"] = DERIVED  # where the run's network is
        _, result = train_network(
            model,
            dataset,
            folder=f"{folder}/{DERIVED}",
            steps=final_steps(),
            name=space.name,
            options=options,
            policy=policy,
        )
        accuracy, source = result["accuracy"], "test set, derived network trained here"
        seconds = result["seconds"]
    elif FLAGS.test_column is not None:
        accuracy = table.judged_value(summary["index"], FLAGS.test_column) / 100
        source = f"table, {FLAGS.test_column}"
    if FLAGS.test_column is not None:
        summary["baselines"] = baselines(space, table, limits)
    summary = {
        "accuracy": accuracy,
        "accuracy_source": source,
        **summary,
        **facts,
        "steps": FLAGS.steps,
        "final_steps": final_steps(),
        "seconds": summary["seconds"] + seconds,
        "seconds_of_search": summary["seconds"],
        "seed": FLAGS.seed,
        "versions": versions(),
    }

    def write():
        write_json(folder / "summary.json", summary)
        program.say(f"report: {write_cell_report(folder)}")

    processes.on_main(write)


def baselines(
    space: cells.CellSpace,
    table: cells.ArchitectureTable,
    limits: tuple[Limit, ...],
) -> dict[str, float]:
    """Returns what others find in the table under the limits, in --test_column."""
    judge = cells.nasbench201_grid(table.judged_values(FLAGS.test_column))
    return judged_baselines(
        search_grid(table.search_values(FLAGS.accuracy_column)),
        judge,
        cells_within(space, limits) & np.isfinite(judge),
    )


def final_steps() -> int:
    """Returns the training steps of the derived network."""
    if FLAGS.final_steps is not None:
        check_at_least(0, final_steps=FLAGS.final_steps)
        return FLAGS.final_steps
    return 0 if FLAGS.signal == "table" else FLAGS.steps


def search_options() -> dict[str, Any]:
    """Returns the fields of the search network; shared ones are the derived one's."""
    same = {}
    if FLAGS.space == "nasbench201":
        shared = LAYOUT[FLAGS.space]
        same = {k: v for k, v in common.model_options().items() if k in shared}
    if FLAGS.signal == "training_free":  # a stage of one cell tells as much as of five
        same = {"num_cells": 1, **same, "share": False, "bottleneck": 1}
    return {**same, **parsing.parse_options("search_options")}


def cell_settings() -> CellSearchSettings:
    """Returns the method's settings: its defaults, changed by the flags given."""

    def given(names, **start):
        values = {field: FLAGS[flag].value for field, flag in names.items()}
        return {**start, **{k: v for k, v in values.items() if v is not None}}

    multipliers = {"rate": "multiplier_rate", "hinge": "hinge", "used": "use_limits"}
    moves = {
        "learning_rate": "architecture_learning_rate",
        "entropy_weight": "entropy_weight",
    }
    base = ArchitectureSettings() if FLAGS.signal == "network" else TABLE_SETTINGS
    own = {
        name: name for name in ("warmup_fraction", "order", "greedy_repair", "starts")
    }
    own["temperature"] = "draw_temperature"
    return CellSearchSettings(
        architecture=dataclasses.replace(
            base,
            multipliers=MultiplierSettings(
                **given({**multipliers, "augmentation": "augmentation"})
            ),
            **given(moves),
        ),
        label_smoothing=FLAGS.label_smoothing,
        **given(own),
    )


def idle_flags() -> dict[str, str]:
    """Returns the flags that change nothing in this run, and why."""
    idle = dict(IDLE)
    trained = ("order", "draw_temperature", "warmup_fraction", "look_up_graph")
    moved = ("architecture_learning_rate", "entropy_weight", "multiplier_rate")
    moved += ("hinge", "use_limits", "augmentation", "greedy_repair", "starts")
    scored = ("scored_cells", "scores")
    unread = ("accuracy_column",) if FLAGS.test_column is None else ()
    without = {
        "network": ("starts", *unread, *scored),
        "training_free": (*trained, *moved, *unread),
        "table": (*trained, "search_options", *scored),
    }
    if FLAGS.stage_formats:
        idle["size_format"] = "--stage_formats say what weights are stored in"
    reason = f"--signal={FLAGS.signal} knows none"
    idle |= dict.fromkeys(without[FLAGS.signal], reason)
    return idle


if __name__ == "__main__":
    program.start(run, distributed=True)
