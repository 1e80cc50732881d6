"""Launchers on a user's own images: searched, resumed, evaluated, never mixed up."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from launching import launch
from PIL import Image
from sklearn.datasets import load_digits

from experiments import evaluate, fliqs, search_flags
from fliqs_jax.data import load_dataset, make_dataset

SMALL = (
    "--model=lenet300",
    "--formats=int2,int4,int8",
    "--cost_target=0.2",
    "--steps=40",
    "--batch_size=32",
    "--log_every=20",
    "--evaluate_every=0",
    "--learning_rate=0.05",
)


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    return np.round(raw.images * (255 / 16)).astype(np.uint8), raw.target


def check_run(workdir, data_dir, capsys):
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["cost_ratio"] <= 1.0 and summary["accuracy"] > 0.5  # chance is 0.1
    capsys.readouterr()
    launch(evaluate, f"--workdir={workdir}", f"--data_dir={data_dir}")
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == pytest.approx(summary["accuracy"])


def test_arrays_in_a_file(digits, tmp_path, capsys):
    images, labels = digits
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=images, y_train=labels)
    arguments = (*SMALL, "--dataset=mine.npz", f"--workdir={tmp_path / 'run'}")
    launch(fliqs, *arguments, f"--data_dir={tmp_path}")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dataset"] == "mine.npz" and config["data_fingerprint"]
    assert "mine.npz" in (tmp_path / "run" / "report.html").read_text()
    # The same images somewhere else are the same run; others are not.
    (tmp_path / "moved").mkdir()
    file.rename(tmp_path / "moved" / "mine.npz")
    launch(fliqs, *arguments, f"--data_dir={tmp_path / 'moved'}")
    assert "finished run" in capsys.readouterr().out
    check_run(tmp_path / "run", tmp_path / "moved", capsys)
    np.savez(file, x_train=images[1:], y_train=labels[1:])
    with pytest.raises(ValueError, match="data_fingerprint"):
        launch(fliqs, *arguments, f"--data_dir={tmp_path}")
    with pytest.raises(ValueError, match="other images named 'mine.npz'"):
        launch(evaluate, f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path}")


@pytest.mark.slow
def test_folder_of_image_files(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, (image, label) in enumerate(zip(*digits, strict=True)):
        if number < 900:
            split = "train" if number < 700 else "test"
            folder = tmp_path / "photos" / split / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    workdir = tmp_path / "run"
    launch(
        fliqs,
        *SMALL,
        "--dataset=photos",
        f"--data_dir={tmp_path}",
        f"--workdir={workdir}",
    )
    check_run(workdir, tmp_path, capsys)


@pytest.mark.parametrize(
    ("arguments", "crop_padding", "flip"),
    [
        ((), 0, False),
        (("--crop_padding=2",), 2, False),
        (("--flip", "--crop_padding=1"), 1, True),
    ],
)
def test_own_images_are_varied_as_the_flags_say_alone(
    arguments, crop_padding, flip, digits
):
    own = make_dataset(digits)
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", *arguments])
        varied = search_flags.augmentation(own).keywords
    assert varied == {"crop_padding": crop_padding, "flip": flip}


def test_flags_prevail_over_what_is_usual_for_a_data_set():
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", "--flip"])
        varied = search_flags.augmentation(load_dataset("digits")).keywords
    assert varied == {"crop_padding": 0, "flip": True}
