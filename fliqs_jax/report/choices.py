"""What the run chose: the format of every site, and what it is worth.

Each function takes a Run and returns a matplotlib Figure; nothing is written.
"""

import math

import numpy as np

from fliqs_jax.report import style
from fliqs_jax.report.records import Run
from fliqs_jax.report.words import COST_NAMES, cost_fraction, shorten, storage_bits


def draw_formats(run: Run) -> "matplotlib.figure.Figure":
    """Draws the bits of each site's weights and inputs beside its share of the network.

    Args:
      run: with a policy and the sites of its network.

    Returns:
      A figure with a row per site: bits on the left; shares of MACs and of weights on
      the right.

    Raises:
      ValueError: if there is no policy yet, or config.json lists no sites.
    """
    if run.policy is None or not run.config.sites:
        raise ValueError("run has no policy.json or no sites in config.json to draw")
    from matplotlib.transforms import ScaledTranslation

    sites = run.config.sites
    figure = style.new_figure(1.35 + 0.235 * max(len(sites), 2))  # a row needs two
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.9, 1))
    formats = [run.policy.get(site.path, ("fp32", "fp32")) for site in sites]
    bits = np.array([[storage_bits(name) or 32 for name in pair] for pair in formats])
    _paired_bars(left, bits[:, 0], bits[:, 1], ("weights", "inputs"), _BIT_COLOURS)
    for row, (weight, activation) in enumerate(formats):
        text = weight if weight == activation else f"{weight} · {activation}"
        style.note(left, text, (bits[row].max(), row), (5, 0), va="center")
    left.set_xlim(0, 1.22 * bits.max())
    ticks = sorted({0, *bits.ravel().tolist()})
    left.set_xticks(ticks if len(ticks) < 9 else ticks[:: math.ceil(len(ticks) / 8)])
    left.set_yticks(range(len(sites)), [shorten(site.path, 34) for site in sites])
    left.set_ylim(len(sites) - 0.4, -0.6)  # the first site on top
    macs = _shares([site.macs for site in sites])
    weights = _shares([site.weight_count for site in sites])
    _paired_bars(right, macs, weights, ("of MACs", "of weights"), _SHARE_COLOURS)
    style.dress(
        left, title="Chosen format of each site", xlabel="storage bits", grid="x"
    )
    style.dress(right, title="Its share of the network", xlabel="share (%)", grid="x")
    right.tick_params(labelleft=False)
    for axes in (left, right):
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        # Under the plot, where it hides no bar; the distance is fixed in inches.
        below = axes.transAxes + ScaledTranslation(0, -0.42, figure.dpi_scale_trans)
        style.add_legend(
            axes, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=2
        )
    left.tick_params(axis="y", labelcolor=style.INK)
    return figure


_BIT_COLOURS = (style.BLUE, style.ORANGE)
_SHARE_COLOURS = (style.GREEN, style.PURPLE)


