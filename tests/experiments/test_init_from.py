"""Float training, then a fine-tuning search from its weights, as a user runs them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from launching import launch

import fliqs_jax as fq
from experiments import evaluate, fliqs
from fliqs_jax.runs import search_run
from fliqs_jax.train.checkpoints import restore_tree

SMALL = (
    "--dataset=digits",
    "--model=lenet300",
    "--formats=int2,int4,int8",
    "--cost_target=0.3",
    "--batch_size=32",
    "--policy_every=2",
    "--calibrate_every=20",
    "--log_every=10",
    "--evaluate_every=0",
)
FLOAT = (*SMALL, "--steps=60", "--learning_rate=0.05", "--policy=fp32")
FINE_TUNING = (*SMALL, "--steps=20", "--learning_rate=0.01", "--checkpoint_every=5")


class Started(Exception):
    """Carries the state of step 0."""


@pytest.fixture
def first_state(monkeypatch, tmp_path):
    """Returns a function that launches with flags up to step 0 and gives the state."""

    def run_job(searcher, dataset, job, *, workdir, **_):
        images = dataset.train.images[:1]
        pathlib.Path(workdir, "metrics.jsonl").touch()
        raise Started(searcher.init(jax.random.key(job.seed), images))

    monkeypatch.setattr(search_run, "run_job", run_job)

    def launched(*arguments, workdir):
        with pytest.raises(Started) as caught:
            launch(fliqs, *FINE_TUNING, *arguments, f"--workdir={tmp_path / workdir}")
        return caught.value.args[0]

    return launched


def weights(*, classes=10, seed=0):
    """Parameters of LeNet-300-100 on digits, drawn anew."""
    rng = np.random.default_rng(seed)
    sizes = (64, 300, 100, classes)
    shapes = zip(sizes[:-1], sizes[1:], strict=True)
    return {
        f"Dense_{i}": {
            "kernel": rng.normal(size=shape).astype(np.float32),
            "bias": rng.normal(size=shape[1]).astype(np.float32),
        }
        for i, shape in enumerate(shapes)
    }


def save(params, file):
    flat = {
        f"{layer}/{name}": x for layer in params for name, x in params[layer].items()
    }
    safetensors.numpy.save_file(flat, file)
    return f"--init_from={file}"


def equal(a, b):
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), a, b)
    return all(jax.tree.leaves(same))


def test_step_0_has_the_weights_of_the_checkpoint_bit_for_bit(first_state, tmp_path):
    file = save(weights(), tmp_path / "a.safetensors")
    assert equal(first_state(file, workdir="run").params, weights())
    assert not equal(first_state(workdir="fresh").params, weights())


def test_a_changed_checkpoint_is_refused_on_resume(first_state, tmp_path):
    file = save(weights(), tmp_path / "a.safetensors")
    first_state(file, workdir="run")
    first_state(file, workdir="run")  # the same: goes on
    again = (*FINE_TUNING, f"--workdir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match="initial_variables.skip: .. there"):
        launch(fliqs, *again, file, "--init_skip=Dense_2/.*")
    with pytest.raises(ValueError, match="initial_variables.crc32: .* there, .absent."):
        launch(fliqs, *again)
    save(weights(seed=1), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="initial_variables.crc32: .* there, .* now"):
        launch(fliqs, *again, file)
    (tmp_path / "a.safetensors").unlink()  # and the run has no checkpoint of its own
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*a.safetensors"):
        launch(fliqs, *again, file)


def test_a_new_head_starts_as_it_would_without_the_checkpoint(first_state, tmp_path):
    old = weights(classes=3)
    file = save(old, tmp_path / "old.safetensors")
    with pytest.raises(
        ValueError, match="Dense_2/kernel: float32.100, 3. in the check"
    ):
        launch(fliqs, *FINE_TUNING, file, f"--workdir={tmp_path / 'refused'}")
    assert not (tmp_path / "refused").exists()
    begun = first_state(file, "--init_skip=Dense_2/.*", workdir="run").params
    fresh = first_state(workdir="fresh").params
    assert equal(begun.pop("Dense_2"), fresh["Dense_2"])
    old.pop("Dense_2")
    assert equal(begun, old)


def test_skip_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--init_skip needs --init_from"):
        launch(fliqs, *SMALL, "--init_skip=Dense_2/.*", f"--workdir={tmp_path / 'run'}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a float run and a search that started from its weights."""
    folder = tmp_path_factory.mktemp("runs")
    launch(fliqs, *FLOAT, f"--workdir={folder / 'float'}")
    search = (*FINE_TUNING, f"--init_from={folder / 'float'}")
    launch(fliqs, *search, f"--workdir={folder / 'tuned'}")
    return folder


def accuracy(workdir):
    return json.loads((workdir / "summary.json").read_text())["accuracy"]


@pytest.mark.slow
def test_float_run_is_plain_training_and_evaluate_reads_it(runs, capsys):
    policy = fq.Policy.load(runs / "float" / "policy.json")
    assert set(policy.values()) == {("fp32", "fp32")}
    assert accuracy(runs / "float") > 0.8  # 60 steps; chance is 0.1
    network, test = fq.load_network(runs / "float"), fq.load_dataset("digits").test
    model, images = fq.create_model("lenet300"), test.images[:32]
    plain = model.apply(network.variables, network.classifier.normalise(images))
    np.testing.assert_array_equal(network(images), plain)  # fp32 touches nothing
    launch(evaluate, f"--workdir={runs / 'float'}")
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == pytest.approx(accuracy(runs / "float"), abs=1e-9)


@pytest.mark.slow
def test_fine_tuning_ends_near_the_float_network(runs, tmp_path):
    launch(fliqs, *FINE_TUNING, f"--workdir={tmp_path / 'scratch'}")
    assert accuracy(runs / "tuned") > accuracy(runs / "float") - 0.05
    assert accuracy(runs / "tuned") > accuracy(tmp_path / "scratch") + 0.05


@pytest.mark.slow
def test_resumed_is_bit_identical_and_needs_the_checkpoint_no_more(runs, tmp_path):
    workdir = tmp_path / "tuned"
    shutil.copytree(runs / "tuned", workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "network")
    for step in (15, 20):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    search = (*FINE_TUNING, f"--init_from={runs / 'float'}")
    moved = (runs / "float").rename(runs / "away")
    try:
        launch(fliqs, *search, f"--workdir={workdir}")
    finally:
        moved.rename(runs / "float")
    whole, resumed = (
        restore_tree(path / "network") for path in (runs / "tuned", workdir)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.slow
def test_a_run_is_known_by_the_weights_it_starts_from_not_by_their_path(
    runs, tmp_path, capsys
):
    copied = shutil.copytree(runs / "float", tmp_path / "copied")
    workdir = f"--workdir={runs / 'tuned'}"
    launch(fliqs, *FINE_TUNING, f"--init_from={copied}", workdir)
    assert "holds a finished run" in capsys.readouterr().out
    with pytest.raises(ValueError, match="initial_variables"):
        launch(fliqs, *FINE_TUNING, f"--init_from={runs / 'tuned'}", workdir)
