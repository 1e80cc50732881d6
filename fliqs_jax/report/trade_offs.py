"""Several methods in one picture: accuracy against cost, with the spread of their runs.

Takes accuracies and costs as numbers; what the methods are is not known here.
"""

import dataclasses
import itertools
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fliqs_jax.report import style
from fliqs_jax.report.words import COST_NAMES

_SYMBOL, _SPACING = 6.0, 7.5  # points: width of a symbol, and to the one beside it
# Where a note may stand: an end of the bar, and the way from there in points.
_PLACES = ((0, (0, -11)), (2, (0, 11)), (0, (-17, 0)), (0, (17, 0)))
_ROOM = 18.0  # points to the next bar that are enough
_COLOURS = (
    style.ORANGE, style.BLUE, style.GREEN, style.PURPLE, style.INK, style.MUTED,
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_LEAST_ERROR = 0.01  # %; an error of zero has no logarithm


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
    line, a few points apart whatever their costs. A single policy without a note
    that costs over four times as much as all others (float) is a line across.

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
    series: dict[str, list[TradeOff]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    levels = _levels(series)
    budgeted = [
        name
        for name, own in series.items()
        if any(point.budget is not None for point in own)
    ]
    figure = style.new_figure(5.4)
    axes = figure.subplots()
    axes.set_xscale("log")
    _accuracy_scale(axes, points)
    symbols = _symbols()
    drawn = []
    for name, own in series.items():
        if name in levels:
            _draw_level(axes, own)
        else:
            shift = _SPACING * _slot(name, budgeted)
            _draw_series(figure, axes, own, next(symbols), shift=shift)
            drawn += [(point, shift) for point in own]
    shown = [point for point in points if point.series not in levels] or points
    means = [statistics.mean(point.costs) for point in shown]
    axes.set_xlim(min(means) / 1.4, max(means) * 1.4)
    _write_notes(figure, axes, drawn)
    _budget_lines(axes, sorted({p.budget for p in shown if p.budget is not None}))
    style.cost_ticks(axes)
    style.dress(
        axes, title=f"Test accuracy against cost: {_spread(points)}", grid="both",
        xlabel=f"cost: {COST_NAMES.get(cost, cost)}, as a fraction of uniform "
        f"{reference} (logarithmic); methods of one budget stand side by side",
        ylabel=axes.get_ylabel(), pad=18.0,
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
    return style.write_png(figure, path)


def _levels(series: Mapping[str, Sequence[TradeOff]]) -> set[str]:
    """Series of one dear policy, which would stretch the axis for all others."""
    single = {
        name: own[0]
        for name, own in series.items()
        if len(own) == 1 and own[0].budget is None and not own[0].note
    }
    others = [
        max(point.costs)
        for name, own in series.items()
        if name not in single
        for point in own
    ]
    if not others:
        return set()
    dear = 4 * max(others)
    return {name for name, point in single.items() if min(point.costs) > dear}


def _slot(name: str, budgeted: Sequence[str]) -> int:
    """Place beside the budget's line; 0, on the line, is for uniform policies."""
    if name not in budgeted:
        return 0
    place = budgeted.index(name) - len(budgeted) // 2
    return place if place < 0 else place + 1


def _symbols() -> Iterator[dict[str, object]]:
    """Symbol and line of each series: 28 are told apart without their colours."""
    colours, lines = itertools.cycle(_COLOURS), itertools.cycle(_LINES)
    for filled in itertools.cycle((True, False)):
        for marker, colour, line in zip(_MARKERS, colours, lines, strict=False):
            yield {
                "color": colour, "marker": marker, "linestyle": line,
                "markerfacecolor": colour if filled else "white", "linewidth": 1.1,
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


def _write_notes(figure, axes, drawn: Sequence[tuple[TradeOff, float]]) -> None:
    """Writes each point's note at an end of its bar, clear of the other bars."""
    scale = figure.dpi / 72  # pixels in a point

    def pixels(end, shift):
        return axes.transData.transform(end) + scale * np.asarray(shift)

    bars = [(_bar(point), (shift, 0.0)) for point, shift in drawn]
    for (point, _), (bar, _) in zip(drawn, bars, strict=True):
        if not point.note:
            continue
        taken = [
            pixels(end, shift)
            for other, shift in bars
            if other is not bar
            for end in other
        ]
        rooms = []
        for end, shift in _PLACES:
            middle = pixels(bar[end], shift)
            room = min((np.hypot(*(middle - at)) for at in taken), default=np.inf)
            rooms.append(min(room, scale * _ROOM))
        end, shift = _PLACES[int(np.argmax(rooms))]
        style.note(axes, point.note, bar[end], shift, ha="center", va="center")


def _bar(point: TradeOff) -> list[tuple[float, float]]:
    """Returns lower end, middle and upper end of a point's bar, in the data's units."""
    cost, mean = statistics.mean(point.costs), statistics.mean(point.accuracies)
    spread = _deviation(point.accuracies)
    return [(cost, 100 * (mean + sign * spread)) for sign in (-1, 0, 1)]


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
            budget, 1.01, f"budget {budget:.3g}", transform=axes.get_xaxis_transform(),
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


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(points: Sequence[TradeOff]) -> str:
    numbers = sorted({len(point.costs) for point in points})
    if numbers == [1]:
        return "one run each"
    shown = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"mean and standard deviation of {shown} runs each"
