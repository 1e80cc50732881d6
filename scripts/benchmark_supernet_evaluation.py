"""Times a population of sub-networks at formats against one compiled network each.

  python scripts/benchmark_supernet_evaluation.py [--candidates=64] [--sample=6]

Candidates a second of `PopulationEvaluator`, whose programs are compiled before the
clock starts and serve all candidates, against the same evaluation done with ordinary
networks: each candidate extracted, its own batch statistics, ranges and accuracy, and a
compilation for each, as every candidate has other shapes. A few of the candidates are
sampled for the second side, and the two take turns. Images of CIFAR-10's size and
untrained weights: time does not depend on what they show.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from fliqs_jax.costs import make_site_storage
from fliqs_jax.data import Dataset, Split, batches
from fliqs_jax.models.supernets import (
    create_supernet,
    extract,
    subnetwork_sites,
    supernet_names,
)
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantized_model.static_weights import quantize_weights_by
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.static_calibration import (
    InputSamples,
    PtqSettings,
    static_input_formats,
)
from fliqs_jax.searchers.joint.subnetwork_evaluation import PopulationEvaluator
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train.classifier import Classifier, training_arguments
from fliqs_jax.train.evaluation import Evaluator

_FORMATS = ["int4", "int8"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supernet", default="resnet_cifar", choices=supernet_names())
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--sample", type=int, default=6, help="compiled one by one")
    parser.add_argument("--images", type=int, default=1000, help="evaluated on")
    parser.add_argument("--batch_size", type=int, default=128)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    net = create_supernet(options.supernet)
    dataset = images(random, net.image_shape, options.images)
    space = JointSpace(net, SearchSpace(net.sites, _FORMATS))
    variables = jax.jit(net.model.init)(
        jax.random.key(0), np.zeros((1, *net.image_shape), np.float32)
    )
    state = TrainedState(variables.pop("params"), variables)
    counts = np.array(list(space.counts.values()))
    vectors = random.integers(0, counts, (options.candidates, len(counts)))
    ptq = PtqSettings()
    evaluator = PopulationEvaluator(
        space,
        state,
        dataset,
        costs={"size_bits": make_site_storage()},
        ptq=ptq,
        batch_size=options.batch_size,
    )
    start = time.perf_counter()
    evaluator(random.integers(0, counts, (evaluator.chunk_size, len(counts))))
    first = time.perf_counter() - start
    print(f"population: first chunk {first:.1f} s, {evaluator.compile_count} programs")
    parts = np.array_split(vectors, options.sample)
    together, alone = [], []
    for part in parts:
        start = time.perf_counter()
        values = evaluator(part)
        together.append((time.perf_counter() - start) / len(part))
        start = time.perf_counter()
        accuracy = one_by_itself(
            space, state, dataset, part[0], ptq, options.batch_size
        )
        alone.append(time.perf_counter() - start)
        print(
            f"{len(part)} in a population {1 / together[-1]:.3f} a second,"
            f" one compiled {1 / alone[-1]:.4f} a second"
            f" (errors of that one {values[0, 0]:.3f} and {1 - accuracy:.3f})",
            flush=True,
        )
    population, compiled = map(statistics.median, (together, alone))
    spread = (first + population * options.candidates) / options.candidates
    print(
        f"{options.supernet}, {options.images} images: {1 / population:.3f} candidates"
        f" a second in a population, {1 / compiled:.4f} compiled one by one: ratio"
        f" {compiled / population:.1f}; the first chunk's compilation shared by"
        f" {options.candidates} candidates included {compiled / spread:.1f}"
    )


def images(random, shape, count) -> Dataset:
    """A data set of noise."""

    def split(size):
        return Split(
            random.integers(0, 256, (size, *shape), dtype=np.uint8),
            random.integers(0, 10, size).astype(np.int32),
        )

    channels = np.full(shape[-1], 0.5, np.float32)
    return Dataset(
        "noise", split(2000), split(count), split(1), 10, channels, channels / 2
    )


def one_by_itself(space, state, dataset, vector, ptq, batch_size) -> float:
    """Accuracy of one candidate as an ordinary network, from nothing compiled."""
    parts = space.split(vector)
    sites = subnetwork_sites(space.net, parts.choice)
    model, small = extract(space.net, state.variables, parts.choice)
    own = TrainedState(small.pop("params"), small)
    classifier = Classifier.of(QuantizedModel(model, sites=sites), dataset)
    first, last = (
        Evaluator(classifier, dataset, batch_size=batch_size, recalibration_batches=n)
        for n in (ptq.batches, 4)
    )
    formats = space.policy(vector).formats(sites)

    @jax.jit
    def observe(variables, images):
        return classifier.quantized.observe(
            variables,
            classifier.normalise(images),
            num_samples=ptq.num_samples,
            **training_arguments(model, train=False),
        )

    @jax.jit
    def quantize(params, samples):
        weights = quantize_weights_by(
            params,
            sites,
            formats.weight,
            OBSERVERS[ptq.weight_observer],
            symmetric=np.ones(len(sites), bool),
        )
        return weights, static_input_formats(samples, formats.activation, ptq)

    own = first.recalibrated(own, None)
    source = batches(dataset.train, batch_size=batch_size, seed=0)
    seen = [
        observe(own.variables, source.batch(n)["image"]) for n in range(ptq.batches)
    ]
    weights, static = quantize(own.params, InputSamples.of(seen))
    own = last.recalibrated(own.replace(params=weights), static)
    return last.validate(own, static)["accuracy"]


if __name__ == "__main__":
    main()
