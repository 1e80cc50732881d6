"""Damage: every kind must cost one checkpoint, say so, and block nothing."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.train.checkpoints import Checkpoints, restore_tree


def data_files(folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "commit_success.txt"
    ]


def truncate(folder):
    for path in data_files(folder / "state"):
        os.truncate(path, path.stat().st_size // 2)


def delete_arrays(folder):
    for path in (folder / "state").rglob("d/*"):
        path.unlink()


def delete_everything(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def delete_list(folder):
    (folder / "leaves" / "metadata").unlink()


def garble_list(folder):
    path = folder / "leaves" / "metadata"
    text = path.read_text()
    assert '"x"' in text
    path.write_text(text.replace('"x"', '"y"'))  # still JSON, and the wrong names


def flip_bits(folder):
    """Flips one bit in each of many places: of an array, or of what describes it."""
    generator = np.random.default_rng(0)
    for path in data_files(folder / "state"):
        data = bytearray(path.read_bytes())
        for place in generator.integers(0, len(data), 1 + len(data) // 200):
            data[place] ^= 16
        path.write_bytes(data)


def swap_values(folder):
    """A sound orbax checkpoint with other numbers than those that were saved."""
    other = folder.parent.parent / "other"
    with Checkpoints(other) as checkpoints:
        checkpoints.save(1, {"x": jnp.full(1000, 7.0), "key": jax.random.key(0)})
    (folder / "state").rename(folder.parent.parent / "gone")
    (other / "1" / "state").rename(folder / "state")


# When one of several reads fails, orbax closes the event loop under the others, whose
# "Event loop is closed" then has nobody to go to. Noise, and orbax's own.
orphaned_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


DAMAGES = [
    *(truncate, delete_arrays, delete_everything, delete_list, garble_list),
    *(flip_bits, swap_values),
]


@orphaned_reads
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_newest_falls_back_and_is_kept_aside(tmp_path, damage):
    folder = tmp_path / "checkpoints"
    example = {"x": jnp.zeros(1000), "key": jax.random.key(9)}
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            state = {"x": jnp.arange(1000.0) * step, "key": jax.random.key(step)}
            checkpoints.save(step, state)
    damage(folder / "3")
    left = sorted(path.name for path in (folder / "3").rglob("*"))

    with pytest.warns(UserWarning, match=f"skipped the damaged.*{folder}/3: "):
        assert restore_tree(folder)["x"][1] == 2.0
    assert (folder / "3").is_dir()  # a reader moves nothing
    with pytest.raises(ValueError, match=f"damaged checkpoint {folder}/3: "):
        restore_tree(folder, 3)

    with Checkpoints(folder) as checkpoints:
        with pytest.warns(
            UserWarning, match=f"checkpoint {folder}/3 is damaged"
        ) as log:
            step, state = checkpoints.restore(example)
        message = str(log[0].message)
        assert len(log) == 1 and len(message) < 1000
        assert re.search(r"\(\w+: .+\)", message), message  # and why
        assert step == 2 and state["x"][1] == 2.0
        aside = folder / "damaged" / "3"
        assert str(aside) in message
        assert sorted(path.name for path in aside.rglob("*")) == left
        assert checkpoints.latest_step() == 2
        assert checkpoints.save(3, example | {"x": jnp.full(1000, 3.0)})
    step, state = Checkpoints(folder).restore(example)
    assert step == 3 and state["x"][0] == 3.0


@orphaned_reads
def test_damage_found_while_saving_goes_on(tmp_path):
    state = {"x": jnp.ones(1000), "key": jax.random.key(0)}
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(2):  # the second time, the folder for damaged ones has a 3
            checkpoints.save(2, state)
            checkpoints.save(3, state)
            checkpoints.wait()
            truncate(tmp_path / "3")
            with pytest.warns(UserWarning, match="/3 is damaged"):
                assert checkpoints.restore(state)[0] == 2
    assert sorted(os.listdir(tmp_path / "damaged")) == ["3", "3-1"]
    assert sorted(os.listdir(tmp_path)) == ["2", "damaged"]


@orphaned_reads
def test_all_damaged_starts_afresh_and_loses_nothing(tmp_path):
    state = {"x": jnp.ones(1000)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        checkpoints.wait()
        for step in "12":
            truncate(tmp_path / step)
        with pytest.warns(UserWarning, match="is damaged") as log:
            assert checkpoints.restore(state) is None
        assert len(log) == 2
        assert checkpoints.latest_step() is None
        assert checkpoints.save(1, state)
    assert sorted(os.listdir(tmp_path / "damaged")) == ["1", "2"]
    assert Checkpoints(tmp_path).restore(state)[0] == 1
