"""A set that is decoded as it is read gives what it would give from memory."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from fliqs_jax.data import (
    Split,
    StreamedSplit,
    batches,
    evaluation_batches,
    load_dataset,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def streamed(varied_set, tmp_path_factory):
    return load_dataset(
        "varied",
        data_dir=varied_set,
        cache_dir=tmp_path_factory.mktemp("cache"),
        image_size=8,
        memory_limit_bytes=1000,
    )


def _in_memory(split):
    return Split(*split.read(np.arange(len(split))))


def test_large_set_is_streamed_and_its_parts_are_disjoint(streamed):
    parts = (streamed.train, streamed.validation, streamed.test)
    assert all(isinstance(part, StreamedSplit) for part in parts)
    assert [len(part) for part in parts] == [54, 6, 6]
    numbers = [*streamed.train.indices, *streamed.validation.indices]
    assert sorted(numbers) == list(range(60))
    values = [_in_memory(part).images[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(values[0] + values[1]) == list(range(60))
    assert sorted(values[2]) == list(range(100, 106))
    assert streamed.mean.shape == (3,)


def test_batches_equal_those_from_memory_in_any_order(streamed):
    ahead = batches(streamed.train, batch_size=8, seed=5)
    memory = batches(_in_memory(streamed.train), batch_size=8, seed=5)
    # Consecutive steps, a resumption, a repetition, a step back, another epoch.
    for step in [0, 1, 2, 17, 18, 18, 3, 4, 40]:
        for name, expected in memory.batch(step).items():
            np.testing.assert_array_equal(ahead.batch(step)[name], expected)


def test_evaluation_equals_that_from_memory(streamed):
    pairs = zip(
        evaluation_batches(streamed.test, 4),
        evaluation_batches(_in_memory(streamed.test), 4),
        strict=True,
    )
    for found, expected in pairs:
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_damaged_record_stops_the_run_with_its_own_error(streamed):
    def decode(record):
        raise OSError("cannot identify image file")

    broken = StreamedSplit(
        streamed.train.records,
        decode,
        streamed.train.image_shape,
        streamed.train.indices,
    )
    with pytest.raises(OSError, match="cannot identify image file"):
        batches(broken, batch_size=8, seed=0).batch(0)


def test_streaming_works_inside_an_absl_program(varied_set, tmp_path):
    # grain defines flags of its own when imported, which here is after parsing.
    program = f"""
from absl import app, flags
flags.DEFINE_integer("steps", 1, "")
def main(argv):
    from fliqs_jax.data import batches, load_dataset
    found = load_dataset("varied", data_dir={str(varied_set)!r}, image_size=8,
                         cache_dir={str(tmp_path)!r}, memory_limit_bytes=0)
    source = batches(found.train, batch_size=8, seed=0)
    print([source.batch(step)["image"].shape for step in range(flags.FLAGS.steps)])
app.run(main)
"""
    command = [sys.executable, "-c", program, "--steps=2"]
    done = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == "[(8, 8, 8, 3), (8, 8, 8, 3)]"
