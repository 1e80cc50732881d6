"""The folder of one run: whose it is, who writes it now, and JSON files in it.

A folder belongs to one configuration, so that no run picks up what another one left. It
is not a registry of runs, and it does not know what the files in it mean.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fliqs_jax.files import replace_text
from fliqs_jax.train import processes

_CONFIG = "config.json"
_LONGEST = 120  # characters of a value in a message
_MOST_LINES = 12  # of settings that differ
_LOCK = ".lock"  # hidden files do not count when a folder is judged to be empty


@contextlib.contextmanager
def open_workdir(
    path: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    volatile: tuple[str, ...] = ("steps_per_call",),
) -> Iterator[pathlib.Path]:
    """Yields the folder of a run, made or found again, and keeps other writers out.

    A new folder gets `config` as ``config.json``. A folder with one is resumed: its
    values must be those of `config`, but for volatile ones, which are rewritten; unless
    the run ended before it made anything else, and there is nothing to resume. Inside
    the ``with`` block the folder is locked; the lock ends with the process, however it
    ends. Of several processes only the first writes and locks; all must see the folder.

    Args:
      path: the folder; parents are made too.
      config: settings of the run by name, of what `write_json` takes.
      volatile: names whose values may change when a run is resumed, since they do not
        change its result.

    Raises:
      ValueError: if the folder is of a run with other settings, holds files of
        something else, or another run is writing it; if processes of one run have
        other settings, or do not all see the folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as parent:
      ...     with open_workdir(parent + "/run", {"seed": 0}) as workdir:
      ...         read_json(workdir / "config.json")
      {'seed': 0}
    """
    folder = pathlib.Path(path).absolute()
    config = _plain(config, "config")
    kept = {name: value for name, value in config.items() if name not in volatile}
    processes.check_same(lambda: json.dumps(kept).encode(), "configuration")
    with contextlib.ExitStack() as held:

        def claim() -> None:
            _check_owner(folder, config, volatile)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(folder))
            _check_owner(folder, config, volatile)  # from here on nobody can change it
            file = folder / _CONFIG
            if not file.exists() or read_json(file) != config:
                write_json(file, config)

        processes.on_main(claim)
        processes.await_file(folder / _CONFIG)
        yield folder


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file that a reader sees whole: the old content or the new.

    Args:
      path: the file; its folder must exist.
      value: numbers, text, None, paths, arrays (as nested lists), lists, tuples and
        mappings of them. NaN and infinity are written as null, which JSON can hold.

    Raises:
      ValueError: if a value is of another type; it names the place.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_json(f"{folder}/a", {"loss": np.float32(0.1), "cost": math.inf})
      ...     read_json(f"{folder}/a")
      {'loss': 0.1, 'cost': None}
    """
    path = pathlib.Path(path)
    replace_text(path, json.dumps(_plain(value, path.name), indent=2) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Returns what a JSON file holds; ValueError names a file that is not JSON."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}): remove it") from error


def to_json_line(value: Any) -> str:
    """Returns the value as JSON on one line, by the rules of `write_json`."""
    return json.dumps(_plain(value, "value"))


def _check_owner(
    folder: pathlib.Path, config: Mapping[str, Any], volatile: tuple[str, ...]
) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"workdir {folder} is a file: choose a folder")
    file = folder / _CONFIG
    found = sorted(x.name for x in folder.iterdir() if x.name[0] != ".")
    if not file.exists():
        if found:
            raise ValueError(
                f"workdir {folder} is not of a fliqs_jax run: it has no {_CONFIG}, but "
                f"{len(found)} other entries, such as {found[0]!r}; choose an empty or "
                "a new folder"
            )
        return
    old = read_json(file)
    if found == [_CONFIG] and (folder / _LOCK).exists():
        return  # of a run that made nothing; no lock: a config.json of something else
    if not isinstance(old, dict):
        raise ValueError(f"{file} does not hold the settings of a run: remove it")
    there, now = _flat(old, volatile), _flat(config, volatile)
    no = "(absent)"
    # What both have tells more than what one of two kinds of run does not know.
    names = sorted(there.keys() & now.keys()) + sorted(there.keys() ^ now.keys())
    lines = [
        f"  {name}: {there.get(name, no)} there, {now.get(name, no)} now"
        for name in names
        if there.get(name) != now.get(name)
    ]
    if len(lines) > _MOST_LINES:
        rest = len(lines) - _MOST_LINES
        lines[_MOST_LINES:] = [f"  and {rest} more, see {file}"]
    if lines:
        raise ValueError(
            f"workdir {folder} belongs to a run with other settings; choose another "
            "--workdir, or run again with the values there:\n" + "\n".join(lines)
        )


def _flat(config: Mapping[str, Any], skip: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns the settings as short texts by dotted name, so that one can be named."""
    texts = {}
    for name, value in config.items():
        if name in skip:
            continue
        if isinstance(value, Mapping):
            texts |= {f"{name}.{inner}": text for inner, text in _flat(value).items()}
        else:
            text = json.dumps(value)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            texts[name] = text if len(text) <= _LONGEST else f"(long, {digest})"
    return texts


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    # flock, not lockf: a second open by this same process must be refused too.
    with open(folder / _LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise ValueError(
                f"workdir {folder} is being written by process {owner}: wait for it, "
                "stop it, or choose another --workdir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            warnings.warn(
                f"workdir {folder} cannot be locked ({error.strerror}): make sure that "
                "no other process writes it",
                stacklevel=2,
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(x, f"{place}.{key}") for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x, f"{place}[{i}]") for i, x in enumerate(value)]
    array = np.asarray(value) if hasattr(value, "__array__") else None
    if array is None or array.dtype == object:
        raise ValueError(
            f"{place} is {value!r}, a {type(value).__name__}: JSON files hold numbers, "
            "text, None, arrays, lists and mappings"
        )
    if array.dtype.kind not in "biuUf":  # bfloat16 and its kin are of kind V
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        # The shortest text that gives the same float32: 0.1, not 0.10000000149011612.
        array = array.astype("U32").astype(np.float64)
    return _plain(array.tolist(), place)
