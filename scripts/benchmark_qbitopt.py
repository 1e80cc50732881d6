"""What QBitOpt's sensitivities and re-allocations cost, relative to training.

  python scripts/benchmark_qbitopt.py --model=resnet8 --rounds=40

Times the training step with learned steps at fixed bits, the same step with the
sensitivities in it, the float step, and an update (observation of a batch, integer
programme, new bits). The rounds are interleaved; medians, after warm-up.
"""

import statistics
import time

import jax
import numpy as np
import optax
from absl import app, flags

from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.models import create_model
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.qbitopt import QBitOpt, UpdateSteps
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import Classifier, image_sites

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet20", "Name of the network.")
flags.DEFINE_integer("batch_size", 128, "Images a step.")
flags.DEFINE_integer("rounds", 40, "Interleaved steps of each kind.")
flags.DEFINE_integer("updates", 5, "Re-allocations to time.")
flags.DEFINE_integer("period", 250, "Steps between two re-allocations.")

_SHAPE = (32, 32, 3)
_FORMATS = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")


def make_search(name: str | None) -> QBitOpt:
    """Returns the search, or training at the uniform policy of this name."""
    model = create_model(FLAGS.model)
    sites = image_sites(model, _SHAPE)
    space = SearchSpace(sites, _FORMATS, separate=True)
    costs = cost_table(space, site_bops)
    return QBitOpt(
        classifier=Classifier(
            quantized=QuantizedModel(
                model, sites=sites, per_channel=True, learned_clips=True
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        space=space,
        costs=costs,
        target=costs.reference("int3"),
        updates=UpdateSteps(every=FLAGS.period, first=1, last=10**6),
        optimizer=OptimizerSettings().make(10**6),
        clip_optimizer=optax.adam(1e-3),
        least_gain=0.0,
        policy=None if name is None else Policy.uniform(sites, name),
    )


def main(argv: list[str]) -> None:
    del argv
    mesh, random = mapping.make_mesh(), np.random.default_rng(0)
    batch = mapping.shard_batch(
        {
            "image": random.integers(
                0, 256, (FLAGS.batch_size, *_SHAPE), dtype=np.uint8
            ),
            "label": random.integers(0, 10, FLAGS.batch_size, dtype=np.int32),
        },
        mesh,
    )
    searches = {"fixed bits": make_search("int3"), "sensitivities": make_search(None)}
    compile_step = lambda step: mapping.shard_map_step(step, mesh)  # noqa: E731
    steps, states, seconds = {}, {}, {name: [] for name in searches}
    for name, search in searches.items():
        images = np.zeros((1, *_SHAPE), np.uint8)
        state = mapping.replicate(search.init(jax.random.key(0), images), mesh)
        start, *rest = search.hooks(10**6, compile_step)
        states[name] = start.run(state, batch)
        steps[name] = compile_step(search.step)
    (update,) = rest
    for _ in range(FLAGS.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            seconds[name].append(time.perf_counter() - began)
    updates, state = [], states["sensitivities"]
    for _ in range(FLAGS.updates):
        began = time.perf_counter()
        state = update.run(state, batch)
        jax.block_until_ready(state)
        updates.append(time.perf_counter() - began)
    plain, watched = (statistics.median(seconds[name][3:]) for name in searches)
    once = statistics.median(updates[1:])
    print(f"{FLAGS.model}, batch {FLAGS.batch_size}, {jax.device_count()} device(s)")
    print(f"step at fixed bits      {plain * 1e3:8.1f} ms")
    print(
        f"with sensitivities      {watched * 1e3:8.1f} ms, ratio {watched / plain:.3f}"
    )
    print(f"an update               {once * 1e3:8.1f} ms, every {FLAGS.period} steps")
    overhead = (watched + once / FLAGS.period) / plain - 1.0
    print(f"overhead                {overhead:8.1%} of training")


if __name__ == "__main__":
    app.run(main)
