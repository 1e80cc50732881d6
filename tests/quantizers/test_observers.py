"""Ranges against NumPy and brute force; grids by their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fliqs_jax as fq
from fliqs_jax.quantizers.observers import (
    OBSERVERS,
    ValueRange,
    affine_grid,
    kl_range,
    minmax_range,
    mse_range,
    percentile_range,
)

VALUES = arrays(
    np.float32, 16, elements=st.floats(-50, 50, width=32, allow_subnormal=False)
)
FORMATS = fq.stack_formats(["int2", "int4", "int8", "uint4", "e2m1", "e4m3", "fp32"])


@jax.jit
def quantized(x, index, symmetric):
    fmt = FORMATS[index]
    grid, scale = affine_grid(minmax_range(x, fmt, symmetric), fmt, symmetric)
    return fq.fake_quantize(x, grid, scale=scale), grid, scale


@given(x=VALUES, index=st.sampled_from([0, 1, 2, 3]))
def test_asymmetric_error_is_half_a_step_and_zero_is_exact(x, index):
    x[0] = 0.0
    y, grid, scale = quantized(x, index, False)
    assert float(y[0]) == 0.0
    span = max(x.max(), 0) - min(x.min(), 0)
    assert np.abs(np.asarray(y) - x).max() <= float(scale) * 0.5001 + 1e-6 * span
    steps = [3, 15, 255, 15][index]
    assert float(grid.max_value - grid.min_value) == steps
    if span > 1e-3:
        assert float(scale) == pytest.approx(span / steps, rel=1e-5)


@given(x=VALUES, index=st.integers(0, len(FORMATS) - 1))
def test_symmetric_grid_is_the_format_at_the_largest_magnitude(x, index):
    y, grid, _ = quantized(x, index, True)
    fmt = FORMATS[index]
    assert float(grid.max_value) == fmt.max_value
    np.testing.assert_array_equal(y, fq.fake_quantize(x, fmt))


def test_fp32_and_constant_tensors():
    x = jnp.array([0.3, -7.7, 1e-3])
    np.testing.assert_array_equal(quantized(x, 6, False)[0], x)
    for symmetric in (False, True):
        y, _, scale = quantized(jnp.zeros(3), 1, symmetric)
        assert float(scale) == 1.0 and not y.any()


def test_unsigned_and_signed_names_are_one_asymmetric_grid():
    x = jnp.array([-1.0, 0.5, 2.0])
    signed, unsigned = (quantized(x, index, False) for index in (1, 3))
    np.testing.assert_array_equal(signed[0], unsigned[0])


@given(x=VALUES, percent=st.sampled_from([75.0, 99.0, 100.0]))
def test_percentiles_are_numpys(x, percent):
    fmt = FORMATS[1]
    symmetric = percentile_range(jnp.asarray(x), fmt, True, percent=percent)
    bound = np.percentile(np.abs(x), percent)
    reach = max(float(symmetric.high), -float(symmetric.low))
    assert reach == pytest.approx(bound, rel=1e-4, abs=1e-5)
    low, high = percentile_range(jnp.asarray(x), fmt, False, percent=percent)
    want = np.percentile(x, [100 - percent, percent])
    assert float(low) == pytest.approx(min(want[0], 0), rel=1e-4, abs=1e-5)
    assert float(high) == pytest.approx(max(want[1], 0), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=OBSERVERS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_masked_zeros_change_no_range(observer, symmetric):
    rng = np.random.default_rng(0)
    live = jnp.asarray(np.maximum(rng.normal(0.3, 1, 3000), 0), jnp.float32)
    padded = jnp.concatenate([live, jnp.zeros(5000)])
    alone = observer(live, FORMATS[1], symmetric, 1.0)
    masked = observer(padded, FORMATS[1], symmetric, 3 / 8)
    np.testing.assert_allclose(masked.high, alone.high, rtol=2e-3)
    np.testing.assert_allclose(masked.low, alone.low, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_range_is_no_worse_than_any_fraction_of_the_whole(symmetric):
    x = jnp.asarray(np.random.default_rng(1).laplace(0.5, 1.0, 2000), jnp.float32)
    full = minmax_range(x, FORMATS[1], symmetric)

    def error(values):
        grid, scale = affine_grid(values, FORMATS[1], symmetric)
        return float(jnp.square(fq.fake_quantize(x, grid, scale=scale) - x).sum())

    best = error(mse_range(x, FORMATS[1], symmetric))
    fractions = np.linspace(0.1, 1.0, 25)
    every = [error(ValueRange(full.low * r, full.high * r)) for r in fractions]
    assert best <= min(every) * 1.005 and best < 0.8 * every[-1]


def kl_by_hand(x, threshold, levels):
    """Entropy calibration as in TensorRT's slides: magnitudes, `levels` values."""
    counts, edges = np.histogram(x, bins=512, range=(0, x.max()))
    centre = 0.5 * (edges[1:] + edges[:-1])
    inside = centre <= threshold
    p = counts[inside].astype(float)
    p[-1] += counts[~inside].sum()
    code = np.round(centre[inside] / (threshold / levels))
    q = np.zeros_like(p)
    for value in np.unique(code):
        members = (code == value) & (counts[inside] > 0)
        if members.any():
            q[members] = counts[inside][members].sum() / members.sum()
    p, q = (part / part.sum() + 1e-6 for part in (p, q))
    p, q = p / p.sum(), q / q.sum()
    return (p * np.log(p / q)).sum()


def test_kl_range_has_the_least_divergence():
    x = np.random.default_rng(2).exponential(1.0, 20_000).astype(np.float32)
    fmt = fq.parse_format("uint4")
    found = float(kl_range(jnp.asarray(x), fmt, True).high)
    thresholds = np.linspace(0.1, 1.0, 60) * x.max()
    every = [kl_by_hand(x, threshold, 15) for threshold in thresholds]
    assert kl_by_hand(x, found, 15) <= min(every) * 1.05 + 1e-4
    assert found < 0.9 * x.max()


def test_formats_and_modes_are_data():
    calls = []

    @jax.jit
    def run(x, index, symmetric):
        calls.append(1)
        fmt = FORMATS[index]
        return [observer(x, fmt, symmetric, 1.0) for observer in OBSERVERS.values()]

    x = jnp.linspace(-1, 2, 64)
    for index in (0, 4):
        run(x, jnp.array(index), jnp.array(bool(index)))
    assert len(calls) == 1


def test_percent_out_of_range():
    with pytest.raises(ValueError, match=r"percent must be in \(50, 100\], got 50"):
        percentile_range(jnp.ones(3), FORMATS[0], True, percent=50)
