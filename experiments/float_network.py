"""The float network that a launcher starts from: given by --init_from."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

import fliqs_jax as fq
from experiments import common
from fliqs_jax.data import Dataset
from fliqs_jax.searchers.sensitivity import TrainedState
from fliqs_jax.train.classifier import training_arguments
from fliqs_jax.train.fitting import fit_variables

FLAGS = flags.FLAGS


def load_float(
    model: nn.Module | nnx.Module, dataset: Dataset
) -> tuple[TrainedState, float]:
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
        say=common.say,
    )
    return TrainedState(variables.pop("params"), variables), 0.0
