"""What a run reports while it trains: metrics.jsonl, TensorBoard, a progress line.

It writes and prints numbers that it is given; it computes none, and draws no plots (the
report does).
"""

import atexit
import collections
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from fliqs_jax.files import replace_text
from fliqs_jax.train import processes
from fliqs_jax.train.workdir import to_json_line

_METRICS = "metrics.jsonl"
_TERMINAL_SECONDS = 0.25  # between two renderings in place: smooth, and cheap
_LOG_WIDTH = 100
_RATE_WINDOW = 40  # shown lines that the rate spans: 10 s on a terminal

# Key of a metric, its name in a wide and in a narrow line, its format.
_COLUMNS = (
    ("loss", "loss", "loss", "{:.3f}"),
    ("accuracy", "acc", "acc", "{:.1%}"),
    ("reward", "reward", "rew", "{:.3f}"),
    ("expected_cost_ratio", "cost", "cost", "{:.2f}x"),
    ("cost_ratio", "cost", "cost", "{:.3f}x"),
    ("weight_bits", "weight bits", "w", "{:.2f}"),
    ("input_bits", "input bits", "in", "{:.2f}"),
    ("entropy", "entropy", "ent", "{:.2f}"),
)


class MetricsWriter:
    """Appends a run's metrics to ``metrics.jsonl`` and to ``tensorboard/`` events.

    Each line is a JSON object with ``step`` and ``kind``, whole on disk before `write`
    returns. A resumed run first drops the lines after the step it resumes at, so its
    file ends like an uninterrupted run's, timings aside. For that, write the lines of a
    step before its checkpoint is saved. On several hosts only the first writes.

    Args:
      workdir: folder of the run; it must exist.
      resume_step: step of the checkpoint that the run goes on from; None for a run that
        starts afresh, which drops every line.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with MetricsWriter(folder, resume_step=None) as writer:
      ...         writer.write("train", 10, {"loss": np.float32(0.5)})
      ...     read_metrics(folder)
      [{'step': 10, 'kind': 'train', 'loss': 0.5}]
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int | None):
        self._file = self._events = None
        if not processes.is_main():
            return
        from tensorboardX import SummaryWriter  # imports torch where there is one

        path = pathlib.Path(workdir).absolute() / _METRICS
        if path.exists():
            last = -math.inf if resume_step is None else resume_step
            kept = [line for line in read_metrics(path) if line["step"] <= last]
            replace_text(path, "".join(to_json_line(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")
        # TensorBoard hides what older event files hold from purge_step on.
        self._events = SummaryWriter(
            str(path.parent / "tensorboard"),
            purge_step=0 if resume_step is None else resume_step + 1,
            flush_secs=10,
        )

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line; its scalars go to TensorBoard as ``kind/name`` as well.

        Args:
          kind: what the numbers are about, such as "train", "eval" or "policy".
          step: steps taken so far.
          values: numbers, text or arrays by name; NaN and infinity become null.

        Raises:
          ValueError: if a value has the name "step" or "kind".
        """
        if taken := {"step", "kind"} & values.keys():
            raise ValueError(f"metric name {taken.pop()!r} is taken by the line itself")
        if self._file is None:
            return
        line = to_json_line({"step": step, "kind": kind, **values})
        self._file.write(line + "\n")
        self._file.flush()
        for name, value in values.items():
            if not isinstance(value, str) and value is not None and np.ndim(value) == 0:
                self._events.add_scalar(f"{kind}/{name}", float(value), step)

    def close(self) -> None:
        """Writes what is pending and ends; further calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._events.close()
            self._file = self._events = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a metrics file, without a last one that was cut off.

    Args:
      path: ``metrics.jsonl``, or the workdir that holds it.

    Raises:
      ValueError: if a line before the last is not a JSON object with "step" and "kind".
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / _METRICS
    # Bytes, since a kill may also cut a character in two.
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last newline is torn
    metrics = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not {"step", "kind"} <= line.keys():
            raise ValueError(
                f"{path} line {number} is no metrics line: {text[:60]!r}; remove it"
            )
        metrics.append(line)
    return metrics


class ProgressLine:
    """One line on where a run stands: in place on a terminal, now and then in a log.

    Shows the step, whichever of loss, accuracy, reward, cost ratio, entropy and mean
    bits it gets, steps a second and the time left. The log (or notebook) of a run that
    takes less than `every_s` has none.

    Args:
      total: steps of the whole run, at least 1.
      stream: text file to print to; None for standard error.
      every_s: seconds before the first and between any two lines where the stream is no
        terminal.
      clock: returns the time in seconds.

    Example:
      >>> line = ProgressLine(100, stream=sys.stdout, every_s=0.0)
      >>> line.update(20, {"loss": 1.5, "accuracy": 0.25})
      20/100 loss 1.500 acc 25.0%
    """

    def __init__(
        self,
        total: int,
        *,
        stream: Any = None,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if total < 1:
            raise ValueError(f"total must be at least 1 step, got {total}")
        from rich.console import Console

        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._console = Console(file=self._stream)
        terminal = self._console.is_terminal
        self._every_s = _TERMINAL_SECONDS if terminal else every_s
        self._live = None
        self._printed_at = -math.inf if terminal else clock()
        self._quiet = not terminal  # nothing has been printed so far
        self._shown = collections.deque(maxlen=_RATE_WINDOW)  # (time, step)

    def update(
        self,
        step: int,
        metrics: Mapping[str, Shaped[jax.typing.ArrayLike, ""] | str | None],
    ) -> None:
        """Prints if it is time to, or if `step` is the last.

        Args:
          step: steps taken so far, counted from the run's start, resumed or not.
          metrics: loss, accuracy (0 to 1), reward, expected_cost_ratio (cost / target)
            or else cost_ratio, entropy (nats), weight_bits, input_bits; None is left
            out, other names are ignored. Device arrays are waited for only when they
            are printed, so a call a step costs nothing.
        """
        if not processes.is_main():
            return
        now = self._clock()
        if not self._shown:  # the rate counts from here: compilation is over
            self._shown.append((now, step))
        if step < self._total or self._quiet:
            if now - self._printed_at < self._every_s:
                return
        self._printed_at, self._quiet = now, False
        self._shown.append((now, step))
        values = {
            key: float(metrics[key])
            for key, *_ in _COLUMNS
            if metrics.get(key) is not None
        }
        if "expected_cost_ratio" in values:  # steadier than that of one sample
            values.pop("cost_ratio", None)
        self._print(self._format(step, values))
        if step >= self._total:
            self.close()

    def close(self) -> None:
        """Leaves the last line standing on the terminal; the last step does it too."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _format(self, step: int, values: Mapping[str, float]) -> str:
        (first_time, first_step), (now, _) = self._shown[0], self._shown[-1]
        timing = wide_timing = []
        # The first line comes after the first step: compilation stays out of the rate.
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            left = "ETA " + _duration((self._total - step) / rate)
            wide_timing = [f"{rate:.{0 if rate > 99 else 1}f} steps/s", left]
            timing = [f"{rate:.{0 if rate > 9 else 1}f}/s", left]
        counter = f"{step}/{self._total}"
        wide, narrow = [counter], [counter]
        for key, wide_name, narrow_name, form in _COLUMNS:
            if key in values:
                text = form.format(values[key])
                wide.append(f"{wide_name} {text}")
                narrow.append(f"{narrow_name} {text}")
        width = self._console.width if self._console.is_terminal else _LOG_WIDTH
        line = " ".join(wide + wide_timing)
        return line if len(line) < width else " ".join(narrow + timing)

    def _print(self, line: str) -> None:
        if not self._console.is_terminal:
            print(line, file=self._stream, flush=True)
            return
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
            atexit.register(self.close)  # else a failed run hides the user's cursor
        text = Text(line, no_wrap=True, overflow="crop")
        self._live.update(text, refresh=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
