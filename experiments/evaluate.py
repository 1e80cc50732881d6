"""Evaluates a finished run's network again, on the test split or another.

  python -m experiments.evaluate --workdir=runs/digits

Reads the workdir and changes nothing in it. Prints one JSON object.
"""

import json
import pathlib
from typing import Any

import jax
from absl import app, flags

import fliqs_jax as fq
from experiments import common, supernet_flags
from fliqs_jax.data import evaluation_batches
from fliqs_jax.train.evaluation import evaluate
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS

common.define_workdir_flags()
flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "Which examples to look at."
)
flags.DEFINE_string(
    "factory", None, "package.module:factory of a network that is not one of ours."
)


def main(argv: list[str]) -> None:
    common.run_or_exit(argv, run)


def run() -> None:
    """Loads, evaluates, prints."""
    model, made = None, _network_config()
    supernet_flags.know_supernet(made.get("supernet", ""))
    if FLAGS.factory is not None:
        options = made.get("options", {})
        model = common.user_model(
            FLAGS.factory, num_classes=made["num_classes"], **options
        )
    network = fq.load_network(FLAGS.workdir, model)
    config = read_json(f"{FLAGS.workdir}/config.json")
    data = fq.load_dataset(
        config["dataset"],
        data_dir=FLAGS.data_dir or config["session"]["data_dir"],
        image_size=config["flags"]["image_size"],
        validation_fraction=config["flags"]["validation_fraction"],
    )
    predict = jax.jit(lambda variables, images: network.predict(variables, images))
    result = evaluate(
        predict,
        network.variables,
        evaluation_batches(getattr(data, FLAGS.split), FLAGS.batch_size),
    )
    print(json.dumps({"workdir": FLAGS.workdir, "split": FLAGS.split, **result}))


def _network_config() -> dict[str, Any]:
    """Returns how the run made its network; nothing where it did not get so far."""
    file = pathlib.Path(FLAGS.workdir, "config.json")
    return (file.exists() and read_json(file).get("network")) or {}


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main)
