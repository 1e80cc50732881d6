"""A workdir belongs to one run, one writer, and its JSON files are whole."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.train.workdir import open_workdir, read_json, to_json_line, write_json

CONFIG = {"seed": 0, "formats": ("int4", "int8"), "steps_per_call": 1}


def test_new_workdir_holds_its_config(tmp_path):
    with open_workdir(tmp_path / "a" / "b", CONFIG) as workdir:
        assert workdir == tmp_path / "a" / "b"
        stored = json.loads((workdir / "config.json").read_text())
    assert stored == {"seed": 0, "formats": ["int4", "int8"], "steps_per_call": 1}


def test_same_settings_resume_and_volatile_ones_are_updated(tmp_path):
    for config in (CONFIG, CONFIG, CONFIG | {"steps_per_call": 8}):
        with open_workdir(tmp_path, config):
            assert read_json(tmp_path / "config.json")["seed"] == 0
    assert read_json(tmp_path / "config.json")["steps_per_call"] == 8


def test_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_workdir("run", CONFIG) as workdir:
        assert workdir == tmp_path / "run"


def test_other_settings_are_listed_with_both_values_and_the_cure(tmp_path):
    with open_workdir(tmp_path, CONFIG | {"gone": [1]}):
        write_json(tmp_path / "summary.json", {})
    before = (tmp_path / "config.json").read_text()
    now = {"seed": 3, "formats": ["int4"], "steps_per_call": 9, "new": None}
    with pytest.raises(ValueError) as caught, open_workdir(tmp_path, now):
        pass
    message = str(caught.value)
    assert "seed: 0 there, 3 now" in message
    assert 'formats: ["int4", "int8"] there, ["int4"] now' in message
    assert "gone: [1] there, (absent) now" in message
    assert "new: (absent) there, null now" in message
    assert "another --workdir" in message and str(tmp_path) in message
    assert "steps_per_call" not in message
    assert (tmp_path / "config.json").read_text() == before


def test_run_that_ended_before_it_made_anything_gives_its_folder_to_another(tmp_path):
    other = CONFIG | {"seed": 3}
    with pytest.raises(ZeroDivisionError), open_workdir(tmp_path, CONFIG):
        with pytest.raises(ValueError, match="written by process"):
            with open_workdir(tmp_path, other):  # it may be about to
                pass
        raise ZeroDivisionError
    with open_workdir(tmp_path, other):
        assert read_json(tmp_path / "config.json")["seed"] == 3
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="seed: 3 there, 0 now"):
        with open_workdir(tmp_path, CONFIG):
            pass


def test_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(ValueError, match=r"not of a fliqs_jax run.*'thesis.tex'"):
        with open_workdir(tmp_path, CONFIG):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_leftovers_of_a_killed_start_do_not_count(tmp_path):
    (tmp_path / ".lock").write_text("1")
    (tmp_path / ".config.json.1.tmp").write_text('{"se')
    with open_workdir(tmp_path, CONFIG):
        assert read_json(tmp_path / "config.json")["seed"] == 0


def test_file_as_workdir_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        with open_workdir(tmp_path / "run", CONFIG):
            pass


def test_config_json_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 768}')
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        with open_workdir(tmp_path, CONFIG):
            pass
    assert "hidden_size" in (tmp_path / "config.json").read_text()


def test_garbled_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        with open_workdir(tmp_path, CONFIG):
            pass


HOLDER = """
import sys, time
from fliqs_jax.train.workdir import open_workdir
with open_workdir(sys.argv[1], {"seed": 0, "formats": ["int4", "int8"]}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdout=subprocess.PIPE,
        cwd=root,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"written by process {holder.pid}:"):
            with open_workdir(tmp_path, CONFIG):
                pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with open_workdir(tmp_path, CONFIG):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_same_process_cannot_open_it_twice(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        with pytest.raises(ValueError, match=f"process {os.getpid()}"):
            with open_workdir(tmp_path, CONFIG):
                pass


def test_lock_ends_with_the_block_even_on_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), open_workdir(tmp_path, CONFIG):
        raise ZeroDivisionError
    with open_workdir(tmp_path, CONFIG):
        pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),  # the shortest text of that float32
        (np.float64(0.1), "0.1"),
        (np.int64(7), "7"),
        (np.bool_(True), "true"),
        (jnp.float32(2.5), "2.5"),
        (jnp.arange(3), "[0, 1, 2]"),
        (
            np.array([[0.5, np.nan], [np.inf, -0.1]], np.float32),
            "[[0.5, null], [null, -0.1]]",
        ),
        (jnp.bfloat16(1.5), "1.5"),
        (math.nan, "null"),
        (-math.inf, "null"),
        (pathlib.PurePosixPath("a/b"), '"a/b"'),
        ("ünï", '"\\u00fcn\\u00ef"'),
        ({1: (2, None)}, '{"1": [2, null]}'),
        (np.array(["a"]), '["a"]'),
    ],
)
def test_values_become_json(value, text):
    assert to_json_line(value) == text


def test_float32_text_gives_the_same_float32_back():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    values = np.concatenate([values, np.float32([1e-45, 3e38, 1e10, -0.0])])
    back = np.array(json.loads(to_json_line(values)), np.float32)
    assert back.tobytes() == values.tobytes()


@pytest.mark.parametrize("value", [{1, 2}, object(), np.array([None])])
def test_values_json_cannot_hold_are_named(value, tmp_path):
    with pytest.raises(ValueError, match=r"summary\.json\.a\[1\] is"):
        write_json(tmp_path / "summary.json", {"a": [0, value]})
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    write_json(file, {"accuracy": 0.5})

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(file, {"accuracy": 0.75})
    assert read_json(file) == {"accuracy": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_run_of_another_kind_is_told_in_a_few_lines(tmp_path):
    theirs = {"method": "fliqs", **{f"only_there{n}": n for n in range(30)}}
    ours = {"method": "qbitopt", **{f"only_here{n}": n for n in range(30)}}
    with open_workdir(tmp_path / "run", theirs):
        write_json(tmp_path / "run" / "summary.json", {})
    with pytest.raises(ValueError) as refused, open_workdir(tmp_path / "run", ours):
        pass
    first, *lines = str(refused.value).splitlines()
    assert "belongs to a run with other settings" in first
    assert lines[0] == '  method: "fliqs" there, "qbitopt" now'
    assert len(lines) == 13 and lines[-1].startswith("  and 49 more, see ")
