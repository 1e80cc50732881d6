"""Pictures of a cell search: the cell as a graph, its cost as expected and as derived.

Each function takes plain values or a Run, and returns a figure.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fliqs_jax.report import style
from fliqs_jax.report.records import Run

Edges = Sequence[tuple[int, int, str]]  # (source, target, operation)

_SHORT = {
    "skip_connect": ("skip", style.SHADE),
    "avg_pool_3x3": ("avg 3×3", style.GREEN),
    "max_pool_3x3": ("max 3×3", style.GREEN),
    "nor_conv_1x1": ("conv 1×1", style.ORANGE),
    "nor_conv_3x3": ("conv 3×3", style.BLUE),
    "sep_conv_3x3": ("sep 3×3", style.BLUE),
    "sep_conv_5x5": ("sep 5×5", style.BLUE),
    "dil_conv_3x3": ("dil 3×3", style.ORANGE),
    "dil_conv_5x5": ("dil 5×5", style.ORANGE),
}


def draw_cell(cells: Mapping[str, Edges]) -> "matplotlib.figure.Figure":
    """Draws each kind of cell as a graph from left to right; `none` is left out.

    Operations on no path from an input to the output are grey and dashed: they have
    parameters, but no effect.

    Args:
      cells: by kind, the edges that do something. A cell of one kind ends in its last
        node; where there are several (DARTS) nodes 0 and 1 are inputs and an output
        joins the others.
    """
    figure = style.new_figure(3.4 * len(cells))
    panels = figure.subplots(len(cells), 1, squeeze=False)[:, 0]
    for axes, (kind, edges) in zip(panels, cells.items(), strict=True):
        joined = len(cells) > 1
        places, names = (_darts_places if joined else _benchmark_places)(edges)
        title = {"cell": "The cell", "normal": "Normal cell"}.get(
            kind, "Reduction cell"
        )
        style.dress(axes, title=title, grid="")
        outputs = sorted(set(places) - {0, 1, max(places)}) if joined else []
        joins = [(node, max(places), "") for node in outputs]
        live = live_edges([*edges, *joins], inputs=range(1 + joined))
        for edge in sorted(edges):
            source, target, operation = edge
            text, colour = _SHORT.get(operation, (operation, style.PURPLE))
            look = {"colour": colour}
            if edge not in live:
                look = {"colour": style.SHADE, "line": "--"}
            _arrow(axes, places[source], places[target], text, **look)
        for source, target, text in joins:
            _arrow(axes, places[source], places[target], text, colour=style.GRID)
        for node, (x, y) in places.items():
            axes.text(
                x, y, names[node], ha="center", va="center", color=style.INK,
                fontsize=style.LABEL_SIZE, zorder=4,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": "#ffffff",
                      "edgecolor": style.INK, "linewidth": 0.9},
            )  # fmt: skip
        xs, ys = zip(*places.values(), strict=True)
        axes.set_xlim(min(xs) - 0.35, max(xs) + 0.35)
        axes.set_ylim(min(ys) - 0.9, max(ys) + 0.9)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _benchmark_places(edges: Edges):
    places = {0: (0.0, 0.0), 1: (1.0, 0.7), 2: (2.0, -0.7), 3: (3.0, 0.0)}
    return places, {0: "input", 1: "node 1", 2: "node 2", 3: "output"}


def _darts_places(edges: Edges):
    last = max(target for _, target, _ in edges)
    places = {0: (0.0, 1.0), 1: (0.0, -1.0)}
    places |= {
        node: (1.1 * node - 1.1, 2.0 * (node % 2) - 1) for node in range(2, last + 1)
    }
    places[last + 1] = (1.1 * last, 0.0)
    names = {node: f"node {node}" for node in places}
    names |= {0: "cell before last", 1: "cell before", last + 1: "output"}
    return places, names


def _arrow(axes, start, end, text: str, *, colour: str, line: str = "-") -> None:
    """A curve that leaves the middle line free, its text a third of the way."""
    start, end = np.array(start), np.array(end)
    reach = end[0] - start[0]
    lean = (start[1] + end[1]) / 2
    side = np.sign(lean) if abs(lean) > 0.05 else -1.0
    control = (start + end) / 2 + [0.0, side * 0.28 * max(0.0, reach - 0.9)]
    t = np.linspace(0, 1, 200)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    # What is hidden behind a node's box, about 0.2 high.
    outside = [
        (np.abs(curve - node) > (0.24, 0.2)).any(axis=1) for node in (start, end)
    ]
    curve = curve[outside[0] & outside[1]]
    axes.plot(*curve.T, color=colour, linestyle=line, linewidth=1.5, zorder=2)
    axes.annotate(
        "", curve[-1], curve[-6], zorder=3,
        arrowprops={"arrowstyle": "-|>", "color": colour, "mutation_scale": 11,
                    "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    if text:
        axes.text(
            *curve[int(0.42 * len(curve))], text, ha="center", va="center", zorder=5,
            color=style.INK, fontsize=style.TICK_SIZE,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "#ffffff",
                  "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip


def live_edges(edges: Edges, *, inputs: Iterable[int]) -> set[tuple[int, int, str]]:
    """Returns the edges on a path from an input to the last node.

    Args:
      edges: from lower to higher nodes.
      inputs: nodes that have a value without any edge.

    Example:
      >>> edges = [(0, 1, "conv"), (1, 3, "skip"), (2, 3, "conv")]
      >>> sorted(live_edges(edges, inputs=[0]))  # nothing reaches node 2
      [(0, 1, 'conv'), (1, 3, 'skip')]
    """
    if not edges:
        return set()
    reached, needed = set(inputs), {max(target for _, target, _ in edges)}
    for source, target, _ in sorted(edges):
        if source in reached:
            reached.add(target)
    for source, target, _ in sorted(edges, key=lambda edge: -edge[1]):
        if target in needed:
            needed.add(source)
    return {edge for edge in edges if edge[0] in reached and edge[1] in needed}


def short_name(operation: str) -> str:
    """Returns an operation's name as pictures write it.

    Example:
      >>> short_name("nor_conv_3x3"), short_name("none")
      ('conv 3×3', 'none')
    """
    return _SHORT.get(operation, (operation, ""))[0]


def limit_names(run: Run) -> list[str]:
    """Returns the limits whose course a run recorded."""
    ending = "_derived_ratio"
    return [name.removesuffix(ending) for name in run.train if name.endswith(ending)]


def draw_limits(run: Run) -> "matplotlib.figure.Figure":
    """Draws expected and derived cost over each bound, and its multiplier.

    Raises:
      ValueError: if the run had no limits.
    """
    names = limit_names(run)
    if not names:
        raise ValueError("run has no limits: there is no bound to draw costs against")
    figure = style.new_figure(3.0 * len(names))
    grid = figure.subplots(len(names), 2, squeeze=False)
    for (costs, multiplier), name in zip(grid, names, strict=True):
        for key, colour, label in (
            (f"{name}_derived_ratio", style.SHADE, "cell derived at this step"),
            (f"{name}_ratio", style.BLUE, "expected, search network"),
        ):
            series = run.train[key]
            costs.plot(
                series.steps, series.values, color=colour, linewidth=1.4, label=label,
                drawstyle="steps-post" if "derived" in key else "default",
            )  # fmt: skip
        costs.axhline(1.0, color=style.INK, linestyle="--", linewidth=1, label="bound")
        costs.set_ylim(bottom=0)
        series = run.train[f"{name}_multiplier"]
        multiplier.plot(series.steps, series.values, color=style.ORANGE, linewidth=1.4)
        multiplier.set_ylim(0, 1.1 * max(0.1, float(np.nanmax(series.values))))
        word = name.replace("_", " ")
        style.dress(
            costs, title=f"Cost: {word}", xlabel="search step", ylabel="cost / bound"
        )
        style.dress(
            multiplier, title="Its multiplier", xlabel="search step", ylabel="λ"
        )
        for axes in (costs, multiplier):
            style.step_ticks(axes)
        style.add_legend(costs, loc="best")
    return figure
