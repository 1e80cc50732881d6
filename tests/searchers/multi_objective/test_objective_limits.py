"""Limits on objectives: what breaks one comes after all that keeps them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fliqs_jax.searchers.multi_objective.limits import behind, limit_array
from fliqs_jax.searchers.multi_objective.pareto import front

POINTS = st.lists(
    st.tuples(*[st.integers(-9, 9).map(float)] * 2), min_size=1, max_size=12
)


@given(POINTS, st.integers(-9, 9), st.sampled_from([np.inf, 3.0]))
def test_order_is_that_of_constrained_domination(points, first, second):
    values, limits = np.array(points), np.array([float(first), second])
    ranked = behind(values, limits, values)
    kept = (values <= limits).all(axis=1)
    np.testing.assert_array_equal(ranked[kept], values[kept])
    extent = np.ptp(values, axis=0)
    excess = np.maximum(values - limits, 0) / np.where(extent > 0, extent, 1)
    excess = excess.sum(axis=1)
    for row in np.flatnonzero(~kept):
        less = kept | (excess < excess[row] - 1e-9)
        assert (ranked[less] < ranked[row]).all()
    best = front(ranked)
    if kept.any():  # the front of those that keep them
        within = np.flatnonzero(kept)
        assert best.tolist() == within[front(values[within])].tolist()
    else:
        np.testing.assert_allclose(excess[best], excess.min())


def test_limits_are_by_names_of_objectives():
    with pytest.raises(ValueError, match=r"\(error, size\), got {'speed': 1.0}"):
        limit_array({"speed": 1.0}, ["error", "size"])
    with pytest.raises(ValueError, match="limits must be numbers"):
        limit_array({"size": float("nan")}, ["error", "size"])
