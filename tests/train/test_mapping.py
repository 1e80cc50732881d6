"""One step, however it is mapped: shard_map, pmap and one device agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fliqs_jax.train import mapping


def step(state, batch):
    def loss(w):
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(state)
    gradient, value = lax.pmean((gradient, value), mapping.AXIS)
    return state - 0.1 * gradient, {"loss": value}


def a_batch(seed=0):
    x, y = np.random.default_rng(seed).normal(size=(2, 16, 3))
    return {"x": x.astype(np.float32), "y": y[:, 0].astype(np.float32)}


def by_hand(w, batch):
    residual = batch["x"] @ w - batch["y"]
    gradient = 2 * batch["x"].T @ residual / len(residual)
    return w - 0.1 * gradient, np.mean(residual**2)


@pytest.mark.parametrize("name", mapping.MAPPINGS)
def test_mapped_step_equals_the_whole_batch_by_hand(name):
    mesh = mapping.make_mesh()
    assert mesh.size == 8
    state = mapping.replicate(jnp.ones(3), mesh)
    mapped = mapping.MAPPINGS[name](step, mesh)
    state, metrics = mapped(state, mapping.shard_batch(a_batch(), mesh))
    weights, loss = by_hand(np.ones(3), a_batch())
    np.testing.assert_allclose(state, weights, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_scanned_steps_equal_single_ones():
    mesh = mapping.make_mesh()
    batches = [a_batch(seed) for seed in range(3)]
    one = mapping.shard_map_step(step, mesh)
    state = mapping.replicate(jnp.ones(3), mesh)
    for batch in batches:
        state, _ = one(state, mapping.shard_batch(batch, mesh))
    many = mapping.shard_map_step(mapping.scan_steps(step), mesh, leading=1)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    scanned, metrics = many(
        mapping.replicate(jnp.ones(3), mesh),
        mapping.shard_batch(stacked, mesh, leading=1),
    )
    np.testing.assert_allclose(scanned, state, rtol=1e-6)
    assert metrics["loss"].shape == (3,)


def test_shard_map_donates_its_state():
    mesh = mapping.make_mesh()
    state = mapping.replicate(jnp.ones(3), mesh)
    mapping.shard_map_step(step, mesh)(state, mapping.shard_batch(a_batch(), mesh))
    assert state.is_deleted()


@pytest.mark.parametrize("size", [0, 12, -8])
def test_batch_that_devices_cannot_share_is_refused_with_a_size_that_works(size):
    with pytest.raises(ValueError, match=rf"8 devices, got {size}: try (8|16)"):
        mapping.check_batch_size(size, mapping.make_mesh())
