"""Codebooks of given values, and those times the best scale: published formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codebook_cases import error, few_weights, least_error_of_scaled, normal
from hypothesis import given, settings

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers.codebook import (
    Codebook,
    binary,
    binary_scaled,
    decode_params,
    fixed,
    kmeans,
    kmeans_exact,
    powers_of_two,
    scaled,
    ternary,
    ternary_scaled,
)


@pytest.mark.parametrize(
    "values", [(0, 1, 3), (1, 2), (-3, -1), (-1, 2), (0,), (2,), (0, 0, 1), (-4, 0, 5)]
)
@given(w=few_weights(5))
@settings(max_examples=20)
def test_scale_of_codebooks_without_symmetry_equals_brute_force(values, w):
    result = scaled(w, values)  # compiled inside, once a codebook
    least = least_error_of_scaled(w, values)
    np.testing.assert_allclose(error(w, result), least, rtol=1e-5, atol=1e-9)


def test_zero_is_positive_for_the_binary_ones_and_halves_are_one():
    w = jnp.array([0.0, -0.0, -0.5, 0.5, 0.49])
    assert binary(w).decode().tolist() == [1.0, 1.0, -1.0, 1.0, 1.0]
    assert binary_scaled(w).indices.tolist() == [1, 1, 0, 1, 1]
    assert ternary(w).decode().tolist() == [0.0, 0.0, -1.0, 1.0, 0.0]


@pytest.mark.parametrize("c", [0, 1, 6])
def test_powers_of_two_follow_the_published_cases(c):
    """In float64 and by logarithms, at borders that both can tell."""
    edges = [2.0**-k * m for k in range(-1, c + 2) for m in (1.0, 1.25, 1.4, 1.6)]
    w = np.array([*edges, 0.9 * 2.0 ** -(c + 1), 0.0])
    expected = []
    with np.errstate(divide="ignore"):
        for f in -np.log2(w):
            if f > c + 1:
                expected.append(0.0)
            elif f <= 0:
                expected.append(1.0)
            elif f > c:
                expected.append(2.0**-c)
            else:
                expected.append(2.0 ** -np.floor(f + np.log2(1.5)))
    w = w.astype(np.float32)
    result = powers_of_two(w, c)
    assert len(result.values) == 2 * c + 3
    np.testing.assert_array_equal(result.decode(), expected)
    np.testing.assert_array_equal(powers_of_two(-w, c).decode(), -np.array(expected))


def test_scaled_binary_by_its_formula():
    w = normal(1000)
    result = binary_scaled(w)
    np.testing.assert_allclose(result.values[1], np.abs(w).mean(), rtol=1e-6)
    w = w.astype(np.float64)
    expected = (w**2).sum() - np.abs(w).sum() ** 2 / len(w)
    np.testing.assert_allclose(error(w, result), expected, rtol=1e-6)


def test_scaled_ternary_by_hand_and_as_the_general_sweep():
    # Prefix sums over roots of 5, 3, 1: 5/1, 8/1.414, 9/1.732. The second is largest.
    result = ternary_scaled(jnp.array([1.0, -5.0, 3.0]))
    assert result.values.tolist() == [-4.0, 0.0, 4.0]
    assert result.indices.tolist() == [1, 0, 2]
    w = normal(64)
    np.testing.assert_allclose(
        ternary_scaled(w).values, scaled(w, [-1, 0, 1]).values, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["uint3", "int4", "e2m1"])
def test_scaled_format_is_the_best_of_a_fine_grid_of_scales(name):
    values = parse_format(name).values().astype(np.float64)
    w = np.concatenate([normal(250), np.array([6.0])]).astype(np.float32)
    result = scaled(w, parse_format(name).values())
    scales = np.geomspace(0.001, 10.0, 20_001)
    # By squared error of rounding to the nearest, at every scale of the grid.
    least = min(
        ((np.abs(w[:, None] - a * values)).min(1) ** 2).sum() for a in scales[::10]
    )
    assert error(w, result) <= least * (1 + 1e-6)
    assert error(w, result) >= 0.99 * least
    # And its values are the format's, times one number.
    ratio = np.asarray(result.values)[values != 0] / values[values != 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_fixed_format_equals_its_rounding():
    w = 4 * normal(200)
    decoded = np.asarray(fixed(w, parse_format("int4").values()).decode())
    np.testing.assert_array_equal(decoded, np.clip(np.round(w), -8, 7))


def test_no_positive_scale_helps_weights_on_the_other_side():
    result = scaled(jnp.array([-1.0, -2.0]), [1.0, 2.0])
    assert result.values.tolist() == [0.0, 0.0]
    assert scaled(jnp.array([1.0]), [0.0]).values.tolist() == [0.0]


def test_float32_steps_agree_with_float64_formulas_on_many_weights():
    w = (normal(100_000) * 0.05 + 0.01).astype(np.float32)
    exact = w.astype(np.float64)
    scale = np.abs(exact).mean()
    np.testing.assert_allclose(binary_scaled(w).values, [-scale, scale], rtol=1e-5)
    values = np.asarray(kmeans_exact(w, 4).values, np.float64)
    result = kmeans(w, 4, init=values)
    labels = np.asarray(result.indices)
    means = np.bincount(labels, exact) / np.bincount(labels)
    np.testing.assert_allclose(result.values, means, rtol=1e-6)
    descending = np.sort(np.abs(exact))[::-1]
    sums = np.cumsum(descending)
    best = np.argmax(sums / np.sqrt(np.arange(1, len(w) + 1)))
    np.testing.assert_allclose(
        ternary_scaled(w).values[2], sums[best] / (best + 1), rtol=1e-3
    )
    expected = (exact**2).sum() - sums[best] ** 2 / (best + 1)
    np.testing.assert_allclose(error(w, ternary_scaled(w)), expected, rtol=1e-6)


def test_a_codebook_is_a_pytree_and_params_are_decoded_leaf_by_leaf():
    codebook = kmeans_exact(jnp.array([[1.0, 2.0]]), 2)
    doubled = jax.jit(lambda c: jax.tree.map(lambda x: x, c))(codebook)
    assert isinstance(doubled, Codebook) and doubled.num_fitted == 2
    params = {"Dense_0": {"kernel": codebook, "bias": jnp.ones(2)}}
    decoded = decode_params(params)
    assert decoded["Dense_0"]["kernel"].tolist() == [[1.0, 2.0]]
    assert decoded["Dense_0"]["bias"].tolist() == [1.0, 1.0]


def test_refusals_name_the_argument():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match=r"k must be at least 1 .*, got 0"):
        kmeans(w, 0)
    with pytest.raises(ValueError, match=r"k must be at least 1 .*, got 0"):
        kmeans_exact(w, 0)
    with pytest.raises(ValueError, match="num_starts must be at least 1, got 0"):
        kmeans(w, 2, num_starts=0)
    with pytest.raises(ValueError, match=r"init must have k = 2 .* got shape \(3,\)"):
        kmeans(w, 2, init=w)
    with pytest.raises(ValueError, match="init must be finite"):
        kmeans(w, 1, init=jnp.array([jnp.nan]))
    with pytest.raises(ValueError, match="c must be in 0...100 .* got -1"):
        powers_of_two(w, -1)
    for step in (fixed, scaled):
        with pytest.raises(ValueError, match=r"at least one value, got \(0,\)"):
            step(w, np.zeros(0, np.float32))
        with pytest.raises(ValueError, match="codebook must be finite"):
            step(w, np.array([1.0, np.inf]))
        with pytest.raises(TypeError, match="codebook must be known before tracing"):
            jax.jit(step)(w, w)
    with pytest.raises(TypeError, match="runs on the host, got .* use kmeans under"):
        jax.jit(functools.partial(kmeans_exact, k=2))(w)
