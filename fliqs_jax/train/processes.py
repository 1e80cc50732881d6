"""Several processes that train as one: starting them, speaking and stopping together.

Under JAX's runtime every process runs the same program over one mesh of all their
devices, and the values between steps are equal in all of them. What only one may do
(write a file, print) is the main process's. With a single process everything here is
that process's own, and free. How arrays lie on devices is in `mapping`.
"""

import atexit
import os
import pathlib
import pickle
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.train.mapping import local_rows, make_mesh, shard_batch

Result = TypeVar("Result")

_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED): ")
_PATIENCE_S = 60.0  # for a file to appear on another machine
_RESUME = (
    "start the same command on all processes again: a run resumes from its last "
    "checkpoint"
)
_last_words: subprocess.Popen | None = None


class Preempted(RuntimeError):
    """The machines are to be given up; a checkpoint of this moment is saved."""


def initialize(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_s: int = 60,
) -> None:
    """Joins this process to the others; call it before anything uses a device.

    Args:
      coordinator_address: HOST:PORT of process 0, which all others reach. None, like
        the next two, is what JAX finds out on a TPU pod, under Slurm, Open MPI or
        Kubernetes.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat_timeout_s: without a sign of life for so long a process counts as lost;
        all others then end.

    Raises:
      ValueError: if an argument is out of range or missing where JAX finds no cluster.
    """
    if coordinator_address is not None and ":" not in coordinator_address:
        raise ValueError(
            "coordinator_address must be HOST:PORT, reachable by all processes, got "
            f"{coordinator_address!r}"
        )
    known = None not in (num_processes, process_id)
    if known and not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id must be in 0 ... num_processes - 1, got {process_id} of "
            f"{num_processes}"
        )
    if heartbeat_timeout_s < 1:
        raise ValueError(
            f"heartbeat_timeout must be at least 1 second, got {heartbeat_timeout_s}"
        )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
        )
    except ValueError as error:
        raise ValueError(
            f"{error} JAX knows TPU pods, Slurm, Open MPI and Kubernetes by itself; "
            "elsewhere give coordinator_address (HOST:PORT of process 0), "
            "num_processes and process_id (0 ... num_processes - 1); got "
            f"{coordinator_address}, {num_processes} and {process_id}"
        ) from error
    _prepare_last_words()
    _connect_devices()


def are_several() -> bool:
    """Returns whether there is more than one process."""
    # Asked in this order, a search that needs no device does not start one up.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Returns whether this process writes and prints for all."""
    return not are_several() or jax.process_index() == 0


def spoken_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `say` for the main process, and silence for the others."""
    return say if is_main() else lambda text: None


def on_main(work: Callable[[], Result]) -> Result:
    """Runs `work` in the main process while the others wait; its end is everybody's.

    Args:
      work: must not wait for the other processes itself, as steps and checkpoints do.

    Returns:
      What `work` returns, in every process: None, or what can be pickled.

    Raises:
      ValueError: in the other processes, with the text of what `work` raised.
    """
    if not are_several():
        return work()
    result, failure = None, None
    if is_main():
        try:
            result = work()
        except Exception as error:  # the others must not wait for ever
            failure = error
    text = None if failure is None else str(failure) or repr(failure)
    text, shared = _from_main((text, result))
    if failure is not None:
        raise failure
    if text is not None:
        raise ValueError(text)
    return shared


def preempted(look: int) -> bool:
    """Returns whether all processes are to stop now, for one was sent SIGTERM.

    Under JAX's runtime that signal ends nothing by itself: all stop together, at the
    same look. False in a process that was not started by `initialize`.

    Args:
      look: how many looks came before this one, the same number in all processes.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(look)


def all_agree(answer: bool) -> bool:
    """Returns whether the answer is true in every process; waits for all of them."""
    if not are_several():
        return answer
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(answer)).all())


def await_file(path: pathlib.Path) -> None:
    """Returns once every process sees a file that the main process has written.

    Raises:
      ValueError: after a minute; network file systems take seconds.
    """
    if not are_several():
        return
    deadline = time.monotonic() + _PATIENCE_S
    while not (seen := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not all_agree(seen):
        raise ValueError(
            f"not all processes see {path}, which process 0 has written: give a folder "
            "that all machines share, by NFS or a mounted bucket"
        )


def check_same(content: Callable[[], bytes], name: str) -> None:
    """Raises ValueError, in every process, where they do not hold the same content."""
    if not are_several():
        return
    from jax.experimental import multihost_utils

    digests = multihost_utils.process_allgather(np.uint32(zlib.crc32(content())))
    others = np.flatnonzero(digests != digests[0])
    if others.size:
        raise ValueError(
            f"processes {others.tolist()} have another {name} than process 0: start "
            "all of them with the same command, versions and kind of machine"
        )


def stop(message: str) -> NoReturn:
    """Ends this process with an error, and by that soon all others."""
    if not jax.distributed.is_initialized():
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    _keep_last_words()
    # Not sys.exit: it waits for the others, who wait for this one.
    os._exit(1)


def tells_a_loss(error: Exception) -> bool:
    """Returns whether an error is how JAX tells that another process is gone.

    What the runtime finds while an array is read comes as a ValueError, told from a
    user's mistake by the name of a status in front of its text.
    """
    if not jax.distributed.is_initialized():
        return False
    named = isinstance(error, ValueError) and _STATUS.match(str(error))
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(named)


def lost_message(error: Exception) -> str:
    """Returns what to tell a person whose run ended by an error of JAX's runtime."""
    text = (str(error).splitlines() or [""])[0]
    return f"error: another process was probably lost ({text[:200]}); {_RESUME}"


def _from_main(value: Any) -> Any:
    from jax.experimental import multihost_utils

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    buffer = np.zeros(size, np.uint8)
    if is_main():
        buffer[:] = data
    return pickle.loads(bytes(multihost_utils.broadcast_one_to_all(buffer)))


def _connect_devices() -> None:
    """Has all devices, and all processes, exchange something once.

    Gloo, which joins CPU devices, waits 30 s for the others when a group first meets,
    and later as long as it takes. Compiling the first step, or decoding a data set, may
    take that much longer in one process than in another; here nobody is busy yet.
    """
    mesh = make_mesh()
    ones = np.ones(mesh.size, np.float32)[local_rows(mesh.size, mesh)]
    assert float(jax.jit(jnp.sum)(shard_batch(ones, mesh))) == mesh.size
    assert all_agree(True)
    assert _from_main(True)


def _prepare_last_words() -> None:
    """Has somebody say what happened if this process is ended from below.

    When another process is lost, JAX's runtime aborts this one with a stack trace; no
    code of ours runs any more. A shell that waits for its input to end tells how to go
    on.
    """
    global _last_words
    who = f"process {jax.process_index()} of {jax.process_count()}"
    message = f"error: {who} was ended, as are all when one is lost; {_RESUME}"
    script = 'read -r word || echo "$0" >&2'
    _last_words = subprocess.Popen(["sh", "-c", script, message], stdin=subprocess.PIPE)
    atexit.register(_keep_last_words)


def _keep_last_words() -> None:
    global _last_words
    if _last_words is not None:
        _last_words.communicate(b"unneeded\n")
        _last_words = None
