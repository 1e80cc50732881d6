"""Running the processes of a comparison: some at a time, what is finished skipped."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from experiments.comparison.planning import Run
from experiments.program import CPU_ENVIRONMENT

_PAUSE_S = 0.2  # between two looks at the processes; runs take many seconds


def is_finished(root: pathlib.Path, name: str) -> bool:
    """Returns whether the run of that name has its results."""
    return (root / name / "summary.json").exists()


def execute(
    runs: Sequence[Run],
    *,
    root: pathlib.Path,
    shared: Sequence[str],
    at_a_time: int,
    after: Callable[[Run], None],
) -> dict[str, str]:
    """Runs what is missing, in order; a run waits for those that it needs.

    If this process is interrupted or terminated, so are the runs; they resume.

    Args:
      runs: in the order to start them. While one waits for another, later ones go on.
      root: the folder of the comparison, with a folder and a log file for each run.
      shared: flags of every run; a launcher that does not define one ignores it.
      at_a_time: processes at a time, each on its share of the cores.
      after: called with each run that succeeded.

    Returns:
      The reason of each run that failed, or was not started, by its name.
    """
    waiting = [run for run in runs if not is_finished(root, run.name)]
    running: dict[subprocess.Popen, tuple[Run, Sequence[int]]] = {}
    failed: dict[str, str] = {}
    shares = _shares(at_a_time)
    with _ended_at_exit(running):
        while waiting or running:
            for run in list(waiting):
                if lost := [name for name in run.needs if name in failed]:
                    failed[run.name] = f"needs {lost[0]}"
                    waiting.remove(run)
                elif shares and all(is_finished(root, name) for name in run.needs):
                    cores = shares.pop(0)
                    running[_start(run, root, shared, cores)] = run, cores
                    waiting.remove(run)
            time.sleep(_PAUSE_S)
            for process in [one for one in running if one.poll() is not None]:
                run, cores = running.pop(process)
                shares.append(cores)
                if process.returncode or not is_finished(root, run.name):
                    failed[run.name] = _last_line(root / f"{run.name}.log")
                    print(f"failed {run.name}: {failed[run.name]}", flush=True)
                else:
                    after(run)
    return failed


def command(run: Run, root: pathlib.Path, shared: Sequence[str]) -> list[str]:
    """Returns a run's command: shared flags first, so that its own have the last word.

    --undefok makes a launcher ignore the shared flags that only others define.
    """
    names = sorted({flag.lstrip("-").partition("=")[0] for flag in shared})
    return [
        *(sys.executable, "-m", run.launcher),
        *([f"--undefok={','.join(names)}"] if names else []),
        *shared,
        *(f"--workdir={root / run.name}", *run.flags),
    ]


def _start(
    run: Run, root: pathlib.Path, shared: Sequence[str], cores: Sequence[int]
) -> subprocess.Popen:
    print(f"running {run.name}", flush=True)
    (root / run.name).mkdir(parents=True, exist_ok=True)
    ours = os.sched_getaffinity(0)
    # Runs of other seeds and formats are the same programs: compiled once for all.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(root / "compilation_cache")}
    with open(root / f"{run.name}.log", "a", encoding="utf-8") as log:
        os.sched_setaffinity(0, cores)  # which the process inherits
        try:
            return subprocess.Popen(
                command(run, root, shared),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**CPU_ENVIRONMENT, **cache, **os.environ},
            )
        finally:
            os.sched_setaffinity(0, ours)


def _shares(number: int) -> list[list[int]]:
    """Cores for each of the runs at a time, so that they do not fight for them."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[index::number] or cores for index in range(number)]


@contextlib.contextmanager
def _ended_at_exit(running: dict[subprocess.Popen, object]) -> Iterator[None]:
    """Leaves no process behind, also when this one is told to terminate."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, previous)


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it wrote nothing"
