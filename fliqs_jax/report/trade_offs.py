"""Several methods in one picture: accuracy against cost, with the spread of their runs.

Takes accuracies and costs as numbers; what the methods are is not known here.
"""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from fliqs_jax.report import style
from fliqs_jax.report.words import COST_NAMES

_SYMBOL = 6.0  # points wide; symbols of one budget stand side by side, so far apart
# Told apart by symbol and line, too, for print and for colour-blind readers.
_LOOKS = tuple(
    zip(
        (style.ORANGE, style.BLUE, style.GREEN, style.PURPLE, style.INK, style.MUTED),
        ("o", "s", "^", "D", "v", "P"),
        strict=True,
    )
)
_LINES = ("-", "--", "-.", ":")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TradeOff:
    """Runs of one method at one budget, or of one policy of a cost of its own."""

    series: str  # name in the legend; points of a series are joined
    note: str = ""  # beside the point
    budget: float | None = None  # None for a cost of its own
    costs: tuple[float, ...]  # as fractions of the reference's, a run each
    accuracies: tuple[float, ...]  # 0 to 1, a run each

    def __post_init__(self):
        if not self.costs or len(self.costs) != len(self.accuracies):
            raise ValueError(
                "costs and accuracies need an entry for each of one or more runs, got "
                f"{len(self.costs)} and {len(self.accuracies)}"
            )


def draw_trade_offs(
    points: Sequence[TradeOff], *, cost: str, reference: str
) -> "matplotlib.figure.Figure":
    """Draws test accuracy against cost: means, with standard deviations as bars.

    Methods that share a budget share a cost, so their symbols stand side by side at its
    line, a few points apart whatever their costs. A series of which every point costs
    over four times what the budgets and the other policies cost (float) is a line.

    Args:
      points: in the order of the legend.
      cost: what the cost counts: "bops", "size", "latency".
      reference: format of the uniform policy whose cost is 1.

    Returns:
      A figure; accuracy is logarithmic in the error where errors differ fourfold.

    Raises:
      ValueError: if there are no points, or a cost is not positive.
    """
    if not points or min(min(point.costs) for point in points) <= 0:
        raise ValueError("points must not be empty, and their costs positive")
    series = list(dict.fromkeys(point.series for point in points))
    levels = _levels(points, series)
    figure = style.new_figure(5.4)
    axes = figure.subplots()
    axes.set_xscale("log")
    _accuracy_scale(axes, points)
    dodged = [
        name
        for name in series
        if any(point.series == name and point.budget is not None for point in points)
    ]
    looks = {
        name: _look(i) for i, name in enumerate(n for n in series if n not in levels)
    }
    for name in series:
        own = [point for point in points if point.series == name]
        if name in levels:
            _draw_level(axes, own)
            continue
        place = dodged.index(name) - (len(dodged) - 1) / 2 if name in dodged else 0.0
        _draw_series(figure, axes, own, looks[name], shift=place * (_SYMBOL + 1.5))
    shown = [point for point in points if point.series not in levels] or points
    _budget_lines(axes, sorted({p.budget for p in shown if p.budget is not None}))
    means = [statistics.mean(point.costs) for point in shown]
    axes.set_xlim(min(means) / 1.4, max(means) * 1.4)
    style.cost_ticks(axes)
    style.dress(
        axes, title=f"Test accuracy against cost: {_spread(points)}", grid="both",
        xlabel=f"cost: {COST_NAMES.get(cost, cost)}, as a fraction of uniform "
        f"{reference} (logarithmic)",
        ylabel=axes.get_ylabel(), pad=18,
    )  # fmt: skip
    style.add_legend(
        axes, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.6,
        labelspacing=0.9,
    )  # fmt: skip
    return figure


def write_trade_offs(
    path: str | os.PathLike, points: Sequence[TradeOff], *, cost: str, reference: str
) -> pathlib.Path:
    """Writes `draw_trade_offs` as a PNG file and returns its path."""
    figure = draw_trade_offs(points, cost=cost, reference=reference)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return pathlib.Path(path)


