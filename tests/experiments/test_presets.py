"""Presets are flags that launchers know, under a header that says how to run them."""

import pathlib

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import (  # noqa: F401
    compare,
    dca_nas,
    fliqnas,
    learning_compression,
    simq_nas,
)

PRESETS = sorted(pathlib.Path("experiments/presets").glob("*.flags"))


@pytest.fixture(params=PRESETS, ids=str)
def preset(request):
    # compare knows the flags of the launchers that it hands them on to.
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", f"--flagfile={request.param}"])
        yield request.param


def header_of(preset):
    return [line for line in preset.read_text().splitlines() if line[:1] == "#"]


def test_preset_parses_and_its_header_shows_its_own_command(preset):
    assert flags.FLAGS.steps > 0
    assert any(str(preset) in line for line in header_of(preset))


def test_runs_of_a_comparison_are_as_many_as_its_header_says(preset, tmp_path):
    if "experiments.compare " not in preset.read_text():
        return
    shared = compare.shared_flags()
    assert f"--steps={flags.FLAGS.steps}" in shared
    number, rest = divmod(len(compare.plan(tmp_path)), len(flags.FLAGS.seeds))
    assert rest == 0
    assert f"{number} runs" in " ".join(header_of(preset)).replace("# ", "")
