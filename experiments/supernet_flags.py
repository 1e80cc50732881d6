"""Flags of a super-network that is trained first, or comes from elsewhere.

Which one it is, `subnetwork_flags` says.
"""

import pathlib
from typing import Any

from absl import flags

from experiments import common, parsing, program, search_flags, subnetwork_flags
from fliqs_jax.data import Dataset
from fliqs_jax.models.supernets import SuperNetwork
from fliqs_jax.runs.run_folder import check_same_images
from fliqs_jax.runs.supernet_training import (
    SupernetSettings,
    load_supernet,
    train_supernet,
)
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS

# What --supernet_from leaves without effect.
TRAINING = (
    "steps", "subnetworks", "sandwich", "temperature", "clip_norm", "learning_rate",
    "label_smoothing", "mapping", "steps_per_call", "log_every", "evaluate_every",
    "checkpoint_every", "profile", "crop_padding", "flip",
)  # fmt: skip


def define_supernet_flags() -> None:
    """Defines the flags of the functions below."""
    subnetwork_flags.define_supernet_flags()
    common.define(
        "string",
        "supernet_from",
        None,
        "Take the trained super-network of another run: its workdir.",
    )
    common.define(
        "integer", "subnetworks", 1, "Random sub-networks trained in every step."
    )
    common.define("bool", "sandwich", False, "Train the smallest one, too.")
    common.define(
        "float", "temperature", 5.0, "Of the full network's lesson to sub-networks."
    )
    common.define(
        "float", "clip_norm", 5.0, "Of the super-network's gradient; 0 is no clipping."
    )


def supernet_settings() -> SupernetSettings:
    """Returns how sub-networks are trained."""
    return parsing.settings_of(SupernetSettings)


def network_config() -> dict[str, Any]:
    """Returns how the super-network is made, for a `config.json`."""
    return {"supernet": FLAGS.supernet, "options": subnetwork_flags.supernet_options()}


def given_supernet(net: SuperNetwork, dataset: Dataset) -> TrainedState | None:
    """Returns the super-network of --supernet_from, None if it is to be trained."""
    if FLAGS.supernet_from is None:
        return None
    for name in ("init_from", "init_skip"):
        if FLAGS[name].value:
            raise ValueError(
                f"--{name} is for a super-network that is trained here: leave it out,"
                " or --supernet_from"
            )
    folder = pathlib.Path(FLAGS.supernet_from)
    if (folder / "supernet" / "config.json").exists():
        folder = folder / "supernet"
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"--supernet_from={FLAGS.supernet_from} holds no run: give the workdir of"
            " one that trained a super-network"
        )
    config = read_json(folder / "config.json")
    theirs = config.get("decisions")
    ours = {d.name: list(d.options) for d in net.decisions}
    if theirs != ours:
        differing = [n for n in ours if not isinstance(theirs, dict)
                     or theirs.get(n) != ours[n]] or sorted(theirs)  # fmt: skip
        raise ValueError(
            f"--supernet_from={FLAGS.supernet_from} has another super-network than"
            f" --supernet={FLAGS.supernet} (first difference: {differing[0]!r}): give"
            " its --supernet and --supernet_options"
        )
    # Other held-out images would have been trained on.
    for name in ("dataset", "validation_fraction", "image_size"):
        value = FLAGS[name].value
        there = config.get("flags", {}).get(name, value)  # trained from Python: unknown
        if there != value:
            raise ValueError(
                f"--supernet_from={FLAGS.supernet_from} was trained with"
                f" --{name}={there}, got --{name}={value}: its validation images would"
                " be others; give its own"
            )
    owner = f"--supernet_from={FLAGS.supernet_from}"
    check_same_images(config, dataset, owner=owner)
    return load_supernet(folder, net)


def trained_supernet(
    net: SuperNetwork, dataset: Dataset, *, folder: str, config: dict[str, Any]
) -> tuple[TrainedState, dict[str, Any]]:
    """Trains the super-network in a folder of its own, or finds it trained there.

    Returns:
      The variables, and the summary of the training.
    """
    done = pathlib.Path(folder, "summary.json").exists()
    if not done:
        variables, record = common.initial_variables(folder)
        network = {"choice": net.full.tolist(), **network_config()}
        train_supernet(
            net,
            dataset,
            workdir=folder,
            job=common.job_settings(),
            settings=supernet_settings(),
            optimizer=search_flags.optimizer_settings(),
            augment=search_flags.augmentation(dataset),
            variables=variables,
            skip_variables=FLAGS.init_skip,
            config={**config, "network": network, **record},
            say=program.say,
        )
    return load_supernet(folder, net), read_json(f"{folder}/summary.json")
