"""The launcher of joint searches: refusals, resuming, another point, fine-tuning."""

import csv
import itertools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_supernets
from absl import flags as absl_flags
from absl.testing import flagsaver
from launcher_contract import LauncherContract
from launching import launch

import fliqs_jax as fq
from experiments import evaluate, program, simq_nas
from fliqs_jax.runs import supernet_training
from fliqs_jax.searchers.joint.subnetwork_evaluation import PopulationEvaluator

TINY = (
    "--dataset=digits",
    "--supernet=small_supernets:digits_supernet",
    "--formats=int3,int8",
    "--steps=60",
    "--batch_size=64",
    "--evaluations=20",
    "--population=10",
    "--reference_networks=2",
    "--validation_fraction=0.2",
    "--evaluate_every=0",
    "--seed_by_sensitivity=loss",
)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objectives=size"], "--objectives=size: give error, then one or more"),
        (["--objectives=error,error"], "give error, then one or more different"),
        (["--objectives=error,speed"], "of size, bops, activation_size, latency"),
        (["--device=h100"], "--device has no meaning for --objectives=error,size"),
        (["--latency_limit=1"], "--latency_limit=1 needs latency among"),
        (
            ["--objectives=error,latency", "--device=abacus"],
            "--device=abacus: use one of",
        ),
        (["--size_limit=1e-6"], "size_limit=1e-06 MB is out of reach: the smallest"),
        (["--point=0", "--size_limit=1"], "point=0 names the point itself"),
        (["--accuracy_reference=int5"], "--accuracy_reference=int5 is not evaluated"),
        (["--validation_fraction=0"], "--validation_fraction=0.0 leaves no images"),
        (["--supernet=resnet_cifra"], "'resnet_cifra' is unknown; nearest: 'resnet_c"),
        (["--supernet=small_supernets:nothing"], "name it package.module:factory"),
        (["--supernet=builtins:dict"], "made a dict, not a SuperNetwork"),
        (["--supernet_options=depth"], "'depth' is no name=value"),
        (["--supernet_options=depth=3"], "unexpected keyword argument 'depth'"),
        (["--supernet_options=depth=("], "'depth=\\(' is no name=value"),
        (["--supernet_from=nowhere"], "--supernet_from=nowhere holds no run"),
        (
            ["--supernet_from=there", "--init_from=here"],
            "--init_from is for a super-network that is trained here",
        ),
        (["--init_from=nowhere"], "no checkpoint at"),
        (["--finetune_steps=-1"], "--finetune_steps must not be negative, got -1"),
        (["--finetune_learning_rate=0"], "must be positive, got 0"),
        (["--subnetworks=0"], "subnetworks must be at least 1, got 0"),
        (["--clip_norm=-1"], "clip_norm must be positive, or 0 for none, got -1"),
        (["--searched_loss=-1"], "searched_loss must be 0 or more percentage points"),
        (["--population=1"], "population must be at least 2, got 1"),
        (["--seeded_fraction=2"], "seeded_fraction must be in \\[0, 1\\], got 2"),
        (["--calibration_batches=0"], "batches must be at least 1, got 0"),
        (["--pins=Dense_9=int8"], "Dense_9"),
    ],
)
def test_mistakes_are_refused_before_anything_is_compiled(tmp_path, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(simq_nas, f"--workdir={tmp_path}/run", *TINY, *flags)
    assert not (tmp_path / "run" / "supernet" / "checkpoints").exists()


def test_flags_without_effect_are_noted(capsys):
    with flagsaver.flagsaver():
        absl_flags.FLAGS.unparse_flags()
        given = ["--model=resnet20", "--cost=size", "--finetune_learning_rate=0.1"]
        given += ["--searcher=random", "--sensitivity_features", "--searched_loss=1"]
        absl_flags.FLAGS(["launcher", *given, "--supernet_from=there", "--steps=5"])
        program.say_idle(simq_nas.idle_flags())
    notes = capsys.readouterr().out.splitlines()
    for name in (
        "model", "cost", "finetune_learning_rate", "sensitivity_features",
        "searched_loss", "steps",
    ):  # fmt: skip
        assert any(note.startswith(f"note: --{name} has no effect") for note in notes)
    assert len(notes) == 6


def weights_file(folder, widths):
    """A float network's parameters, by shapes of the perceptron's three layers."""
    rng, arrays = np.random.default_rng(0), {}
    for number, (inputs, units) in enumerate(itertools.pairwise(widths)):
        kernel = rng.normal(size=(inputs, units)).astype(np.float32)
        arrays[f"Dense_{number}/kernel"] = kernel
        names = ("bias",) if units == 10 else ("scale", "bias")
        layer = "Dense_2" if units == 10 else f"BatchNorm_{number}"
        for name in names:
            arrays[f"{layer}/{name}"] = np.ones(units, np.float32)
    file = folder / f"{len(widths)}_{widths[1]}.safetensors"
    safetensors.numpy.save_file(arrays, str(file))
    return file, arrays


def test_training_starts_from_given_weights_that_fit(tmp_path, monkeypatch, capsys):
    class Started(Exception):
        pass

    def run_job(trainer, dataset, job, **_):
        raise Started(trainer.init(jax.random.key(0), dataset.train.images[:1]))

    monkeypatch.setattr(supernet_training, "run_job", run_job)
    file, arrays = weights_file(tmp_path, (64, 16, 12, 10))
    with pytest.raises(Started) as started:
        launch(simq_nas, f"--workdir={tmp_path}/a", *TINY, f"--init_from={file}")
    params = started.value.args[0].params
    for name in ("Dense_0", "Dense_2"):
        np.testing.assert_array_equal(params[name]["kernel"], arrays[f"{name}/kernel"])
    assert "no batch_stats in the checkpoint" in capsys.readouterr().out
    other, _ = weights_file(tmp_path, (64, 20, 12, 10))
    with pytest.raises(ValueError, match="the checkpoint does not fit the model"):
        launch(simq_nas, f"--workdir={tmp_path}/b", *TINY, f"--init_from={other}")


def test_super_network_of_a_run_with_other_held_out_images_is_refused(tmp_path):
    net = small_supernets.perceptron_supernet()
    config = {
        "decisions": {d.name: list(d.options) for d in net.decisions},
        "flags": {
            "dataset": "digits", "validation_fraction": 0.1, "image_size": None,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its validation images would be others"):
        launch(
            simq_nas, f"--workdir={tmp_path}/a", *TINY, f"--supernet_from={tmp_path}"
        )
    config["decisions"]["second"] = [6, 13]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another super-network .*'second'"):
        launch(
            simq_nas, f"--workdir={tmp_path}/a", *TINY, f"--supernet_from={tmp_path}"
        )


class Killed(BaseException):
    """Ends a run from within, as a signal would."""


@pytest.fixture
def evaluated(monkeypatch):
    """What is evaluated on which split; `limit` of calls before a kill."""
    record = {"seen": [], "calls": 0, "limit": None}
    accuracies = PopulationEvaluator.accuracies

    def counting(self, vectors, *, split=None):
        if record["calls"] == record["limit"]:
            raise Killed
        record["calls"] += 1
        where = "validation" if split is None else "test"
        record["seen"] += [(where, *row) for row in vectors.tolist()]
        return accuracies(self, vectors, split=split)

    monkeypatch.setattr(PopulationEvaluator, "accuracies", counting)
    return record


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def evaluated_again(folder, capsys):
    capsys.readouterr()
    launch(evaluate, f"--workdir={folder}")
    return json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(simq_nas, f"--workdir={workdir}", *TINY)
    return workdir


@pytest.mark.slow
class TestContract(LauncherContract):
    launcher, flags = simq_nas, TINY
    files = (*LauncherContract.files, "search.csv", "front.csv", "front.png")
    has_budget = False
    most_programs = 20  # the super-network, its calibration, and every network taken


@pytest.mark.slow
def test_killed_search_resumes_with_nothing_evaluated_twice(
    tmp_path, evaluated, capsys
):
    folder, other = tmp_path / "killed", tmp_path / "whole"
    search = (*TINY, "--searched_loss=60")
    run = (f"--workdir={folder}", *search)
    for limit in (1, 3, 5):  # in the search twice, then while judging
        evaluated["limit"] = limit
        with pytest.raises(Killed):
            launch(simq_nas, *run)
    assert not (folder / "summary.json").exists()
    evaluated["limit"] = None
    launch(simq_nas, *run)
    assert len(evaluated["seen"]) == len(set(evaluated["seen"]))
    found = summary_of(folder)
    # The same search in one go, from the same super-network.
    launch(simq_nas, f"--workdir={other}", f"--supernet_from={folder}", *search)
    for name in ("search.csv", "front.csv", "policy.json"):
        assert (folder / name).read_text() == (other / name).read_text()
    whole = summary_of(other)
    assert whole["hypervolume_curve"] == found["hypervolume_curve"]
    assert whole["steps"] == 0 and found["steps"] == 60

    volumes = [volume for _, volume in found["hypervolume_curve"]]
    assert volumes == sorted(volumes) and len(volumes) == found["evaluations"] == 20
    for name in ("accuracy", "cost", "cost_target", "cost_ratio", "seconds", "seed"):
        assert name in found
    assert found["compile_count"] >= 5 and set(found["versions"]) > {"jax"}
    point = found["front"][found["point"]]
    assert found["cost"] == pytest.approx(point["size_mb"] * 8e6)
    # Extracted, it is what was judged, here and when evaluated anew.
    assert abs(found["accuracy"] - point["test_accuracy"]) <= 1.5 / 359
    assert evaluated_again(folder, capsys) == pytest.approx(found["accuracy"])
    network = fq.load_network(folder)
    assert network.policy == fq.Policy.load(folder / "policy.json")
    assert set(found["full_network"]) == {"int3", "int8", "fp32"}
    assert set(found["subnetworks"]) == {"int3", "int8"}
    page = (folder / "report.html").read_text()
    assert "The point taken" in page and "Training of the super-network" in page
    assert (folder / "front.png").stat().st_size > 1000


@pytest.mark.slow
def test_finished_run_takes_other_points_searches_on_and_trains_on(
    tmp_path, evaluated, capsys
):
    folder = tmp_path / "run"
    run = (f"--workdir={folder}", *TINY, "--weight_modes")
    run += ("--objectives=error,bops,latency", "--device=h100", "--formats=int3,int8")
    with pytest.raises(ValueError, match="accuracy_loss_limit can be .* points"):
        launch(simq_nas, *run, "--accuracy_loss_limit=-80", "--latency_limit=1")
    refused = summary_of(folder)
    assert refused["point"] is None and (folder / "report.html").exists()
    evaluated["seen"].clear()
    launch(simq_nas, *run, "--accuracy_loss_limit=30")
    assert evaluated["seen"] == []  # all is in the logs
    first = summary_of(folder)
    loss = first["full_network"]["int8"]["validation_accuracy"]
    row = first["front"][first["point"]]
    assert 100 * (loss - row["validation_accuracy"]) <= 30
    with open(folder / "front.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[first["point"]]["latency_ms"]) == row["latency_ms"] > 0
    assert any(row["Dense_1/asymmetric"] == "1" for row in rows)

    capsys.readouterr()
    launch(simq_nas, *run, "--accuracy_loss_limit=30")
    assert "holds a finished run" in capsys.readouterr().out

    tuned = (*run, "--point=0", "--finetune_steps=20")
    launch(simq_nas, *tuned)
    found = summary_of(folder)
    assert evaluated["seen"] == [] and found["point"] == 0
    assert (
        found["accuracy_source"] == "test set, fine-tuned for 20 steps at its formats"
    )
    assert evaluated_again(folder, capsys) == pytest.approx(found["accuracy"])
    own = folder / found["chosen"].partition("_finetuned")[0]
    quantized = found["accuracy_quantized"]
    assert evaluated_again(own, capsys) == pytest.approx(quantized)

    launch(simq_nas, *run, "--evaluations=24", "--searched_loss=30")
    longer = summary_of(folder)
    assert longer["evaluations"] == 24
    assert len(evaluated["seen"]) == len(set(evaluated["seen"]))
    assert longer["hypervolume"] >= found["hypervolume"]
    with pytest.raises(ValueError, match="flags.population"):
        launch(simq_nas, *run, "--population=5")
    with pytest.raises(ValueError, match="initial_variables"):
        launch(simq_nas, *run, f"--init_from={folder}/supernet")
