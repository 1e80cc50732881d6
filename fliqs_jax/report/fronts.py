"""Pictures of a front: accuracy against prices, and how the front grew.

Takes the values of a summary, in users' units; how they were found is not known here.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fliqs_jax.report import style

# Of each price: what its axis says and the factor of its ticks, for values from a least
# one on; the first that fits the median is taken.
PRICES = {
    "size_mb": (
        (1.0, "model size (MB of 10⁶ bytes)", 1.0),
        (0.0, "model size (kB of 10³ bytes)", 1e3),
    ),
    "bops": (
        (1e9, "bit operations of an example (10⁹)", 1e-9),
        (0.0, "bit operations of an example (10⁶)", 1e-6),
    ),
    "activation_mb": (
        (1.0, "inputs of all sites (MB of 10⁶ bytes)", 1.0),
        (0.0, "inputs of all sites (kB of 10³ bytes)", 1e3),
    ),
    "latency_ms": (
        (1.0, "latency (ms)", 1.0),
        (0.0, "latency (µs)", 1e3),
    ),
}
_OTHERS = (
    (style.GREEN, "^"),
    (style.PURPLE, "v"),
    (style.MUTED, "P"),
    (style.INK, "X"),
)
_FRONT, _TAKEN = "front of the search", "the point taken"
_FULL = "full network at one format"
_SHOWN = 0.25  # of accuracy below the best: the rest of the axis would be empty


def prices_of(summary: Mapping[str, Any]) -> list[str]:
    """Returns the prices that a summary's front has, the searched ones first."""
    row = summary["front"][0]
    searched = [name for name in summary["prices_searched"] if name in row]
    return searched + [name for name in PRICES if name in row and name not in searched]


def draw_front(summary: Mapping[str, Any]) -> "matplotlib.figure.Figure":
    """Draws test accuracy against every price: the front beside uniform policies.

    Args:
      summary: of a joint search: `front`, `full_network`, `subnetworks`, `point`,
        `accuracy_reference`, `prices_searched`.

    Returns:
      A figure with a panel for each price; what is far below the best is left out.
    """
    names = prices_of(summary)
    figure = style.new_figure(4.6)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
        label, factor = _axis(name, summary)
        _panel(axes, summary, name, factor)
        how = "searched" if name in summary["prices_searched"] else "not searched"
        style.dress(
            axes, title=label.partition(" (")[0].capitalize() + f" ({how})",
            xlabel=f"{label}, logarithmic", grid="both",
            ylabel="test accuracy (%)" if number == 0 else "",
        )  # fmt: skip
    panels[0].set_ylim(*_accuracies_shown(summary))
    named = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    first = [name for name in (_FRONT, _TAKEN, _FULL) if name in named]
    labels = first + [name for name in named if name not in first]
    figure.legend(
        [named[label] for label in labels], labels, loc="outside lower center", ncols=3,
        frameon=False, fontsize=style.TICK_SIZE, labelcolor=style.INK,
    )  # fmt: skip
    return figure


def _axis(name: str, summary: Mapping[str, Any]) -> tuple[str, float]:
    rows = [*summary["front"], *summary["full_network"].values()]
    usual = np.median([row[name] for row in rows])
    return next((text, f) for least, text, f in PRICES[name] if usual >= least)


def _panel(axes, summary: Mapping[str, Any], name: str, factor: float) -> None:
    def draw(rows, **look):
        axes.plot(
            [factor * row[name] for row in rows],
            [100 * row["test_accuracy"] for row in rows],
            **look,
        )

    reference, full = summary["accuracy_reference"], summary["full_network"]
    axes.axhline(
        100 * full[reference]["test_accuracy"], color=style.INK, linestyle=":",
        linewidth=1, label=f"full network at {reference}",
    )  # fmt: skip
    others = iter(_OTHERS)
    for formats, rows in summary["subnetworks"].items():
        colour, marker = (
            (style.ORANGE, "s") if formats == reference else next(others, _OTHERS[-1])
        )
        draw(
            rows, color=colour, marker=marker, markersize=4.5, linestyle="none",
            markerfacecolor="white", label=f"sub-networks of the front at {formats}",
        )  # fmt: skip
    front = sorted(summary["front"], key=lambda row: row[name])
    searched = name in summary["prices_searched"]
    draw(
        front, color=style.BLUE, marker="o", markersize=4,
        linestyle="-" if searched else "none", linewidth=1.1,
        label=_FRONT, zorder=3,
    )  # fmt: skip
    draw(
        full.values(), color=style.INK, marker="D", markersize=5, linestyle="none",
        label=_FULL, zorder=3,
    )  # fmt: skip
    for formats, row in full.items():
        at = factor * row[name], 100 * row["test_accuracy"]
        style.note(axes, formats, at, (0, 7), ha="center", annotation_clip=True)
    if summary.get("point") is not None:
        draw(
            [summary["front"][summary["point"]]], color=style.ORANGE, marker="*",
            markersize=15, linestyle="none", label=_TAKEN, zorder=5,
        )  # fmt: skip
    axes.set_xscale("log")
    style.cost_ticks(axes)


def _accuracies_shown(summary: Mapping[str, Any]) -> tuple[float, float]:
    rows = [*summary["front"], *summary["full_network"].values()]
    every = 100 * np.array([row["test_accuracy"] for row in rows])
    low = max(every.min(), every.max() - 100 * _SHOWN)
    room = 0.06 * max(every.max() - low, 1.0)
    return low - room, min(every.max() + 2 * room, 100 + room)


def draw_hypervolume(
    curve: Sequence[Sequence[int | float]], *, population: int
) -> "matplotlib.figure.Figure":
    """Draws the hypervolume of a search against its evaluations.

    Args:
      curve: pairs (evaluations, share of the box up to the reference).
      population: evaluations a generation.

    Returns:
      A figure with the whole search, and where there is one the part after the first
      generation.
    """
    steps, values = np.array(curve, float).T
    later = steps >= population
    parts = [("Hypervolume of the front so far", np.ones(len(steps), bool))]
    if later.sum() > 1 and not later.all():
        parts.append(("After the first generation", later))
    figure = style.new_figure(3.0)
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (title, part) in zip(panels, parts, strict=True):
        axes.plot(
            steps[part], values[part], color=style.BLUE, linewidth=1.6,
            marker=None if part.sum() > 2 else "o",
        )  # fmt: skip
        axes.ticklabel_format(axis="y", useOffset=False)
        style.dress(
            axes, title=title, xlabel="evaluations", ylabel="share of the reference box"
        )
        style.step_ticks(axes)
    if len(parts) > 1:
        panels[0].axvline(population, color=style.SHADE, linestyle=":", linewidth=1)
    return figure


def write_front_plot(
    path: str | os.PathLike, summary: Mapping[str, Any]
) -> pathlib.Path:
    """Writes `draw_front` as a PNG file and returns its path."""
    return style.write_png(draw_front(summary), path)
