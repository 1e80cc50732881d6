"""Trained weights to start from: the variables in a checkpoint, ours or another's.

Reads orbax checkpoints and safetensors files as arrays; nothing that a file says is
executed (no pickle). Whether the arrays fit a model is the business of `fitting`.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fliqs_jax.safetensors_arrays import read_safetensors
from fliqs_jax.train._leaves import Path, flatten, nest
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.workdir import read_json

_ACCEPTED = (
    "give the workdir of a finished run, the folder of an orbax checkpoint or "
    "CheckpointManager, or a .safetensors file"
)
NETWORK = "network"  # folder of the trained network in a finished run's
_WRAPPERS = ("state", "default")  # names under which a manager keeps a whole state


def load_variables(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the variables in a checkpoint as nested dicts of numpy arrays.

    The checkpoint may hold a bare tree of parameters, variables (`params` and other
    collections), or a train state with `params`, of which batch statistics are taken
    along and the optimizer's state is not.

    Args:
      path: one of these. The workdir of a finished run (of one that chose a network,
        that one's weights), its `network/`, or the
        `checkpoints/` of any run. The folder of an orbax checkpoint, or of a
        CheckpointManager (its newest step). A `.safetensors` file, whose names are
        paths joined by "/" (by "." where no name has a "/").

    Returns:
      `{"params": ...}` and what other collections there are, such as `batch_stats`, in
      the types of the file.

    Raises:
      FileNotFoundError: if nothing is there, or the run there is not finished.
      ValueError: if it is something else, or damaged.

    Example:
      >>> import tempfile, safetensors.numpy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = f"{folder}/float.safetensors"
      ...     safetensors.numpy.save_file({"Dense_0/bias": np.ones(2, "f4")}, file)
      ...     load_variables(file)
      {'params': {'Dense_0': {'bias': array([1., 1.], dtype=float32)}}}
    """
    path = pathlib.Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: {_ACCEPTED}")
    if not path.is_dir():
        return _collections(_read_safetensors(path))
    folder = _newest(path)
    if _is_ours(folder):
        step = int(folder.name) if folder == path else None  # None: newest sound one
        return _collections(restore_tree(folder.parent, step))
    return _read_orbax(folder)


def _newest(path: pathlib.Path) -> pathlib.Path:
    """Returns the checkpoint that a folder means: its own, its run's, or the newest."""
    if (path / "config.json").is_file():
        path = network_run(path) / NETWORK
    steps = [entry for entry in path.iterdir() if entry.name.isdecimal()]
    return max(steps, key=lambda entry: int(entry.name), default=path)


def network_run(folder: pathlib.Path) -> pathlib.Path:
    """Returns the run whose network a finished run stands for: itself, or its choice.

    A run that finds a network, or many, trains the one chosen in a folder of its own.

    Raises:
      FileNotFoundError: if the run is not finished, or left no network.
    """
    summary = folder / "summary.json"
    if not (folder / NETWORK).exists() and summary.is_file():
        chosen = read_json(summary).get("chosen")
        if chosen is None:
            raise FileNotFoundError(
                f"the run in {folder} is finished, but trained no network: train what "
                "its report says that it found"
            )
        folder = folder / chosen
    for name in ("config.json", NETWORK):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} holds no finished run: {name} is missing; run the launcher "
                "with this workdir again to finish it (the weights so far, to start "
                f"from, are in {folder / 'checkpoints'})"
            )
    return folder


def _is_ours(folder: pathlib.Path) -> bool:
    parts = (folder / "state", folder / "leaves")
    return folder.name.isdecimal() and all(part.is_dir() for part in parts)


def _places(tree: Any) -> dict[str, Path]:
    """Returns where in a checkpoint's tree each collection of variables is."""
    if "params" not in tree:
        for name in _WRAPPERS:
            if "params" in _mapping(tree, name):
                return _below(name, _places(tree[name]))
        return {"params": ()}  # the tree of parameters itself
    if "params" in _mapping(tree, "params"):  # TrainState.create(params=variables)
        return _below("params", _places(tree["params"]))
    # Ours: other collections are in model_state, which is not written when empty.
    if "model_state" in tree or "clips" in tree:
        names = [("model_state", name) for name in _mapping(tree, "model_state")]
    elif "opt_state" in tree or "step" in tree:
        names = [("batch_stats",)] if "batch_stats" in tree else []
    else:
        names = [(name,) for name in tree if _mapping(tree, name) and name != "params"]
    return {"params": ("params",), **{path[-1]: path for path in names}}


def _mapping(tree: Mapping, name: str) -> Mapping:
    value = tree.get(name)
    return value if isinstance(value, Mapping) else {}


def _below(name: str, places: dict[str, Path]) -> dict[str, Path]:
    return {collection: (name, *path) for collection, path in places.items()}


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _collections(tree: Any) -> dict[str, Any]:
    places = _places(tree)
    return {name: _plain(_at(tree, path)) for name, path in places.items()}


def _plain(tree: Any) -> dict[str, Any]:
    return nest({path: np.asarray(leaf) for path, leaf in flatten(tree).items()})


def _read_orbax(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the variables of a checkpoint that orbax wrote; reads no more of it."""
    items = {
        item.name: item
        for item in (folder, *sorted(folder.iterdir()))
        if (item / "_METADATA").is_file()
    }
    if not items:
        raise ValueError(f"{folder} is no orbax checkpoint: {_ACCEPTED}")
    try:
        stored = {name: _stored_tree(item) for name, item in items.items()}
        if len(items) == 1:
            (item,), (tree,) = items.values(), stored.values()
            return {
                name: _plain(_read_part(item, tree, path))
                for name, path in _places(tree).items()
            }
        places = _places(stored)
        if not all(places.values()):  # several items, none of them named
            raise ValueError(f"none of {', '.join(items)} is named params or state")
        return {
            name: _plain(_read_part(items[path[0]], stored[path[0]], path[1:]))
            for name, path in places.items()
        }
    except (MemoryError, PermissionError):
        raise  # says nothing about the files
    except Exception as error:  # orbax and tensorstore raise a score of kinds
        text = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}: {text}): it "
            "is damaged, or its tree is none of parameters; give another"
        ) from error


def _stored_tree(item: pathlib.Path) -> Any:
    """Returns what is stored, without the arrays."""
    import orbax.checkpoint as ocp
    from etils import epath  # orbax's own paths

    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(item)).tree


def _read_part(item: pathlib.Path, stored: Any, path: Path) -> Any:
    import orbax.checkpoint as ocp

    part = _at(stored, path)
    for name in reversed(path):
        part = {name: part}
    # As numpy: a checkpoint knows the devices of the machine that it was saved on.
    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part
    )
    arguments = ocp.args.PyTreeRestore(
        item=jax.tree.map(lambda _: 0, part),
        restore_args=restore_args,
        partial_restore=True,
    )
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return _at(reader.restore(item, args=arguments), path)


def _read_safetensors(file: pathlib.Path) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is no checkpoint that is read here: {_ACCEPTED}. Files that can "
            "run code when opened, as pickles do, are not"
        )
    tensors = read_safetensors(file)
    separator = "/" if any("/" in name for name in tensors) else "."
    arrays = {tuple(name.split(separator)): array for name, array in tensors.items()}
    for path in arrays:
        for length in range(1, len(path)):
            if path[:length] in arrays:
                raise ValueError(
                    f"{file}: {separator.join(path[:length])!r} is an array and the "
                    f"folder of {separator.join(path)!r}: rename one of them"
                )
    return nest(arrays)
