"""Sensitivities of a network's decisions: a ranking for the terminal, and a heat map.

Takes the table as arrays; how it was measured is not known here.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from fliqs_jax.report import style
from fliqs_jax.report.words import shorten

_DECADES = 4  # of values below the largest that colours tell apart
_MOST_WRITTEN = 14  # options whose values find room in the cells
_CELL = 10  # characters of a number's column
_NAME = 40  # characters of a decision that options give way to: names tell layers apart


def sensitivity_table(
    decisions: Sequence[str],
    options: Sequence[str],
    values: Float[ArrayLike, "L K"],
    chosen: Int[ArrayLike, "L"],
    *,
    unit: str,
    width: int = 96,
    max_rows: int = 40,
) -> str:
    """Returns the decisions ranked by their largest value, with the options chosen.

    Args:
      decisions: names of the L decisions.
      options: names of the K options.
      values: what each option costs in quality.
      chosen: option index of each decision.
      unit: of the values, in words; heads the table.
      width: columns at most. Options that do not fit are left out and counted.
      max_rows: decisions at most; the rest, the least sensitive, are counted.

    Example:
      >>> print(sensitivity_table(["Conv_0", "Dense_0"], ["int2", "int4"],
      ...     np.array([[0.02, 0.001], [1.5, 0.03]]), np.array([0, 1]), unit="nats"))
      sensitivity: nats; ranked by the largest
         decision      int2      int4  chosen
      1  Dense_0       1.50    0.0300    int4
      2  Conv_0      0.0200   0.00100    int2
    """
    values, chosen = np.asarray(values, np.float64), np.asarray(chosen)
    order = np.argsort(-values.max(axis=1), kind="stable")[:max_rows]
    rank = len(str(len(order)))
    last = max(6, *(len(options[option]) for option in chosen))
    longest = max(8, *(len(name) for name in decisions))
    room = width - rank - last - 6
    shown = max(1, min(len(options), (room - min(longest, _NAME)) // _CELL))
    name_width = min(longest, room - shown * _CELL)
    header = [f"{name:>{_CELL}}" for name in options[:shown]]
    lines = [
        f"sensitivity: {unit}; ranked by the largest",
        f"{'':{rank}}  {'decision':{name_width}}{''.join(header)}  {'chosen':>{last}}",
    ]
    for place, row in enumerate(order, start=1):
        cells = "".join(f"{_number(x):>{_CELL}}" for x in values[row, :shown])
        name = shorten(decisions[row], name_width)
        pick = options[chosen[row]]
        lines.append(f"{place:{rank}}  {name:{name_width}}{cells}  {pick:>{last}}")
    if shown < len(options):
        lines.append(f"… {len(options) - shown} more options in sensitivity.csv")
    if len(order) < len(decisions):
        lines.append(f"… {len(decisions) - len(order)} less sensitive decisions")
    return "\n".join(line.rstrip() for line in lines)


def draw_sensitivity(
    decisions: Sequence[str],
    options: Sequence[str],
    values: Float[ArrayLike, "L K"],
    chosen: Int[ArrayLike, "L"],
    *,
    unit: str,
) -> "matplotlib.figure.Figure":
    """Draws the table as a heat map, a row a decision, the chosen options outlined.

    Colours are logarithmic over four decades below the largest value; smaller values
    and negative ones (better than float, by chance) have the lightest.

    Args:
      decisions: names of the L decisions, top to bottom.
      options: names of the K options, left to right.
      values: what each option costs in quality.
      chosen: option index of each decision.
      unit: of the values, in words; names the colours.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    values = np.asarray(values, np.float64)
    largest = max(values.max(), 1e-30)
    norm = LogNorm(largest / 10.0**_DECADES, largest)
    figure = style.new_figure(1.7 + 0.26 * len(decisions))
    axes = figure.subplots()
    image = axes.imshow(
        np.maximum(values, norm.vmin), norm=norm, cmap="Blues", aspect="auto"
    )
    crowded = len(options) > _MOST_WRITTEN
    for (row, column), value in np.ndenumerate(values):
        if crowded:
            break
        dark = value > 0 and norm(max(value, norm.vmin)) > 0.6
        axes.text(
            column, row, _number(value), ha="center", va="center",
            fontsize=style.NOTE_SIZE, color="white" if dark else style.INK,
        )  # fmt: skip
    for row, column in enumerate(np.asarray(chosen)):
        axes.add_patch(
            Rectangle(
                (column - 0.47, row - 0.44), 0.94, 0.88, fill=False, linewidth=1.8,
                edgecolor=style.ORANGE, label="" if row else "chosen within the budget",
            )
        )  # fmt: skip
    style.dress(
        axes, title="Sensitivity of each decision, alone, at each option",
        xlabel="option", grid="",
    )  # fmt: skip
    axes.set_xticks(range(len(options)), options, rotation=90 if crowded else 0)
    axes.set_yticks(range(len(decisions)), [shorten(name, 34) for name in decisions])
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=style.INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.015, extend="min")
    style.dress_bar(bar, unit)
    # Above the cells, where it hides none.
    style.add_legend(axes, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def write_sensitivity_plot(
    path: str | os.PathLike,
    decisions: Sequence[str],
    options: Sequence[str],
    values: Float[ArrayLike, "L K"],
    chosen: Int[ArrayLike, "L"],
    *,
    unit: str,
) -> pathlib.Path:
    """Writes `draw_sensitivity` as a PNG file and returns its path."""
    figure = draw_sensitivity(decisions, options, values, chosen, unit=unit)
    return style.write_png(figure, path)


def _number(value: float) -> str:
    """Three digits; an exponent for what would take many zeros."""
    if value == 0.0:
        return "0"
    return f"{value:#.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
