"""Contract of all codebooks: every C step projects to the nearest tensor of its kind.

Against all assignments by brute force, under transformations of the weights, under jit
and vmap.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codebook_cases import (
    error,
    few_weights,
    least_error_of_fixed,
    least_error_of_kmeans,
    least_error_of_scaled,
    normal,
)
from hypothesis import example, given, settings

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers.codebook import (
    binary,
    binary_scaled,
    fixed,
    kmeans,
    kmeans_exact,
    powers_of_two,
    scaled,
    ternary,
    ternary_scaled,
)

LOPSIDED = (-2.0, 0.5, 1.0, 4.0)


# All but kmeans_exact run under jit.
STEPS = {
    "binary": binary,
    "ternary": ternary,
    "powers of two": functools.partial(powers_of_two, c=2),
    "fixed": functools.partial(fixed, codebook=LOPSIDED),
    "fixed int4": functools.partial(fixed, codebook=parse_format("int4").values()),
    "binary scaled": binary_scaled,
    "ternary scaled": ternary_scaled,
    "scaled": functools.partial(scaled, codebook=LOPSIDED),
    "scaled e2m1": functools.partial(scaled, codebook=parse_format("e2m1").values()),
    "kmeans": functools.partial(kmeans, k=3),
    "kmeans exact": functools.partial(kmeans_exact, k=3),
}


NUM_FITTED = dict.fromkeys(STEPS, 0) | {
    "binary scaled": 1,
    "ternary scaled": 1,
    "scaled": 1,
    "scaled e2m1": 1,
    "kmeans": 3,
    "kmeans exact": 3,
}


SCALABLE = [name for name in STEPS if NUM_FITTED[name]]


SYMMETRIC = [
    "binary",
    "ternary",
    "powers of two",
    "binary scaled",
    "ternary scaled",
    "scaled e2m1",
    "kmeans exact",
]


every_step = pytest.mark.parametrize("name", STEPS)


@functools.cache
def compiled(name):
    # Those that iterate are compiled inside.
    inside = ("kmeans", "kmeans exact", "scaled", "scaled e2m1", "ternary scaled")
    return STEPS[name] if name in inside else jax.jit(STEPS[name])


BRUTE_FORCE = {
    "binary": lambda w: least_error_of_fixed(w, [-1, 1]),
    "ternary": lambda w: least_error_of_fixed(w, [-1, 0, 1]),
    "powers of two": lambda w: least_error_of_fixed(
        w, [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    ),
    "fixed": lambda w: least_error_of_fixed(w, LOPSIDED),
    "fixed int4": lambda w: least_error_of_fixed(w, range(-8, 8)),
    "binary scaled": lambda w: least_error_of_scaled(w, [-1, 1]),
    "ternary scaled": lambda w: least_error_of_scaled(w, [-1, 0, 1]),
    "scaled": lambda w: least_error_of_scaled(w, LOPSIDED),
    "kmeans exact": lambda w: least_error_of_kmeans(w, 3),
}


@pytest.mark.parametrize("name", BRUTE_FORCE)
@given(w=few_weights(5))
@example(w=np.zeros(5, np.float32))
@example(w=np.array([-1.5, -0.5, 0.5, 0.75, 0.125], np.float32))
@example(w=np.array([-0.75, -0.375, -0.125, 0.375, 1.5], np.float32))
@settings(max_examples=40)
def test_exact_steps_equal_brute_force(name, w):
    least = BRUTE_FORCE[name](w)
    own = error(w, compiled(name)(w))
    np.testing.assert_allclose(own, least, rtol=1e-5, atol=1e-9)


@every_step
@given(w=few_weights(8))
@settings(max_examples=15)
def test_result_is_a_codebook_and_projecting_again_changes_nothing(name, w):
    result = compiled(name)(w)
    values, indices = np.asarray(result.values), np.asarray(result.indices)
    assert values.dtype == np.float32 and indices.dtype == np.int32
    assert (np.diff(values) >= 0).all()
    assert indices.shape == w.shape
    assert ((indices >= 0) & (indices < len(values))).all()
    assert result.num_fitted == NUM_FITTED[name]
    decoded = np.asarray(result.decode())
    np.testing.assert_array_equal(decoded, values[indices])
    again = np.asarray(compiled(name)(decoded).decode())
    np.testing.assert_allclose(again, decoded, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", SCALABLE)
def test_scaled_and_adaptive_codebooks_follow_the_scale_of_the_weights(name):
    w = normal(64)
    decoded = np.asarray(compiled(name)(w).decode())
    for power in (2.0**-90, 0.25, 2.0**90):  # squares would leave float32's range
        scaled_up = np.asarray(compiled(name)(w * np.float32(power)).decode())
        np.testing.assert_allclose(scaled_up, decoded * power, rtol=1e-6)
    np.testing.assert_allclose(
        compiled(name)(w * np.float32(3)).decode(), 3 * decoded, rtol=1e-5
    )


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_codebooks_follow_the_sign_of_the_weights(name):
    w = normal(64)
    np.testing.assert_allclose(
        compiled(name)(-w).decode(), -compiled(name)(w).decode(), rtol=1e-5
    )


@every_step
def test_order_and_shape_of_the_weights_do_not_matter(name):
    w = normal(64)
    order = np.random.default_rng(1).permutation(64)
    decoded = np.asarray(compiled(name)(w).decode())
    permuted = np.asarray(compiled(name)(w[order]).decode())
    np.testing.assert_allclose(permuted, decoded[order], rtol=1e-6)
    folded = np.asarray(compiled(name)(w.reshape(4, 1, 16)).decode())
    np.testing.assert_allclose(folded, decoded.reshape(4, 1, 16), rtol=1e-6)


@given(w=few_weights(8))
@settings(max_examples=12)
def test_larger_families_have_smaller_errors(w):
    def optimum(k):
        return error(w, kmeans_exact(w, k))

    slack = 1e-5 * (1.0 + (w.astype(np.float64) ** 2).sum())
    chains = [
        [error(w, compiled("binary")(w)), error(w, compiled("binary scaled")(w))],
        [error(w, compiled("ternary")(w)), error(w, compiled("ternary scaled")(w))],
        [error(w, compiled("fixed")(w)), error(w, compiled("scaled")(w)), optimum(4)],
        [error(w, compiled("binary scaled")(w)), optimum(2)],
        [error(w, compiled("ternary scaled")(w)), optimum(3)],
        [error(w, compiled("kmeans")(w)), optimum(3)],
        [optimum(k) for k in range(1, 10)],
    ]
    for chain in chains:
        assert (np.diff(chain) <= slack).all(), chain


@every_step
def test_all_zero_and_empty_weights_are_defined(name):
    zeros = compiled(name)(np.zeros(64, np.float32))
    if NUM_FITTED[name]:
        np.testing.assert_array_equal(zeros.decode(), np.zeros(64))
        assert not np.signbit(zeros.values).any()
    empty = STEPS[name](jnp.zeros((0, 3)))
    assert empty.indices.shape == (0, 3) and empty.decode().shape == (0, 3)
    assert empty.values.shape == zeros.values.shape
    assert np.isfinite(empty.values).all()


@every_step
def test_weights_that_are_no_finite_floats_are_refused(name):
    with pytest.raises(ValueError, match="w must be finite, got 2 NaN .* of 3 weights"):
        STEPS[name](jnp.array([jnp.nan, 1.0, jnp.inf]))
    with pytest.raises(TypeError, match="w must be a floating-point array, got int32"):
        STEPS[name](jnp.arange(3))


@every_step
def test_bfloat16_weights_count_as_their_values(name):
    w = jnp.asarray(normal(64), jnp.bfloat16)
    result = STEPS[name](w)
    assert result.values.dtype == jnp.float32
    expected = STEPS[name](w.astype(jnp.float32))
    np.testing.assert_array_equal(result.decode(), expected.decode())


@pytest.mark.parametrize("name", [n for n in STEPS if n != "kmeans exact"])
def test_jit_and_vmap_equal_one_eager_call(name):
    w = normal(2, 64)
    mapped = jax.jit(jax.vmap(STEPS[name]))(w)
    for row in range(2):
        eager = STEPS[name](w[row])
        np.testing.assert_allclose(mapped.values[row], eager.values, rtol=1e-5)
        np.testing.assert_array_equal(mapped.indices[row], eager.indices)
