"""A finished run as `evaluate` and `export` take it: its network, and its data."""

import pathlib
from typing import Any

from absl import flags

import fliqs_jax as fq
from experiments import common, parsing, subnetwork_flags
from fliqs_jax.data import Dataset
from fliqs_jax.runs.network import Network
from fliqs_jax.runs.run_folder import check_same_images
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines what a launcher takes that reads a workdir and trains nothing."""
    common.define_workdir_flags()
    common.define(
        "string",
        "factory",
        None,
        "package.module:factory of a network that is not one of ours.",
    )


def network() -> Network:
    """Returns the run's network, its model made by --factory where one is given."""
    model, made = None, _made()
    subnetwork_flags.know_supernet(made.get("supernet") or "")
    if FLAGS.factory is not None:
        model = parsing.user_model(
            FLAGS.factory, num_classes=made["num_classes"], **made.get("options", {})
        )
    return fq.load_network(FLAGS.workdir, model)


def dataset(*, split: str = "test") -> Dataset:
    """Returns the run's data, split as it was.

    Args:
      split: that is looked at. How much a run made from Python held out of its training
        images is not recorded, nor where those of its own are; the rest is.
    """
    config, owner = _config(), f"--workdir={FLAGS.workdir}"
    # A part of a launcher's run, such as WORKDIR/float, has no flags of its own.
    given = config.get("flags") or config.get("images") or {}
    if not given and split != "test":
        raise ValueError(
            f"{owner} was made from Python, so how its images were split is not"
            f" recorded: use --split=test, got {split}"
        )
    shape = _made().get("image_shape")  # flags tell the size where there is none
    if shape and shape[0] == shape[1]:
        given = {"image_size": shape[0], **given}
    names = ("image_size", "validation_fraction")
    try:
        found = fq.load_dataset(
            config["dataset"],
            data_dir=FLAGS.data_dir or (config.get("session") or {}).get("data_dir"),
            **{name: given[name] for name in names if name in given},
        )
    except (ValueError, FileNotFoundError) as error:
        if "flags" in config or "images" in config:
            raise
        raise ValueError(
            f"{owner} was made from Python, on images named {config['dataset']!r},"
            f" which cannot be loaded by that name ({error}); from Python"
            " fq.load_network has its network, and"
            " fliqs_jax.runs.export.export_network packs it"
        ) from error
    check_same_images(config, found, owner=owner)
    return found


def _made() -> dict[str, Any]:
    """Returns how the run made its network; nothing where it did not get so far."""
    file = pathlib.Path(FLAGS.workdir) / "config.json"
    return (file.exists() and _config().get("network")) or {}


def _config() -> dict[str, Any]:
    return read_json(pathlib.Path(FLAGS.workdir) / "config.json")
