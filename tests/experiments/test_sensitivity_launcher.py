"""The sensitivity launcher as a user runs it: outputs, resume, mistakes."""

import csv
import json

import jax
import numpy as np
import pytest
from launcher_contract import LauncherContract
from launching import launch

import fliqs_jax as fq
from experiments import evaluate, fliqs, sensitivity
from fliqs_jax.searchers.sensitivities.meter import SensitivityMeter

SMALL = (
    "--dataset=digits",
    "--model=lenet300",
    "--formats=int2,int4,int8",
    "--cost_target=0.2",
    "--steps=40",
    "--batch_size=32",
    "--calibrate_every=40",
    "--log_every=20",
    "--evaluate_every=0",
    "--learning_rate=0.05",
    "--batches=2",
)


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(sensitivity, f"--workdir={workdir}", *SMALL)
    return workdir


class TestContract(LauncherContract):
    launcher, flags = sensitivity, SMALL
    files = (  # no metrics.jsonl: what it trains is in a folder of its own
        *("config.json", "policy.json", "summary.json", "report.html", "network"),
        *("sensitivity.csv", "sensitivity.png"),
    )


def test_cost_is_that_of_the_policy_on_disk(finished):
    summary = summary_of(finished)
    assert summary["compile_count"] == 1 and summary["steps"] == 40
    assert "accuracy_before" in summary
    assert summary["accuracy"] > 0.6  # 40 steps of training; chance is 0.1
    model = fq.create_model("lenet300")
    sites = fq.find_sites(model, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    policy = fq.Policy.load(finished / "policy.json")
    assert fq.bops(sites, policy) == summary["cost"]


def test_allocation_is_the_least_sum_of_the_csv_within_the_budget(finished):
    lines = (finished / "sensitivity.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    bits = {"int2": 2, "int4": 4, "int8": 8}
    assert [row["decision"] for row in rows] == ["Dense_0", "Dense_1", "Dense_2"]
    # Monotone in bits, as --monotone is the default.
    values = np.minimum.accumulate(
        [[float(row[name]) for name in bits] for row in rows], axis=1
    )
    macs = np.array([64 * 300, 300 * 100, 100 * 10])
    budget = summary_of(finished)["cost_target"]
    least = min(
        values[np.arange(3), options].sum()
        for options in np.ndindex(3, 3, 3)
        if (macs * np.array([list(bits.values())[o] ** 2 for o in options])).sum()
        <= budget
    )
    allocation = summary_of(finished)["allocation"]
    assert allocation["sensitivity"] == pytest.approx(least)
    assert allocation["least_sensitivity"] == pytest.approx(least)


def test_other_budgets_have_policies_that_are_worth_what_is_said(finished, capsys):
    summary = summary_of(finished)
    rows = summary["trade_off"]
    assert len(rows) >= 3  # of 6 budgets, some of which find the same
    costs = [row["cost"] for row in rows]
    assert costs == sorted(costs) and len(set(costs)) == len(costs)
    model = fq.create_model("lenet300")
    sites = fq.find_sites(model, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    assert {row["policy"] for row in rows} == {
        f"trade_off/{file.name}" for file in (finished / "trade_off").iterdir()
    }
    for row in rows:
        policy = fq.Policy.load(finished / row["policy"])
        assert fq.bops(sites, policy) == row["cost"]
        assert row["cost_ratio"] == row["cost"] / summary["cost_target"]
    text = (finished / "report.html").read_text()
    assert rows[0]["policy"] in text


@pytest.mark.slow
def test_no_other_budgets_where_none_are_wanted(finished, tmp_path):
    start = f"--init_from={finished}/float"
    launch(sensitivity, *SMALL, start, f"--workdir={tmp_path}", "--trade_off=0")
    assert summary_of(tmp_path)["trade_off"] == []
    assert not (tmp_path / "trade_off").exists()


@pytest.mark.slow
def test_a_budget_of_the_trade_off_is_found_again_as_a_target(finished, tmp_path):
    row = summary_of(finished)["trade_off"][1]
    target = row["cost"] / summary_of(finished)["cost_of_reference"] + 1e-9
    start, target = f"--init_from={finished}/float", f"--cost_target={target}"
    launch(sensitivity, *SMALL, start, target, f"--workdir={tmp_path}", "--trade_off=0")
    again = summary_of(tmp_path)
    assert again["cost"] == row["cost"]
    assert again["accuracy"] == pytest.approx(row["accuracy"])


def test_interrupted_run_measures_only_what_is_missing(
    finished, tmp_path, monkeypatch, capsys
):
    arguments = (*SMALL, f"--init_from={finished}/float", f"--workdir={tmp_path}")
    measure, measured = SensitivityMeter.row, []

    def interrupted(self, decision):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(decision)
        return measure(self, decision)

    monkeypatch.setattr(SensitivityMeter, "row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(sensitivity, *arguments)
    assert not (tmp_path / "summary.json").exists()
    measured.clear()
    launch(sensitivity, *arguments)
    assert measured == [2]
    assert "resumed with 2 of 3" in capsys.readouterr().out
    for name in ("sensitivity.csv", "policy.json"):
        assert (tmp_path / name).read_text() == (finished / name).read_text()
    assert summary_of(tmp_path)["steps"] == 0  # none of its own


@pytest.mark.slow
def test_fisher_and_greedy_end_within_the_budget(finished, tmp_path):
    launch(
        sensitivity,
        *SMALL,
        f"--init_from={finished}/float",
        f"--workdir={tmp_path}",
        "--measure=fisher",
        "--allocation=greedy",
        "--separate",
    )
    summary = summary_of(tmp_path)
    assert summary["cost_ratio"] <= 1.0 and summary["compile_count"] == 1
    allocation = summary["allocation"]
    assert allocation["sensitivity"] >= allocation["least_sensitivity"]


@pytest.mark.slow
def test_policy_can_be_trained(finished, tmp_path):
    launch(
        fliqs, *SMALL, f"--policy={finished}/policy.json", f"--workdir={tmp_path / 'a'}"
    )
    assert fq.Policy.load(tmp_path / "a" / "policy.json") == fq.Policy.load(
        finished / "policy.json"
    )


NNX = ("--model=nnx_factories:digits_classifier", "--model_options=width=24")


@pytest.mark.slow
def test_nnx_model_of_a_users_factory_from_training_to_evaluation(tmp_path, capsys):
    whole, other = tmp_path / "whole", tmp_path / "other"
    launch(sensitivity, *SMALL, *NNX, f"--workdir={whole}")
    assert summary_of(whole)["cost_ratio"] <= 1.0
    assert summary_of(whole)["accuracy"] > 0.6  # chance is 0.1
    assert set(fq.Policy.load(whole / "policy.json")) == {"first", "head"}
    start = f"--init_from={whole}/float"
    launch(sensitivity, *SMALL, *NNX, start, f"--workdir={other}")
    policies = [(run / "policy.json").read_text() for run in (whole, other)]
    assert policies[0] == policies[1]
    capsys.readouterr()
    factory = "--factory=nnx_factories:digits_classifier"
    launch(evaluate, f"--workdir={other}", factory)
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == pytest.approx(summary_of(other)["accuracy"])


def test_fisher_of_an_nnx_model_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="of linen models only, but Classifier is"):
        launch(sensitivity, *SMALL, *NNX, "--measure=fisher", f"--workdir={tmp_path}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--cost_target=0.001", "least reachable"),
        ("--batches=0", "batches must be at least 1"),
        ("--trade_off=-1", "trade_off must be at least 0"),
        ("--policy=int4", "leave out --policy"),
        ("--scales=absmax", "leave out --policy, --scales"),
        ("--init_from=nowhere", "no checkpoint at"),
        ("--init_from={quantized}", "was trained at .*give a float network"),
        ("--image_size=16", "does not fit the model"),
    ],
)
def test_a_mistake_is_refused_naming_the_cure(changed, message, finished, tmp_path):
    changed = changed.format(quantized=finished)
    arguments = [*SMALL, f"--init_from={finished}/float", changed]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(sensitivity, *arguments, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "sensitivity_rows.json").exists()


def test_another_measure_is_another_run(finished):
    with pytest.raises(ValueError, match='settings.measure: "loss" there, "kl" now'):
        launch(sensitivity, *SMALL, f"--workdir={finished}", "--measure=kl")
