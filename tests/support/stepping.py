"""The first steps of a search with what happens between them, as a job runs them."""

import jax

from fliqs_jax.data import batches
from fliqs_jax.train import mapping
from fliqs_jax.train.loop import Dispatcher


def run_steps(search, dataset, mesh, steps, watch, *, name="shard_map", seed=0):
    """Runs steps of 32 examples.

    Returns the last state, what `watch(state)` gave before the first step and after
    each, the metrics of each, and the dispatcher.
    """
    source = batches(dataset.train, batch_size=32, seed=seed)
    state = search.init(jax.random.key(seed), source.batch(0)["image"][:1])
    state = mapping.replicate(state, mesh)
    hooks = search.hooks(steps, lambda step: mapping.MAPPINGS[name](step, mesh))
    dispatch = Dispatcher(search.step, mesh, mapping=name)
    watched, metrics = [jax.device_get(watch(state))], []
    for step in range(steps):
        batch = mapping.shard_batch(source.batch(step), mesh)
        for hook in hooks:
            if step in hook.steps:
                state = hook.run(state, batch)
        state, row = dispatch(state, source, step, step + 1)
        watched.append(jax.device_get(watch(state)))
        metrics.append(row)
    return state, watched, metrics, dispatch
