"""How the controller's format probabilities moved: one strip per decision.

Two views: expected bits of all decisions in one map, and every option's probability in
small multiples. Each function takes a Run and returns a matplotlib Figure.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fliqs_jax.report import style
from fliqs_jax.report.records import Run
from fliqs_jax.report.words import shorten, storage_bits

_COLUMNS = 160  # time cells of a strip; more are finer than a pixel


def draw_expected_bits(run: Run) -> "matplotlib.figure.Figure":
    """Draws every decision's expected bits over the steps as one map.

    .. math:: E_l(t) = \\sum_k p_{lk}(t) \\, bits_k

    Where options are not formats, or all have the same bits, colour shows the largest
    probability instead: how sure the controller is.

    Where options were set and not drawn, they are the bits trained at each step.

    Args:
      run: with policy rows.

    Returns:
      A figure with one row per decision, the final choice at its right end.

    Raises:
      ValueError: if the run recorded no probabilities.
    """
    from matplotlib.colors import LogNorm, Normalize

    _, strips = resampled(run)
    bits = _option_bits(run)
    values = (
        np.nanmax(strips, axis=2) if bits is None else np.nansum(strips * bits, axis=2)
    )
    title = "Largest probability" if bits is None else "Expected bits"
    certain = run.probabilities.certain
    figure, bar = draw_map(
        run,
        values,
        outcomes=outcomes(run),
        title=f"{'Bits' if certain else title} of each decision over the "
        f"{'training' if certain else 'search'}",
        cmap="viridis_r" if bits is None else "viridis",
        # A logarithm: from 2 to 4 bits matters as much as from 16 to 32.
        norm=Normalize(0, 1) if bits is None else LogNorm(bits.min(), bits.max()),
    )
    quantity = "bits" if certain else "expected bits"
    style.dress_bar(bar, "largest probability" if bits is None else quantity)
    if bits is not None:
        ticks = sorted(set(bits))
        while len(ticks) > 8:
            ticks = ticks[::2]
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        bar.minorticks_off()
    return figure


def draw_map(
    run: Run,
    values: Float[np.ndarray, "T L"],
    *,
    outcomes: Sequence[str],
    title: str,
    **colours: Any,
) -> tuple["matplotlib.figure.Figure", "matplotlib.colorbar.Colorbar"]:
    """Draws a value of every decision over the steps, a row a decision.

    Args:
      run: with policy rows.
      values: at the steps of `resampled`.
      outcomes: what stands at the rows' right ends.
      title: of the figure.
      **colours: of `imshow`.

    Returns:
      The figure, and its colour bar.
    """
    steps, _ = resampled(run)
    rows = len(outcomes)
    figure = style.new_figure(1.3 + 0.19 * rows)
    axes = figure.subplots()
    image = axes.imshow(
        values.T, aspect="auto", interpolation="none",
        extent=(float(steps[0]), float(steps[-1]), rows - 0.5, -0.5), **colours,
    )  # fmt: skip
    style.dress(axes, title=title, xlabel="training step", grid="")
    axes.set_yticks(range(rows), [shorten(name, 34) for name in decision_names(run)])
    style.step_ticks(axes)
    for row, settled in enumerate(settled_steps(run)):
        axes.plot(settled, row, "o", markersize=3, color="#ffffff", clip_on=False)
    phases = run.config.phases
    if phases is not None and steps[0] < phases.warmup_end < steps[-1]:
        axes.axvline(
            phases.warmup_end, color="#ffffff", linewidth=0.9, linestyle=(0, (4, 3))
        )
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(rows), outcomes)
    right.tick_params(colors=style.INK, labelsize=style.TICK_SIZE, length=0)
    right.spines["right"].set_visible(False)
    bar = figure.colorbar(
        image, ax=axes, pad=0.02, aspect=min(30, 4 * rows), fraction=0.03, anchor=(0, 1)
    )
    bar.ax.tick_params(length=2)
    return figure, bar


def draw_probabilities(
    run: Run, option_names: Sequence[Sequence[str]] | None = None
) -> "matplotlib.figure.Figure":
    """Draws every option's probability over the steps, a small panel per decision.

    Options are rows and ink is probability, so that 2 or 32 options read alike.

    Args:
      run: with policy rows.
      option_names: of each decision, where they have options of their own; None is
        those of the run.

    Returns:
      A figure of small panels, the final choice written beside its row.

    Raises:
      ValueError: if the run recorded no probabilities.
    """
    steps, strips = resampled(run)
    decisions, options = strips.shape[1:]
    columns = min(decisions, 4 if decisions <= 12 else 5)
    rows = math.ceil(decisions / columns)
    panel = 0.34 + min(1.3, max(0.42, 0.085 * options))  # inches, with its title
    top, bottom = 0.62, 0.5
    height = top + bottom + rows * panel
    figure = style.new_figure(height, layout=None)
    figure.subplots_adjust(
        left=0.075, right=0.945, top=1 - top / height, bottom=bottom / height,
        hspace=0.34 / (panel - 0.34), wspace=0.32,
    )  # fmt: skip
    names, own = decision_names(run), option_names is not None
    if own:  # every panel has its options at its left, beside the outcome of the last
        longest = max(len(name) for each in option_names for name in each)
        figure.subplots_adjust(wspace=0.32 + 0.06 * longest)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    listed = option_names if own else [_option_names(run)] * decisions
    finals = final_options(run, option_names)
    for index, axes in enumerate(grid.flat):
        if index >= decisions:
            axes.remove()
            continue
        labels = list(listed[index])
        _draw_strip(axes, steps, strips[:, index, : len(labels)], labels, finals[index])
        _dress_strip(axes, names[index], labels, first=own or index % columns == 0)
        axes.tick_params(labelbottom=index + columns >= decisions)
    figure.suptitle(
        "Probability of every option over the search (full colour: probability 1)",
        x=0.075, ha="left", y=1 - 0.12 / height, va="top",
        fontsize=style.TITLE_SIZE, fontweight="bold", color=style.INK,
    )  # fmt: skip
    figure.supxlabel(
        "training step", fontsize=style.LABEL_SIZE, color=style.MUTED, y=0.08 / height
    )
    return figure


def final_options(
    run: Run, option_names: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """Returns each decision's most probable option in the last policy row."""
    last = _trace(run).values[-1]
    known = np.where(np.isfinite(last), last, -1.0)
    listed = option_names or [_option_names(run)] * len(last)
    return [names[k] for names, k in zip(listed, known.argmax(axis=1), strict=True)]


