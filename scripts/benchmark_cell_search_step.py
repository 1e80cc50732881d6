"""Times a cell search step with sharing and bottleneck against plain DARTS's step.

  python scripts/benchmark_cell_search_step.py [--space=nasbench201] [--batch_size=64]

Both move architecture and weights, at first order. Prints medians of interleaved
rounds, the memory that the compiled programs need beside their arguments, and ratios.
Synthetic images of CIFAR-10's size: the time of a step does not depend on what they
show.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from fliqs_jax.models import cells
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.searchers.cells.architecture import Architecture
from fliqs_jax.searchers.dca_nas import DcaNas
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import Classifier

FLAGS = flags.FLAGS
flags.DEFINE_enum("space", "nasbench201", [*cells.CELL_SPACES], "Of the cells.")
flags.DEFINE_integer("width", 16, "Channels of the first stage.")
flags.DEFINE_integer("depth", None, "Cells: of a stage, or of the DARTS network.")
flags.DEFINE_integer("bottleneck", 4, "Of the network with one.")
flags.DEFINE_integer("batch_size", 64, "Images a step, and held-out ones.")
flags.DEFINE_integer("rounds", 7, "Interleaved rounds.")


def search_network(**fields):
    if FLAGS.space == "nasbench201":
        depth = FLAGS.depth or 5
        return cells.NasBench201SearchNetwork(
            width=FLAGS.width, num_cells=depth, **fields
        )
    return cells.DartsSearchNetwork(
        channels=FLAGS.width, layers=FLAGS.depth or 8, **fields
    )


def compiled_step(model, batch, mesh):
    """Returns (compiled step, state, bytes of temporary memory)."""
    searcher = DcaNas(
        classifier=Classifier(QuantizedModel(model), mean=(0.5,) * 3, std=(0.25,) * 3),
        space=cells.CELL_SPACES[FLAGS.space],
        architecture=Architecture(()),
        optimizer=OptimizerSettings(learning_rate=0.025).make(1000),
        steps=1000,
        warmup_steps=0,
    )
    state = searcher.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
    state = mapping.replicate(state, mesh)
    compiled = mapping.shard_map_step(searcher.step, mesh).lower(state, batch).compile()
    return compiled, state, compiled.memory_analysis().temp_size_in_bytes


def main(argv):
    del argv
    random, mesh = np.random.default_rng(0), mapping.make_mesh()
    images = random.integers(0, 256, (FLAGS.batch_size, 32, 32, 3)).astype(np.uint8)
    labels = random.integers(0, 10, FLAGS.batch_size).astype(np.int32)
    batch = {"image": images, "label": labels}
    batch |= {f"judge_{name}": array for name, array in batch.items()}
    batch = mapping.shard_batch(batch, mesh)
    variants = {
        "plain": search_network(share=False, bottleneck=1),
        "shared": search_network(share=True, bottleneck=1),
        "shared, bottleneck": search_network(share=True, bottleneck=FLAGS.bottleneck),
    }
    steps = {
        name: compiled_step(model, batch, mesh) for name, model in variants.items()
    }
    states = {name: state for name, (_, state, _) in steps.items()}
    seconds = {name: [] for name in steps}
    for _ in range(FLAGS.rounds + 1):  # the first one warms up
        for name, (step, _, _) in steps.items():
            start = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready((states[name].step, metrics))
            seconds[name].append(time.perf_counter() - start)
    print(f"{'step':22}{'ms':>9}{'ratio':>8}{'MB':>9}{'ratio':>8}")
    plain = statistics.median(seconds["plain"][1:])
    for name, (_, _, memory) in steps.items():
        took = statistics.median(seconds[name][1:])
        print(
            f"{name:22}{1e3 * took:9.0f}{took / plain:8.2f}"
            f"{memory / 1e6:9.0f}{memory / steps['plain'][2]:8.2f}"
        )


if __name__ == "__main__":
    app.run(main)
