"""What every launcher does around its work: starting, joining, speaking, ending.

No flag is defined here, and nothing of a run is known.
"""

import functools
import sys
import traceback
from collections.abc import Callable, Mapping

import jax
from absl import app, flags, logging

from fliqs_jax.train import processes
from fliqs_jax.train.loop import TrainingDiverged

FLAGS = flags.FLAGS

# For a process that trains on the CPU. glibc returns the large temporaries of every
# step to the kernel and fetches them page by page: kept, and in huge pages, a ResNet-8
# step takes 0.75 of the time. Read when a process starts, so set from outside.
CPU_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}

# Mistakes and ends that a line tells; anything else is a bug, and shown whole.
_EXPECTED = (ValueError, FileNotFoundError, TrainingDiverged, processes.Preempted)


def start(run: Callable[[], None], *, distributed: bool = False) -> None:
    """Starts a launcher as the command line says; its arguments are `run_or_exit`'s."""
    flags.mark_flag_as_required("workdir")
    app.run(functools.partial(run_or_exit, run=run, distributed=distributed))


def run_or_exit(
    argv: list[str], run: Callable[[], None], *, distributed: bool = False
) -> None:
    """Runs a launcher; a user's mistake ends it with one line, not a traceback.

    An error in one of several processes ends it at once, for the others wait for it.

    Args:
      argv: what absl leaves of the command line.
      run: the launcher's work.
      distributed: whether it knows what to do as one of several processes.
    """
    if len(argv) > 1:
        sys.exit(f"error: unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # jax tells which backends it did not find
    try:
        join_processes(supported=distributed)
        run()
    except Exception as error:
        if processes.tells_a_loss(error):
            processes.stop(processes.lost_message(error))
        if isinstance(error, _EXPECTED):
            processes.stop(f"error: {error}")
        if not jax.distributed.is_initialized():
            raise
        processes.stop(traceback.format_exc())


def join_processes(*, supported: bool) -> None:
    """Joins the other processes, where --distributed asks for it."""
    if not supported:
        if "distributed" in FLAGS and FLAGS.distributed:
            raise ValueError(
                f"experiments.{launcher_name()} runs in one process: leave out "
                "--distributed"
            )
        return
    names = ("coordinator_address", "num_processes", "process_id")
    given = {name: FLAGS[name].value for name in names}
    if FLAGS.distributed:
        processes.initialize(**given, heartbeat_timeout_s=FLAGS.heartbeat_timeout)
        return
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name}={value} needs --distributed")


def say(text: str) -> None:
    """Prints, in the first of several processes."""
    processes.spoken_once(print)(text)


def say_idle(idle: Mapping[str, str]) -> None:
    """Notes the flags given that change nothing in this run.

    Notes, not errors: one preset serves several launchers and methods.

    Args:
      idle: why a flag has no effect, by its name.
    """
    for name, reason in idle.items():
        if FLAGS[name].present:
            say(f"note: --{name} has no effect: {reason}")


def launcher_name() -> str:
    """Returns the name of the launcher that runs, from the command line."""
    return sys.argv[0].rpartition("/")[2].removesuffix(".py")
