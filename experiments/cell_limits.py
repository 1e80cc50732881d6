"""Flags of limits on a cell's network, and the limits that they make.

Counts of the network that --model_options lay out, its weights at --size_format or its
stages at formats that are searched, too (--stage_formats); latencies of a table.
"""

from typing import Any

from absl import flags

import fliqs_jax as fq
from experiments import common, parsing
from fliqs_jax.data import Dataset
from fliqs_jax.models import cells
from fliqs_jax.runs.cell_search import with_search_bounds
from fliqs_jax.searchers.cells.expected_accuracy import measured_limit
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.cells.look_up_graph import load_look_up_graph
from fliqs_jax.searchers.cells.stage_formats import StageFormats, cell_stages

FLAGS = flags.FLAGS

COUNTS = {
    "nasbench201": cells.nasbench201_network_counts,
    "darts": cells.darts_network_counts,
}
NETWORKS = {
    "nasbench201": cells.NasBench201Network,
    "darts": cells.DartsNetwork,
}
# Fields that a search network and the derived one both have.
LAYOUT = {"nasbench201": ("width", "num_cells"), "darts": ("channels", "layers")}
# Limits on counts: the flag, the unit that is counted.
LIMITS = {
    "parameters": ("parameter_limit", "parameters"),
    "macs": ("macs_limit", "macs"),
    "size_bits": ("size_bits_limit", "weights"),
    "bops": ("bops_limit", "macs"),
}


def define_limit_flags() -> None:
    """Defines what a network may cost, and the formats that count in it."""
    common.define("float", "parameter_limit", None, "Most parameters.")
    common.define("float", "macs_limit", None, "Most MACs of an example.")
    common.define(
        "float", "size_bits_limit", None, "Most bits of the weights, at --size_format."
    )
    common.define("string", "size_format", "fp32", "Of the weights, for their size.")
    common.define("float", "bops_limit", None, "Most bit operations of an example.")
    common.define(
        "list",
        "stage_formats",
        [],
        "Options: each stage of cells gets one, searched together with the operations.",
    )
    common.define("integer", "skip_limit", None, "Most skip connections in a cell.")
    common.define("string", "latency_column", None, "Of the table: a device's latency.")
    common.define("float", "latency_limit", None, "Most of it, ms.")
    common.define(
        "list",
        "look_up_graph",
        [],
        "Of measured searches: parameters=FILE.csv with the columns bound,derived.",
    )


def stage_formats(space: cells.CellSpace, dataset: Dataset) -> StageFormats | None:
    """Returns the options of the stages' formats; None where they are not searched."""
    if not FLAGS.stage_formats:
        if FLAGS.bops_limit is not None:
            raise ValueError(
                "--bops_limit counts bits of operands: give the formats to choose from,"
                " for example --stage_formats=int4,int6,int8"
            )
        return None
    if FLAGS.signal != "network" or FLAGS.test_column is not None:
        raise ValueError(
            "--stage_formats need a search network and a network trained here: leave"
            " out --signal and --test_column, the others are of float networks"
        )
    if FLAGS.size_bits_limit is None and FLAGS.bops_limit is None:
        raise ValueError(
            "--stage_formats without a limit end at the widest: give --bops_limit or"
            " --size_bits_limit"
        )
    network = NETWORKS[space.name](
        num_classes=dataset.num_classes, **common.model_options()
    )
    return StageFormats(
        options=tuple(FLAGS.stage_formats), cells=cell_stages(space, network)
    )


def make_limits(
    space: cells.CellSpace,
    dataset: Dataset,
    table: cells.ArchitectureTable | None,
    model: Any,
    stages: StageFormats | None,
) -> tuple[tuple[Limit, ...], dict[str, Any]]:
    """Returns the limits of the flags, and what the summary should say of them."""
    derived, limits, facts = network_counts(space, dataset), [], {}
    searched = None
    if FLAGS.signal == "network":
        layout = {k: getattr(model, k) for k in ("bottleneck", *LAYOUT[space.name])}
        searched = counts_of(space, dataset, affine=False, **layout)
    for name, (flag, _) in LIMITS.items():
        if FLAGS[flag].value is not None:
            limits.append(
                Limit(
                    name=name,
                    bound=FLAGS[flag].value,
                    derived=_cost(name, derived, stages),
                    search=searched and _cost(name, searched, stages),
                )
            )
    if FLAGS.skip_limit is not None:
        skips = cells.marked_cost(space, "skip_connect")
        limits.append(Limit(name="skips", bound=float(FLAGS.skip_limit), derived=skips))
    if FLAGS.latency_limit is not None:
        limit, r_squared = measured_limit(
            table, FLAGS.latency_column, FLAGS.latency_limit
        )
        limits.append(limit)
        facts["latency_fit_r2"] = r_squared
    graphs = {
        name: load_look_up_graph(file)
        for name, file in parsing.parse_options("look_up_graph").items()
    }
    return with_search_bounds(space, limits, graphs, stages), facts


def _cost(
    name: str, counts: cells.NetworkCounts, stages: StageFormats | None
) -> cells.CellCost | cells.StagedCost:
    if name == "bops":
        return stages.bit_operations(counts)
    if name == "size_bits" and stages is not None:
        return stages.weight_bits(counts)
    bits = 1
    if name == "size_bits":
        bits = int(fq.parse_format(FLAGS.size_format).storage_bits)
    return counts.cost(LIMITS[name][1]).scaled(bits)


def network_counts(space: cells.CellSpace, dataset: Dataset) -> cells.NetworkCounts:
    """Returns what derived networks of the flags cost."""
    given = common.model_options()
    return counts_of(
        space, dataset, **{k: given[k] for k in LAYOUT[space.name] if k in given}
    )


def counts_of(space, dataset, **layout) -> cells.NetworkCounts:
    shape = dataset.train.image_shape
    return COUNTS[space.name](dataset.num_classes, image_shape=shape, **layout)


def load_table() -> cells.ArchitectureTable | None:
    """Returns the table of --table; refuses flags that need one without it."""
    wants = {
        "--signal=table": FLAGS.signal == "table",
        "--latency_limit": FLAGS.latency_limit is not None,
        "--test_column": FLAGS.test_column is not None,
    }
    needed = [flag for flag, wanted in wants.items() if wanted]
    if needed and FLAGS.space != "nasbench201":
        raise ValueError(f"{needed[0]} is for --space=nasbench201, got {FLAGS.space}")
    if needed and FLAGS.table is None:
        raise ValueError(f"{needed[0]} needs --table, a CSV file of cells")
    if (FLAGS.latency_limit is None) != (FLAGS.latency_column is None):
        raise ValueError("--latency_limit and --latency_column need each other")
    return None if FLAGS.table is None else cells.ArchitectureTable.load(FLAGS.table)


def check_table(
    space: cells.CellSpace, dataset: Dataset, table: cells.ArchitectureTable
) -> None:
    """Refuses a table whose networks are not those that limits count here."""
    if "parameters" not in table.columns:
        return
    theirs = table.search_value(0, "parameters")
    ours = network_counts(space, dataset).cost("parameters").of(space, space.choice(0))
    if theirs != ours:
        raise ValueError(
            f"--table says that cell 0 has {theirs:.0f} parameters, the network of"
            f" --dataset={FLAGS.dataset} and --model_options has {ours:.0f}: name the"
            " table's own data set and network"
        )
