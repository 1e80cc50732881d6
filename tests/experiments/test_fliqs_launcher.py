"""The launcher as a user runs it: outputs, resume, and messages for mistakes."""

import json

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from killing import assert_same_end, kill_and_resume
from launcher_contract import LauncherContract
from launching import SMALL, launch

import fliqs_jax as fq
from experiments import cost_flags, fliqs, one_shot_flags
from fliqs_jax import costs
from fliqs_jax.searchers.in_training.settings import FliqsSettings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(fliqs, f"--workdir={workdir}", *SMALL)
    return workdir


class TestContract(LauncherContract):
    launcher, flags = fliqs, SMALL
    files = (*LauncherContract.files, "checkpoints", "network")


def test_search_learns_and_tells_its_entropy(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["compile_count"] == 1 and summary["entropy"] >= 0
    assert summary["accuracy"] > 0.7  # 60 steps; chance is 0.1


def test_summary_cost_is_that_of_the_policy_on_disk(finished):
    policy = fq.Policy.load(finished / "policy.json")
    model = fq.create_model("lenet300")
    sites = fq.find_sites(model, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    summary = json.loads((finished / "summary.json").read_text())
    assert fq.bops(sites, policy) == summary["cost"]
    reference = fq.bops(sites, fq.Policy.uniform(sites, "int8"))
    assert summary["cost_target"] == pytest.approx(0.3 * reference)


def test_summary_size_counts_weights_and_a_float32_scale_a_channel(finished):
    policy = fq.Policy.load(finished / "policy.json")
    layers = zip(policy.values(), [(64, 300), (300, 100), (100, 10)], strict=True)
    expected = sum(
        outputs * (inputs * int(weights.removeprefix("int")) + 32)
        for (weights, _), (inputs, outputs) in layers
    )
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["size_bits"] == expected


def test_network_loads_in_one_line_and_classifies(finished):
    network = fq.load_network(finished)
    test = fq.load_dataset("digits").test
    hits = np.asarray(network(test.images)).argmax(1) == test.labels
    summary = json.loads((finished / "summary.json").read_text())
    assert hits.mean() == pytest.approx(summary["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_attention_products_are_searched_saved_and_loaded(tmp_path):
    workdir = tmp_path / "vit"
    changed = (
        *("--model=vit_mini", "--model_options=patch_size=2,dim=12,num_layers=1"),
        *("--optimizer=adamw", "--learning_rate=0.003", "--attention_products"),
        *("--steps=32", "--policy_samples=2"),
    )
    launch(fliqs, *SMALL, *changed, f"--workdir={workdir}")
    policy = fq.Policy.load(workdir / "policy.json")
    products = [path for path in policy if path.endswith(("/scores", "/values"))]
    assert len(products) == 2 and len(policy) == 2 + 8
    # Probabilities are never negative, so their integers have no sign.
    assert all(policy[p][1][0] == "u" for p in products if p.endswith("values"))
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["cost_ratio"] <= 1.0 and summary["compile_count"] == 1
    config = json.loads((workdir / "config.json").read_text())
    assert config["network"]["attention_products"]
    network, test = fq.load_network(workdir), fq.load_dataset("digits").test
    hits = np.asarray(network(test.images)).argmax(1) == test.labels
    assert hits.mean() == pytest.approx(summary["accuracy"], abs=1e-6)
    report = (workdir / "report.html").read_text()
    assert "attention_product" in report


@pytest.mark.slow
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


@pytest.mark.parametrize("given", ["--final_fraction=0", "--form=published"])
def test_restart_without_steps_to_restart_is_said(given):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["fliqs", "--restart_schedule", given])
        settings = one_shot_flags.search_settings(FliqsSettings())
        idle = one_shot_flags.idle_flags(settings, given=None)
    assert idle["restart_schedule"] == "no steps are left at what is found"


@pytest.mark.slow
def test_killed_run_ends_bit_identical_to_an_uninterrupted_one(finished, tmp_path):
    output = kill_and_resume(fliqs, tmp_path / "killed", *SMALL)
    assert "resumed at step" in output
    assert_same_end(finished, tmp_path / "killed")


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
        ("--device=h100", "--device has no meaning for --cost=bops: drop it, or add"),
        ("--latency_table=t.csv", "--latency_table has no meaning for --cost=bops"),
        ("--latency_batch_size=2", "--latency_batch_size has no meaning"),
    ],
)
def test_a_mistake_is_refused_before_training(changed, message, tmp_path):
    arguments = [*SMALL, f"--workdir={tmp_path / 'run'}", changed]
    if changed == "--form=published":
        arguments.append("--policy_samples=4")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(fliqs, *arguments)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--device=abacus",), "--device=abacus: use one of tpu_v4"),
        (("--device=h100", "--latency_table=t.csv"), "exclude each other"),
        (("--latency_table=nowhere.csv",), "nowhere.csv"),
    ],
)
def test_latency_of_nothing_known_is_refused(given, message, tmp_path):
    arguments = [*SMALL, f"--workdir={tmp_path / 'run'}", "--cost=latency", *given]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(fliqs, *arguments)


