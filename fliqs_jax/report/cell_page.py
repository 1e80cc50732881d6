"""The report page of a search for a cell under limits."""

import dataclasses
import pathlib
from html import escape
from typing import Any

from fliqs_jax.report import cells, html, page, probabilities, sections, words
from fliqs_jax.report.reading import read_object, read_run
from fliqs_jax.report.records import Run


def write_cell_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report.html of a finished cell search and returns the file's path.

    Args:
      workdir: with config.json, summary.json and metrics.jsonl.

    Raises:
      FileNotFoundError: if config.json or summary.json is missing.
    """
    folder = pathlib.Path(workdir)
    run = read_run(folder)
    summary, config = (
        read_object(folder / name) for name in ("summary.json", "config.json")
    )
    title = cell_sentence(run, summary)
    body = [
        _head(title, summary),
        _cell(summary),
        _limits(run, summary),
        _weights(run, config.get("stage_formats", [])),
        _training(run),
        _table(summary),
        _baselines(summary),
        sections.reproduction(run),
        sections.settings(run),
    ]
    return page.write(folder, title, body)


def cell_sentence(run: Run, summary: dict[str, Any]) -> str:
    """Returns the result in a sentence, for example "A cell of nasbench201 …"."""
    text = f"A cell of {summary['space']} for {words.pretty(run.config.dataset)}: "
    text += f"{words.count(summary['parameters'])} parameters"
    if summary["accuracy"] is not None:
        text += f", {words.percent(summary['accuracy'], 2)} test accuracy"
    if "stage_formats" in summary:
        text += f", stages at {', '.join(summary['stage_formats'])}"
    return text


def _head(title: str, summary: dict[str, Any]) -> str:
    tiles = []
    if summary["accuracy"] is not None:
        accuracy = words.percent(summary["accuracy"], 2)
        tiles.append(("Accuracy", accuracy, summary["accuracy_source"], ""))
    for name, bound in summary["limits"].items():
        cost = summary["costs"][name]
        within = name not in summary["violations"]
        remark = f"{words.percent(cost / bound)} of the limit, {words.count(bound)}"
        mood = "good" if within else "bad"
        tiles.append((name.replace("_", " "), words.count(cost), remark, mood))
    tiles.append(("MACs", words.count(summary["macs"]), "of an example", ""))
    remark = f"{words.duration(summary['seconds_of_search'])} of it the search"
    tiles.append(("Time", words.duration(summary["seconds"]), remark, ""))
    return page.opening(
        "DCA-NAS search report", title, _repair_sentence(summary), tiles
    )


def _repair_sentence(summary: dict[str, Any]) -> str:
    if not summary["repaired"]:
        return "The derived cell is within every limit as it is."
    broken = ", ".join(name.replace("_", " ") for name in summary["derived_violations"])
    costs = ", ".join(
        f"{name.replace('_', ' ')} {words.count(cost)} before, "
        f"{words.count(summary['costs'][name])} after"
        for name, cost in summary["derived_costs"].items()
    )
    return (
        f"The cell that the search derived was repaired ({broken}): {costs}; the "
        f"change is worth {summary['score_lost']:.2f} of log probability."
    )


def _cell(summary: dict[str, Any]) -> str:
    edges = {
        kind: [tuple(edge) for edge in listed]
        for kind, listed in summary["cells"].items()
    }
    plot = page.figure(
        cells.draw_cell(edges),
        "cell",
        "The cell as a graph",
        "A node is the sum of the arrows into it. Edges without an operation are left "
        "out; dashed ones are on no path from an input to the output.",
    )
    code = f"<pre><code>{escape(summary['genotype'])}</code></pre>"
    return page.section("cell", "The cell", plot, code)


def _limits(run: Run, summary: dict[str, Any]) -> str:
    if run.probabilities is None:  # no gradient descended under multipliers
        return ""
    if not cells.limit_names(run):
        return page.section("limits", "Limits", "<p>None: this is plain DARTS.</p>")
    caption = (
        "Blue: what the search network is expected to cost, over what it is held to. "
        "Grey: what the cell derived at that step would cost, over the limit itself, "
        "before any repair. The multiplier rises while blue is above the line."
    )
    plot = page.figure(cells.draw_limits(run), "limits", "Costs over bounds", caption)
    return page.section("limits", "Expected and derived cost", plot)


def _weights(run: Run, formats: list[str]) -> str:
    if run.probabilities is None:
        return ""
    caption = (
        "One panel an edge, one row an operation; the name beside a row is the most "
        "probable operation at the end."
    )
    if formats:
        caption += " The last panels are the number formats of the stages."
    operations = tuple(map(cells.short_name, run.config.options))
    config = dataclasses.replace(run.config, options=operations)
    options = None
    if formats:
        options = [
            formats if name.startswith("format of") else operations
            for name in run.config.decisions
        ]
    figure = probabilities.draw_probabilities(
        dataclasses.replace(run, config=config), options
    )
    plot = page.figure(figure, "weights", "Probabilities of the operations", caption)
    return page.section("weights", "Architecture weights over the search", plot)


def _training(run: Run) -> str:
    if "accuracy" not in run.train:
        return ""
    caption = "Of the search network. Pale: as recorded; full colour: running mean."
    return html.learning_section(run, "Training of the search network", caption)


def _table(summary: dict[str, Any]) -> str:
    if "table" not in summary:
        return ""
    rows = [
        (page.code(name), "–" if value is None else f"{value:,.10g}")
        for name, value in summary["table"].items()
    ]
    table = page.table({"column": "", "value": "number"}, rows)
    return page.section("table", "What the table says of it", table)


_BASELINES = {
    "oracle": "best cell within the limits",
    "best_by_signal": "best by the accuracies that a search may read",
    "regularised_evolution": "regularised evolution, 100 evaluations",
    "random_search": "random search, 100 evaluations",
    "mean_cell": "mean cell within the limits",
}


def _baselines(summary: dict[str, Any]) -> str:
    found = summary.get("baselines")
    if found is None:
        return ""
    rows = []
    for name, text in _BASELINES.items():
        spread = found.get(f"{name}_deviation")
        shown = f"{found[name]:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        rows.append((text, shown))
    columns = {"under the same limits": "", "accuracy, %": "number"}
    table = page.table(columns, rows)
    return page.section("baselines", "What else there is", table)
