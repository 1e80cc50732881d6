"""The launcher as a user runs it: joint search, its parts alone, outputs, mistakes."""

import json

import jax
import numpy as np
import pytest
from killing import assert_same_end, kill_and_resume
from launcher_contract import LauncherContract
from launching import launch
from small_supernets import perceptron, perceptron_supernet

import fliqs_jax as fq
from experiments import fliqnas
from experiments.subnetwork_flags import parse_settings
from fliqs_jax.models.supernets import (
    choice_of,
    describe_choice,
    register_supernet,
    subnetwork_sites,
)

SMALL = (
    "--dataset=digits",
    "--formats=int2,int4,int8",
    "--cost_target=0.2",
    "--steps=40",
    "--batch_size=32",
    "--policy_every=2",
    "--policy_samples=2",
    "--calibrate_every=20",
    "--log_every=10",
    "--evaluate_every=20",
    "--checkpoint_every=20",
    "--learning_rate=0.05",
)
TWICE = "--cost_target=0.4"
OWN = "--supernet=small_supernets:perceptron"
NAMED = "--supernet=perceptron"
DECISIONS = {"first": (4, 8, 16), "second": (6, 12)}


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_supernet("perceptron", perceptron)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(fliqnas, f"--workdir={workdir}", *SMALL, NAMED)
    return workdir


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def small_sites(workdir):
    net = perceptron_supernet()
    return subnetwork_sites(net, choice_of(net, summary_of(workdir)["architecture"]))


class TestContract(LauncherContract):
    launcher, flags = fliqnas, (*SMALL, NAMED)
    files = (*LauncherContract.files, "architecture.json", "checkpoints", "network")


def test_architecture_is_one_of_the_space(finished):
    summary = summary_of(finished)
    assert summary["compile_count"] == 1 and summary["entropy"] >= 0
    assert summary["accuracy"] > 0.3  # 40 steps; chance is 0.1
    assert summary["selection_gap"] < 1e-5
    assert summary["architecture"].keys() == DECISIONS.keys()
    assert all(summary["architecture"][name] in DECISIONS[name] for name in DECISIONS)


def test_cost_is_that_of_the_small_network_in_the_policy_on_disk(finished):
    summary, sites = summary_of(finished), small_sites(finished)
    policy = fq.Policy.load(finished / "policy.json")
    assert fq.bops(sites, policy) == summary["cost"]
    assert sum(site.macs for site in sites) == summary["macs"]
    whole = perceptron_supernet().sites
    reference = fq.bops(whole, fq.Policy.uniform(whole, "int8"))
    assert summary["cost_target"] == pytest.approx(0.2 * reference)


def test_network_found_loads_as_an_ordinary_small_one(finished):
    network, test = fq.load_network(finished), fq.load_dataset("digits").test
    widths = tuple(summary_of(finished)["architecture"].values())
    assert network.classifier.quantized.model.hidden == widths
    logits = jax.jit(network.predict)(network.variables, test.images)
    hits = np.asarray(logits).argmax(1) == test.labels
    accuracy = summary_of(finished)["accuracy"]
    assert hits.mean() == pytest.approx(accuracy, abs=1e-6)


def test_report_shows_architecture_and_formats(finished):
    text = (finished / "report.html").read_text()
    for part in ("Chosen architecture", 'id="sizes-', 'id="parts-', 'id="bits-'):
        assert part in text
    assert "int8 in the full network" in text
    assert "python -m experiments.fliqnas --workdir=DIR" in text


@pytest.mark.slow
def test_architecture_first_then_its_formats(tmp_path):
    first, second = tmp_path / "architecture", tmp_path / "formats"
    launch(
        fliqnas,
        *SMALL,
        NAMED,
        f"--workdir={first}",
        "--policy=int8",
        "--cost_target=0.4",
    )
    policy = fq.Policy.load(first / "policy.json")
    assert {weights for weights, _ in policy.values()} == {"int8"}
    found = summary_of(first)
    assert found["cost_ratio"] <= 1.0 and found["entropy"] < np.log(3)
    report = (first / "report.html").read_text()
    assert 'id="sizes-' in report and 'id="bits-' not in report
    launch(fliqnas, *SMALL, NAMED, f"--workdir={second}", f"--architecture={first}")
    then = summary_of(second)
    assert then["architecture"] == found["architecture"]
    assert then["cost_ratio"] <= 1.0
    assert then["cost_target"] == pytest.approx(found["cost_target"] / 2)
    report = (second / "report.html").read_text()
    assert 'id="sizes-' not in report and 'id="bits-' in report