SITE = fq.Site(
    path="Dense_0",
    op="dense",
    weight_shape=(100, 10),
    macs=1000,
    weight_count=1000,
    input_size=100,
    output_size=10,
)


def price(*arguments, per_channel=True):
    """Returns the price of the site, int4 weights and int8 inputs, under the flags."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", *arguments])
        cost = cost_flags.site_cost(per_channel=per_channel)
    return costs.site_price(cost, SITE, "int4", "int8")


def save_table(path, sites, seconds, batch_size=4):
    """Writes a table in which every site takes as long, by format."""
    rows = [
        costs.Measurement(
            contraction=costs.Contraction.of(site),
            batch_size=batch_size,
            weights=name,
            activations=name,
            latency_s=latency_s,
        )
        for site in sites
        for name, latency_s in seconds.items()
    ]
    costs.LatencyTable("chip", tuple(rows)).save(path)


def test_cost_flags_by_hand():
    assert price() == price("--cost=bops") == 1000 * 4 * 8
    assert price("--cost=size") == 1000 * 4 + 10 * 32
    assert price("--cost=size", per_channel=False) == 1000 * 4 + 32
    # 500 bytes of weights and 110 an example of activations at 51.2e9 a second, against
    # 2 operations a MAC at 192e9: the latter from two examples on.
    assert price("--cost=latency") == pytest.approx(610 / 51.2e9)
    batch = "--latency_batch_size=16"
    assert price("--cost=latency", batch) == pytest.approx(16 * 2000 / 192e9)
    assert price("--cost=latency", "--device=h100") == pytest.approx(610 / 3.35e12)


def test_latency_table_flag_reads_the_file(tmp_path):
    table = tmp_path / "chip.csv"
    save_table(table, [SITE], {"int8": 0.25, "fp32": 0.5})
    flag = f"--latency_table={table}"
    assert price("--cost=latency", flag) == 0.25
    assert price("--cost=latency", flag, "--latency_batch_size=4") == 0.25
    with pytest.raises(ValueError, match="batch_size must be one of .*, 4, got 1"):
        price("--cost=latency", flag, "--latency_batch_size=1")


@pytest.mark.slow
def test_search_by_a_measured_table(tmp_path):
    model = fq.create_model("lenet300")
    sites = fq.find_sites(model, jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    table = tmp_path / "chip.csv"
    save_table(table, sites, {"int8": 1.0, "bf16": 3.0})
    arguments = [*SMALL, "--steps=20", "--evaluate_every=0", "--formats=int4,bf16"]
    arguments += ["--cost=latency", f"--latency_table={table}", "--cost_target=1.7"]
    arguments.append(f"--workdir={tmp_path / 'run'}")
    launch(fliqs, *arguments)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["cost_of_reference"] == 3.0  # int8 three times
    assert summary["cost"] in (3.0, 5.0)  # at most one of three layers in bf16
    policy = fq.Policy.load(tmp_path / "run" / "policy.json")
    names = [pair[0] for pair in policy.values()]
    assert summary["cost"] == 3.0 + 2.0 * names.count("bf16")
    # Another content under the same name is another run.
    save_table(table, sites, {"int8": 1.0, "bf16": 3.1})
    with pytest.raises(ValueError, match="latency_table_sha256"):
        launch(fliqs, *arguments)


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


OTHER_FORMS = [form for form in fliqs.FORMS if form != "default"]


@pytest.mark.slow
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_every_other_form_searches_to_its_end(form, tmp_path):
    short = ("--steps=20", "--evaluate_every=0", f"--form={form}")
    launch(fliqs, *SMALL, *short, "--policy_every=1", f"--workdir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["entropy"] < np.log(3)  # below uniform: the controller learned
