"""Training a point of a joint search on, at its formats: an ordinary run of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

import fliqs_jax as fq
from experiments import common, search_flags
from fliqs_jax.data import Dataset
from fliqs_jax.runs.simq_results import SmallNetwork
from fliqs_jax.train.classifier import image_sites

FLAGS = flags.FLAGS


def define_finetuning_flags() -> None:
    """Defines how long a point is trained on, and at what rate."""
    common.define("integer", "finetune_steps", 0, "Of the point, at its formats.")
    common.define("float", "finetune_learning_rate", 0.01, "Largest; cosine to zero.")


def check_finetuning() -> None:
    """Refuses what `finetune_point` cannot do, before anything is trained."""
    if FLAGS.finetune_steps < 0:
        raise ValueError(
            f"--finetune_steps must not be negative, got {FLAGS.finetune_steps}"
        )
    if not FLAGS.finetune_learning_rate > 0:
        raise ValueError(
            "--finetune_learning_rate must be positive, got"
            f" {FLAGS.finetune_learning_rate}"
        )


def finetune_point(
    dataset: Dataset, config: Mapping[str, Any], small: SmallNetwork, name: str
) -> tuple[str, Mapping[str, Any]]:
    """Trains a point's network on, quantization-aware, or finds it trained.

    Args:
      dataset: its data.
      config: what the run's `config.json` should hold.
      small: the network, in float.
      name: of its folder in --workdir; the new one's begins with it.

    Returns:
      The name of the new folder, and the run's summary.
    """
    steps, rate = FLAGS.finetune_steps, FLAGS.finetune_learning_rate
    folder = f"{name}_finetuned_{steps}_{rate:g}"
    sites, policy = image_sites(small.model, dataset.train.image_shape), small.policy
    names = dict.fromkeys(name for pair in policy.values() for name in pair)
    if len(names) < 2:  # a space has two options or more
        names |= dict.fromkeys(["int8", "fp32"])
    int8 = fq.bops(sites, fq.Policy.uniform(sites, "int8"))
    optimizer = dataclasses.replace(
        search_flags.optimizer_settings(), learning_rate=rate
    )
    result = fq.search_formats(
        small.model,
        dataset,
        fq.SearchSpace(sites, list(names), separate=True),
        workdir=f"{FLAGS.workdir}/{folder}",
        cost_target=fq.bops(sites, policy) / int8,
        job=dataclasses.replace(common.job_settings(), steps=steps),
        fliqs=fq.FliqsSettings(label_smoothing=FLAGS.label_smoothing),
        optimizer=optimizer,
        augment=search_flags.augmentation(dataset),
        policy=policy,
        variables=small.variables,
        config={**config, "network": small.network},
    )
    return folder, result.summary
