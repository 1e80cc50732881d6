"""What an architecture search chose, and how its probabilities moved.

Decisions have options of their own: whole numbers, such as channels or sides of a
kernel. Each function takes a Run whose decisions are those about the architecture.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fliqs_jax.report import page, probabilities, style
from fliqs_jax.report.records import Run
from fliqs_jax.report.words import shorten

Options = Mapping[str, Sequence[int]]  # of each decision, ascending


def draw_sizes(
    run: Run, options: Options, chosen: Mapping[str, int]
) -> "matplotlib.figure.Figure":
    r"""Draws every decision's expected size over the steps as one map.

    .. math:: \frac{\sum_k p_{lk}(t) \, o_{lk} - o_{l1}}{o_{lK} - o_{l1}}

    Args:
      run: with policy rows about these decisions.
      options: o, of each decision.
      chosen: the option of each decision in the end, of those that have an effect.

    Returns:
      A figure with a row a decision, the choice at its right end.

    Raises:
      ValueError: if the run recorded no probabilities.
    """
    steps, strips = probabilities.resampled(run)
    names = probabilities.decision_names(run)
    rows = len(names)
    values = np.stack(
        [_relative(strips[:, row], options[name]) for row, name in enumerate(names)]
    )
    figure = style.new_figure(1.3 + 0.19 * rows)
    axes = figure.subplots()
    image = axes.imshow(
        values, aspect="auto", interpolation="none", cmap="viridis", vmin=0, vmax=1,
        extent=probabilities.extent(steps, rows),
    )  # fmt: skip
    style.dress(
        axes, title="Expected size of each part over the search",
        xlabel="training step", ylabel="", grid="",
    )  # fmt: skip
    axes.set_yticks(range(rows), [shorten(name, 34) for name in names])
    style.step_ticks(axes)
    for row, settled in enumerate(probabilities.settled_steps(run)):
        axes.plot(settled, row, "o", markersize=3, color="#ffffff", clip_on=False)
    probabilities.mark_warmup(axes, run, steps)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(rows), _outcomes(run, names, options, chosen))
    right.tick_params(colors=style.INK, labelsize=style.TICK_SIZE, length=0)
    right.spines["right"].set_visible(False)
    bar = figure.colorbar(
        image, ax=axes, pad=0.02, aspect=min(30, 4 * rows), fraction=0.03, anchor=(0, 1)
    )
    bar.set_ticks([0, 1], labels=["smallest option", "largest option"])
    bar.ax.tick_params(colors=style.MUTED, labelsize=style.TICK_SIZE, length=2)
    bar.outline.set_visible(False)
    return figure


def architecture_table(options: Options, chosen: Mapping[str, int]) -> str:
    """Returns a table with the choice of each decision among its options.

    Args:
      options: of each decision.
      chosen: the option taken, of decisions that have an effect.
    """
    rows = []
    for name, listed in options.items():
        taken, bar = "–", "left out"
        if name in chosen:
            taken, bar = str(chosen[name]), page.bar(chosen[name], max(listed))
        others = ", ".join(
            f"<b>{option}</b>" if option == chosen.get(name) else str(option)
            for option in listed
        )
        rows.append((page.code(name), taken, bar, others))
    columns = {"decision": "", "chosen": "number", "of the largest": "", "options": ""}
    return page.table(columns, rows)


def _relative(strip: np.ndarray, options: Sequence[int]) -> np.ndarray:
    """Expected option [T'], 0 for the smallest and 1 for the largest."""
    sizes = np.asarray(options, float)
    expected = strip[:, : len(sizes)] @ sizes
    span = sizes[-1] - sizes[0]
    return (expected - sizes[0]) / span if span else np.ones(len(expected))


def _outcomes(
    run: Run, names: Sequence[str], options: Options, chosen: Mapping[str, int]
) -> list[str]:
    """The final options; "5 → 3" where the network found has another one."""
    listed = [[str(option) for option in options[name]] for name in names]
    texts = []
    finals = probabilities.final_options(run, listed)
    for name, final in zip(names, finals, strict=True):
        taken = str(chosen[name]) if name in chosen else "left out"
        texts.append(final if taken == final else f"{final} → {taken}")
    return texts
