"""Times the search step over 1, 2, 4 and 8 simulated devices, as much work for each.

  python scripts/benchmark_weak_scaling.py [--model=resnet8] [--examples=16]

Every device gets `--examples` images a step, so on real devices a step should take as
long on eight as on one. Each number of devices has a process of its own; they take
turns, one step each, and the table has medians.

Simulated devices share the cores of this machine: eight times the work takes about
eight times as long however good the mapping is. What can be told here is what more
devices cost beyond their work: "an image" compares the time for an image with that on
one device. 1.0 means that mapping, copies and averaging cost nothing; one device
already uses several cores at times, and eight small pieces fill them better, so that it
may fall below. What cannot be told is how fast gradients travel between real devices,
and whether they compute at the same time.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from absl import app, flags

from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.models import create_model
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.fliqs import Fliqs
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import Classifier, image_sites

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet8", "Name of the network.")
flags.DEFINE_integer("examples", 16, "Images a step and device.")
flags.DEFINE_integer("rounds", 20, "Interleaved steps of each number of devices.")
flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of simulated devices.")
flags.DEFINE_integer("serve", None, "For the processes that this one starts.")

_SHAPE = (32, 32, 3)
_FORMATS = ("int2", "int4", "int8")
_WARM_UP = 3  # steps of each that are not counted


def make_search() -> Fliqs:
    """Returns a search whose steps all train at sampled formats, and judge none."""
    model = create_model(FLAGS.model)
    sites = image_sites(model, _SHAPE)
    space = SearchSpace(sites, _FORMATS)
    costs = cost_table(space, site_bops)
    target = 0.5 * (costs.minimum() + costs.maximum())
    phases = Phases(warmup_end=10**6, search_end=10**6, steps=10**6)
    return Fliqs(
        classifier=Classifier(
            quantized=QuantizedModel(model, sites=sites, per_channel=True),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        space=space,
        costs=costs,
        target=target,
        controller=FliqsSettings().recipe(costs, target, phases),
        phases=phases,
        optimizer=OptimizerSettings().make(10**6),
    )


def serve() -> None:
    """Takes a step for each line read, and answers with its seconds."""
    mesh, random = mapping.make_mesh(), np.random.default_rng(0)
    size = FLAGS.examples * mesh.size
    batch = {
        "image": random.integers(0, 256, (size, *_SHAPE), dtype=np.uint8),
        "label": random.integers(0, 10, size, dtype=np.int32),
    }
    search = make_search()
    images = np.zeros((1, *_SHAPE), np.uint8)
    state = mapping.replicate(search.init(jax.random.key(0), images), mesh)
    step = mapping.shard_map_step(search.step, mesh)
    for _ in sys.stdin:
        start = time.perf_counter()
        state, metrics = step(state, mapping.shard_batch(batch, mesh))
        jax.block_until_ready(metrics)
        print(json.dumps(time.perf_counter() - start), flush=True)


def start(devices: int) -> subprocess.Popen:
    """Starts the process of a number of devices."""
    return subprocess.Popen(
        [
            *(sys.executable, __file__, f"--serve={devices}"),
            *(f"--model={FLAGS.model}", f"--examples={FLAGS.examples}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
        },
    )


def one_step(process: subprocess.Popen) -> float:
    """Has a process take a step; returns its seconds."""
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError("a process ended early; its error is above")
    return json.loads(answer)


def main(argv: list[str]) -> None:
    del argv
    if FLAGS.serve is not None:
        serve()
        return
    numbers = [int(number) for number in FLAGS.devices]
    running = {number: start(number) for number in numbers}
    seconds = {number: [] for number in numbers}
    for _ in range(_WARM_UP + FLAGS.rounds):
        for number, process in running.items():
            seconds[number].append(one_step(process))
    for process in running.values():
        process.communicate()
    print(
        f"{FLAGS.model}, {FLAGS.examples} images a device, "
        f"{len(os.sched_getaffinity(0))} cores, medians of {FLAGS.rounds} steps"
    )
    print(f"{'devices':>7}{'batch':>7}{'a step':>11}{'images/s':>10}{'an image':>10}")
    first = None
    for number in numbers:
        median = statistics.median(seconds[number][_WARM_UP:])
        batch = number * FLAGS.examples
        first = first or median / batch
        print(
            f"{number:>7}{batch:>7}{median * 1e3:>8.1f} ms{batch / median:>10.1f}"
            f"{median / batch / first:>9.2f}x"
        )


if __name__ == "__main__":
    app.run(main)
