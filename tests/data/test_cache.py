"""Decoded arrays are built once, and again only when something is wrong with them."""

import logging

import numpy as np
import pytest

from fliqs_jax.data import cache

SOURCE = {"set": "toy/1.0.0", "bytes": 12}


class Builder:
    """Counts its calls."""

    def __init__(self, fill=1):
        self.calls = 0
        self.fill = fill

    def __call__(self):
        self.calls += 1
        images = np.full((4, 2, 2, 1), self.fill, np.uint8)
        return images, np.arange(4, dtype=np.int32)


def _read(folder, build, source=SOURCE):
    return cache.cached_arrays(folder / "toy", "train", source, build)


def test_second_read_builds_nothing(tmp_path):
    build = Builder()
    first, second = _read(tmp_path, build), _read(tmp_path, build)
    assert build.calls == 1
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)
    files = sorted(path.name for path in (tmp_path / "toy").iterdir())
    assert files == ["train.images.npy", "train.json", "train.labels.npy"]


def _flip_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _flip_byte(folder / "train.images.npy"),
        lambda folder: _flip_byte(folder / "train.labels.npy"),
        lambda folder: (folder / "train.images.npy").write_bytes(b""),
        lambda folder: (folder / "train.images.npy").write_bytes(b"\x93NUMPY"),
        lambda folder: (folder / "train.labels.npy").unlink(),
        lambda folder: (folder / "train.json").write_text("{"),
        lambda folder: (folder / "train.json").write_text("[]"),
        lambda folder: (folder / "train.json").write_text("{}"),
    ],
    ids=["image", "label", "empty", "header", "missing", "half", "list", "keys"],
)
def test_damage_is_repaired(tmp_path, damage):
    build = Builder()
    images, labels = _read(tmp_path, build)
    images, labels = images.copy(), labels.copy()
    damage(tmp_path / "toy")
    repaired_images, repaired_labels = _read(tmp_path, build)
    np.testing.assert_array_equal(repaired_images, images)
    np.testing.assert_array_equal(repaired_labels, labels)
    _read(tmp_path, build)
    assert build.calls == 2


def test_other_content_under_the_same_name_is_built_anew(tmp_path):
    _read(tmp_path, Builder(fill=1))
    other = {**SOURCE, "bytes": 13}
    images, _ = _read(tmp_path, Builder(fill=2), other)
    assert (images == 2).all()


def test_unwritable_folder_only_costs_the_time(tmp_path, caplog):
    (tmp_path / "toy").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        images, _ = _read(tmp_path, Builder())
    assert images.shape == (4, 2, 2, 1)
    assert "decoded images are not kept" in caplog.text


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path / "fliqs_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path / ".cache" / "fliqs_jax"
