"""Evaluates a finished run's network again, on the test split or another.

  python -m experiments.evaluate --workdir=runs/digits

Reads the workdir and changes nothing in it. Prints one JSON object.
"""

import json

import jax
from absl import flags

from experiments import finished_run, program
from fliqs_jax.data import evaluation_batches
from fliqs_jax.train.evaluation import evaluate

FLAGS = flags.FLAGS

finished_run.define_flags()
flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "Which examples to look at."
)


def run() -> None:
    """Loads, evaluates, prints."""
    network = finished_run.network()
    data = finished_run.dataset(split=FLAGS.split)
    predict = jax.jit(lambda variables, images: network.predict(variables, images))
    result = evaluate(
        predict,
        network.variables,
        evaluation_batches(getattr(data, FLAGS.split), FLAGS.batch_size),
    )
    print(json.dumps({"workdir": FLAGS.workdir, "split": FLAGS.split, **result}))


if __name__ == "__main__":
    program.start(run)
