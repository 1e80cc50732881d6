"""The report page of a joint search of sub-network and formats."""

import pathlib
from collections.abc import Mapping
from html import escape
from typing import Any

from fliqs_jax.report import choices, fronts, html, page, sections, words
from fliqs_jax.report.reading import read_object, read_run

_NAMES = {
    "size_mb": "model size",
    "bops": "bit operations",
    "activation_mb": "bits of the inputs",
    "latency_ms": "latency",
}


def write_front_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report.html of a joint search and returns the file's path.

    Args:
      workdir: with config.json and summary.json; of the super-network's training and
        of the point taken, what there is is shown.

    Raises:
      FileNotFoundError: if config.json or summary.json is missing.
    """
    folder = pathlib.Path(workdir)
    run = read_run(folder)
    summary = read_object(folder / "summary.json")
    title = front_sentence(summary)
    body = [
        _head(title, summary),
        _front(summary),
        _reductions(summary),
        _point(folder, summary),
        _search(summary),
        _supernet(folder),
        _points(summary),
        sections.reproduction(run),
        sections.settings(run),
    ]
    return page.write(folder, title, body)


def quantity(name: str, value: float) -> str:
    """Returns a price as a person reads it.

    Example:
      >>> quantity("size_mb", 0.0123), quantity("bops", 2.5e9)
      ('12.3\\xa0kB', '2.50 G')
    """
    if name in ("size_mb", "activation_mb"):
        number, _, prefix = words.count(1e6 * value).partition(" ")
        return f"{number}\u00a0{prefix}B"
    if name == "latency_ms":
        return f"{value:.3g} ms"
    return words.count(value)


def front_sentence(summary: Mapping[str, Any]) -> str:
    """Returns the result in a sentence."""
    subject = (
        f"{words.pretty(summary['supernet'])} on {words.pretty(summary['dataset'])}"
    )
    number = len(summary["front"])
    if summary.get("point") is None:
        return f"Sub-networks and formats of {subject}: a front of {number} points"
    row = summary["front"][summary["point"]]
    first = fronts.prices_of(summary)[0]
    return (
        f"A sub-network of {subject}: {words.percent(summary['accuracy'])} test"
        f" accuracy, {_NAMES[first]} {quantity(first, row[first])}"
    )


def _head(title: str, summary: Mapping[str, Any]) -> str:
    reference = summary["accuracy_reference"]
    whole = summary["full_network"][reference]
    tiles, lead = [], "No point of the front is within the limits."
    if summary.get("point") is not None:
        row = summary["front"][summary["point"]]
        gain = 100 * (summary["accuracy"] - whole["test_accuracy"])
        remark = f"{gain:+.1f} points against the full network at {reference}"
        accuracy = words.percent(summary["accuracy"])
        mood = "good" if gain >= 0 else ""
        tiles.append(("Test accuracy", accuracy, remark, mood))
        for name in fronts.prices_of(summary):
            remark = (
                f"{whole[name] / row[name]:.2f} times less than full at {reference}"
            )
            tiles.append(
                (_NAMES[name].capitalize(), quantity(name, row[name]), remark, "")
            )
        texts = (summary["selection"], summary["accuracy_source"])
        lead = " ".join(f"{text[:1].upper()}{text[1:]}." for text in texts)
    evaluations = str(summary["evaluations"])
    tiles.append(("Evaluations", evaluations, f"front of {len(summary['front'])}", ""))
    remark = f"{words.duration(summary['seconds_of_search'])} of it the search"
    tiles.append(("Time", words.duration(summary["seconds"]), remark, ""))
    return page.opening("SimQ-NAS search report", title, lead, tiles)


def _front(summary: Mapping[str, Any]) -> str:
    caption = (
        "Up is more accurate, left is cheaper. Blue: the points that no other one"
        " dominates on the validation split, which is all that the search saw; here"
        " they are on the test split. Hollow: sub-networks of this front with one"
        " format everywhere. All are quantized after training, none is retrained."
        " Accuracies far below the best are left out; the table below has all of the"
        " front."
    )
    plot = page.figure(
        fronts.draw_front(summary), "front", "Accuracy and cost", caption
    )
    beaten = [
        f"{count} of {number} at {formats}"
        for formats, (count, number) in summary["dominated"].items()
    ]
    text = ""
    if beaten:
        text = (
            "<p>On the test split the front dominates, of its own sub-networks at one"
            f" format everywhere, {escape(', '.join(beaten))}.</p>"
        )
    return page.section("front", "The front", text, plot)


def _reductions(summary: Mapping[str, Any]) -> str:
    rows = []
    for split, found in summary["fold_reductions"].items():
        for name, row in found.items():
            cells = ["every point loses accuracy", "", "", ""]
            if row is not None:
                gains = (row[f"{of}_gain"] for of in ("validation", "test"))
                cells = [f"{row['factor']:.2f}", str(row["point"])]
                cells += [f"{gain:+.2f}" for gain in gains]
            rows.append((_NAMES[name], split, *cells))
    columns = {
        "of": "", "no loss on": "", "times less": "number", "point": "number",
        "validation accuracy, points": "number", "test accuracy, points": "number",
    }  # fmt: skip
    text = (
        "<p>Against the full network at int8 everywhere, the cheapest point that loses"
        " no accuracy. Chosen on the validation split, the test accuracy is an honest"
        " one; chosen on the test split, it is the best of many.</p>"
    )
    title, table = "Reductions at no loss of accuracy", page.table(columns, rows)
    return page.section("reductions", title, text, table)


def _point(folder: pathlib.Path, summary: Mapping[str, Any]) -> str:
    if summary.get("point") is None:
        return ""
    rows = [
        (page.code(part), escape(text))
        for part, text in summary["architecture"].items()
    ]
    parts = [
        f"<p>Point {summary['point']} of front.csv, saved in"
        f" {page.code(summary['chosen'])}.</p>",
        page.table({"part": "", "what is left of it": "value"}, rows),
    ]
    own = read_run(folder / summary["chosen"])
    if own.policy and own.config.sites:
        caption = (
            "The sites of the small network, in the order in which it calls them. Sites"
            " of the full network that are missing were left out."
        )
        figure = choices.draw_formats(own)
        parts.append(page.figure(figure, "formats", "Formats of each site", caption))
    return page.section("point", "The point taken", *parts)


def _search(summary: Mapping[str, Any]) -> str:
    caption = (
        "How much of the box between nothing and the reference point (chance; 1.1 times"
        " the dearest uniform policy of the full network) the front dominates on the"
        " validation split. It never falls. Dotted: the end of the first generation,"
        " which no search has guided yet."
    )
    figure = fronts.draw_hypervolume(
        summary["hypervolume_curve"], population=summary["population"]
    )
    plot = page.figure(figure, "hypervolume", "Hypervolume", caption)
    return page.section("search", "How the search went", plot)


def _supernet(folder: pathlib.Path) -> str:
    if not (folder / "supernet" / "config.json").exists():
        return ""
    caption = (
        "Of the full network, in float; the loss is that of the sub-networks and the"
        " full network together. Pale: as recorded; full colour: running mean."
    )
    run = read_run(folder / "supernet")
    return html.learning_section(run, "Training of the super-network", caption)


def _points(summary: Mapping[str, Any]) -> str:
    names = fronts.prices_of(summary)
    rows = [
        (
            str(number),
            words.percent(row["validation_accuracy"], 2),
            words.percent(row["test_accuracy"], 2),
            *(quantity(name, row[name]) for name in names),
        )
        for number, row in enumerate(summary["front"])
    ]
    headings = ("point", "validation", "test", *(_NAMES[name] for name in names))
    columns = dict.fromkeys(headings, "number")
    text = "<p>Take another one with <code>--point</code>, in the same workdir.</p>"
    table = page.table(columns, rows, marked=summary.get("point"))
    return page.section("points", "All points of the front", text, table)
