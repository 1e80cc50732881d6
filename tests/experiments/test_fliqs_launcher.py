"""The launcher as a user runs it: outputs, resume, and messages for mistakes."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import fliqs_jax as fq
from experiments import evaluate, fliqs
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.metrics import read_metrics

SMALL = (
    "--dataset=digits",
    "--model=lenet300",
    "--formats=int2,int4,int8",
    "--cost_target=0.3",
    "--steps=60",
    "--batch_size=32",
    "--policy_every=2",
    "--calibrate_every=20",
    "--log_every=10",
    "--evaluate_every=30",
    "--checkpoint_every=20",
    "--learning_rate=0.05",
)


def launch(launcher, *arguments):
    """Runs a launcher in this process with these flags and no others."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", *arguments])
        launcher.run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(fliqs, *SMALL, f"--workdir={workdir}")
    return workdir


def test_a_run_leaves_the_promised_files(finished):
    names = {entry.name for entry in finished.iterdir()}
    promised = {"policy.json", "summary.json", "metrics.jsonl", "report.html"}
    assert promised | {"checkpoints"} <= names
    summary = json.loads((finished / "summary.json").read_text())
    for key in (
        *("accuracy", "cost", "cost_target", "cost_ratio", "steps", "seconds"),
        *("compile_count", "entropy", "seed", "versions"),
    ):
        assert key in summary
    assert summary["cost_ratio"] == pytest.approx(
        summary["cost"] / summary["cost_target"]
    )
    assert summary["cost_ratio"] <= 1.0
    assert summary["compile_count"] == 1
    assert summary["accuracy"] > 0.7  # 60 steps; chance is 0.1


def test_summary_cost_is_that_of_the_policy_on_disk(finished):
    policy = fq.Policy.load(finished / "policy.json")
    model = fq.create_model("lenet300")
    sites = fq.find_sites(model, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    summary = json.loads((finished / "summary.json").read_text())
    assert fq.bops(sites, policy) == summary["cost"]
    reference = fq.bops(sites, fq.Policy.uniform(sites, "int8"))
    assert summary["cost_target"] == pytest.approx(0.3 * reference)


def test_evaluate_gives_the_accuracy_of_the_summary(finished, capsys):
    launch(evaluate, f"--workdir={finished}")
    result = json.loads(capsys.readouterr().out)
    summary = json.loads((finished / "summary.json").read_text())
    assert result["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-9)


def test_network_loads_in_one_line_and_classifies(finished):
    network = fq.load_network(finished)
    test = fq.load_dataset("digits").test
    hits = np.asarray(network(test.images)).argmax(1) == test.labels
    summary = json.loads((finished / "summary.json").read_text())
    assert hits.mean() == pytest.approx(summary["accuracy"], abs=1e-6)


def test_finished_run_is_reported_not_repeated(finished, capsys):
    before = (finished / "summary.json").stat().st_mtime_ns
    launch(fliqs, *SMALL, f"--workdir={finished}")
    assert "finished run" in capsys.readouterr().out
    assert (finished / "summary.json").stat().st_mtime_ns == before


def test_policy_found_can_be_trained_from_scratch(finished, tmp_path, capsys):
    workdir = tmp_path / "again"
    launch(fliqs, *SMALL, f"--workdir={workdir}", f"--policy={finished}/policy.json")
    # The flags of a search that this run has no use for are said, not just ignored.
    notes = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert notes == [
        "note: --policy_every has no effect: --policy leaves nothing to search"
    ]
    found, again = (
        fq.Policy.load(folder / "policy.json") for folder in (finished, workdir)
    )
    assert found == again


def _subprocess(workdir):
    command = [sys.executable, "-m", "experiments.fliqs", *SMALL]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_run_ends_bit_identical_to_an_uninterrupted_one(finished, tmp_path):
    workdir = tmp_path / "killed"
    process = _subprocess(workdir)
    deadline = time.monotonic() + 300
    while not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # with luck while the next one is being saved
    process.communicate()
    assert not (workdir / "summary.json").exists()
    process = _subprocess(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "resumed at step" in output

    whole, resumed = (
        restore_tree(path / "checkpoints") for path in (finished, workdir)
    )
    whole.pop("seconds"), resumed.pop("seconds")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    timing = ("seconds", "steps_per_second")
    rows = [
        [
            {k: v for k, v in row.items() if k not in timing}
            for row in read_metrics(path)
        ]
        for path in (finished, workdir)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--formats=int4,int99", "int99"),
        ("--formats=int4", "at least two"),
        ("--model=resnet21", "resnet20"),
        ("--dataset=digitz", "digits"),
        ("--cost_target=0.001", "least reachable"),
        ("--cost_target=5", "does nothing"),
        ("--cost_target=-1", "cost_target"),
        ("--batch_size=33", "8 devices"),
        ("--steps=0", "steps must be at least 1"),
        ("--pins=Dense_9=int8", "Dense_"),
        ("--policy=nowhere.json", "nowhere.json"),
        ("--model_options=colour=3", "colour"),
        ("--model=no.such:thing", "no.such"),
        ("--form=published", "policy_every|published"),
        ("--warmup_fraction=1.5", "warmup_fraction"),
        ("--dataset=mnist", "data_dir|download"),
    ],
)
def test_a_mistake_is_refused_before_training(changed, message, tmp_path):
    arguments = [*SMALL, f"--workdir={tmp_path / 'run'}", changed]
    if changed == "--form=published":
        arguments.append("--policy_samples=4")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(fliqs, *arguments)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_runs_workdir_is_refused_naming_the_setting(finished):
    with pytest.raises(ValueError, match="flags.seed: 0 there, 7 now"):
        launch(fliqs, *SMALL, f"--workdir={finished}", "--seed=7")


def test_policy_of_another_model_is_refused(finished, tmp_path):
    arguments = (*SMALL, "--model=lenet5", f"--workdir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match="does not fit the network"):
        launch(fliqs, *arguments, f"--policy={finished}/policy.json")


def test_diverging_run_stops_names_the_step_and_keeps_its_checkpoint(tmp_path):
    arguments = [*SMALL, f"--workdir={tmp_path / 'run'}", "--scales=absmax"]
    arguments += ["--learning_rate=1e20", "--checkpoint_every=1", "--log_every=1"]
    with pytest.raises(RuntimeError, match=r"loss is (nan|inf) at step \d+"):
        launch(fliqs, *arguments)
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    "preset", sorted(pathlib.Path("experiments/presets").glob("*.flags")), ids=str
)
def test_preset_parses_and_its_header_shows_its_own_command(preset):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", f"--flagfile={preset}"])
        assert flags.FLAGS.steps > 0
    header = [line for line in preset.read_text().splitlines() if line[:1] == "#"]
    assert any(str(preset) in line for line in header)


@pytest.mark.parametrize("form", fliqs.FORMS)
def test_every_form_searches_to_its_end(form, tmp_path):
    short = ("--steps=20", "--evaluate_every=0", f"--form={form}")
    launch(fliqs, *SMALL, *short, "--policy_every=1", f"--workdir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["entropy"] < np.log(3)  # below uniform: the controller learned
