"""Fronts by brute force, hypervolumes by hand."""

import numpy as np
import pytest

from fliqs_jax.searchers.multi_objective.pareto import (
    front,
    hypervolume,
    hypervolume_curve,
)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_front_equals_brute_force_with_ties(objectives):
    values = np.random.default_rng(0).integers(0, 6, (80, objectives)).astype(float)
    expected = [
        n
        for n, a in enumerate(values)
        if not any((b <= a).all() and (b < a).any() for b in values)
    ]
    assert front(values).tolist() == expected


@pytest.mark.parametrize(
    ("values", "reference", "expected"),
    [
        ([[1.0, 1.0]], [3.0, 2.0], 2.0),
        ([[1.0, 2.0], [2.0, 1.0]], [3.0, 3.0], 3.0),  # 2 * 1 + 1 * 1
        ([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]], [3.0, 3.0], 3.0),  # one dominated
        ([[0.0, 3.0], [4.0, 0.0]], [3.0, 3.0], 0.0),  # outside the box
        ([[0.0, 0.0, 0.0]], [1.0, 2.0, 3.0], 6.0),
        ([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [2.0, 2.0, 2.0], 6.0),  # 4 + 4 - 2
        ([[2.0], [1.0]], [5.0], 4.0),
    ],
)
def test_hypervolume_by_hand(values, reference, expected):
    assert hypervolume(values, reference) == pytest.approx(expected)
    assert hypervolume_curve(values, reference)[-1] == pytest.approx(expected)


def test_curve_is_the_hypervolume_of_every_beginning():
    values = np.random.default_rng(1).random((40, 2))
    curve = hypervolume_curve(values, [0.8, 0.9])
    for count in range(1, 41):
        direct = hypervolume(values[:count], [0.8, 0.9])
        assert curve[count - 1] == pytest.approx(direct)


def test_reference_must_fit():
    with pytest.raises(ValueError, match="reference must be one finite value"):
        hypervolume([[1.0, 2.0]], [3.0])
