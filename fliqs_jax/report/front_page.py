"""The report page of a joint search of sub-network and formats."""

import json
import pathlib
from collections.abc import Mapping
from html import escape
from typing import Any

from fliqs_jax.files import replace_text
from fliqs_jax.report import choices, curves, fronts, page, sections, style, words
from fliqs_jax.report.html import REPORT_NAME
from fliqs_jax.report.reading import read_run

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
    summary = json.loads((folder / "summary.json").read_text())
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
    replace_text(folder / REPORT_NAME, page.document(title, body))
    return folder / REPORT_NAME


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
    plot = _figure(fronts.draw_front(summary), "front", "Accuracy and cost", caption)
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
    return _section("front", "The front", text, plot)


def _reductions(summary: Mapping[str, Any]) -> str:
    lines = []
    for split, found in summary["fold_reductions"].items():
        for name, row in found.items():
            cells = [f"<td>{_NAMES[name]}</td>", f"<td>{split}</td>"]
            if row is None:
                cells += ["<td>every point loses accuracy</td>", "<td></td>" * 3]
            else:
                cells += [
                    f'<td class="number">{row["factor"]:.2f}</td>',
                    f'<td class="number">{row["point"]}</td>',
                    f'<td class="number">{row["validation_gain"]:+.2f}</td>',
                    f'<td class="number">{row["test_gain"]:+.2f}</td>',
                ]
            lines.append(f"<tr>{''.join(cells)}</tr>")
    header = (
        '<th>of</th><th>no loss on</th><th class="number">times less</th>'
        '<th class="number">point</th>'
        '<th class="number">validation accuracy, points</th>'
        '<th class="number">test accuracy, points</th>'
    )
    text = (
        "<p>Against the full network at int8 everywhere, the cheapest point that loses"
        " no accuracy. Chosen on the validation split, the test accuracy is an honest"
        " one; chosen on the test split, it is the best of many.</p>"
    )
    return _section("reductions", "Reductions at no loss of accuracy", text,
                    sections.table(header, lines))  # fmt: skip


def _point(folder: pathlib.Path, summary: Mapping[str, Any]) -> str:
    if summary.get("point") is None:
        return ""
    lines = [
        f"<tr><td><code>{escape(part)}</code></td>"
        f'<td class="value">{escape(text)}</td></tr>'
        for part, text in summary["architecture"].items()
    ]
    parts = [
        f"<p>Point {summary['point']} of front.csv, saved in"
        f" <code>{escape(summary['chosen'])}</code>.</p>",
        sections.table("<th>part</th><th>what is left of it</th>", lines),
    ]
    own = read_run(folder / summary["chosen"])
    if own.policy and own.config.sites:
        caption = (
            "The sites of the small network, in the order in which it calls them. Sites"
            " of the full network that are missing were left out."
        )
        figure = choices.draw_formats(own)
        parts.append(_figure(figure, "formats", "Formats of each site", caption))
    return _section("point", "The point taken", *parts)


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
    plot = _figure(figure, "hypervolume", "Hypervolume", caption)
    return _section("search", "How the search went", plot)


def _supernet(folder: pathlib.Path) -> str:
    if not (folder / "supernet" / "config.json").exists():
        return ""
    run = read_run(folder / "supernet")
    if not curves.has_training(run):
        return ""
    caption = (
        "Of the full network, in float; the loss is that of the sub-networks and the"
        " full network together. Pale: as recorded; full colour: running mean."
    )
    figure = curves.draw_training(run)
    plot = _figure(figure, "training", "Accuracy and loss", caption)
    return _section("training", "Training of the super-network", plot)


def _points(summary: Mapping[str, Any]) -> str:
    names = fronts.prices_of(summary)
    lines = []
    for number, row in enumerate(summary["front"]):
        cells = [f'<td class="number">{number}</td>']
        for key in ("validation_accuracy", "test_accuracy"):
            cells.append(f'<td class="number">{words.percent(row[key], 2)}</td>')
        cells += [f'<td class="number">{quantity(n, row[n])}</td>' for n in names]
        mark = ' class="own"' if number == summary.get("point") else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    header = '<th class="number">point</th><th class="number">validation</th>'
    header += '<th class="number">test</th>'
    header += "".join(f'<th class="number">{_NAMES[name]}</th>' for name in names)
    text = "<p>Take another one with <code>--point</code>, in the same workdir.</p>"
    return _section("points", "All points of the front", text,
                    sections.table(header, lines))  # fmt: skip


def _figure(figure, name: str, label: str, caption: str) -> str:
    svg = style.to_svg(figure, name)
    return page.FIGURE.format(svg=svg, label=escape(label, quote=True), caption=caption)


def _section(name: str, title: str, *parts: str) -> str:
    return page.SECTION.format(name=name, title=escape(title), body="\n".join(parts))
