"""Codebooks against all assignments by brute force, scikit-learn, published formulas.

Every C step projects: its decoded tensor is the nearest of its kind.
"""

import functools
import itertools

import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers.codebook import (
    Codebook,
    binary,
    binary_scaled,
    decode_params,
    exact_kmeans,
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


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def error(w, codebook):
    decoded = np.asarray(codebook.decode(), np.float64)
    return ((np.asarray(w, np.float64) - decoded) ** 2).sum()


def few_weights(size):
    """Quarters, so that ties and equal weights are frequent, and any floats."""
    quarters = st.integers(-12, 12).map(lambda n: n / 4)
    floats = st.floats(-3, 3, width=32, allow_subnormal=False)
    return hypothesis.extra.numpy.arrays(np.float32, size, elements=quarters | floats)


def least_error_of_fixed(w, values):
    return sum(min((float(t) - float(v)) ** 2 for v in values) for t in w)


def least_error_of_scaled(w, values):
    """The best scale of every assignment there is."""
    chosen = np.array(list(itertools.product(values, repeat=len(w))), np.float64)
    product, square = chosen @ w.astype(np.float64), (chosen**2).sum(1)
    scale = np.maximum(product, 0.0) / np.where(square > 0, square, 1.0)
    return ((w - scale[:, None] * chosen) ** 2).sum(1).min()


def least_error_of_kmeans(w, k):
    """The best means of every assignment there is."""
    labels = np.array(list(itertools.product(range(k), repeat=len(w))))
    errors = np.zeros(len(labels))
    for label in range(k):
        members = labels == label
        means = members @ w.astype(np.float64) / np.maximum(members.sum(1), 1)
        errors += (members * (w - means[:, None]) ** 2).sum(1)
    return errors.min()


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


@pytest.mark.parametrize(
    "values", [(0, 1, 3), (1, 2), (-3, -1), (-1, 2), (0,), (2,), (0, 0, 1), (-4, 0, 5)]
)
@given(w=few_weights(5))
@settings(max_examples=20)
def test_scale_of_codebooks_without_symmetry_equals_brute_force(values, w):
    result = scaled(w, values)  # compiled inside, once a codebook
    least = least_error_of_scaled(w, values)
    np.testing.assert_allclose(error(w, result), least, rtol=1e-5, atol=1e-9)


@given(w=few_weights(8))
@settings(max_examples=15)
def test_kmeans_is_never_below_the_optimum_and_stops_at_a_local_one(w):
    result = compiled("kmeans")(w)
    assert error(w, result) >= least_error_of_kmeans(w, 3) - 1e-6
    values = np.asarray(result.values)
    distances = np.abs(w[:, None] - values)
    np.testing.assert_array_equal(result.indices, distances.argmin(1))
    for index, value in enumerate(values):
        members = w[np.asarray(result.indices) == index]
        if len(members):
            np.testing.assert_allclose(value, members.mean(), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(
    "k",
    [
        pytest.param(2, marks=pytest.mark.slow),
        5,
        pytest.param(16, marks=pytest.mark.slow),
    ],
)
def test_kmeans_and_its_optimum_agree_with_scikit_learn(k):
    w = normal(2000)
    reference = sklearn.cluster.KMeans(k, n_init=5, random_state=0, tol=0.0)
    inertia = reference.fit(w.astype(np.float64)[:, None]).inertia_
    # Five starts there and ten here: neither is always the better one.
    own = kmeans(w, k)
    assert error(w, own) <= 1.01 * inertia
    least = error(w, kmeans_exact(w, k))
    assert least <= min(inertia, error(w, own)) * (1 + 1e-6)
    assert least >= 0.97 * inertia
    # From scikit-learn's start the iteration is the same one.
    start = normal(k, seed=1)
    theirs = sklearn.cluster.KMeans(k, init=start[:, None], n_init=1, tol=0.0)
    theirs.fit(w.astype(np.float64)[:, None])
    ours = kmeans(w, k, init=start, max_iterations=1000)
    np.testing.assert_allclose(
        ours.values, np.sort(theirs.cluster_centers_[:, 0]), atol=1e-5
    )


@given(w=few_weights(8), start=few_weights(3))
@settings(max_examples=40)
def test_warm_start_never_raises_the_error(w, start):
    before = least_error_of_fixed(w, start)
    after = kmeans(w, 3, init=start)
    assert error(w, after) <= before * (1 + 1e-5) + 1e-9


@given(w=few_weights(8))
@settings(max_examples=30)
def test_as_many_values_as_distinct_weights_leave_no_error(w):
    for step in (kmeans, kmeans_exact):
        result = step(w, 9)
        assert result.values.shape == (9,)
        np.testing.assert_array_equal(result.decode(), w)


def test_adjacent_floats_are_told_apart():
    one = np.float32(1)
    w = np.array([one, np.nextafter(one, np.float32(2))])
    np.testing.assert_array_equal(kmeans_exact(w, 2).decode(), w)
    np.testing.assert_array_equal(kmeans(w, 2, init=w).decode(), w)
    np.testing.assert_array_equal(fixed(w, w).indices, [0, 1])


def test_empty_cluster_keeps_its_value_and_values_come_out_ascending():
    result = kmeans(jnp.array([0.0, 1.0, 9.0]), 3, init=[100.0, 9.0, 0.0])
    assert result.values.tolist() == [0.5, 9.0, 100.0]
    assert result.indices.tolist() == [0, 0, 1]


def test_one_start_is_the_one_at_quantiles():
    w = jnp.array([0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0])
    assert kmeans(w, 2, num_starts=1).values.tolist() == [1.5, 11.5]


def test_weights_midway_go_to_the_lower_value():
    w = jnp.array([-0.5, 0.5, 1.5])
    assert fixed(w, [-1.0, 0.0, 1.0, 2.0]).decode().tolist() == [-1.0, 0.0, 1.0]
    assert fixed(w, [0.5, 0.5]).decode().tolist() == [0.5, 0.5, 0.5]
    w = jnp.array([0.0, 1.0, 2.0])
    assert kmeans(w, 2, init=[0.0, 2.0]).indices.tolist() == [0, 0, 1]


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


def test_float32_keeps_the_values_of_small_clusters():
    """A prefix sum in float32 alone would move the three middle weights' value."""
    w = np.concatenate(
        [np.full(30_000, -1.0), [0.0011, 0.0012, 0.0016], np.full(30_000, 1.0)]
    ).astype(np.float32)
    result = kmeans(w, 3, init=[-1.0, 0.1, 1.0])
    np.testing.assert_allclose(result.values, [-1.0, 0.0013, 1.0], rtol=1e-5)


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


def test_optimum_of_bfloat16_weights_counts_equal_ones():
    w = np.repeat(np.array([0.0, 1.0, 5.0], np.float32), [100, 1, 1])
    np.testing.assert_allclose(kmeans_exact(w, 2).values, [1 / 101, 5.0], rtol=1e-6)


DRAWS = {
    "normal": lambda random, n: random.normal(size=n),
    "repeated": lambda random, n: np.round(random.normal(size=n), 1),
    "heavy tails": lambda random, n: np.exp(3 * random.normal(size=n)),
    "groups": lambda random, n: random.choice([-1.0, 0, 5], n) + random.normal(size=n),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_blocks_of_any_size_rule_no_best_edge_out(draw, monkeypatch):
    random = np.random.default_rng(0)
    monkeypatch.setattr(exact_kmeans, "_SMALLEST_BLOCK", 1)
    for _ in range(20):
        k = int(random.integers(2, 9))
        w = DRAWS[draw](random, int(random.integers(30, 300))).astype(np.float32)
        monkeypatch.setattr(exact_kmeans, "_BLOCKS", 10**6)  # none: all edges tried
        best = error(w, kmeans_exact(w, k))
        monkeypatch.setattr(exact_kmeans, "_BLOCKS", int(random.integers(4, 40)))
        assert error(w, kmeans_exact(w, k)) <= best * (1 + 1e-9)


@pytest.mark.slow
def test_optimum_of_the_largest_lenet_takes_seconds():
    w = normal(266_200)
    assert error(w, kmeans_exact(w, 16)) <= error(w, kmeans(w, 16))


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
