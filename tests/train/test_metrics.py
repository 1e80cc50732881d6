"""metrics.jsonl of a resumed run, TensorBoard files, the progress line."""

import io
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.train.metrics import MetricsWriter, ProgressLine, read_metrics


def write_steps(writer, steps):
    for step in steps:
        writer.write("train", step, {"loss": jnp.float32(1.0 / step)})
        if step % 2 == 0:
            writer.write("eval", step, {"accuracy": np.float32(step / 10)})


def test_lines_have_step_and_kind_and_are_readable_at_once(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write("policy", 3, {"probabilities": np.eye(2), "note": "a\nb"})
        text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("\n") and text.count("\n") == 1
    assert json.loads(text) == {
        "step": 3,
        "kind": "policy",
        "probabilities": [[1.0, 0.0], [0.0, 1.0]],
        "note": "a\nb",
    }


def test_nan_becomes_null(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write("train", 1, {"loss": np.nan})
    assert read_metrics(tmp_path) == [{"step": 1, "kind": "train", "loss": None}]


@pytest.mark.parametrize("torn", ["", '{"step": 8, "ki', '{"step": 2}garbage'])
def test_resumed_file_equals_the_uninterrupted_one(tmp_path, torn):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    with MetricsWriter(tmp_path / "whole", resume_step=None) as writer:
        write_steps(writer, range(1, 11))
    with MetricsWriter(tmp_path / "resumed", resume_step=None) as writer:
        write_steps(writer, range(1, 8))
    with open(tmp_path / "resumed" / "metrics.jsonl", "a") as file:
        file.write(torn)
    with MetricsWriter(tmp_path / "resumed", resume_step=4) as writer:
        write_steps(writer, range(5, 11))
    whole, resumed = (
        (tmp_path / name / "metrics.jsonl").read_bytes()
        for name in ("whole", "resumed")
    )
    assert resumed == whole


def test_fresh_start_drops_what_a_run_without_checkpoint_left(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write("eval", 0, {"accuracy": 0.1})
    with MetricsWriter(tmp_path, resume_step=None):
        assert read_metrics(tmp_path) == []


def test_reader_leaves_out_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    # Cut inside the two bytes of a character.
    path.write_bytes(b'{"step": 1, "kind": "a"}\n' + '{"step": 2, "kö'.encode()[:-1])
    assert read_metrics(path) == [{"step": 1, "kind": "a"}]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"step": 1}'])
def test_garbled_line_before_the_last_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "kind": "a"}\n' + line + '\n{"step": 2, "kind": "a"}\n'
    )
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is no metrics line"):
        read_metrics(path)


def test_reserved_names_are_refused(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        with pytest.raises(ValueError, match="'kind' is taken"):
            writer.write("train", 1, {"kind": 3})


def read_events(folder):
    """Tag, step and value (or image size) of every summary in TensorBoard's files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                size = (value.image.height, value.image.width)
                shown = value.simple_value if kind == "simple_value" else size
                found.append((value.tag, event.step, shown))
    return found


def test_tensorboard_gets_scalars(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write("train", 5, {"loss": jnp.float32(0.5), "table": np.ones(3)})
        writer.write("train", 6, {"loss": 0.25, "name": "a", "nothing": None})
    assert read_events(tmp_path / "tensorboard") == [
        ("train/loss", 5, 0.5),
        ("train/loss", 6, 0.25),
    ]


def test_import_is_light_and_tensorboard_needs_no_tensorflow(tmp_path):
    program = """
import sys
import fliqs_jax.train.checkpoints, fliqs_jax.train.metrics
heavy = {"orbax.checkpoint", "tensorboardX", "rich.live", "torch"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
with fliqs_jax.train.metrics.MetricsWriter(sys.argv[1], resume_step=None) as writer:
    writer.write("train", 1, {"loss": 1.0})
assert "tensorboardX" in sys.modules
assert not {"tensorflow", "tensorboard"} & set(sys.modules)
"""
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, cwd=root)


ALL = {
    "loss": 12.3456,
    "accuracy": 0.98765,
    "reward": -0.1234,
    "expected_cost_ratio": 1.0234,
    "entropy": 1.94591,
}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_log_of_a_short_run_stays_empty():
    stream, clock = io.StringIO(), Clock()
    with ProgressLine(100, stream=stream, every_s=30.0, clock=clock) as line:
        for step in range(1, 101):
            clock.now = 0.29 * step
            line.update(step, {"loss": jnp.float32(0.5)})
    assert stream.getvalue() == ""


def test_log_gets_a_line_every_so_many_seconds_and_the_last():
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(100, stream=stream, every_s=30.0, clock=clock)
    for step in range(1, 101):  # two seconds a step
        clock.now = 2.0 * step
        line.update(step, {"loss": jnp.float32(0.5)})
    # Every 15 steps, then the end.
    lines = stream.getvalue().splitlines()
    assert [text.split("/")[0] for text in lines] == [
        *("15", "30", "45", "60", "75", "90"),
        "100",
    ]
    assert lines[0] == "15/100 loss 0.500 0.5 steps/s ETA 2m50s"
    assert lines[-1] == "100/100 loss 0.500 0.5 steps/s ETA 0m00s"


def test_values_are_fetched_only_when_printed():
    class Unready:
        def __float__(self):
            raise AssertionError("waited for a value that is not printed")

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("waited for a value that is not printed")

    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(100, stream=stream, clock=clock)
    line.update(1, {"loss": 1.0})
    clock.now = 29.0
    line.update.__wrapped__(line, 2, {"loss": Unready()})  # past the type check
    clock.now = 31.0
    line.update(3, {"loss": 1.0})
    assert stream.getvalue().count("\n") == 1


def test_all_fields_fit_in_a_log_and_keep_their_order():
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(64000, stream=stream, every_s=1.0, clock=clock)
    line.update(12000, ALL)
    clock.now = 40.0
    line.update(12500, ALL)
    (text,) = stream.getvalue().splitlines()
    assert text == (
        "12500/64000 loss 12.346 acc 98.8% reward -0.123 cost 1.02x entropy 1.95 "
        "12.5 steps/s ETA 1h08m"
    )
    assert 80 <= len(text) <= 100


def test_one_cost_is_shown_the_expected_one_if_it_is_there():
    stream = io.StringIO()
    line = ProgressLine(10, stream=stream, every_s=0.0)
    line.update(10, {"loss": 1.0, "cost_ratio": 1.25, "expected_cost_ratio": 1.1})
    assert stream.getvalue() == "10/10 loss 1.000 cost 1.10x\n"


def test_fields_without_a_value_are_left_out():
    stream = io.StringIO()
    line = ProgressLine(10, stream=stream, every_s=0.0)
    line.update(1, {"loss": float("nan"), "reward": None, "other": "text"})
    assert stream.getvalue() == "1/10 loss nan\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_shows_one_line_in_place_no_wider_than_it_is(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream, clock = Terminal(), Clock()
    with ProgressLine(64000, stream=stream, clock=clock) as line:
        for step in (12000, 12250, 12500):
            clock.now += 20.0
            line.update(step, ALL)
        clock.now += 0.1
        line.update(12501, ALL)  # too soon to show
    text = stream.getvalue()
    assert "12501" not in text
    assert text.count("\n") == 1  # only when it ends
    assert "ent 1.95" in text and "ETA 1h08m" in text
    assert text.count("\r\x1b[2K") >= 2  # back to the start of the line, and erase it
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor restored


def test_no_steps_at_all_are_refused():
    with pytest.raises(ValueError, match="total must be at least 1 step, got 0"):
        ProgressLine(0)
