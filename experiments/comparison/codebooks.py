"""What came of a comparison's compressions: a table by K, and loss against K."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

from experiments.comparison.planning import split_method
from experiments.comparison.results import finished_runs, grouped, spread, title
from fliqs_jax.files import replace_text
from fliqs_jax.report import CodebookPoint, write_codebook_trade_off
from fliqs_jax.searchers.compression.schedule import VARIANTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookRow:
    """A finished run of one method at one K."""

    method: str
    size: int  # K
    test_error: float  # 0 to 1
    train_loss: float  # of the compressed network, nats
    ratio: float  # measured on the file
    reference_error: float
    reference_loss: float
    minutes: float


def read_codebook_rows(root: pathlib.Path) -> list[CodebookRow]:
    """Returns the finished compressions of a comparison's folder, by name."""
    rows = []
    for run in finished_runs(root):
        method, member = split_method(run.method)
        if method not in VARIANTS:
            continue
        summary = run.summary
        rows.append(
            CodebookRow(
                method=method,
                size=int(member.removeprefix("k")),
                test_error=1 - summary["accuracy"],
                train_loss=summary["train_loss"],
                ratio=summary["compression_ratio"],
                reference_error=1 - summary["reference_accuracy"],
                reference_loss=summary["reference_train_loss"],
                minutes=summary["seconds"] / 60,
            )
        )
    return rows


def write_codebook_results(root: pathlib.Path) -> str:
    """Writes compression.md and compression.png, if a compression finished.

    Returns:
      The table; empty text where there is none.
    """
    rows = read_codebook_rows(root)
    if not rows:
        return ""
    table = codebook_table(rows)
    replace_text(root / "compression.md", table + "\n")
    write_codebook_trade_off(
        root / "compression.png",
        [
            CodebookPoint(
                series=title(method),
                size=size,
                losses=tuple(row.train_loss for row in own),
                errors=tuple(row.test_error for row in own),
            )
            for (size, method), own in _groups(rows)
        ],
        reference_loss=statistics.mean(row.reference_loss for row in rows),
        reference_error=statistics.mean(row.reference_error for row in rows),
    )
    return table


def codebook_table(rows: Sequence[CodebookRow]) -> str:
    """Returns means and standard deviations by K and method, as Markdown."""
    error = [100 * row.reference_error for row in rows]
    lines = [
        "| K | method | runs | train loss | test error, % | times smaller | minutes |",
        "|---|---|---|---|---|---|---|",
        f"| | reference | | {statistics.mean(r.reference_loss for r in rows):.2g}"
        f" | {statistics.mean(error):.2f} | 1 | |",
    ]
    for (size, method), own in _groups(rows):
        lines.append(
            f"| {size} | {method} | {len(own)}"
            f" | {spread([row.train_loss for row in own], '.2g')}"
            f" | {spread([100 * row.test_error for row in own], '.2f')}"
            f" | {statistics.mean(row.ratio for row in own):.1f}"
            f" | {statistics.mean(row.minutes for row in own):.1f} |"
        )
    return "\n".join(lines)


def _groups(
    rows: Sequence[CodebookRow],
) -> list[tuple[tuple[int, str], list[CodebookRow]]]:
    """Rows by K and method, K ascending, methods as `VARIANTS` lists them."""
    order = list(VARIANTS)
    groups = grouped(rows, "size", "method").items()
    return sorted(groups, key=lambda item: (item[0][0], order.index(item[0][1])))
