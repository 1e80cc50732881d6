"""Seconds by phase of a run that may be killed and resumed at any time."""

import pathlib
import time

from fliqs_jax.train import processes
from fliqs_jax.train.workdir import read_json, write_json


class PhaseClock:
    """Adds up what each phase took over all sessions, in a file.

    Of several processes each counts for itself; the file has the main one's seconds.

    Args:
      file: where the seconds are kept; read if it is there.

    Attributes:
      seconds: by phase.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     clock = PhaseClock(pathlib.Path(folder, "seconds.json"))
      ...     clock.lap("search")
      ...     list(PhaseClock(pathlib.Path(folder, "seconds.json")).seconds)
      ['search']
    """

    def __init__(self, file: pathlib.Path):
        self._file = file
        self.seconds: dict[str, float] = read_json(file) if file.exists() else {}
        self._since = time.monotonic()

    def lap(self, phase: str) -> None:
        """Counts the time since the last lap to a phase, and writes the file."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now
        if processes.is_main():
            write_json(self._file, self.seconds)
