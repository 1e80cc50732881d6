"""Checkpoints of a training state, each on disk completely or not at all.

The only module that writes with orbax (`pretrained` reads what others wrote). It stores
any pytree of arrays and typed PRNG keys and gives it back bit for bit. It does not
decide what a training state holds, nor when a state is too broken (NaN) to be worth
keeping: the loop does.

On disk, ``DIRECTORY/STEP/state`` is the state as nested dicts of arrays and
``DIRECTORY/STEP/leaves`` lists path, shape, dtype and checksum of each of them, so that
another model's checkpoint is told from a damaged one before anything is overwritten.
"""

import json
import logging
import os
import pathlib
import warnings
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from fliqs_jax.checks import check_at_least
from fliqs_jax.train import processes
from fliqs_jax.train._leaves import (
    Path,
    describe,
    fingerprint,
    flatten,
    nest,
    rebuild,
    to_host,
)

_MOST_LISTED = 20  # differing paths in one message; a ResNet-56 state has over 600
_DAMAGED = "damaged"  # folder beside the checkpoints; orbax reads only numbers as steps


class _OtherStructure(ValueError):
    """The checkpoint is sound but belongs to a state of another structure."""


class Checkpoints:
    """The checkpoints of one run: saved every few steps, restored from the newest.

    A save first writes a temporary folder and then renames it, so a process killed at
    any moment leaves the previous checkpoint loadable. A thread writes on after `save`
    has copied the state: call `wait` (or leave the ``with`` block) at the end.

    Args:
      directory: folder of the checkpoints; made by the first save. A relative one is
        taken from the working directory of this moment.
      keep: newest checkpoints that stay on disk, at least 1.
      every: steps between two saves of `maybe_save`, at least 1.

    Raises:
      ValueError: if `keep` or `every` is below 1.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> state = {"weights": jnp.arange(3.0), "key": jax.random.key(0)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder, every=100) as checkpoints:
      ...         saved = [checkpoints.maybe_save(step, state) for step in (99, 100)]
      ...     step, restored = Checkpoints(folder).restore(state)
      >>> saved, step, restored["weights"].tolist()
      ([False, True], 100, [0.0, 1.0, 2.0])
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep: int = 3, every: int = 500
    ):
        check_at_least(1, keep=keep, every=every)
        self.directory = pathlib.Path(directory).absolute()
        self.every = every
        self._keep = keep
        self._manager = None  # opened by the first save: readers leave the disk alone
        self._latest = max(_steps(self.directory), default=None)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, written or being written."""
        return self._latest

    def maybe_save(self, step: int, state: PyTree) -> bool:
        """Saves if a multiple of `every` was passed since the newest checkpoint.

        Steps may come in strides that do not divide `every`. Returns whether it saved.
        """
        if step // self.every <= (self._latest or 0) // self.every:
            return False
        return self.save(step, state)

    def save(self, step: int, state: PyTree) -> bool:
        """Copies the state and starts writing it as the checkpoint of `step`.

        Args:
          step: steps taken so far. One step has one state: a second save of the newest
            step does nothing.
          state: pytree of jax or numpy arrays, typed PRNG keys and Python numbers.

        Returns:
          Whether a checkpoint is being written.

        Raises:
          ValueError: if a later step is saved already, or a leaf cannot be stored.
        """
        if self._latest is not None and step < self._latest:
            raise ValueError(
                f"step {step} comes before the checkpoint of step {self._latest} in "
                f"{self.directory}: restore that one first, or use another folder"
            )
        if step == self._latest:
            return False
        import orbax.checkpoint as ocp  # half a second that a mere import need not pay

        leaves = flatten(state)
        arrays = {path: to_host(leaf) for path, leaf in leaves.items()}
        record = [
            {"path": path, "leaf": describe(leaf, path), **fingerprint(arrays[path])}
            for path, leaf in leaves.items()
        ]
        # Orbax refuses arrays without elements; their shape in the record is enough.
        tree = nest({path: array for path, array in arrays.items() if array.size})
        if self._manager is None:
            self._manager = _open_manager(self.directory, keep=self._keep)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(tree),
                leaves=ocp.args.JsonSave({"leaves": record, "crc32": _digest(record)}),
            ),
            force=True,
        )
        self._latest = step
        return True

    def restore(self, example: PyTree) -> tuple[int, PyTree] | None:
        """Returns step and state of the newest sound checkpoint, or None without one.

        A damaged checkpoint is moved to ``DIRECTORY/damaged``, with a warning that
        names it and the reason, and the one before is taken. Where none is left, the
        answer is None, as for a run that has not saved yet.

        Args:
          example: a state of the structure saved, of arrays or `jax.ShapeDtypeStruct`.
            Every leaf comes back with the sharding that it has there.

        Raises:
          ValueError: if the newest sound checkpoint has another structure than
            `example`; it lists the differing paths, and nothing is moved.
        """
        self.wait()
        wanted = {path: describe(x, path) for path, x in flatten(example).items()}
        for step in sorted(_steps(self.directory), reverse=True):
            arrays, problem = _try_read(self.directory, step, wanted)
            # All must resume at the same step.
            if processes.all_agree(problem is None):
                self._latest = step
                return step, rebuild(example, arrays)
            moved = _move_aside(self.directory, step)
            warnings.warn(
                f"checkpoint {self.directory / str(step)} is damaged "
                f"({problem or 'unreadable on another process'}): moved it to {moved} "
                "and went on with the one before, if any",
                stacklevel=2,
            )
            if self._manager is not None:
                self._manager.reload()
        self._latest = None
        return None

    def wait(self) -> None:
        """Returns once everything saved is on disk; raises what went wrong there."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the writing thread; a later save opens it again."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def restore_tree(
    directory: str | os.PathLike, step: int | None = None
) -> dict[str, Any]:
    """Returns a checkpoint as nested dicts of numpy arrays, with no example needed.

    Attributes, dict keys and positions in tuples all become string keys; PRNG keys come
    as their uint32 data. Changes nothing on disk: it is safe beside a running search.

    Args:
      directory: folder of the checkpoints, ``WORKDIR/checkpoints``.
      step: which checkpoint; None for the newest that is sound.

    Raises:
      ValueError: if there is no such checkpoint, or it is damaged.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder) as checkpoints:
      ...         _ = checkpoints.save(7, {"layers": (jnp.ones(2), jnp.zeros(1))})
      ...     restore_tree(folder)
      {'layers': {'0': array([1., 1.], dtype=float32), '1': array([0.], dtype=float32)}}
    """
    directory = pathlib.Path(directory).absolute()
    steps = sorted(_steps(directory), reverse=True)
    if not steps or step not in (None, *steps):
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"{which} in {directory}; steps there: {steps[::-1]}")
    problems = []
    for candidate in steps if step is None else [step]:
        arrays, problem = _try_read(directory, candidate, None)
        if problem is None:
            return nest(arrays)
        problems.append(f"checkpoint {directory / str(candidate)}: {problem}")
        if step is None:
            warnings.warn(f"skipped the damaged {problems[-1]}", stacklevel=2)
    raise ValueError("damaged " + "; ".join(problems))


def _steps(directory: pathlib.Path) -> list[int]:
    if not directory.is_dir():
        return []
    return [int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal()]


def _open_manager(directory: pathlib.Path, *, keep: int):
    import orbax.checkpoint as ocp

    absl_logger = logging.getLogger("absl")
    if _quiet_orbax not in absl_logger.filters:
        absl_logger.addFilter(_quiet_orbax)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,  # what a killed save left behind
    )
    return ocp.CheckpointManager(directory, options=options)


def _quiet_orbax(record: logging.LogRecord) -> bool:
    """Drops orbax's progress lines (dozens a save), never its warnings."""
    return record.levelno >= logging.WARNING or "orbax" not in record.pathname


