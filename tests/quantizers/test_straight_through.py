"""fake_quantize: scales, gradient masks, stochastic rounding, special values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers import fake_quantize

INT4, E2M1 = parse_format("int4"), parse_format("e2m1")


@functools.partial(jax.jit, static_argnames="clip_gradient")
def gradient(x, fmt, scale=None, key=None, clip_gradient=True):
    options = dict(scale=scale, key=key, clip_gradient=clip_gradient)
    return jax.grad(lambda x: fake_quantize(x, fmt, **options).sum())(jnp.asarray(x))


def test_absmax_scale_reproduces_the_authors_integer_quantizer():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    scale = np.abs(x).max() / np.float32(7)
    expected = np.clip(np.rint(x / scale), -8, 7) * scale
    np.testing.assert_allclose(fake_quantize(x, INT4), expected, rtol=1e-6)


def test_mask_is_inclusive_and_zero_outside_the_range():
    x = [-8.1, -8.0, 0.3, 7.0, 7.1]
    np.testing.assert_array_equal(
        gradient(jnp.array(x), INT4, scale=1.0), [0, 1, 1, 1, 0]
    )
    scaled = np.array(x) * 0.25
    np.testing.assert_array_equal(
        gradient(jnp.array(scaled), INT4, scale=0.25), [0, 1, 1, 1, 0]
    )


def test_unsigned_mask_blocks_negative_values():
    fmt = parse_format("uint4")
    x = [-0.1, 0.0, 15.0, 15.1]
    np.testing.assert_array_equal(gradient(jnp.array(x), fmt, scale=1.0), [0, 1, 1, 0])


def test_maskless_gradient_passes_everywhere():
    x = [-80.0, 0.3, 70.0]
    ones = np.ones(3)
    np.testing.assert_array_equal(
        gradient(jnp.array(x), INT4, scale=1.0, clip_gradient=False), ones
    )


@pytest.mark.parametrize("name", ["int2", "int3", "int7", "e2m1", "e4m3", "e3m0"])
def test_absmax_masks_no_element(name):
    x = jax.random.normal(jax.random.key(0), (64, 50)) * 0.37
    for row in x:  # the largest element may not fall out of range by one rounding
        assert gradient(row, parse_format(name)).min() == 1.0


def test_special_values_have_defined_gradients():
    x = [jnp.nan, jnp.inf, -jnp.inf, 0.0, 1e-40]
    np.testing.assert_array_equal(
        gradient(jnp.array(x), INT4, scale=1.0), [0, 0, 0, 1, 1]
    )
    np.testing.assert_array_equal(
        gradient(jnp.array(x), parse_format("fp32")), np.ones(5)
    )


def test_no_gradient_flows_to_the_scale_or_through_absmax():
    x = jnp.array([0.3, -2.0, 1.0])
    slope = jax.grad(lambda scale: fake_quantize(x, INT4, scale=scale).sum())(0.1)
    assert slope == 0.0
    np.testing.assert_array_equal(gradient(jnp.array(x), INT4), np.ones(3))


def test_forward_mode_has_the_same_derivative():
    x = jnp.array([-9.0, 0.4, 9.0])
    _, tangent = jax.jvp(
        lambda x: fake_quantize(x, INT4, scale=1.0), (x,), (jnp.full(3, 2.0),)
    )
    np.testing.assert_array_equal(tangent, [0.0, 2.0, 0.0])


def test_scale_broadcasts_per_channel():
    x = jnp.ones((2, 3)) * 0.6
    scale = jnp.array([1.0, 0.5, 0.25])
    expected = np.array([[1.0, 0.5, 0.5]] * 2)
    np.testing.assert_array_equal(fake_quantize(x, INT4, scale=scale), expected)
    rows = fake_quantize(x.T, INT4, scale=scale[:, None])
    np.testing.assert_array_equal(rows, expected.T)


@pytest.mark.parametrize("shape", [(2,), (1, 1, 3), (3, 2)])
def test_scale_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"does not broadcast to x \(2, 3\)"):
        fake_quantize(jnp.ones((2, 3)), INT4, scale=jnp.ones(shape))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match=f"scale must be positive, got {scale}"):
        fake_quantize(jnp.ones(3), INT4, scale=scale)
    with pytest.raises(ValueError, match="scale must be positive"):
        fake_quantize(jnp.ones(3), INT4, scale=np.float32(scale))


def test_negative_among_scales_is_refused():
    with pytest.raises(ValueError, match="scale must not be negative, got -1.0"):
        fake_quantize(jnp.ones(3), INT4, scale=np.array([1.0, 0.0, -1.0]))


def test_dead_channel_with_zero_scale_stays_zero():
    x = jnp.array([[0.0, 1.0]])
    y = fake_quantize(x, INT4, scale=jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("name", ["int8", "e4m3", "e2m1"])
@pytest.mark.parametrize("size", [1e-25, 3e38])
def test_extreme_magnitudes_keep_relative_accuracy(name, size):
    x = jnp.array([1.0, -0.5, 0.25]) * size
    y = fake_quantize(x, parse_format(name))
    np.testing.assert_allclose(y, x, rtol=0.76 if size > 1e38 else 0.15)
    assert np.isfinite(y).all()


def test_one_infinity_does_not_empty_the_grid():
    y = fake_quantize(jnp.array([jnp.inf, 7.0, 3.0, -jnp.inf]), INT4)
    np.testing.assert_array_equal(y, [7.0, 7.0, 3.0, -8.0])


def test_subnormals_become_zero():
    for name in ("int4", "e4m3", "bf16", "fp16"):
        y = fake_quantize(jnp.array([1e-40, 1.0]), parse_format(name))
        assert y[0] == 0.0, name


def test_wide_formats_are_casts_without_a_scale():
    x = 1e4 * jax.random.normal(jax.random.key(0), (1000,))
    expected = x.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(fake_quantize(x, parse_format("bf16")), expected)
    expected = np.clip(np.asarray(x), -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(fake_quantize(x, parse_format("fp16")), expected)


def test_bfloat16_input_is_rounded_in_float32():
    x = jax.random.normal(jax.random.key(0), (1000,)).astype(jnp.bfloat16)
    expected = fake_quantize(x.astype(jnp.float32), parse_format("int8"))
    y = fake_quantize(x, parse_format("int8"))
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("name", "value"), [("int4", 2.3), ("e4m3", 1.04), ("e4m3", 0.001)]
)
def test_stochastic_rounding_is_unbiased_between_its_neighbours(name, value):
    fmt = parse_format(name)
    count = 40_000
    key = jax.random.key(0)
    y = np.asarray(fake_quantize(jnp.full(count, value), fmt, scale=1.0, key=key))
    values = fmt.values()
    below, above = values[values <= value].max(), values[values >= value].min()
    assert set(np.unique(y)) == {below, above}
    # Five standard errors of a coin with the right bias.
    up = (value - below) / (above - below)
    tolerance = 5 * (above - below) * np.sqrt(up * (1 - up) / count)
    assert abs(y.mean() - value) < tolerance


@pytest.mark.parametrize("name", ["int8", "e4m3", "e2m1", "e5m2", "uint4"])
def test_stochastic_rounding_keeps_exact_values_and_the_mask(name):
    fmt, key = parse_format(name), jax.random.key(3)
    x = jnp.asarray(fmt.values())
    np.testing.assert_array_equal(fake_quantize(x, fmt, scale=1.0, key=key), x)
    beyond = jnp.array([2.0 * float(fmt.max_value), 0.3])
    mask = gradient(beyond, fmt, scale=1.0, key=key)
    np.testing.assert_array_equal(mask, [0.0, 1.0])
