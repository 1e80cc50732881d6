"""The launcher of Learning-Compression as a user runs it: files, report, mistakes."""

import json

import pytest
from killing import assert_same_end, kill_and_resume
from launcher_contract import LauncherContract
from launching import launch

import fliqs_jax as fq
from experiments import learning_compression

SMALL = (
    "--dataset=digits",
    "--model=lenet300",
    "--steps=60",
    "--reference_steps=40",
    "--batch_size=32",
    "--lc_steps=3",
    "--mu=0.02",
    "--mu_growth=3",
    "--log_every=10",
    "--checkpoint_every=10",  # in the middle of an L step, of 20
    "--learning_rate=0.03",
    "--codebook=ternary_scaled",
)


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(learning_compression, f"--workdir={workdir}", *SMALL)
    return workdir


class TestContract(LauncherContract):
    launcher, flags = learning_compression, SMALL
    has_budget = False
    files = (
        *LauncherContract.files,
        *("checkpoints", "codebooks.fqcb", "compression.json", "network", "float"),
    )


def test_weights_are_packed_and_the_reference_is_better_than_chance(finished):
    summary = summary_of(finished)
    assert summary["compile_count"] == 1 and summary["steps"] == 60
    assert summary["compression_ratio"] > 12  # two bits of 32, biases and header
    assert summary["reference_accuracy"] > 0.6  # 40 steps of training; chance is 0.1
    assert summary["accuracy"] > 0.5
    measured = json.loads((finished / "compression.json").read_text())["measured"]
    assert summary["train_loss"] == pytest.approx(min(measured["train_loss"]))
    assert summary["reference_train_loss"] < summary["train_loss"]


def test_policy_says_that_decoded_weights_are_floats(finished):
    policy = fq.Policy.load(finished / "policy.json")
    assert set(policy.values()) == {("fp32", "fp32")}


def test_report_shows_weights_course_and_layers(finished):
    text = (finished / "report.html").read_text()
    for section in ("weights", "course", "layers", "training"):
        assert f'<section id="{section}">' in text
    assert "Dense_0/kernel" in text and "ternary, scaled" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--codebook=kmeans"], "needs a size: give codebook_size=K"),
        (["--codebook=int33"], "codebook 'int33': use kmeans"),
        (["--codebook_size=5"], "ternary_scaled' has 3 values"),
        (["--lc_steps=70"], r"take fewer L steps \(--lc_steps\) or more"),
        (["--mu=0"], "mu must be positive"),
        (["--size_budget=0.2"], "leave out --codebook"),
        (["--codebook=kmeans", "--size_budget=0.01"], "least reachable is 0.1255"),
        (["--init_skip=Dense_0/.*"], "--init_skip leaves weights untrained"),
        (["--init_from=nowhere"], "no checkpoint at"),
    ],
)
def test_a_mistake_is_refused_before_training(changed, message, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(learning_compression, *SMALL, *changed, f"--workdir={workdir}")
    assert not workdir.exists()


def test_flags_without_effect_are_named(finished, tmp_path, capsys):
    with pytest.raises(ValueError, match="other settings"):
        given = ("--method=idc", "--cost_target=0.5", f"--workdir={finished}")
        launch(learning_compression, *SMALL, *given)
    said = capsys.readouterr().out
    assert "note: --cost_target has no effect: use --size_budget" in said
    assert "note: --mu has no effect: idc has no penalty" in said


@pytest.mark.slow
def test_killed_in_an_l_step_it_ends_as_an_uninterrupted_run(finished, tmp_path):
    output = kill_and_resume(learning_compression, tmp_path / "killed", *SMALL)
    assert "resumed at step" in output
    assert_same_end(finished, tmp_path / "killed")
    files = [folder / "codebooks.fqcb" for folder in (finished, tmp_path / "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lc", "qp", "dc", "idc"])
def test_methods_run_from_one_reference_on_free_values(method, finished, tmp_path):
    changed = ("--codebook=kmeans", "--codebook_size=2", f"--method={method}")
    start = f"--init_from={finished}/float"
    launch(learning_compression, *SMALL, *changed, start, f"--workdir={tmp_path / 'r'}")
    layers = json.loads((tmp_path / "r" / "compression.json").read_text())["layers"]
    assert [len(layer["values"]) for layer in layers] == [2, 2, 2]


@pytest.mark.slow
def test_size_budget_is_met(finished, tmp_path):
    changed = (
        "--codebook=kmeans",
        "--size_budget=0.35",
        f"--init_from={finished}/float",
    )
    launch(learning_compression, *SMALL, *changed, f"--workdir={tmp_path / 'r'}")
    summary = summary_of(tmp_path / "r")
    assert 0.5 < summary["cost_ratio"] <= 1.0
    assert summary["cost_target"] == pytest.approx(0.35 * 8 * 50_200)
