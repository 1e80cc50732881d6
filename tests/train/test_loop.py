"""Stretches of steps between events, compilations counted, NaN named by its step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fliqs_jax.data import batches, load_dataset
from fliqs_jax.train import mapping
from fliqs_jax.train.loop import Dispatcher, TrainingDiverged, segments


def step(state, batch):
    mean = lax.pmean(jnp.mean(batch["image"].astype(jnp.float32)), mapping.AXIS)
    loss = jnp.where(state["step"] == state["bad"], jnp.nan, mean)
    return {**state, "step": state["step"] + 1}, {"loss": loss}


def start(bad=-1):
    state = {"step": jnp.int32(0), "bad": jnp.int32(bad)}
    return mapping.replicate(state, mapping.make_mesh())


@pytest.fixture(scope="module")
def source():
    return batches(load_dataset("digits").train, batch_size=16, seed=0)


def test_segments_cover_all_steps_once_and_stop_at_events():
    found = list(segments(3, 20, {0, 5, 10, 15, 20, 25}))
    assert found == [(3, 5), (5, 10), (10, 15), (15, 20)]
    assert list(segments(7, 7, {5})) == []


def test_each_step_sees_its_own_batch(source):
    dispatch = Dispatcher(step, mapping.make_mesh())
    state, metrics = dispatch(start(), source, 0, 5)
    expected = [source.batch(at)["image"].mean() for at in range(5)]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert int(state["step"]) == 5
    dispatch(state, source, 5, 9)
    assert dispatch.compile_count == 1


def test_steps_per_call_changes_nothing_but_the_calls(source):
    one = Dispatcher(step, mapping.make_mesh())(start(), source, 0, 8)
    many = Dispatcher(step, mapping.make_mesh(), steps_per_call=3)
    state, metrics = many(start(), source, 0, 8)
    np.testing.assert_array_equal(metrics["loss"], one[1]["loss"])
    assert int(state["step"]) == 8


def test_the_host_is_a_few_calls_ahead_of_the_devices_and_no_more(source, monkeypatch):
    losses = Dispatcher(step, mapping.make_mesh())(start(), source, 0, 40)[1]["loss"]
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    Dispatcher(step, mapping.make_mesh())(start(), source, 0, 40)
    seen = [float(metrics["loss"][0]) for metrics in waited]
    assert 0 < 40 - len(seen) < 32  # XLA's queue of each CPU device
    np.testing.assert_array_equal(seen, losses[: len(seen)])


def test_nan_loss_stops_and_names_its_step(source):
    with pytest.raises(TrainingDiverged, match="loss is nan at step 6"):
        Dispatcher(step, mapping.make_mesh())(start(bad=6), source, 0, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "xmap"}, "shard_map, pmap, got 'xmap'"),
        ({"steps_per_call": 0}, "at least 1, got 0"),
        ({"steps_per_call": 4, "mapping": "pmap"}, "needs mapping shard_map"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Dispatcher(step, mapping.make_mesh(), **settings)
