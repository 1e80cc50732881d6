"""QBitOpt's launcher as a user runs it: outputs, budget, resume, mistakes."""

import json

import numpy as np
import pytest
from killing import assert_same_end, kill_and_resume
from launcher_contract import LauncherContract
from launching import launch

import fliqs_jax as fq
from experiments import qbitopt
from fliqs_jax.report import read_run
from fliqs_jax.train.metrics import read_metrics

SMALL = (
    "--dataset=digits",
    "--model=lenet300",
    "--formats=int2,int3,int4,int8",
    "--cost_target=0.2",
    "--steps=60",
    "--batch_size=32",
    "--update_every=10",
    "--log_every=5",
    "--evaluate_every=30",
    "--checkpoint_every=10",
    "--learning_rate=0.05",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(qbitopt, f"--workdir={workdir}", *SMALL)
    return workdir


class TestContract(LauncherContract):
    launcher, flags = qbitopt, SMALL
    files = (*LauncherContract.files, "checkpoints", "network")


def test_bits_move_and_every_logged_step_is_within_the_budget(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["compile_count"] == 1
    assert summary["reallocations"] >= 1
    assert summary["accuracy"] > 0.7  # 60 steps; chance is 0.1
    assert len(fq.Policy.load(finished / "policy.json")) == 3
    rows = [row for row in read_metrics(finished) if row["kind"] == "train"]
    assert all(row["cost_ratio"] <= 1.0 for row in rows)


def test_report_shows_the_bits_over_time(finished):
    trace = read_run(finished).probabilities
    assert trace.certain and trace.values.shape[1:] == (6, 4)
    np.testing.assert_array_equal(trace.values.sum(axis=2), 1.0)
    report = (finished / "report.html").read_text()
    assert "Bits of each decision over the training" in report
    assert "it never exceeds the budget" in report
    assert "Expected cost" not in report


@pytest.mark.slow
def test_policy_found_can_be_trained_at(finished, tmp_path, capsys):
    workdir = tmp_path / "again"
    launch(qbitopt, *SMALL, f"--workdir={workdir}", f"--policy={finished}/policy.json")
    notes = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert len(notes) == 1 and "--update_every has no effect" in notes[0]
    found, again = (
        fq.Policy.load(folder / "policy.json") for folder in (finished, workdir)
    )
    assert found == again
    config = json.loads((workdir / "config.json").read_text())
    assert config["updates"] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--cost_target=0.001",), "least reachable"),
        (("--update_every=0",), "update_every must be at least 1"),
        (("--frozen_fraction=1.5",), "frozen_fraction must be in"),
        (("--trace_decay=1.0",), "trace_decay must be in"),
        (("--damping=-1",), "damping must be 0 or more"),
        (("--clip_learning_rate=-1",), "clip_learning_rate must be 0 or more"),
        (("--first_last=int9x",), "int9x"),
        (("--cost=mean_bits", "--cost_target=0.2"), "least reachable"),
        (("--weights_only", "--separate"), "exclude each other"),
    ],
)
def test_a_mistake_is_refused_before_training(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        launch(qbitopt, *SMALL, f"--workdir={tmp_path / 'run'}", *changed)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ("--cost=mean_bits", "--cost_target=0.85", "--first_last=int8"),
        ("--cost=size", "--cost_target=0.4", "--weights_only"),
        ("--cost=activation_size", "--cost_target=0.4", "--rescale_range"),
        ("--noseparate", "--damping=0.1"),
    ],
    ids=" ".join,
)
def test_every_kind_of_budget_is_kept(given, tmp_path):
    short = ("--steps=40", "--evaluate_every=0", f"--workdir={tmp_path / 'run'}")
    launch(qbitopt, *SMALL, *short, *given)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["cost_ratio"] <= 1.0


@pytest.mark.slow
def test_killed_run_ends_as_an_uninterrupted_one(finished, tmp_path):
    output = kill_and_resume(qbitopt, tmp_path / "killed", *SMALL)
    assert "resumed at step" in output
    assert_same_end(finished, tmp_path / "killed")
