"""How every plot of the report looks, and how a plot becomes part of the page.

Colours are Okabe and Ito's, told apart by colour-blind readers. matplotlib is imported
when something is drawn, never before, and its global state (pyplot, rcParams) is left
as found. The SVG names colours as CSS variables, so the page decides on light or dark.
"""

import io
import math
import os
import pathlib
import re

import numpy as np

from fliqs_jax.report.records import Phases

INK, MUTED, GRID, SHADE = "#1f2429", "#5f6b7a", "#d6dbe1", "#8a95a3"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
CSS_NAMES = {
    INK: "ink", MUTED: "muted", GRID: "grid", SHADE: "shade",
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple",
}  # fmt: skip

WIDTH = 10.0  # inches of a full-width figure; the page shows an inch as 96 pixels
TITLE_SIZE, LABEL_SIZE, TICK_SIZE, NOTE_SIZE = 10.5, 9.0, 8.0, 7.5  # points


def new_figure(
    height: float, *, layout: str | None = "constrained"
) -> "matplotlib.figure.Figure":
    """Returns an empty figure of the report's width and `height` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(
    axes,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    grid: str = "y",
    pad: float = 6.0,
) -> None:
    """Gives axes a title, labels and the report's quiet frame.

    Args:
      axes: matplotlib axes; changed in place.
      title: what the plot shows, left-aligned.
      xlabel: quantity and unit along x.
      ylabel: quantity and unit along y.
      grid: axes with grid lines: "x", "y", "both" or "" for none.
      pad: points between plot and title.
    """
    axes.set_title(
        title, loc="left", pad=pad, fontsize=TITLE_SIZE, color=INK, fontweight="bold"
    )
    axes.set_xlabel(xlabel, fontsize=LABEL_SIZE, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=LABEL_SIZE, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=TICK_SIZE, length=3, width=0.6)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(SHADE)
        spine.set_linewidth(0.6)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)


def add_legend(axes, **where) -> None:
    """Adds a frameless legend in the report's type, if there is anything to name."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, frameon=False, fontsize=TICK_SIZE, labelcolor=INK, **where
        )


def note(axes, text: str, at, shift, **look) -> None:
    """Writes small text beside a point of the data, `shift` points from it.

    It stays readable on what is drawn there: it is on top, with a pale rim.
    """
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text, at, xytext=shift, textcoords="offset points", fontsize=NOTE_SIZE,
        color=INK, zorder=5, path_effects=[withStroke(linewidth=2.5, foreground="w")],
        **look,
    )  # fmt: skip


def dress_bar(bar, label: str = "") -> None:
    """Gives a colour bar its label and the report's quiet frame."""
    bar.set_label(label, fontsize=LABEL_SIZE, color=MUTED)
    bar.ax.tick_params(colors=MUTED, labelsize=TICK_SIZE)
    bar.outline.set_visible(False)


def write_png(
    figure: "matplotlib.figure.Figure", path: str | os.PathLike
) -> pathlib.Path:
    """Writes a figure, the same bytes each time, and returns the file's path."""
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return pathlib.Path(path)


def cost_ticks(axes) -> None:
    """Writes costs on a logarithmic axis as plain numbers: 0.05, 0.1, 0.2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def loss_ticks(axes) -> None:
    """Writes a logarithmic axis of losses or errors as plain numbers: 0.05, 0.1, 0.2.

    Call it when everything is drawn: the ticks depend on the span of the axis.
    """
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )

    low, high = axes.get_ylim()
    if high > 5 * low:
        several = high > 100 * low
        locator = LogLocator(subs=(1.0,) if several else (1, 2, 5))
    else:  # too short to have three of them
        locator = MaxNLocator(nbins=6, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def step_ticks(axes) -> None:
    """Writes training steps as 500, 2k, 12.5k, at whole numbers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: _step_text(step)))


def _step_text(step: float) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"


def shade_phases(axes, phases: Phases | None) -> None:
    """Shades the warm-up and the fixed-policy phase and names all three on top.

    Phases of no length are left out. A run of one phase, as one that trains a fixed
    policy, has nothing to tell apart: its axes only get their limits.
    """
    if phases is None:
        return
    spans = (
        ("warm-up", 0, phases.warmup_end, SHADE, 0.16),
        ("search", phases.warmup_end, phases.search_end, None, 0.0),
        ("fixed policy", phases.search_end, phases.steps, BLUE, 0.09),
    )
    spans = [span for span in spans if span[2] > span[1]]
    for name, start, end, colour, alpha in spans if len(spans) > 1 else ():
        if colour:
            axes.axvspan(start, end, color=colour, alpha=alpha, linewidth=0, zorder=0)
        # Under 9 % of the run there is no room for a word.
        if end - start > 0.09 * phases.steps:
            axes.text(
                (start + end) / 2, 1.01, name, transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=NOTE_SIZE, color=MUTED,
            )  # fmt: skip
    axes.set_xlim(0, max(phases.steps, 1))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean over `window` neighbours, leaving out what is not finite."""
    finite = np.isfinite(values)
    kernel = np.ones(max(1, min(window, len(values))))
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    number = np.convolve(finite.astype(float), kernel, mode="same")
    return np.where(number > 0, total / np.maximum(number, 1.0), math.nan)


def to_svg(figure: "matplotlib.figure.Figure", name: str) -> str:
    """Returns a figure as an SVG element to stand in an HTML page.

    Text stays text (searchable, in the page's typeface), colours become CSS variables
    (`--ink` and so on), identifiers begin with `name` so that several figures can share
    a page, and nothing refers to another file.

    Args:
      figure: as drawn by this package.
      name: short and unique on the page.

    Returns:
      The `<svg>` element without XML header or metadata.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = {key: None for key in ("Date", "Creator", "Format", "Type")}
    # The salt makes identifiers, and with them the whole page, repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in CSS_NAMES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
