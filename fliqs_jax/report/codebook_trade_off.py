"""Several compressions in one picture: loss and error against K, the codebook's size.

Takes numbers; what the methods are is not known here.
"""

import dataclasses
import itertools
import os
import pathlib
import statistics
from collections.abc import Sequence

from fliqs_jax.report import style


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookPoint:
    """Runs of one method at one K."""

    series: str  # name in the legend; points of a series are joined
    size: int  # K
    losses: tuple[float, ...]  # training, nats, a run each
    errors: tuple[float, ...]  # test, 0 to 1, a run each

    def __post_init__(self):
        if not self.losses or len(self.losses) != len(self.errors):
            raise ValueError(
                "losses and errors need an entry for each of one or more runs, got "
                f"{len(self.losses)} and {len(self.errors)}"
            )


_LOOKS = (
    (style.BLUE, "o", "-"),
    (style.PURPLE, "D", "-."),
    (style.ORANGE, "s", "--"),
    (style.GREEN, "^", ":"),
)


def draw_codebook_trade_off(
    points: Sequence[CodebookPoint], *, reference_loss: float, reference_error: float
) -> "matplotlib.figure.Figure":
    """Draws training loss and test error against K: means, standard deviations as bars.

    Args:
      points: in the order of the legend, any order of K.
      reference_loss: of the network before compression, nats; a line across.
      reference_error: the same, 0 to 1.

    Raises:
      ValueError: if there are no points.
    """
    if not points:
        raise ValueError("points must not be empty")
    figure = style.new_figure(3.8)
    panels = figure.subplots(1, 2)
    sizes = sorted({point.size for point in points})
    for axes, field, factor, reference, title, ylabel in (
        (panels[0], "losses", 1.0, reference_loss, "Training loss", "loss (nats)"),
        (panels[1], "errors", 100.0, reference_error, "Test error", "error (%)"),
    ):
        looks = itertools.cycle(_LOOKS)
        for name in dict.fromkeys(point.series for point in points):
            own = sorted(
                (point for point in points if point.series == name),
                key=lambda point: point.size,
            )
            values = [[factor * v for v in getattr(point, field)] for point in own]
            colour, marker, line = next(looks)
            axes.errorbar(
                [point.size for point in own],
                [statistics.mean(value) for value in values],
                yerr=[statistics.stdev(v) if v[1:] else 0.0 for v in values],
                color=colour, marker=marker, linestyle=line, markersize=4.5,
                linewidth=1.2, elinewidth=1.0, capsize=2.5, label=name,
            )  # fmt: skip
        axes.axhline(
            factor * reference, color=style.INK, linestyle=(0, (6, 3)), linewidth=1.0,
            label="reference network",
        )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        style.loss_ticks(axes)
        style.dress(
            axes, title=f"{title} against the size of the codebook",
            xlabel="K, values of a codebook (logarithmic)",
            ylabel=f"{ylabel}, logarithmic", grid="both",
        )  # fmt: skip
    style.add_legend(panels[1], loc="best")
    return figure


def write_codebook_trade_off(
    path: str | os.PathLike, points: Sequence[CodebookPoint], **reference: float
) -> pathlib.Path:
    """Writes `draw_codebook_trade_off` as a PNG file and returns its path."""
    return style.write_png(draw_codebook_trade_off(points, **reference), path)
