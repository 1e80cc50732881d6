"""What an architecture search chose, and how its probabilities moved.

Decisions have options of their own: whole numbers, such as channels or sides of a
kernel. Each function takes a Run whose decisions are those about the architecture.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fliqs_jax.report import page, probabilities, style
from fliqs_jax.report.records import Run

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
    _, strips = probabilities.resampled(run)
    names = probabilities.decision_names(run)
    values = [
        _relative(strips[:, row], options[name]) for row, name in enumerate(names)
    ]
    figure, bar = probabilities.draw_map(
        run,
        np.stack(values, axis=1),
        outcomes=_outcomes(run, names, options, chosen),
        title="Expected size of each part over the search",
        cmap="viridis",
        vmin=0,
        vmax=1,
    )
    style.dress_bar(bar)
    bar.set_ticks([0, 1], labels=["smallest option", "largest option"])
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
