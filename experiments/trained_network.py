"""The network that a launcher starts from or ends with, trained by the flags.

The float one of --init_from, too, for those that start from trained weights.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

import fliqs_jax as fq
from experiments import common, program, search_flags
from fliqs_jax.data import Dataset
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train.classifier import image_sites, training_arguments
from fliqs_jax.train.fitting import fit_variables

FLAGS = flags.FLAGS


def float_network(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    *,
    steps: int,
    learning_rate: float | None = None,
) -> Callable[[], tuple[TrainedState, float]]:
    """Returns what loads the float network, or trains it in WORKDIR/float.

    Args:
      model: the network.
      dataset: its data.
      steps: of training, without --init_from.
      learning_rate: the largest; None is that of the flags.

    Returns:
      A function whose result is the variables, and the seconds that training took.
    """
    if FLAGS.init_from is not None:
        return lambda: (_load_float(model, dataset), 0.0)

    def trained():
        state, summary = train_network(
            model,
            dataset,
            folder=f"{FLAGS.workdir}/float",
            steps=steps,
            learning_rate=learning_rate,
            **common.run_config()["network"],
        )
        return state, summary["seconds"]

    return trained


def _load_float(model: nn.Module | nnx.Module, dataset: Dataset) -> TrainedState:
    """Loads the float network of --init_from; refuses one that does not fit."""
    policy_file = pathlib.Path(FLAGS.init_from) / "policy.json"
    if policy_file.exists():
        policy = fq.Policy.load(policy_file)
        formats = {name for pair in policy.values() for name in pair}
        if formats != {"fp32"}:
            raise ValueError(
                f"--init_from={FLAGS.init_from} was trained at"
                f" {', '.join(sorted(formats))}: give a float network, as"
                " experiments.fliqs --policy=fp32 trains it"
            )
    images = jnp.zeros((1, *dataset.train.image_shape))
    # A QuantizedModel has init for NNX models, too.
    init = fq.QuantizedModel(model).init
    init = functools.partial(init, **training_arguments(model, train=False))
    variables = fit_variables(
        fq.load_variables(FLAGS.init_from),
        jax.jit(init)(jax.random.key(0), images),
        say=program.say,
    )
    return TrainedState(variables.pop("params"), variables)


def train_network(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    *,
    folder: str,
    steps: int,
    name: str | None,
    options: Mapping[str, Any],
    learning_rate: float | None = None,
    policy: fq.Policy | None = None,
) -> tuple[TrainedState, Mapping[str, Any]]:
    """Trains a network in a folder of its own, or finds it trained there.

    Args:
      model: the network.
      dataset: its data.
      folder: a workdir, which other launchers take as --init_from.
      steps: of training.
      name: under which `create_model` makes the network; None if it does not.
      options: its fields.
      learning_rate: the largest; None is that of the flags.
      policy: to train it at; None is float.

    Returns:
      The variables, and the run's summary.
    """
    sites = image_sites(model, dataset.train.image_shape)
    policy = policy or fq.Policy.uniform(sites, "fp32")
    names = {name for pair in policy.values() for name in pair} | {"int8"}
    formats = [*sorted(names - {"fp32"}), "fp32"]
    optimizer = search_flags.optimizer_settings()
    if learning_rate is not None:
        optimizer = dataclasses.replace(optimizer, learning_rate=learning_rate)
    result = fq.search_formats(
        model,
        dataset,
        fq.SearchSpace(sites, formats),
        workdir=folder,
        cost_target=1.0,
        job=dataclasses.replace(common.job_settings(), steps=steps),
        fliqs=fq.FliqsSettings(label_smoothing=FLAGS.label_smoothing),
        optimizer=optimizer,
        augment=search_flags.augmentation(dataset),
        policy=policy,
        config={
            "model": name or FLAGS.model,
            "network": {"name": name, "options": dict(options)},
            "images": {
                n: FLAGS[n].value for n in ("image_size", "validation_fraction")
            },
            "session": {"data_dir": FLAGS.data_dir},
        },
    )
    network = fq.load_network(folder, model)
    return TrainedState(network.params, network.model_state), result.summary
