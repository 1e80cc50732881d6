"""Sources of scales: absmax, percentile, least squared error, running mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.quantizers import (
    absmax,
    absmax_bound,
    fake_quantize,
    init_ema,
    mse_optimal,
    percentile,
    scale_of_bound,
    update_ema,
)

INT4 = parse_format("int4")
# Under jit: eager calls would compile every operation of the search by itself.
SOURCES = {
    "absmax": jax.jit(absmax, static_argnames="axis"),
    "percentile": jax.jit(percentile, static_argnames="axis"),
    "mse_optimal": jax.jit(mse_optimal, static_argnames="axis"),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@every_source
@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (None, ()),
        (-1, (1, 1, 5)),
        (0, (3, 1, 1)),
        ((0, -1), (3, 1, 5)),
        ((1,), (1, 4, 1)),
    ],
)
def test_axes_keep_a_scale_each_and_broadcast(source, axis, shape):
    x = normal(3, 4, 5)
    scale = source(x, INT4, axis=axis)
    assert scale.shape == shape and scale.dtype == jnp.float32
    assert fake_quantize(x, INT4, scale=scale).shape == x.shape


@every_source
def test_a_channel_scale_is_the_tensor_scale_of_the_channel(source):
    x = normal(40, 3) * jnp.array([[1.0, 10.0, 0.1]])
    scale = source(x, INT4, axis=-1)
    for channel in range(3):
        expected = source(x[:, channel], INT4)
        np.testing.assert_allclose(scale[0, channel], expected, rtol=1e-6)


@every_source
def test_scale_of_nothing_to_scale_is_one(source):
    assert source(jnp.zeros(8), INT4) == 1.0
    assert source(jnp.zeros((0, 8)), INT4) == 1.0
    assert source(jnp.full(8, jnp.nan), INT4) == 1.0
    for name in ("bf16", "fp16", "fp32"):
        assert source(normal(8), parse_format(name)) == 1.0


@every_source
def test_entries_that_are_not_finite_are_left_out(source):
    x = normal(64)
    dirty = jnp.concatenate([x, jnp.array([jnp.inf, -jnp.inf, jnp.nan])])
    np.testing.assert_allclose(source(dirty, INT4), source(x, INT4), rtol=1e-6)


@every_source
def test_format_may_be_traced_and_mapped(source):
    x, formats = normal(64), stack_formats(["int2", "int8", "e2m1", "bf16"])
    mapped = jax.jit(jax.vmap(source, in_axes=(None, 0)))(x, formats)
    expected = [source(x, fmt) for fmt in formats]
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


@every_source
def test_axis_out_of_range_is_refused(source):
    with pytest.raises(ValueError, match="axis 2 is out of range .* 2 axes"):
        source(normal(3, 4), INT4, axis=2)


@every_source
def test_integer_tensor_is_refused(source):
    with pytest.raises(TypeError, match="must be a floating-point array, got int32"):
        source(jnp.arange(4), INT4)


def test_absmax_maps_the_largest_magnitude_onto_the_largest_value():
    assert absmax(jnp.array([1.0, -3.5]), INT4) == 0.5
    assert absmax(jnp.array([1.0, -3.0]), parse_format("e2m1")) == 0.5


@pytest.mark.parametrize("name", ["int2", "int3", "int6", "int8", "e4m3", "e3m1"])
def test_scale_times_largest_value_reaches_the_bound(name):
    fmt = parse_format(name)
    bounds = np.exp(np.random.default_rng(0).uniform(-20, 20, 2000)).astype(np.float32)
    scale = np.asarray(scale_of_bound(bounds, fmt))
    reached = scale * np.float32(fmt.max_value)
    assert (reached >= bounds).all()
    np.testing.assert_allclose(reached, bounds, rtol=3e-7)


def test_scale_of_a_constant_format_under_jit_equals_eager():
    fmt, bounds = parse_format("int3"), np.linspace(0.1, 9.0, 999, dtype=np.float32)
    compiled = jax.jit(lambda bound: scale_of_bound(bound, fmt))(bounds)
    np.testing.assert_array_equal(compiled, scale_of_bound(bounds, fmt))


def test_bound_that_is_no_positive_number_gives_scale_one():
    bounds = jnp.array([0.0, -1.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(scale_of_bound(bounds, INT4), np.ones(4))


def test_percentile_agrees_with_numpy():
    x = normal(1000)
    for percent in (50, 99.0, 100):
        expected = np.percentile(np.abs(np.asarray(x)), percent) / 7
        scale = percentile(x, INT4, percent=percent)
        np.testing.assert_allclose(scale, expected, rtol=1e-5)
    for percent in (0, -1.0, 100.5):
        with pytest.raises(ValueError, match=f"percent must be .* got {percent}"):
            percentile(x, INT4, percent=percent)


@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int8", "e2m1", "e3m2"])
def test_mse_optimal_is_as_good_as_brute_force(name):
    fmt, x = parse_format(name), normal(8192)

    @jax.jit
    def error(scale):
        return jnp.mean((fake_quantize(x, fmt, scale=scale) - x) ** 2)

    bounds = jnp.abs(x).max() * jnp.linspace(0.05, 1.0, 200)
    least = jax.lax.map(error, bounds / float(fmt.max_value)).min()
    # The least of 200 sample means is below the true minimum by chance: a mean of 8192
    # squared errors scatters by one percent.
    assert error(mse_optimal(x, fmt)) <= 1.03 * least


def test_mse_optimal_never_does_worse_than_absmax():
    x = jnp.array([1.0, -1.0, 1.0, 7.0])  # exact at absmax: nothing to clip
    assert mse_optimal(x, INT4) == absmax(x, INT4)


def test_mse_optimal_needs_two_candidates():
    with pytest.raises(ValueError, match="num_candidates must be at least 2, got 1"):
        mse_optimal(normal(4), INT4, num_candidates=1)


def test_ema_is_debiased_and_holds_a_constant_exactly():
    state = init_ema()
    for _ in range(5):
        bound, state = update_ema(state, 3.3, decay=0.9)
    np.testing.assert_allclose(bound, 3.3, rtol=1e-6)


def test_ema_follows_the_weighted_mean_of_its_observations():
    observed, decay = [4.0, 1.0, 2.0], 0.5
    state = init_ema()
    for value in observed:
        bound, state = update_ema(state, value, decay=decay)
    weights = np.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(bound, weights @ observed / weights.sum(), rtol=1e-6)


def test_ema_skips_what_is_not_finite_channel_by_channel():
    state = init_ema((2,))
    bound, state = update_ema(state, jnp.array([1.0, jnp.inf]))
    np.testing.assert_allclose(bound, [1.0, 0.0], rtol=1e-6)
    bound, state = update_ema(state, jnp.array([1.0, 5.0]))
    np.testing.assert_allclose(bound, [1.0, 5.0], rtol=1e-6)
    assert scale_of_bound(bound, INT4).shape == (2,)


def test_ema_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        update_ema(init_ema(), 1.0, decay=1.0)


def test_absmax_bound_of_nothing_is_zero():
    assert absmax_bound(jnp.zeros((0,))) == 0.0
    assert absmax_bound(jnp.array([jnp.nan, -2.0, jnp.inf])) == 2.0
