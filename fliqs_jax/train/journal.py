"""Collects a run's metrics between two lines of the log, and writes the lines.

Not here: the file formats and the progress line (`metrics`), nor what a method reports.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from fliqs_jax.train.metrics import MetricsWriter, ProgressLine

_POLICY_ROWS = 200  # rows of format probabilities a run, enough for a smooth picture


class Timer:
    """Seconds of training, those of earlier sessions included."""

    def __init__(self):
        self.before = 0.0  # seconds that a resumed run had already taken
        self._started = time.monotonic()

    def total(self) -> float:
        return self.before + time.monotonic() - self._started


class Journal:
    """Averages the steps' metrics and writes them with what the searcher reports.

    Args:
      progress: from a state to what to log of it: scalars, and `probabilities`, rows of
        a controller's table, or `options`, an index a decision, where there are such.
      writer: of `metrics.jsonl` and TensorBoard.
      start: step at which this session begins.
      steps: of the whole run.
    """

    def __init__(
        self,
        progress: Callable[[PyTree], dict[str, Any]],
        writer: MetricsWriter,
        *,
        start: int,
        steps: int,
    ):
        self._progress = progress
        self._writer = writer
        self._steps = steps
        self._line = ProgressLine(steps)
        self._collected: list[dict[str, np.ndarray]] = []
        self._since = time.monotonic()
        self._last_policy_row = start * _POLICY_ROWS // steps if start else -1

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Takes the metrics of some steps, one value a step."""
        self._collected.append(metrics)

    def write(self, step: int, state: PyTree, timer: Timer) -> None:
        """Writes one line for all steps since the last, and the state's own numbers."""
        row = {
            name: _mean(np.concatenate([chunk[name] for chunk in self._collected]))
            for name in self._collected[0]
        }
        count = sum(len(chunk["loss"]) for chunk in self._collected)
        self._collected.clear()
        now = time.monotonic()
        row["steps_per_second"] = count / max(now - self._since, 1e-9)
        row["seconds"] = timer.total()
        self._since = now
        progress = self._progress(state)
        # One of them: what a controller would draw, or what is trained at present.
        names = ("probabilities", "options")
        choices = {name: progress.pop(name) for name in names if name in progress}
        row |= progress
        self._writer.write("train", step, row)
        self._line.update(step, {k: v for k, v in row.items() if v is not None})
        if choices and self._policy_row_due(step):
            self._writer.write("policy", step, choices)

    def evaluation(self, step: int, result: dict[str, float]) -> None:
        """Writes a result on the validation split."""
        self._writer.write("evaluation", step, {"split": "validation", **result})
        self._since = time.monotonic()  # the evaluation is no part of the steps' speed

    def _policy_row_due(self, step: int) -> bool:
        row = step * _POLICY_ROWS // self._steps
        due = row > self._last_policy_row or step == self._steps
        self._last_policy_row = max(row, self._last_policy_row)
        return due

    def close(self) -> None:
        """Leaves the last progress line standing."""
        self._line.close()


def _mean(values: np.ndarray) -> float | None:
    """Mean of the numbers that are there: steps without a judgement report NaN."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
