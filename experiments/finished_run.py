"""A finished run as `evaluate` and `export` take it: its network, and its data."""

import pathlib
from typing import Any

from absl import flags

import fliqs_jax as fq
from experiments import common, subnetwork_flags
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
        model = common.user_model(
            FLAGS.factory, num_classes=made["num_classes"], **made.get("options", {})
        )
    return fq.load_network(FLAGS.workdir, model)


def dataset() -> Dataset:
    """Returns the run's data, split as it was."""
    config = _config()
    found = fq.load_dataset(
        config["dataset"],
        data_dir=FLAGS.data_dir or config["session"]["data_dir"],
        image_size=config["flags"]["image_size"],
        validation_fraction=config["flags"]["validation_fraction"],
    )
    check_same_images(config, found, owner=f"--workdir={FLAGS.workdir}")
    return found


def _made() -> dict[str, Any]:
    """Returns how the run made its network; nothing where it did not get so far."""
    file = pathlib.Path(FLAGS.workdir) / "config.json"
    return (file.exists() and _config().get("network")) or {}


def _config() -> dict[str, Any]:
    return read_json(pathlib.Path(FLAGS.workdir) / "config.json")
