"""K-means and its global optimum: scikit-learn, brute force, borders, float32."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from codebook_cases import (
    error,
    few_weights,
    least_error_of_fixed,
    least_error_of_kmeans,
    normal,
)
from hypothesis import given, settings

from fliqs_jax.quantizers.codebook import exact_kmeans, fixed, kmeans, kmeans_exact


@given(w=few_weights(8))
@settings(max_examples=15)
def test_kmeans_is_never_below_the_optimum_and_stops_at_a_local_one(w):
    result = kmeans(w, 3)
    assert error(w, result) >= least_error_of_kmeans(w, 3) - 1e-6
    values = np.asarray(result.values)
    distances = np.abs(w[:, None] - values)
    np.testing.assert_array_equal(result.indices, distances.argmin(1))
    for index, value in enumerate(values):
        members = w[np.asarray(result.indices) == index]
        if len(members):
            np.testing.assert_allclose(value, members.mean(), rtol=1e-5, atol=1e-6)


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


def test_float32_keeps_the_values_of_small_clusters():
    """A prefix sum in float32 alone would move the three middle weights' value."""
    w = np.concatenate(
        [np.full(30_000, -1.0), [0.0011, 0.0012, 0.0016], np.full(30_000, 1.0)]
    ).astype(np.float32)
    result = kmeans(w, 3, init=[-1.0, 0.1, 1.0])
    np.testing.assert_allclose(result.values, [-1.0, 0.0013, 1.0], rtol=1e-5)


def test_optimum_of_bfloat16_weights_counts_equal_ones():
    w = np.repeat(np.array([0.0, 1.0, 5.0], np.float32), [100, 1, 1])
    np.testing.assert_allclose(kmeans_exact(w, 2).values, [1 / 101, 5.0], rtol=1e-6)


DRAWS = {
    "normal": lambda random, n: random.normal(size=n),
    "repeated": lambda random, n: np.round(random.normal(size=n), 1),
    "heavy tails": lambda random, n: np.exp(3 * random.normal(size=n)),
    "groups": lambda random, n: random.choice([-1.0, 0, 5], n) + random.normal(size=n),
}


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param("normal", marks=pytest.mark.slow),
        *[x for x in DRAWS if x != "normal"],
    ],
)
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