def _levels(points: Sequence[TradeOff], series: Sequence[str]) -> set[str]:
    """Series that would stretch the axis: dear ones, each of a cost of its own."""
    dear = {
        name: min(min(p.costs) for p in points if p.series == name) for name in series
    }
    free = {
        name
        for name in series
        if all(p.budget is None and not p.note for p in points if p.series == name)
    }
    others = [max(p.costs) for p in points if p.series not in free]
    return {name for name in free if others and dear[name] > 4 * max(others)}


def _look(index: int) -> dict[str, object]:
    colour, marker = _LOOKS[index % len(_LOOKS)]
    hollow = index >= len(_LOOKS)  # the second round
    return {
        "color": colour, "marker": marker, "linewidth": 1.1,
        "linestyle": _LINES[index % len(_LINES)],
        "markerfacecolor": "white" if hollow else colour,
    }  # fmt: skip


def _draw_series(figure, axes, own: list[TradeOff], look, *, shift: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    own = sorted(own, key=lambda point: statistics.mean(point.costs))
    costs = [statistics.mean(point.costs) for point in own]
    accuracies = [100 * statistics.mean(point.accuracies) for point in own]
    moved = ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    axes.errorbar(
        costs, accuracies,
        xerr=[_deviation(point.costs) for point in own],
        yerr=[100 * _deviation(point.accuracies) for point in own],
        **look, label=own[0].series, markersize=_SYMBOL, elinewidth=1.0, capsize=2.5,
        transform=axes.transData + moved, zorder=3,
    )  # fmt: skip
    for point, cost, accuracy in zip(own, costs, accuracies, strict=True):
        axes.annotate(
            point.note, (cost, accuracy), xytext=(6, -9), textcoords="offset points",
            fontsize=style.NOTE_SIZE, color=style.INK,
        )  # fmt: skip


def _draw_level(axes, own: list[TradeOff]) -> None:
    accuracies = [100 * value for point in own for value in point.accuracies]
    mean, spread = statistics.mean(accuracies), _deviation(accuracies)
    cost = statistics.mean(value for point in own for value in point.costs)
    axes.axhline(
        mean, color=style.INK, linestyle=(0, (6, 3)), linewidth=1.0,
        label=f"{own[0].series} (cost {cost:.3g})",
    )  # fmt: skip
    axes.axhspan(
        mean - spread, mean + spread, color=style.SHADE, alpha=0.15, linewidth=0
    )


def _budget_lines(axes, budgets: list[float]) -> None:
    for budget in budgets:
        axes.axvline(budget, color=style.SHADE, linestyle=(0, (1, 3)), linewidth=1)
        axes.text(
            budget, 1.01, f"budget {budget:g}", transform=axes.get_xaxis_transform(),
            ha="center", va="bottom", fontsize=style.NOTE_SIZE, color=style.MUTED,
        )  # fmt: skip


def _accuracy_scale(axes, points: Sequence[TradeOff]) -> None:
    """Errors of 1 % and 40 % in one picture need a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_ylabel("test accuracy (%)")
    errors = [100 * (1 - value) for point in points for value in point.accuracies]
    least, largest = max(min(errors), _LEAST_ERROR), max(errors)
    if largest < 4 * least:
        room = max(0.12 * (largest - least), 0.1)
        axes.set_ylim(100 - largest - room, 100 - least + room)
        return

    def forward(accuracy):
        return -np.log10(np.maximum(100 - np.asarray(accuracy, float), _LEAST_ERROR))

    def inverse(level):
        return 100 - 10.0 ** -np.asarray(level, float)

    axes.set_yscale("function", functions=(forward, inverse))
    axes.set_ylim(100 - min(1.4 * largest, 100), 100 - least / 1.4)
    ticks = [100 - step * 10.0**power for power in (-2, -1, 0, 1) for step in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("test accuracy (%), logarithmic in the error")


_LEAST_ERROR = 0.01  # %; an error of zero has no logarithm


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(points: Sequence[TradeOff]) -> str:
    numbers = sorted({len(point.costs) for point in points})
    if numbers == [1]:
        return "one run each"
    shown = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"mean and standard deviation of {shown} runs each"
