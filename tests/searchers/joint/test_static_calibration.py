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
    samples = InputSamples(jnp.array([[0.0, 3.0], [-1.0, 3.0]]))
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
