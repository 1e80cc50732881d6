"""Decoded splits kept as .npy files, so that a set is decoded once per machine.

Not a general cache: a file that does not match its checksum is decoded again, silently
but for a log line, and an unwritable folder only costs the time.
"""

import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32, UInt8

_VERSION = 1  # of these files; another version is decoded again
_logger = logging.getLogger(__name__)

Arrays = tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, "N"]]


def default_cache_dir() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/fliqs_jax, by default ~/.cache/fliqs_jax."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "fliqs_jax"


def cached_arrays(
    folder: pathlib.Path, name: str, source: dict, build: Callable[[], Arrays]
) -> Arrays:
    """Returns the arrays kept under a name, or builds and keeps them.

    Args:
      folder: where the three files of each name lie; created when missing.
      name: of the split.
      source: JSON values that identify what was decoded; others mean building anew.
      build: makes the arrays.

    Returns:
      Images, mapped from the file read-only, and labels.
    """
    try:
        return _load(folder, name, source)
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        _logger.warning("decoding %s again: %s in %s", name, error, folder)
    arrays = build()
    try:
        _save(folder, name, source, arrays)
        return _load(folder, name, source)
    except OSError as error:
        _logger.warning("decoded images are not kept: %s", error)
        return arrays


def _load(folder: pathlib.Path, name: str, source: dict) -> Arrays:
    index = json.loads((folder / f"{name}.json").read_text())
    if index["version"] != _VERSION or index["source"] != source:
        raise ValueError("another source or version")
    images = np.load(folder / f"{name}.images.npy", mmap_mode="r")
    labels = np.load(folder / f"{name}.labels.npy")
    if [_checksum(images), _checksum(labels)] != index["checksums"]:
        raise ValueError("checksum mismatch")
    return images, labels


def _save(folder: pathlib.Path, name: str, source: dict, arrays: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = arrays
    # The index goes last: until it is there, the arrays do not count.
    _replace(folder / f"{name}.images.npy", lambda file: np.save(file, images))
    _replace(folder / f"{name}.labels.npy", lambda file: np.save(file, labels))
    checksums = [_checksum(images), _checksum(labels)]
    index = {"version": _VERSION, "source": source, "checksums": checksums}
    text = json.dumps(index).encode()
    _replace(folder / f"{name}.json", lambda file: file.write(text))


def _replace(path: pathlib.Path, write: Callable) -> None:
    """Writes beside the file and renames: readers see the old one or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _checksum(array: np.ndarray) -> int:
    # About 0.1 s for CIFAR-10: nothing beside a run trained on damaged images.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
