"""Recalibration gives the exact average of the batches' statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.train.batch_statistics import recalibrate


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_recalibrated_statistics_are_the_mean_over_batches(momentum):
    model = nn.BatchNorm(use_running_average=False, momentum=momentum)
    batches = np.random.default_rng(0).normal(2, 3, (5, 64, 4)).astype(np.float32)
    variables = model.init(jax.random.key(0), batches[0])

    def update(state, x):
        return model.apply({**variables, **state}, x, mutable=["batch_stats"])[1]

    state = {"batch_stats": variables["batch_stats"]}
    fresh = recalibrate(update, state, list(batches))["batch_stats"]
    np.testing.assert_allclose(fresh["mean"], batches.mean(1).mean(0), rtol=1e-3)
    np.testing.assert_allclose(fresh["var"], batches.var(1).mean(0), rtol=1e-3)


def test_spectral_norm_keeps_its_vectors_and_its_scale():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.SpectralNorm(nn.Dense(4), n_steps=20)(x, update_stats=True)
            return nn.BatchNorm(use_running_average=False)(x)

    model, batches = Model(), np.random.default_rng(0).normal(size=(3, 32, 5))
    batches = list(batches.astype(np.float32))
    variables = model.init(jax.random.key(0), batches[0])
    kernel = variables["params"]["Dense_0"]["kernel"]
    largest = np.linalg.svd(kernel)[1][0]

    @jax.jit
    def update(state, x):
        return model.apply({**variables, **state}, x, mutable=["batch_stats"])[1]

    state = {"batch_stats": variables["batch_stats"]}
    fresh = recalibrate(update, state, batches)["batch_stats"]
    sigma = fresh["SpectralNorm_0"]["Dense_0/kernel/sigma"]
    assert sigma == pytest.approx(largest, rel=1e-3)
    u = fresh["SpectralNorm_0"]["Dense_0/kernel/u"]
    assert np.linalg.norm(u) == pytest.approx(1, rel=1e-4)
    outputs = np.stack(batches) @ np.asarray(kernel) / largest
    want = outputs.var(axis=1).mean(axis=0)
    np.testing.assert_allclose(fresh["BatchNorm_0"]["var"], want, rtol=1e-3)


def test_leaves_that_no_pass_changes_keep_their_values():
    state = {"constant": jnp.array(3.0), "count": jnp.array(7), "mean": jnp.array(0.0)}

    def update(state, x):
        return {**state, "mean": 0.5 * state["mean"] + 0.5 * x}

    fresh = recalibrate(update, state, [jnp.array(2.0), jnp.array(4.0)])
    assert {name: float(leaf) for name, leaf in fresh.items()} == {
        "constant": 3.0,
        "count": 7,
        "mean": 3.0,
    }


def test_a_model_without_state_needs_no_batches():
    assert recalibrate(lambda state, x: state, {}, []) == {}


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(lambda state, x: state, {"mean": jnp.ones(())}, [])
