"""The export launcher as a user runs it: files, the accuracy they keep, mistakes."""

import json

import pytest
from launching import launch

from experiments import export, fliqs, learning_compression

SMALL = ("--dataset=digits", "--model=lenet300", "--batch_size=32", "--log_every=20")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "searched"
    flags = ("--formats=int2,int4,int8", "--cost_target=0.2", "--steps=40")
    launch(fliqs, *SMALL, *flags, "--evaluate_every=0", f"--workdir={workdir}")
    return workdir


def test_files_have_the_accuracy_of_the_run(finished, capsys):
    before = sorted(entry.name for entry in finished.iterdir())
    launch(export, f"--workdir={finished}")
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    accuracy = json.loads((finished / "summary.json").read_text())["accuracy"]
    assert said["accuracy"] == {"program": accuracy, "weights": accuracy}
    assert {e.name for e in (finished / "export").iterdir()} == {
        "export.json", "network.jax_export", "weights.safetensors",
    }  # fmt: skip
    assert sorted(e.name for e in finished.iterdir()) == sorted([*before, "export"])
    assert 4 * said["bytes"]["weights.safetensors"] < said["bytes_of_float32_params"]


def test_output_and_platforms_are_the_users(finished, tmp_path, capsys):
    folder = tmp_path / "elsewhere"
    flags = (f"--output={folder}", "--platforms=tpu", "--fixed_batch=8")
    launch(export, f"--workdir={finished}", *flags)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(said["accuracy"]) == {"weights"}  # a TPU's program does not run here
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["platforms"] == ["tpu"] and manifest["batch_size"] == 8


@pytest.mark.slow
def test_codebooks_are_handed_on_as_they_are(tmp_path, capsys):
    workdir = tmp_path / "compressed"
    flags = ("--steps=20", "--reference_steps=10", "--lc_steps=2", "--codebook_size=2")
    launch(learning_compression, *SMALL, *flags, f"--workdir={workdir}")
    capsys.readouterr()
    launch(export, f"--workdir={workdir}")
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    accuracy = json.loads((workdir / "summary.json").read_text())["accuracy"]
    assert said["accuracy"] == {"program": accuracy}
    assert set(said["bytes"]) == {"codebooks.fqcb", "network.jax_export"}


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--platforms=vax", "'vax' is none of cpu"),
        ("--fixed_batch=0", "--fixed_batch must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(finished, flag, complaint):
    with pytest.raises(ValueError, match=complaint):
        launch(export, f"--workdir={finished}", flag)


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        launch(export, f"--workdir={tmp_path}")
