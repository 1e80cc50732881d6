"""Switchable clip factors against brute force in float64 and known optima."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.quantizers import (
    best_clips,
    fake_quantize,
    gaussian_clip_factors,
    scale_of_bound,
)

INTEGERS = ["int2", "int3", "int4", "int5", "int6"]
FLOATS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def integer_error_on_a_normal(step: float, low: int, high: int) -> float:
    """Squared error of a clipped integer grid by integrating cell by cell."""
    codes = np.arange(low, high + 1)
    edges = np.concatenate([[-np.inf], (codes[:-1] + 0.5) * step, [np.inf]])
    lower, upper = edges[:-1], edges[1:]
    density = stats.norm.pdf(edges)
    moment = np.where(np.isfinite(edges), edges, 0.0) * density
    # Per cell: the integrals of 1, z and z**2 under the normal density.
    mass = stats.norm.cdf(upper) - stats.norm.cdf(lower)
    first = -np.diff(density)
    second = mass - np.diff(moment)
    value = codes * step
    return float((second - 2 * value * first + value**2 * mass).sum())


@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int5", "int6", "int8"])
def test_gaussian_factors_are_the_analytic_optimum_for_integers(name):
    fmt = parse_format(name)
    low, high = int(fmt.min_value), int(fmt.max_value)
    factor = float(jax.jit(gaussian_clip_factors)(stack_formats([name]))[0])
    candidates = np.linspace(0.5, 8, 1501)
    errors = [integer_error_on_a_normal(c / high, low, high) for c in candidates]
    assert abs(factor - candidates[np.argmin(errors)]) < 0.06
    own = integer_error_on_a_normal(factor / high, low, high)
    assert own <= 1.001 * min(errors)


def test_gaussian_factors_by_known_values():
    # Brute force over the signed two's complement grids, to 0.01.
    factors = jax.jit(gaussian_clip_factors)(stack_formats(INTEGERS))
    np.testing.assert_allclose(factors, [1.05, 1.81, 2.37, 2.83, 3.23], atol=0.05)


@pytest.mark.parametrize("name", FLOATS)
def test_gaussian_factors_are_the_optimum_for_floats_by_quadrature(name):
    dtype = FLOATS[name]
    largest = float(ml_dtypes.finfo(dtype).max)
    z = np.linspace(-9, 9, 20_001)
    density = stats.norm.pdf(z) * (z[1] - z[0])

    def error(clip):
        codes = np.clip(z / (clip / largest), -largest, largest).astype(dtype)
        return (density * (codes.astype(np.float64) * (clip / largest) - z) ** 2).sum()

    factor = float(jax.jit(gaussian_clip_factors)(stack_formats([name]))[0])
    least = min(error(clip) for clip in np.linspace(1.0, 8.0, 141))
    assert error(factor) <= 1.002 * least


def sample_errors(samples, clips, fmt):
    @jax.jit
    def error(clip):
        scale = scale_of_bound(clip, fmt)
        return jnp.mean((fake_quantize(samples, fmt, scale=scale) - samples) ** 2)

    return jax.lax.map(error, clips)


@pytest.mark.parametrize("distribution", ["normal", "laplace", "uniform"])
def test_best_clips_are_as_good_as_brute_force(distribution):
    names = ["int2", "int3", "int4", "int8", "uint4", "e2m1"]
    samples = getattr(jax.random, distribution)(jax.random.key(1), (2048,))
    clips = jax.jit(best_clips)(samples, stack_formats(names))
    tried = jnp.abs(samples).max() * jnp.linspace(0.03, 1.0, 150)
    for clip, name in zip(clips, names, strict=True):
        fmt = parse_format(name)
        own = sample_errors(samples, clip[None], fmt)[0]
        # The least of 150 sample means undercuts by chance (2 % scatter at 8 bits).
        assert own <= 1.06 * sample_errors(samples, tried, fmt).min(), name


def test_best_clips_of_a_normal_near_the_gaussian_factors():
    samples = jnp.asarray(stats.norm.ppf((np.arange(2048) + 0.5) / 2048), jnp.float32)
    formats = stack_formats(["int2", "int3", "int4"])
    clips = best_clips(samples, formats)
    np.testing.assert_allclose(clips, gaussian_clip_factors(formats), rtol=0.06)


def test_a_tensor_on_the_grid_is_not_clipped():
    samples = jnp.arange(-7.0, 8.0)
    np.testing.assert_array_equal(best_clips(samples, stack_formats(["int4"])), [7.0])


def test_wide_formats_get_absmax_and_zeros_get_one():
    formats = stack_formats(["bf16", "fp16", "fp32", "int4"])
    samples = jnp.array([0.5, -3.0, 1.0])
    np.testing.assert_array_equal(best_clips(samples, formats)[:3], [3.0, 3.0, 3.0])
    np.testing.assert_array_equal(best_clips(jnp.zeros(8), formats), np.ones(4))
    np.testing.assert_array_equal(best_clips(jnp.zeros(0), formats), np.ones(4))


def test_best_clips_leave_out_what_is_not_finite():
    samples = jax.random.normal(jax.random.key(0), (256,))
    dirty = jnp.concatenate([samples, jnp.array([jnp.inf, jnp.nan])])
    formats = stack_formats(["int3", "e2m1"])
    np.testing.assert_allclose(
        best_clips(dirty, formats), best_clips(samples, formats), rtol=1e-6
    )


def test_best_clips_scale_with_the_samples():
    samples, formats = (
        jax.random.normal(jax.random.key(0), (256,)),
        stack_formats([*FLOATS]),
    )
    clips = best_clips(samples, formats)
    np.testing.assert_array_equal(best_clips(samples * 8.0, formats), clips * 8.0)


def test_vmap_over_sites_equals_a_loop():
    samples = jax.random.normal(jax.random.key(0), (3, 256)) * jnp.array(
        [[1.0], [0.01], [100.0]]
    )
    formats = stack_formats([*INTEGERS, *FLOATS])
    mapped = jax.jit(jax.vmap(best_clips, in_axes=(0, None)))(samples, formats)
    for index in range(3):
        expected = jax.jit(best_clips)(samples[index], formats)
        np.testing.assert_allclose(mapped[index], expected, rtol=1e-6)


def test_single_format_is_refused():
    with pytest.raises(ValueError, match=r"one leading axis K, got \(\): use stack"):
        best_clips(jnp.ones(4), parse_format("int4"))
    with pytest.raises(ValueError, match=r"one leading axis K, got \(\): use stack"):
        gaussian_clip_factors(parse_format("int4"))


@pytest.mark.parametrize(
    "draw",
    [
        "outlier",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("normal", "laplace")),
    ],
)
def test_a_wide_format_reaches_beyond_the_samples(draw):
    rng = np.random.default_rng(1)
    x = (rng.laplace if draw == "laplace" else rng.normal)(size=400_000)
    if draw == "outlier":
        x[7] = 60.0
    x = jnp.asarray(x, jnp.float32)
    names = ["int2", "int4", "int8", "int10"]
    formats = stack_formats(names)
    samples = x[:: len(x) // 2048]
    clips = best_clips(samples, formats, absmax=jnp.abs(x).max(), size=x.size)
    alone = best_clips(samples, formats)

    def error(index, clip):
        fmt = formats[index]
        on_grid = fake_quantize(x, fmt, scale=clip / fmt.max_value)
        return float(jnp.square(on_grid - x).mean())

    for index, name in enumerate(names):
        best = min(error(index, c) for c in np.geomspace(0.5, 61.0, 80))
        assert error(index, clips[index]) <= 1.25 * best, name
    # What samples alone know of ten bits costs a multiple.
    assert error(3, alone[3]) > 1.5 * error(3, clips[3])