def draw_accuracy_cost(run: Run) -> "matplotlib.figure.Figure":
    """Draws test accuracy against cost: the run's policy among the uniform ones.

    Args:
      run: with a summary.

    Returns:
      A figure with cost, as a fraction of the reference's, on a logarithmic axis.

    Raises:
      ValueError: if the run has no summary, or its cost or accuracy was not recorded.
    """
    if not has_trade_off(run):
        raise ValueError("run has no summary.json with accuracy and cost to draw")
    summary, config = run.summary, run.config
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    points = sorted(
        (cost_fraction(run, row.cost_ratio), 100 * row.accuracy, row.format)
        for row in summary.uniform
        if math.isfinite(row.cost_ratio) and row.cost_ratio > 0
    )
    points = [point for point in points if math.isfinite(point[1])]
    if points:
        axes.plot(
            *zip(*_upper_edge(points), strict=True), color=style.MUTED, linewidth=0.9,
            linestyle=":", zorder=1,
        )  # fmt: skip
        axes.plot(
            [x for x, *_ in points], [y for _, y, _ in points], color=style.MUTED,
            marker="o", markersize=5, linestyle="none",
            label="one format everywhere, same final weights",
        )  # fmt: skip
    fraction = cost_fraction(run, summary.cost_ratio)
    others = _other_budgets(run)
    if others:
        line = sorted([*others, (fraction, 100 * summary.accuracy)])
        axes.plot(
            *zip(*line, strict=True), color=style.ORANGE, linewidth=1, marker="o",
            markersize=4, label="chosen for other budgets, same weights", zorder=3,
        )  # fmt: skip
    axes.plot(
        [fraction], [100 * summary.accuracy], color=style.ORANGE, marker="*",
        markersize=15, linestyle="none", label="this run's policy", zorder=4,
    )  # fmt: skip
    axes.axvline(
        config.cost_target,
        color=style.BLUE,
        linestyle="--",
        linewidth=1,
        label="target",
    )
    axes.set_xscale("log")
    values = [fraction, config.cost_target, *(x for x, *_ in [*points, *others])]
    axes.set_xlim(min(values) / 1.3, max(values) * 1.5)
    style.cost_ticks(axes)
    axes.margins(y=0.12)
    style.dress(
        axes, title="Test accuracy of this run's policy and of uniform formats",
        grid="both",
        xlabel=f"cost: {COST_NAMES.get(config.cost, config.cost)}, as a fraction of "
        f"uniform {config.cost_reference} (logarithmic)",
        ylabel="test accuracy (%)",
    )  # fmt: skip
    style.add_legend(axes, loc="lower right")
    _label_points(figure, axes, points)
    return figure


def has_trade_off(run: Run) -> bool:
    """Returns whether the run's accuracy and cost are known."""
    if run.summary is None:
        return False
    cost = cost_fraction(run, run.summary.cost_ratio)
    return math.isfinite(run.summary.accuracy) and math.isfinite(cost) and cost > 0


def _other_budgets(run: Run) -> list[tuple[float, float]]:
    found = [
        (cost_fraction(run, row.cost_ratio), 100 * row.accuracy)
        for row in run.summary.trade_off
    ]
    return [(x, y) for x, y in found if x > 0 and math.isfinite(x) and math.isfinite(y)]


def _shares(counts: list[int]) -> np.ndarray:
    return 100 * np.array(counts, float) / max(1, sum(counts))


def _paired_bars(axes, first, second, labels, colours) -> None:
    rows = np.arange(len(first))
    for values, label, colour, shift in zip(
        (first, second), labels, colours, (-0.17, 0.17), strict=True
    ):
        axes.barh(rows + shift, values, height=0.32, color=colour, label=label)


def _upper_edge(points: list[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """The best point of each cost: what uniform formats can reach."""
    best: dict[float, float] = {}
    for cost, accuracy, _ in points:
        best[cost] = max(accuracy, best.get(cost, -math.inf))
    return sorted(best.items())


def _label_points(figure, axes, points: list[tuple[float, float, str]]) -> None:
    """Names the uniform points; names that would meet stand under one another."""
    figure.draw_without_rendering()  # fixes the axes, and with them distances in pixels
    pixels = axes.transData.transform(
        [(x, y) for x, y, _ in points] or np.empty((0, 2))
    )
    line = 1.25 * style.NOTE_SIZE * figure.dpi / 72
    placed: list[tuple[float, float]] = []
    for index in np.argsort(-pixels[:, 1], kind="stable"):
        x, y, name = points[index]
        across, up = pixels[index]
        for other_across, other_up in placed:  # from the top down, so only ever lower
            if abs(across - other_across) < 2.6 * line and abs(up - other_up) < line:
                up = other_up - line
        placed.append((across, up))
        drop = (up - pixels[index][1]) * 72 / figure.dpi - 5  # clear of the dotted line
        style.note(axes, name, (x, y), (7, drop), va="center")
