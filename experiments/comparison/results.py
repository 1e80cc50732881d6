"""What came of a comparison's runs: rows of a CSV file, a table, a plot."""

import collections
import csv
import dataclasses
import io
import pathlib
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.comparison.planning import OWN_COST, parse_run_name, split_method
from fliqs_jax.files import replace_text
from fliqs_jax.report import TradeOff, write_trade_offs
from fliqs_jax.searchers.compression.schedule import VARIANTS
from fliqs_jax.train.workdir import read_json

# In the order of the legend. A method without an entry has its name there.
TITLES = {
    "search": "search (FLIQS)",
    "published": "search, published form",
    "retrain": "policy of the search, from scratch",
    "qbitopt": "QBitOpt",
    "uniform": "uniform",
    "qbitopt_uniform": "uniform, learned steps",
    "random": "random policies",
    "sensitivity": "by sensitivity ({}), trained",
    "sensitivity_untrained": "by sensitivity ({}), untrained",
    "fliqnas": "architecture and formats (FLIQNAS)",
    "full_formats": "formats of the full network (FLIQS)",
    "architecture": "architecture alone, int8",
    "architecture_formats": "architecture, then formats",
    "lc": "Learning-Compression",
    "qp": "Learning-Compression, quadratic penalty",
    "idc": "iterated direct compression",
    "dc": "direct compression",
    "ste": "straight-through training",
    "float": "float",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A finished run, as comparison.csv lists it."""

    method: str
    run: str  # its folder
    seed: int
    budget: float | None  # a fraction of the reference's cost; None without a budget
    accuracy: float  # on the test split, 0 to 1
    cost_of_reference: float
    steps: int  # of this run; not those of a run that it starts from
    seconds: float


class Finished(NamedTuple):
    """A run that has its results."""

    name: str  # its folder
    method: str
    budget: float | None  # as the folder names it
    seed: int
    summary: dict[str, Any]


def finished_runs(root: pathlib.Path) -> Iterator[Finished]:
    """Yields the finished runs of a comparison's folder, by name."""
    for file in sorted(root.glob("*/summary.json")):
        parsed = parse_run_name(file.parent.name)
        if parsed is not None:
            yield Finished(file.parent.name, *parsed, read_json(file))


def read_rows(root: pathlib.Path, *, cost: str) -> list[Row]:
    """Returns the finished runs of a comparison's folder, by name.

    Those of codebooks, whose cost is a size, only where sizes are compared.
    """
    rows = []
    for name, method, budget, seed, summary in finished_runs(root):
        family, _ = split_method(method)
        if family in VARIANTS and cost != "size":
            continue
        reference = summary["cost_of_reference"]
        if budget is None and family not in OWN_COST:
            budget = float(f"{summary['cost_target'] / reference:.6g}")
        rows.append(
            Row(
                method=family if family == "random" else method,
                run=name,
                seed=seed,
                budget=budget,
                accuracy=summary["accuracy"],
                cost_of_reference=summary["cost"] / reference,
                steps=summary["steps"],
                seconds=summary["seconds"],
            )
        )
    return rows


def write_results(root: pathlib.Path, *, cost: str, reference: str) -> str:
    """Writes comparison.csv, comparison.md and comparison.png, if anything finished.

    Args:
      root: the folder of the comparison.
      cost: what the budget counts, as --cost names it.
      reference: format of the uniform policy whose cost is 1.

    Returns:
      The table; empty text while no run has finished.
    """
    rows = read_rows(root, cost=cost)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    replace_text(root / "comparison.csv", text.getvalue())
    table = comparison_table(rows)
    replace_text(root / "comparison.md", table + "\n")
    write_trade_offs(
        root / "comparison.png", trade_offs(rows), cost=cost, reference=reference
    )
    return table


def comparison_table(rows: Sequence[Row]) -> str:
    """Returns mean and standard deviation of each method and budget, as Markdown.

    Budgets ascend, the best method first in each; policies of a cost of their own and
    the float network come first.
    """
    lines = [
        "| budget | method | runs | test accuracy, % | cost | steps | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for (budget, method), own in _groups(rows):
        accuracy = spread([100 * row.accuracy for row in own], ".2f")
        cost = statistics.mean(row.cost_of_reference for row in own)
        steps = statistics.mean(row.steps for row in own)
        minutes = statistics.mean(row.seconds for row in own) / 60
        lines.append(
            f"| {'' if budget is None else budget} | {method} | {len(own)}"
            f" | {accuracy} | {cost:.4f} | {steps:.0f} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def trade_offs(rows: Sequence[Row]) -> list[TradeOff]:
    """Returns what the plot shows: a point for each method and budget."""
    known = list(TITLES)

    def place(group) -> int:
        (_, method), _ = group
        kind, _ = _kind(method)
        return known.index(kind) if kind in known else len(known)

    return [
        TradeOff(
            series=title(method),
            note=_note(method),
            budget=budget,
            costs=tuple(row.cost_of_reference for row in own),
            accuracies=tuple(row.accuracy for row in own),
        )
        for (budget, method), own in sorted(_groups(rows), key=place)
    ]


def title(method: str) -> str:
    """Returns a method's name in legends: that of its family.

    Example:
      >>> title("uniform_int3"), title("sensitivity_kl_untrained"), title("new_one")
      ('uniform', 'by sensitivity (kl), untrained', 'new one')
    """
    kind, measure = _kind(method)
    return TITLES.get(kind, kind.replace("_", " ")).format(measure)


def _kind(method: str) -> tuple[str, str]:
    """A method's entry in TITLES, and the measure of a sensitivity."""
    family, _ = split_method(method)
    match = re.fullmatch(r"sensitivity_([a-z]+)(_untrained)?", family)
    if match is None:
        return family, ""
    return f"sensitivity{match[2] or ''}", match[1]


def _note(method: str) -> str:
    family, member = split_method(method)
    return member if family in OWN_COST else ""


def _groups(
    rows: Sequence[Row],
) -> list[tuple[tuple[float | None, str], list[Row]]]:
    """Rows by budget and method, in the order of the table."""

    def order(item):
        (budget, method), own = item
        accuracy = statistics.mean(row.accuracy for row in own)
        return (-1.0 if budget is None else budget), -accuracy, method

    return sorted(grouped(rows, "budget", "method").items(), key=order)


def grouped(rows: Sequence[Any], *fields: str) -> dict[tuple, list[Any]]:
    """Returns the rows that are alike in some fields, by the values of these."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(getattr(row, name) for name in fields)].append(row)
    return groups


def spread(values: Sequence[float], form: str) -> str:
    """Returns mean and standard deviation, of one value the value alone."""
    shown = f"{statistics.mean(values):{form}}"
    return f"{shown} ± {statistics.stdev(values):{form}}" if values[1:] else shown
