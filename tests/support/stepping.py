"""The first steps of a search with what happens between them, as a job runs them."""

import jax

from fliqs_jax.data import batches
from fliqs_jax.train import mapping
from fliqs_jax.train.loop import Dispatcher


def run_steps(search, dataset, mesh, steps, watch):
    """Runs steps of 32 examples.

    Returns the last state, what `watch(state)` gave before the first step and after
    each, and the metrics of each.
    """
    source = batches(dataset.train, batch_size=32, seed=0)
    state = search.init(jax.random.key(0), source.batch(0)["image"][:1])
    state = mapping.replicate(state, mesh)
    hooks = search.hooks(steps, lambda step: mapping.shard_map_step(step, mesh))
    dispatch = Dispatcher(search.step, mesh)
    watched, metrics = [jax.device_get(watch(state))], []
    for step in range(steps):
        batch = mapping.shard_batch(source.batch(step), mesh)
        for hook in hooks:
            if step in hook.steps:
                state = hook.run(state, batch)
        state, row = dispatch(state, source, step, step + 1)
        watched.append(jax.device_get(watch(state)))
        metrics.append(row)
    return state, watched, metrics