@pytest.mark.slow
def test_what_was_found_can_be_trained_from_scratch(finished, tmp_path, capsys):
    workdir = tmp_path / "again"
    given = (f"--architecture={finished}", f"--policy={finished}/policy.json")
    launch(fliqnas, *SMALL, NAMED, *given, f"--workdir={workdir}")
    notes = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert notes == [
        f"note: --{name} has no effect: --architecture with --policy leaves nothing to"
        " search"
        for name in ("policy_every", "policy_samples")
    ]
    again, before = summary_of(workdir), summary_of(finished)
    assert again["architecture"] == before["architecture"]
    assert again["cost"] == before["cost"] and again["entropy"] is None
    found, trained = (
        fq.Policy.load(folder / "policy.json") for folder in (finished, workdir)
    )
    assert found == trained
    assert "There was no search" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_killed_run_ends_bit_identical_to_an_uninterrupted_one(finished, tmp_path):
    output = kill_and_resume(fliqnas, tmp_path / "killed", *SMALL, OWN)
    assert "resumed at step" in output
    assert_same_end(finished, tmp_path / "killed")


SMALL_FAMILIES = {
    "resnet_cifar": "depths=((1,), (1,), (1, 2)); widths=((4,), (4, 8), (8,))",
    "vit_cifar": "num_layers=2; dim=12; head_dim=4; mlp_dims=(8, 16); patch_size=2",
}


@pytest.mark.slow
@pytest.mark.parametrize("supernet", SMALL_FAMILIES)
def test_layers_may_be_left_out(supernet, tmp_path):
    options = SMALL_FAMILIES[supernet]
    workdir = tmp_path / "run"
    changed = (f"--supernet={supernet}", f"--supernet_options={options}")
    short = ("--steps=24", "--evaluate_every=0")
    launch(fliqnas, *SMALL, *changed, *short, f"--workdir={workdir}")
    summary, network = summary_of(workdir), fq.load_network(workdir)
    test = fq.load_dataset("digits").test
    hits = np.asarray(network(test.images)).argmax(1) == test.labels
    assert hits.mean() == pytest.approx(summary["accuracy"], abs=1e-6)
    assert summary["cost_ratio"] <= 1.0 and summary["compile_count"] == 1


@pytest.mark.parametrize(
    "changed, message",
    [
        ("--cost_target=0.001", "least reachable cost is"),
        ("--cost_target=1.5", "does nothing: the greatest"),
        ("--cost_target=-1", "cost_target must be positive"),
        ("--supernet=mobilenet_v3_cifar", "nearest: 'mobilenet_v2_cifar'"),
        ("--supernet_options=colour=3", "colour"),
        ("--supernet_options=kernels=three", "is no name=value"),
        ("--supernet_options=3", "there is no ="),
        ("--architecture=medium", "use full, smallest, random:SEED"),
        ("--policy=random:0", "is for experiments.fliqs"),
        ("--policy=nowhere.json", "nowhere.json"),
        ("--formats=int4,int99", "int99"),
        ("--batch_size=33", "8 devices"),
        ("--supernet=small_supernets:Perceptron", "unexpected keyword argument"),
    ],
)
def test_a_mistake_is_refused_before_training(changed, message, tmp_path):
    arguments = [*SMALL, NAMED, f"--workdir={tmp_path / 'run'}", changed]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(fliqnas, *arguments)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_policy_of_a_sub_network_needs_its_architecture(tmp_path):
    file = tmp_path / "policy.json"
    fq.Policy({"Dense_0": ("int8", "int8")}).save(file)
    arguments = [*SMALL, NAMED, f"--workdir={tmp_path / 'run'}", f"--policy={file}"]
    with pytest.raises(ValueError, match="no entry for 'Dense_1'.* add --architecture"):
        launch(fliqnas, *arguments)


def test_architecture_of_another_super_network_is_refused(tmp_path):
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps({"architecture": {"layers": 2}}))
    arguments = [*SMALL, NAMED, f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="'layers' is no decision"):
        launch(fliqnas, *arguments, f"--architecture={file}")
    file.write_text(json.dumps({"architecture": {"first": 5, "second": 6}}))
    with pytest.raises(ValueError, match="its options are 4, 8, 16"):
        launch(fliqnas, *arguments, f"--architecture={file}")
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no architecture"):
        launch(fliqnas, *arguments, f"--architecture={file}")


def test_choices_have_names():
    net = perceptron_supernet()
    taken = {"first": 8, "second": 12}
    assert choice_of(net, taken).tolist() == [1, 1]
    assert describe_choice(net, np.array([1, 1])) == taken
    with pytest.raises(ValueError, match="no option is given for 'second'"):
        choice_of(net, {"first": 8})


def test_settings_are_python_values():
    text = "stem=8; kernels=(3, 5); stages=((8, 1, 1),);"
    expected = {"stem": 8, "kernels": (3, 5), "stages": ((8, 1, 1),)}
    assert parse_settings(text) == expected and parse_settings("") == {}
