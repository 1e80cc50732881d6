"""Accuracy of a trained network by the observer that chooses its ranges, untrained on.

  python scripts/compare_observers.py RUN [--data_dir=DIR]

RUN is the workdir of `experiments.simq_nas`, whose full network is quantized after
training, weights and inputs at formats of their own, and judged on the validation
split. Each line is an observer, of both weights and inputs.
"""

import argparse
import pathlib

import numpy as np

import fliqs_jax as fq
from fliqs_jax.models.supernets import create_supernet
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.runs.supernet_training import load_supernet
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.static_calibration import PtqSettings
from fliqs_jax.searchers.joint.subnetwork_evaluation import PopulationEvaluator
from fliqs_jax.train.workdir import read_json

_PAIRS = (
    *(("int8", "int8"), ("int6", "int8"), ("int5", "int8"), ("int4", "int8")),
    *(("int8", "int6"), ("int8", "int5"), ("int8", "int4")),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="workdir of simq_nas")
    parser.add_argument("--data_dir", default=None)
    given = parser.parse_args()
    config = read_json(given.run / "config.json")
    flags = config["flags"]
    data = fq.load_dataset(
        config["dataset"],
        data_dir=given.data_dir,
        validation_fraction=flags["validation_fraction"],
    )
    net = create_supernet(
        config["network"]["supernet"],
        num_classes=data.num_classes,
        image_shape=data.train.image_shape,
        **config["network"]["options"],
    )
    state = load_supernet(given.run / "supernet", net)
    names = sorted({name for pair in _PAIRS for name in pair})
    formats = fq.SearchSpace(net.sites, names, separate=True)
    space = JointSpace(net, formats)
    vectors = np.stack([_vector(net, formats, *pair) for pair in _PAIRS])
    print("| observer | " + " | ".join(f"{w} / {a}" for w, a in _PAIRS) + " |")
    print("|---" * (1 + len(_PAIRS)) + "|")
    for name in OBSERVERS:
        ptq = PtqSettings(weight_observer=name, input_observer=name)
        evaluator = PopulationEvaluator(space, state, data, costs={}, ptq=ptq)
        found = 100 * evaluator.accuracies(vectors)
        cells = " | ".join(f"{accuracy:.2f}" for accuracy in found)
        print(f"| {name} | {cells} |", flush=True)


def _vector(net, formats, weights, inputs):
    """Returns the full network at one format of weights and one of inputs."""
    options = np.zeros(formats.num_decisions, int)
    options[formats.weight_decision] = formats.option_names.index(weights)
    options[formats.activation_decision] = formats.option_names.index(inputs)
    return np.concatenate([net.full, options])


if __name__ == "__main__":
    main()
