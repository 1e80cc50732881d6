"""Static grids of inputs, as a quantized model runs them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fliqs_jax as fq
from fliqs_jax.searchers.joint.static_calibration import (
    InputSamples,
    PtqSettings,
    static_input_formats,
)


@pytest.mark.parametrize("shift", [0.0, 1.5, -1.5, -9.0, 9.0])
def test_asymmetric_input_has_the_textbook_grid(shift):
    net = nn.Dense(6, use_bias=False)
    x = jnp.asarray(np.random.default_rng(0).normal(shift, 1, (32, 6)), jnp.float32)
    variables = {"params": {"kernel": jnp.eye(6)}}
    qm = fq.QuantizedModel(net)
    samples = InputSamples.of([qm.observe(variables, x)])
    formats = static_input_formats(
        samples, fq.stack_formats(["int5"]), PtqSettings(input_observer="minmax")
    )
    found = qm.apply(variables, x, policy=formats)
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    high = max(high, -low / 30)
    scale = (high - low) / 31
    zero = np.round(-low / scale)
    want = (np.clip(np.round(np.asarray(x) / scale) + zero, 0, 31) - zero) * scale
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert len(np.unique(found)) > 8


def test_symmetric_nonnegative_input_is_unsigned():
    values = jnp.array([[0.0, 3.0], [-1.0, 3.0]])
    samples = InputSamples(values, jnp.ones_like(values))
    found = static_input_formats(
        samples,
        fq.stack_formats(["int4", "int4"]),
        PtqSettings(input_observer="minmax", input_symmetric=True),
    )
    assert found.activation.max_value.tolist() == [15.0, 7.0]
    assert found.activation.min_value.tolist() == [0.0, -8.0]
    np.testing.assert_allclose(found.activation_clip, [3.0, 3.0])


def test_extremes_of_all_batches_are_seen():
    net = nn.Dense(2)
    variables = net.init(jax.random.key(0), jnp.ones((1, 50)))
    qm = fq.QuantizedModel(net)
    seen = [
        qm.observe(variables, jnp.ones((9, 50)).at[4, 7].set(spike), num_samples=8)
        for spike in (-6.0, 4.0)
    ]
    values = InputSamples.of(seen).values
    assert values.shape == (1, 20)
    assert (float(values.min()), float(values.max())) == (-6.0, 4.0)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("shape", ["normal", "laplace", "relu"])
def test_ranges_of_samples_are_near_those_of_all_values(bits, shape):
    rng = np.random.default_rng(3)
    x = (rng.normal if shape == "normal" else rng.laplace)(size=(64, 4096))
    x = jnp.asarray(np.maximum(x, 0) if shape == "relu" else x, jnp.float32)
    qm = fq.QuantizedModel(nn.Dense(1, use_bias=False))
    seen = qm.observe({"params": {"kernel": jnp.ones((4096, 1))}}, x)
    fmt = fq.stack_formats([f"int{bits}"])

    def error(samples):
        found = static_input_formats(samples, fmt, PtqSettings())
        grid = jax.tree.map(lambda leaf: leaf[0], found.activation)
        scale = found.activation_clip[0] / grid.max_value
        return float(jnp.square(fq.fake_quantize(x, grid, scale=scale) - x).mean())

    every = InputSamples(x.reshape(1, -1), jnp.ones((1, x.size)))
    # Were extremes to count as much as samples, some would be 0.5.
    assert error(every) >= 0.8 * error(InputSamples.of([seen]))
