"""LSQ and PACT: the published gradients, by hand and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.quantizers import (
    init_lsq_step,
    learned_scale,
    lsq,
    pact,
    scale_of_bound,
)

INT3, UINT2 = parse_format("int3"), parse_format("uint2")


@jax.jit
def lsq_gradients(x, step_size, fmt, weights):
    return jax.grad(
        lambda x, step: (lsq(x, step, fmt) * weights).sum(), argnums=(0, 1)
    )(x, step_size)


def test_lsq_gradients_by_hand():
    # int3 spans -4...3; x / s = -5, -0.4, 1.3, 3.0, 9.0 with s = 0.5.
    x = jnp.array([-2.5, -0.2, 0.65, 1.5, 4.5])
    weights = jnp.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
    x_slope, step_slope = lsq_gradients(x, 0.5, INT3, weights)
    np.testing.assert_array_equal(x_slope, [0.0, 10.0, 100.0, 1000.0, 0.0])
    per_element = np.array([-4.0, 0.4, -0.3, 0.0, 3.0])
    expected = (per_element * weights).sum() / np.sqrt(5 * 3)
    np.testing.assert_allclose(step_slope, expected, rtol=1e-5)


def test_lsq_step_slope_beyond_the_range_is_the_finite_difference():
    x, epsilon = jnp.array([-7.0, 9.0]), 1.0 / 64
    for index, weights in enumerate(jnp.eye(2)):
        _, slope = lsq_gradients(x, 1.0, INT3, weights)
        difference = lsq(x, 1.0 + epsilon, INT3) - lsq(x, 1.0 - epsilon, INT3)
        expected = difference[index] / (2 * epsilon) / np.sqrt(2 * 3)
        np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_lsq_step_per_channel_counts_the_elements_of_a_channel():
    x = jax.random.normal(jax.random.key(0), (20, 3))
    weights = jax.random.normal(jax.random.key(1), (20, 3))
    steps = jnp.array([0.1, 0.3, 0.7])
    x_slope, step_slope = lsq_gradients(x, steps, INT3, weights)
    for c in range(3):
        of_x, of_step = lsq_gradients(x[:, c], steps[c], INT3, weights[:, c])
        np.testing.assert_allclose(x_slope[:, c], of_x)
        np.testing.assert_allclose(step_slope[c], of_step, rtol=1e-4)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_lsq_of_a_wide_format_is_a_cast_with_a_still_step(name):
    fmt = parse_format(name)
    x = jax.random.normal(jax.random.key(0), (64,))
    dtype = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "fp32": jnp.float32}[name]
    np.testing.assert_array_equal(lsq(x, 0.3, fmt), x.astype(dtype).astype(jnp.float32))
    x_slope, step_slope = lsq_gradients(x, 0.3, fmt, jnp.ones(64))
    np.testing.assert_array_equal(x_slope, np.ones(64))
    assert step_slope == 0.0


def test_lsq_step_learns_to_fit_the_tensor():
    x = jax.random.normal(jax.random.key(0), (512,))

    @jax.jit
    def descend(step):
        error, slope = jax.value_and_grad(
            lambda step: jnp.mean((lsq(x, step, INT3) - x) ** 2)
        )(step)
        return step - 3.0 * slope, error

    step = jnp.float32(2.0)
    _, first = descend(step)
    for _ in range(200):
        step, last = descend(step)
    # The least error of a 3 bit grid on a normal is 0.041 (step about 0.6).
    assert first > 0.2 and last < 0.045


def test_initial_step_is_the_papers_formula():
    x = jnp.array([[1.0, -4.0], [3.0, 0.0]])
    np.testing.assert_allclose(init_lsq_step(x, INT3), 2 * 2.0 / np.sqrt(3), rtol=1e-6)
    by_column = init_lsq_step(x, INT3, axis=-1)
    np.testing.assert_allclose(by_column, [[4 / np.sqrt(3)] * 2], rtol=1e-6)


def test_initial_step_of_zeros_and_wide_formats_is_one():
    assert init_lsq_step(jnp.zeros(4), INT3) == 1.0
    assert init_lsq_step(jnp.zeros(0), INT3) == 1.0
    assert init_lsq_step(jnp.ones(4), parse_format("bf16")) == 1.0


@jax.jit
def pact_gradients(x, clip, fmt, weights):
    return jax.grad(
        lambda x, clip: (pact(x, clip, fmt) * weights).sum(), argnums=(0, 1)
    )(x, clip)


def test_pact_values_and_gradients_by_hand():
    # uint2 with clip 1.5 has the values 0, 0.5, 1, 1.5.
    x = jnp.array([-1.0, 0.0, 0.6, 1.4, 1.5, 9.0])
    np.testing.assert_array_equal(pact(x, 1.5, UINT2), [0, 0, 0.5, 1.5, 1.5, 1.5])
    weights = jnp.array([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    x_slope, clip_slope = pact_gradients(x, 1.5, UINT2, weights)
    np.testing.assert_array_equal(x_slope, [0.0, 10.0, 100.0, 1e3, 0.0, 0.0])
    assert clip_slope == 1.1e5  # those at or above the clip


def test_pact_on_a_signed_format_clips_both_sides():
    x = jnp.array([-9.0, 0.4, 9.0])
    np.testing.assert_array_equal(pact(x, 3.0, INT3), [-3.0, 0.0, 3.0])
    x_slope, clip_slope = pact_gradients(x, 3.0, INT3, jnp.array([1.0, 10.0, 100.0]))
    np.testing.assert_array_equal(x_slope, [0.0, 10.0, 0.0])
    assert clip_slope == 99.0


def test_pact_clip_slope_is_the_finite_difference():
    x = jnp.array([-9.0, 9.0])
    for fmt, expected in ((UINT2, [0.0, 1.0]), (INT3, [-1.0, 1.0])):
        difference = (pact(x, 3.25, fmt) - pact(x, 2.75, fmt)) / 0.5
        np.testing.assert_allclose(difference, expected, rtol=1e-6)
        for weights, slope in zip(jnp.eye(2), expected, strict=True):
            assert pact_gradients(x, 3.0, fmt, weights)[1] == slope


def test_pact_of_wide_formats_clips_without_scaling():
    x = jnp.array([-9.0, 0.123456789, 9.0])
    np.testing.assert_array_equal(pact(x, 2.0, parse_format("fp32")), [-2, x[1], 2])
    cast = x[1].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(pact(x, 2.0, parse_format("bf16")), [-2, cast, 2])


@pytest.mark.parametrize("quantize", [lsq, pact])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_step_and_clip_must_be_positive(quantize, value):
    with pytest.raises(ValueError, match=f"must be positive, got {value}"):
        quantize(jnp.ones(3), value, INT3)


def test_gradients_follow_a_traced_format():
    x = 2.0 * jax.random.normal(jax.random.key(0), (64,))
    formats, ones = stack_formats(["int3", "uint2", "e2m1"]), jnp.ones(64)
    for gradients in (lsq_gradients, pact_gradients):
        mapped = jax.vmap(gradients, in_axes=(None, None, 0, None))(
            x, 0.7, formats, ones
        )
        for index, fmt in enumerate(formats):
            of_x, of_step = gradients(x, 0.7, fmt, ones)
            np.testing.assert_allclose(mapped[0][index], of_x)
            np.testing.assert_allclose(mapped[1][index], of_step, rtol=1e-5)


@pytest.mark.parametrize("name", ["int2", "uint3", "int7", "e2m1", "e4m3", "bf16"])
@pytest.mark.parametrize("bound", [0.3, 1.0, 7.7])
def test_learned_scale_is_the_scale_of_the_bound_and_its_slope(name, bound):
    fmt = parse_format(name)
    value, slope = jax.jit(jax.value_and_grad(learned_scale))(bound, fmt)
    assert value == scale_of_bound(bound, fmt)  # bit for bit, rounding up included
    expected = 1.0 / float(fmt.max_value) if fmt.needs_scale else 0.0
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_learned_bound_has_the_slope_of_the_step_over_the_largest_value():
    x = jax.random.normal(jax.random.key(0), (50,))
    slope = lambda learned, at: jax.grad(  # noqa: E731
        lambda v: (lsq(x, learned(v), INT3) ** 2).sum()
    )(at)
    of_step = slope(lambda step: step, 0.5)
    of_bound = slope(lambda bound: learned_scale(bound, INT3), 1.5)
    np.testing.assert_allclose(of_bound, of_step / 3.0, rtol=1e-5)
