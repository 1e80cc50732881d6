"""Finds a number format for every layer in one training run (FLIQS).

  python -m experiments.fliqs --workdir=runs/digits \
      --flagfile=experiments/presets/digits.flags

Run again with the same workdir to resume. With --policy it trains at that policy
instead of searching; with --init_from the weights start from a checkpoint. Writes
policy.json, summary.json, metrics.jsonl, report.html and checkpoints/.
"""

from collections.abc import Collection

import flax.linen as nn
from absl import flags
from flax import nnx

import fliqs_jax as fq
from experiments import common, one_shot_flags, program, search_flags
from fliqs_jax.data import Dataset
from fliqs_jax.runs.format_search import search_formats
from fliqs_jax.searchers.in_training.settings import FliqsSettings

FLAGS = flags.FLAGS
FORMS = one_shot_flags.FORMS

common.define_common_flags()
common.define_start_flags()
one_shot_flags.define_one_shot_flags()
search_flags.define_space_flags()
common.define(
    "bool",
    "attention_products",
    False,
    "Formats for q k^T and softmax(.) v, too, the products in attention layers.",
)


def run() -> None:
    """Turns the flags into objects and searches."""
    common.job_settings()  # a mistake there shows before data is read
    settings = fliqs_settings()
    given = None if FLAGS.policy is None else "--policy"
    idle = one_shot_flags.idle_flags(settings, given=given)
    program.say_idle(idle)
    dataset = common.dataset()
    model = common.model(dataset.num_classes)
    space, policy = search_flags.space_and_policy(
        model, dataset, settings, attention_products=FLAGS.attention_products
    )
    train(model, dataset, space, workdir=FLAGS.workdir, policy=policy, idle=idle)


def train(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    space: fq.SearchSpace,
    *,
    workdir: str,
    policy: fq.Policy | None,
    idle: Collection[str] = (),
) -> None:
    """Searches, or trains at a policy, as the flags say."""
    settings = fliqs_settings()
    arguments = search_flags.search_arguments(dataset, settings, idle=idle)
    arguments["workdir"] = workdir
    search_formats(model, dataset, space, fliqs=settings, policy=policy, **arguments)


def fliqs_settings() -> FliqsSettings:
    """Returns the method's settings: those of the form, changed by the flags given."""
    return one_shot_flags.search_settings(FliqsSettings())


if __name__ == "__main__":
    program.start(run, distributed=True)
