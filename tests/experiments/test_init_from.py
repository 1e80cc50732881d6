"""Float training, then a fine-tuning search from its weights, as a user launches them."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import flags
from absl.testing import flagsaver

import fliqs_jax as fq
from experiments import evaluate, fliqs
from fliqs_jax.searchers import format_search
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


def launch(launcher, *arguments):
    """Runs a launcher in this process with these flags and no others."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", *arguments])
        launcher.run()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "float"
    launch(fliqs, *FLOAT, f"--workdir={workdir}")
    return workdir


@pytest.fixture(scope="module")
def tuned(trained, tmp_path_factory):
    """A finished search from a copy of the float run that tests may change."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(trained, folder / "float")
    launch(fliqs, *FINE_TUNING, *start(folder), f"--workdir={folder / 'tuned'}")
    return folder


def start(folder):
    return (f"--init_from={folder / 'float'}",)


class Started(Exception):
    """Carries the state of step 0."""


@pytest.fixture
def first_state(monkeypatch, tmp_path):
    """Returns a function that launches with flags up to step 0 and gives the state."""

    def run_job(searcher, dataset, job, **_):
        images = dataset.train.images[:1]
        raise Started(searcher.init(jax.random.key(job.seed), images))

    monkeypatch.setattr(format_search, "run_job", run_job)

    def launched(*arguments):
        with pytest.raises(Started) as caught:
            workdir = tmp_path / str(len(list(tmp_path.iterdir())))
            launch(fliqs, *FINE_TUNING, *arguments, f"--workdir={workdir}")
        return caught.value.args[0]

    return launched


def equal(a, b):
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), a, b)
    return all(jax.tree.leaves(same))


def test_float_run_is_plain_training_and_evaluate_reads_it(trained, capsys):
    assert set(fq.Policy.load(trained / "policy.json").values()) == {("fp32", "fp32")}
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["accuracy"] > 0.8  # 60 steps; chance is 0.1
    network, test = fq.load_network(trained), fq.load_dataset("digits").test
    model, images = fq.create_model("lenet300"), test.images[:32]
    plain = model.apply(network.variables, network.classifier.normalise(images))
    np.testing.assert_array_equal(network(images), plain)  # fp32 touches nothing
    launch(evaluate, f"--workdir={trained}")
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-9)


def test_step_0_has_the_weights_of_the_checkpoint_bit_for_bit(trained, first_state):
    network = restore_tree(trained / "network")
    for path in (trained, trained / "network", trained / "checkpoints"):
        assert equal(first_state(f"--init_from={path}").params, network["params"])
    assert not equal(first_state().params, network["params"])


def test_a_new_head_starts_as_it_would_without_the_checkpoint(first_state, tmp_path):
    params = first_state().params
    old = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, params)
    old["Dense_2"] = {"kernel": np.ones((100, 3), "f4"), "bias": np.ones(3, "f4")}
    flat = {f"{layer}/{name}": x for layer in old for name, x in old[layer].items()}
    safetensors.numpy.save_file(flat, tmp_path / "old.safetensors")
    file = f"--init_from={tmp_path / 'old.safetensors'}"
    with pytest.raises(
        ValueError, match="Dense_2/kernel: float32.100, 3. in the check"
    ):
        launch(fliqs, *FINE_TUNING, file, f"--workdir={tmp_path / 'refused'}")
    assert not (tmp_path / "refused").exists()
    begun = first_state(file, "--init_skip=Dense_2/.*").params
    assert equal(begun.pop("Dense_2"), params["Dense_2"])
    old.pop("Dense_2")
    assert equal(begun, old)


def test_fine_tuning_ends_near_the_float_network(trained, tuned):
    def accuracy(workdir):
        return json.loads((workdir / "summary.json").read_text())["accuracy"]

    # 20 steps from scratch at this rate read under 0.5.
    assert accuracy(tuned / "tuned") > accuracy(trained) - 0.05


def test_resumed_is_bit_identical_and_needs_the_checkpoint_no_more(tuned, tmp_path):
    workdir = tmp_path / "tuned"
    shutil.copytree(tuned / "tuned", workdir)
    (workdir / "summary.json").unlink()
    for step in (15, 20):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    moved = (tuned / "float").rename(tuned / "away")
    try:
        launch(fliqs, *FINE_TUNING, *start(tuned), f"--workdir={workdir}")
        shutil.rmtree(workdir / "checkpoints")
        with pytest.raises(FileNotFoundError, match="no checkpoint at .*/float"):
            launch(fliqs, *FINE_TUNING, *start(tuned), f"--workdir={workdir}")
    finally:
        moved.rename(tuned / "float")
    whole, resumed = (
        restore_tree(path / "network") for path in (tuned / "tuned", workdir)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_changed_checkpoint_or_skip_is_refused(tuned, trained, tmp_path):
    again = (*FINE_TUNING, *start(tuned), f"--workdir={tuned / 'tuned'}")
    launch(fliqs, *again)  # the same: reported as finished
    with pytest.raises(ValueError, match="initial_variables.skip: .. there"):
        launch(fliqs, *again, "--init_skip=Dense_2/.*")
    with pytest.raises(ValueError, match="initial_variables.crc32: .* there, .absent."):
        launch(fliqs, *FINE_TUNING, f"--workdir={tuned / 'tuned'}")
    shutil.rmtree(tuned / "float" / "network")
    shutil.copytree(tuned / "tuned" / "network", tuned / "float" / "network")
    try:
        with pytest.raises(
            ValueError, match="initial_variables.crc32: .* there, .* now"
        ):
            launch(fliqs, *again)
    finally:
        shutil.rmtree(tuned / "float")
        shutil.copytree(trained, tuned / "float")


def test_skip_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--init_skip needs --init_from"):
        launch(fliqs, *SMALL, "--init_skip=Dense_2/.*", f"--workdir={tmp_path / 'run'}")
