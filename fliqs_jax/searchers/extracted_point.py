"""One point of a joint search as a small network of its own, quantized after training.

By none of the masks: the sub-network is cut out, gets batch statistics, ranges and
grids as the search's evaluation gave them, and is saved as an ordinary finished run.
"""

import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int, PyTree

from fliqs_jax.data import Dataset, batches
from fliqs_jax.models.supernets import extract, subnetwork_sites
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantized_model.static_weights import quantize_weights_by
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.searchers.joint_space import JointSpace
from fliqs_jax.searchers.network import save_network
from fliqs_jax.searchers.results import describe_sites, versions
from fliqs_jax.searchers.sensitivity import TrainedState
from fliqs_jax.searchers.static_calibration import (
    InputSamples,
    PtqSettings,
    static_input_formats,
)
from fliqs_jax.sites import Site
from fliqs_jax.train.classifier import Classifier, training_arguments
from fliqs_jax.train.evaluation import Evaluator
from fliqs_jax.train.workdir import open_workdir, read_json, write_json


def point_name(vector: Int[np.ndarray, "D"]) -> str:
    """Returns a short name that a point keeps when its front grows.

    Example:
      >>> point_name(np.array([0, 1, 2]))
      '1d760e7a'
    """
    return f"{zlib.crc32(np.asarray(vector, np.int32).tobytes()):08x}"


def quantized_after_training(
    classifier: Classifier,
    state: TrainedState,
    evaluator: Evaluator,
    sites: Sequence[Site],
    policy: Policy,
    dataset: Dataset,
    *,
    symmetric: np.ndarray,
    ptq: PtqSettings,
    batch_size: int,
    recalibrate_quantized: bool = True,
) -> tuple[TrainedState, SiteFormats]:
    """Returns a network with its weights on their grids, and its inputs' formats.

    Args:
      classifier: the network.
      state: its variables, in float; batch statistics are recomputed.
      evaluator: of the classifier, for the statistics.
      sites: of the network.
      policy: their formats.
      dataset: its training images give statistics and ranges.
      symmetric: bool[L], of each site's weights.
      ptq: how to quantize.
      batch_size: of all passes.
      recalibrate_quantized: compute the statistics once more when quantized.
    """
    quantized = classifier.quantized
    state = evaluator.recalibrated(state, None)
    evaluation = training_arguments(quantized.model, train=False)

    @jax.jit
    def observe(variables: PyTree, images):
        return quantized.observe(
            variables,
            classifier.normalise(images),
            num_samples=ptq.num_samples,
            **evaluation,
        )

    # The images of `PopulationEvaluator`, so that the point is what was evaluated.
    source = batches(dataset.train, batch_size=batch_size, seed=2**31 - 1)
    seen = [
        observe(state.variables, source.batch(n)["image"]) for n in range(ptq.batches)
    ]
    formats = policy.formats(sites)

    @jax.jit  # one program, where every operation alone would be one
    def quantize(params: PyTree, samples: InputSamples):
        weights = quantize_weights_by(
            params,
            sites,
            formats.weight,
            OBSERVERS[ptq.weight_observer],
            symmetric=symmetric,
            per_channel=ptq.per_channel,
        )
        return weights, static_input_formats(samples, formats.activation, ptq)

    weights, static = quantize(state.params, InputSamples.of(seen))
    state = state.replace(params=weights)
    if recalibrate_quantized:
        state = evaluator.recalibrated(state, static)
    return state, static


def save_point(
    folder: pathlib.Path,
    space: JointSpace,
    state: TrainedState,
    dataset: Dataset,
    vector: Int[np.ndarray, "D"],
    *,
    ptq: PtqSettings,
    batch_size: int,
    recalibration_batches: int,
    recalibrate_quantized: bool,
    prices: Mapping[str, float],
    seed: int,
    network: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Extracts a point and saves it as a finished run, or finds it saved.

    Args:
      folder: of the point.
      space: of the search.
      state: of the full network, in float.
      dataset: training images to quantize by, test images for the accuracy.
      vector: the point.
      ptq: as in the search.
      batch_size: of all passes.
      recalibration_batches: training batches for batch statistics.
      recalibrate_quantized: as in the search.
      prices: of the point.
      seed: of the search, for the record.
      network: how its super-network is made: `supernet`, `options`.
      config: what else its `config.json` should hold.

    Returns:
      The summary: `accuracy`, `loss` on the test split, `prices`.
    """
    parts = space.split(np.asarray(vector))
    sites, policy = subnetwork_sites(space.net, parts.choice), space.policy(vector)
    identity = {
        "method": "simq_nas_point",
        "dataset": dataset.name,
        "sites": describe_sites(sites),
        "vector": np.asarray(vector).tolist(),
        **config,
        "network": extracted_network(space, vector, dataset, network),
    }
    with open_workdir(folder, identity, volatile=("session",)) as folder:
        if (folder / "summary.json").exists():
            return read_json(folder / "summary.json")
        model, own = small_network(space, state, vector)
        classifier = Classifier(
            quantized=QuantizedModel(model, sites=sites),
            mean=tuple(dataset.mean.tolist()),
            std=tuple(dataset.std.tolist()),
        )
        evaluator = Evaluator(
            classifier,
            dataset,
            batch_size=batch_size,
            recalibration_batches=recalibration_batches,
        )
        rows = {site.path: row for row, site in enumerate(space.net.sites)}
        own, formats = quantized_after_training(
            classifier,
            own,
            evaluator,
            sites,
            policy,
            dataset,
            symmetric=parts.symmetric[[rows[site.path] for site in sites]],
            ptq=ptq,
            batch_size=batch_size,
            recalibrate_quantized=recalibrate_quantized,
        )
        result = evaluator.test(own, formats)
        save_network(folder, own, formats, classifier, static=True)
        policy.save(folder / "policy.json")
        summary = {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "prices": dict(prices),
            "seed": seed,
            "versions": versions(),
        }
        write_json(folder / "summary.json", summary)
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
        "name": None,
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.train.image_shape),
        "per_channel": True,
        "attention_products": False,
        **network,
        "choice": space.split(np.asarray(vector)).choice.tolist(),
    }
