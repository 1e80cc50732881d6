"""One point of a joint search as a small network of its own, saved as a finished run.

What is saved is what was evaluated: weights on their grids, batch statistics and input
grids of the evaluation, cut out of the full network. Nothing is measured anew.
"""

import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Int, PyTree

from fliqs_jax.data import Dataset
from fliqs_jax.models.supernets import extract, subnetwork_sites
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs.network import save_network
from fliqs_jax.runs.results import describe_sites, versions
from fliqs_jax.runs.run_folder import describe_data, describe_network
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.subnetwork_classifier import extracted_formats
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.evaluation import Evaluator
from fliqs_jax.train.workdir import open_workdir, read_json, write_json


def point_name(vector: Int[np.ndarray, "D"]) -> str:
    """Returns a short name that a point keeps when its front grows.

    Example:
      >>> point_name(np.array([0, 1, 2]))
      '1d760e7a'
    """
    return f"{zlib.crc32(np.asarray(vector, np.int32).tobytes()):08x}"


def save_point(
    folder: pathlib.Path,
    space: JointSpace,
    vector: Int[np.ndarray, "D"],
    dataset: Dataset,
    *,
    quantized: Callable[[Int[np.ndarray, "D"]], tuple[PyTree, SiteFormats]],
    batch_size: int,
    prices: Mapping[str, float],
    seed: int,
    network: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Extracts a point and saves it as a finished run, or finds it saved.

    Args:
      folder: of the point.
      space: of the search.
      vector: the point.
      dataset: whose test images give the accuracy.
      quantized: from a vector to the full network's variables and formats as they were
        evaluated: `PopulationEvaluator.quantized`.
      batch_size: of the evaluation.
      prices: of the point.
      seed: of the search, for the record.
      network: how its super-network is made: `supernet`, `options`.
      config: what else its `config.json` should hold.

    Returns:
      The summary: `accuracy`, `loss` on the test split, `prices`.
    """
    choice = space.split(np.asarray(vector)).choice
    sites, policy = subnetwork_sites(space.net, choice), space.policy(vector)
    identity = {
        "method": "simq_nas_point",
        **describe_data(dataset),
        "sites": describe_sites(sites),
        "vector": np.asarray(vector).tolist(),
        **config,
        "network": extracted_network(space, vector, dataset, network),
    }
    with open_workdir(folder, identity, volatile=("session",)) as folder:
        file = folder / "summary.json"
        if processes.on_main(file.exists):
            return processes.on_main(lambda: read_json(file))
        variables, formats = quantized(vector)
        model, small = extract(space.net, variables, choice)
        state = TrainedState(small.pop("params"), small)
        formats = extracted_formats(space.net, choice, formats)
        classifier = Classifier.of(QuantizedModel(model, sites=sites), dataset)
        evaluator = Evaluator(classifier, dataset, batch_size=batch_size)
        result = evaluator.test(state, formats)
        save_network(folder, state, formats, classifier, static=True)
        summary = {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "prices": dict(prices),
            "seed": seed,
            "versions": versions(),
        }

        def write():
            policy.save(folder / "policy.json")
            write_json(file, summary)

        processes.on_main(write)
        return summary


def small_network(
    space: JointSpace, state: TrainedState, vector: Int[np.ndarray, "D"]
) -> tuple[nn.Module, TrainedState]:
    """Returns the small model of a point and its float variables."""
    choice = space.split(np.asarray(vector)).choice
    model, small = extract(space.net, state.variables, choice)
    return model, TrainedState(small.pop("params"), small)


def extracted_network(
    space: JointSpace,
    vector: Int[np.ndarray, "D"],
    dataset: Dataset,
    network: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what `load_network` makes the small model from."""
    return {
        **describe_network(dataset, ()),
        **network,
        "choice": space.split(np.asarray(vector)).choice.tolist(),
    }
