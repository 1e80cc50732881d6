"""Curves over the training steps: learning, and the search's own progress.

Each function takes a Run and returns a matplotlib Figure; nothing is written.
"""

import math

import numpy as np

from fliqs_jax.report import style
from fliqs_jax.report.records import Run, Series

_POINTS = 500  # a curve 900 pixels wide shows no more; keeps the page small


def draw_training(run: Run) -> "matplotlib.figure.Figure":
    """Draws accuracy and loss over the steps, phases shaded.

    Args:
      run: with at least one train or evaluation row.

    Returns:
      A figure with two panels.

    Raises:
      ValueError: if the run recorded no rows yet.
    """
    if not has_training(run):
        raise ValueError("run has no train or evaluation rows: nothing to draw yet")
    figure = style.new_figure(3.5)
    panels = figure.subplots(1, 2)
    for axes, quantity, factor, label in (
        (panels[0], "accuracy", 100.0, "accuracy (%)"),
        (panels[1], "loss", 1.0, "cross-entropy loss (nats)"),
    ):
        style.shade_phases(axes, run.config.phases)
        if quantity in run.train:
            _noisy_line(
                axes, run.train[quantity], style.BLUE, "training batches", factor
            )
        splits = sorted(split for split, name in run.evaluation if name == quantity)
        for split, colour in zip(splits, _SPLIT_COLOURS, strict=False):
            series = run.evaluation[split, quantity]
            axes.plot(
                series.steps, factor * series.values, color=colour, marker="o",
                markersize=3.5, linewidth=1.2, label=split, clip_on=False,
            )  # fmt: skip
        if quantity == "accuracy" and _tested(run):
            axes.plot(
                [run.summary.steps], [100 * run.summary.accuracy], color=style.INK,
                marker="*", markersize=10, linestyle="none", clip_on=False,
                label="test, final policy", zorder=5,
            )  # fmt: skip
        title = f"{quantity.capitalize()} while training"
        _finish(axes, title=title, ylabel=label, phased=run.config.phases is not None)
    return figure


def _tested(run: Run) -> bool:
    return run.summary is not None and math.isfinite(run.summary.accuracy)


_SPLIT_COLOURS = (style.ORANGE, style.GREEN, style.PURPLE)


def has_training(run: Run) -> bool:
    """Returns whether there is an accuracy or loss to draw."""
    names = set(run.train) | {name for _, name in run.evaluation}
    return bool(names & {"accuracy", "loss"})


def has_search(run: Run) -> bool:
    """Returns whether a search left anything to draw."""
    return bool(_search_panels(run))


def draw_search(run: Run) -> "matplotlib.figure.Figure":
    """Draws expected cost against the target, reward and entropy over the steps.

    Args:
      run: of a search.

    Returns:
      A figure with a panel for each quantity that was recorded: expected cost, reward
      and entropy of a controller, or cost and mean bits of re-allocated ones.

    Raises:
      ValueError: if nothing was searched.
    """
    panels = _search_panels(run)
    if not panels:
        raise ValueError("run has no rows of a search: a fixed policy was trained")
    figure = style.new_figure(3.3)
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (quantity, title, ylabel, colour) in zip(columns, panels, strict=True):
        style.shade_phases(axes, run.config.phases)
        _noisy_line(axes, run.train[quantity], colour, title.lower(), 1.0)
        if quantity in ("expected_cost_ratio", "cost_ratio"):
            axes.axhline(
                1.0, color=style.INK, linestyle="--", linewidth=1, label="target"
            )
        if quantity == "cost_ratio":
            axes.set_ylim(0, 1.25)
        if quantity == "entropy":
            if len(run.config.options) > 1:
                axes.axhline(
                    math.log(len(run.config.options)), color=style.INK, linestyle=":",
                    linewidth=1, label="all options equally likely",
                )  # fmt: skip
            axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        _finish(axes, title=title, ylabel=ylabel, phased=run.config.phases is not None)
    return figure


_SEARCH_PANELS = (
    ("expected_cost_ratio", "Expected cost", "expected cost / target", style.ORANGE),
    ("cost_ratio", "Cost", "cost / budget", style.ORANGE),
    ("weight_bits", "Bits of a weight", "mean over all weights", style.BLUE),
    ("input_bits", "Bits of an input", "mean over all inputs", style.GREEN),
    ("reward", "Reward", "reward (quality less penalty)", style.GREEN),
    ("entropy", "Entropy", "mean entropy (nats)", style.PURPLE),
)


def _search_panels(run: Run) -> list[tuple[str, str, str, str]]:
    return [
        panel
        for panel in _SEARCH_PANELS
        if panel[0] in run.train
        and np.isfinite(run.train[panel[0]].values).any()
        # Of a controller: what it expects; that of its samples is chance.
        and not (panel[0] == "cost_ratio" and "expected_cost_ratio" in run.train)
    ]


def _noisy_line(axes, series: Series, colour: str, label: str, factor: float) -> None:
    """The values pale, their running mean in full colour over them."""
    # Rows without a value (a reward, where no policy was judged) would break the line.
    known = np.isfinite(series.values)
    steps, values = series.steps[known], factor * series.values[known]
    stride = max(1, len(values) // _POINTS)
    window = len(values) // 40
    if window > 1:
        # Thinned by the mean of each stride: every n-th row alone would show chance.
        pale = style.running_mean(values, stride)[::stride]
        axes.plot(steps[::stride], pale, color=colour, alpha=0.3, linewidth=0.8)
        values = style.running_mean(values, window)
    axes.plot(
        steps[::stride], values[::stride], color=colour, linewidth=1.6, label=label,
        marker="o" if len(steps) < 3 else None,  # a line of one point is invisible
        markersize=4,
    )  # fmt: skip


def _finish(axes, *, title: str, ylabel: str, phased: bool) -> None:
    pad = 17.0 if phased else 6.0  # the phases' names stand between plot and title
    style.dress(axes, title=title, xlabel="training step", ylabel=ylabel, pad=pad)
    style.step_ticks(axes)
    style.add_legend(axes, loc="best")