def _try_read(
    directory: pathlib.Path, step: int, wanted: Mapping[Path, dict] | None
) -> tuple[dict[Path, np.ndarray], str | None]:
    """Returns the arrays and None, or no arrays and what is wrong with the files."""
    try:
        return _read(directory / str(step), wanted), None
    except (_OtherStructure, MemoryError, PermissionError):
        raise  # says nothing about the files
    except Exception as error:  # orbax and tensorstore raise a score of kinds
        text = (str(error).splitlines() or [""])[0]
        return {}, f"{type(error).__name__}: {text[:200]}"


def _read(
    folder: pathlib.Path, wanted: Mapping[Path, dict] | None
) -> dict[Path, np.ndarray]:
    import orbax.checkpoint as ocp

    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    args = ocp.args.Composite(leaves=ocp.args.JsonRestore())
    stored = reader.restore(folder, args=args).leaves
    if stored["crc32"] != _digest(stored["leaves"]):
        raise ValueError("the list of leaves does not match its checksum")
    entries = {tuple(entry.pop("path")): entry for entry in stored["leaves"]}
    leaves = {path: entry.pop("leaf") for path, entry in entries.items()}
    if wanted is not None and wanted != leaves:
        raise _OtherStructure(_compare(folder, leaves, wanted))
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore())
    tree = reader.restore(folder, args=args).state
    arrays = {}
    for path, entry in entries.items():
        if 0 in entry["shape"]:
            arrays[path] = np.zeros(entry["shape"], entry["dtype"])
            continue
        array = tree
        for name in path:
            array = array[name]
        # Not for flipped bits alone: tensorstore reads a chunk that is gone as zeros.
        if fingerprint(array) != entry:
            raise ValueError(f"{'/'.join(path)} does not match its checksum")
        arrays[path] = array
    return arrays


def _compare(
    folder: pathlib.Path, stored: Mapping[Path, dict], wanted: Mapping[Path, dict]
) -> str:
    def show(leaf: dict | None) -> str:
        return f"{leaf['dtype']}{leaf['shape']}" if leaf else "absent"

    lines = [
        f"  {'/'.join(path)}: {show(stored.get(path))} in the checkpoint, "
        f"{show(wanted.get(path))} in this run"
        for path in sorted(stored.keys() | wanted.keys())
        if stored.get(path) != wanted.get(path)
    ]
    if len(lines) > _MOST_LISTED:
        lines[_MOST_LISTED:] = [f"  and {len(lines) - _MOST_LISTED} more"]
    return (
        f"checkpoint {folder} is of another model or optimizer; use another folder, or "
        "the settings that it was made with. These leaves differ:\n" + "\n".join(lines)
    )


def _digest(record: Iterable[Mapping]) -> int:
    return zlib.crc32(json.dumps(list(record), sort_keys=True).encode())


def _move_aside(directory: pathlib.Path, step: int) -> pathlib.Path:
    folder = directory / _DAMAGED
    target, copy = folder / str(step), 1
    while target.exists():
        target, copy = folder / f"{step}-{copy}", copy + 1

    def move() -> None:
        folder.mkdir(exist_ok=True)
        (directory / str(step)).rename(target)

    processes.on_main(move)  # the next listing must not see it any more
    return target