def _trace(run: Run):
    if run.probabilities is None:
        raise ValueError("run has no policy rows: a fixed policy was trained")
    return run.probabilities


def resampled(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Returns evenly spaced steps [T'] and the probabilities [T', L, K] held there."""
    trace = _trace(run)
    if len(trace.steps) == 1:
        steps = np.array([trace.steps[0], trace.steps[0] + 1])
    else:
        number = min(_COLUMNS, 2 * len(trace.steps))
        steps = np.linspace(trace.steps[0], trace.steps[-1], number)
    held = np.searchsorted(trace.steps, steps, side="right") - 1
    # NaN stands for an option that a decision lacks, or for a controller that diverged.
    return steps, np.nan_to_num(trace.values[held], nan=0.0)


def _option_names(run: Run) -> list[str]:
    width = _trace(run).values.shape[2]
    named = list(run.config.options[:width])
    return named + [f"option {k}" for k in range(len(named), width)]


def decision_names(run: Run) -> list[str]:
    """Returns a name for every decision of the trace."""
    rows = _trace(run).values.shape[1]
    named = list(run.config.decisions[:rows])
    return named + [f"decision {row}" for row in range(len(named), rows)]


def _option_bits(run: Run) -> np.ndarray | None:
    """Bits [K] of the options, or None where bits would not tell the options apart."""
    bits = [storage_bits(name) for name in _option_names(run)]
    if None in bits or len(set(bits)) < 2:
        return None
    return np.array(bits, float)


def settled_steps(run: Run) -> list[float]:
    """Returns the step since which each decision's final option is the likeliest."""
    trace = _trace(run)
    values = np.nan_to_num(trace.values, nan=-1.0)
    best = values.max(axis=2, keepdims=True)
    sole = (values == best).sum(axis=2) == 1  # before the first update all are equal
    ahead = sole & (values.argmax(axis=2) == values[-1].argmax(axis=1))  # [T, L]
    behind = ~ahead[::-1]
    first = np.where(behind.any(axis=0), len(ahead) - behind.argmax(axis=0), 0)
    return [float(trace.steps[t]) if t < len(ahead) else math.nan for t in first]


def outcomes(run: Run) -> list[str]:
    """The final options; "int3 → int2" where the policy holds another format."""
    policy = run.policy or {}
    texts = []
    for name, final in zip(decision_names(run), final_options(run), strict=True):
        # A group's decision names no site.
        path, _, side = name.rpartition(":")
        if side == "activations":  # unsigned where an input is never negative
            chosen = policy.get(path, (final, final))[1].removeprefix("u")
        else:
            chosen = policy.get(path if side == "weights" else name, (final, final))[0]
        texts.append(final if chosen == final else f"{final} → {chosen}")
    return texts


def _draw_strip(axes, steps, strip, labels, final: str) -> None:
    from matplotlib.colors import to_rgb

    # Ink whose opacity is the probability: reads on a light and on a dark page alike.
    picture = np.empty((strip.shape[1], strip.shape[0], 4))
    picture[..., :3] = to_rgb(style.BLUE)
    picture[..., 3] = np.clip(strip.T, 0.0, 1.0)
    extent = (float(steps[0]), float(steps[-1]), -0.5, len(labels) - 0.5)
    axes.imshow(
        picture, aspect="auto", interpolation="none", origin="lower", extent=extent
    )
    axes.annotate(
        final, (1.03, labels.index(final)), xycoords=("axes fraction", "data"),
        va="center", fontsize=style.NOTE_SIZE, color=style.INK, annotation_clip=False,
    )  # fmt: skip


def _dress_strip(axes, name: str, labels: list[str], *, first: bool) -> None:
    style.dress(axes, grid="")
    axes.set_title(
        shorten(name, 26), loc="left", fontsize=style.NOTE_SIZE, color=style.INK, pad=3
    )
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(style.GRID)
    # Six names at most keep a ninth of an inch apart; both ends are among them.
    shown = np.linspace(0, len(labels) - 1, min(6, len(labels))).round().astype(int)
    axes.set_yticks(shown, [labels[k] for k in shown] if first else [""] * len(shown))
    axes.tick_params(labelsize=6.5, length=1.5)
    style.step_ticks(axes)
    axes.xaxis.get_major_locator().set_params(nbins=3)
