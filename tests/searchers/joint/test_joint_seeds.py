"""First candidates against brute force, and the predictors' columns by hand."""

import itertools

import numpy as np
import pytest
from small_supernets import perceptron_supernet, stack_supernet

import fliqs_jax as fq
from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.searchers.joint.seeds import (
    sensitivity_features,
    sensitivity_seeds,
    uniform_vectors,
)
from fliqs_jax.searchers.joint.space import JointSpace

FORMATS = ["int2", "int4", "int8"]
# Wider is better, the second site matters most.
TABLE = np.array([[0.5, 0.2, 0.0], [5.0, 1.0, 0.1], [0.3, 0.25, 0.0]])


@pytest.fixture(scope="module")
def space():
    net = perceptron_supernet()
    return JointSpace(net, fq.SearchSpace(net.sites, FORMATS), weight_modes=True)


def test_seeds_lose_least_within_their_budgets_at_all_sizes(space):
    count = 6
    seeds = sensitivity_seeds(space, TABLE, site_bops, count=count)
    assert seeds.shape == (count, len(space.counts))
    costs = cost_table(space.space, site_bops)
    every = [np.array(x) for x in itertools.product(range(3), repeat=3)]
    shares = []
    for number, vector in enumerate(seeds):
        parts = space.split(vector)
        assert parts.symmetric.all()
        shares.append((number + 1) * (5**0.5 - 1) / 2 % 1)
        budget = costs.minimum() + shares[-1] * (costs.maximum() - costs.minimum())
        assert costs.exact_cost(parts.options) <= budget
        least = min(
            TABLE[range(3), x].sum() for x in every if costs.exact_cost(x) <= budget
        )
        assert TABLE[range(3), parts.options].sum() == pytest.approx(least)
    assert np.diff(np.sort([0, *shares, 1])).max() < 0.3
    choices = space.split(seeds).choice
    np.testing.assert_array_equal(choices[0], space.net.smallest)
    np.testing.assert_array_equal(choices[-1], space.net.full)
    assert (np.diff(choices, axis=0) >= 0).all()
    assert sensitivity_seeds(space, TABLE, site_bops, count=0).shape[0] == 0


def test_features_are_sums_over_what_is_live():
    net = stack_supernet()
    space = JointSpace(net, fq.SearchSpace(net.sites, ["int4", "int8"]))
    names = list(space.space.decision_names)
    table = np.stack([np.arange(len(names)) + 1.0, np.zeros(len(names))], axis=1)
    vectors = np.concatenate(
        [
            uniform_vectors(space, net.full, [0, 1]),
            uniform_vectors(space, net.smallest, [0]),
        ]
    )
    live = space.active(vectors)[:, len(net.counts) :]
    sums, logarithms = sensitivity_features(space, table)(vectors).T
    assert sums[0] == table[:, 0].sum() and sums[1] == 0.0
    assert sums[2] == table[live[2], 0].sum() < sums[0]
    np.testing.assert_allclose(logarithms, [np.log10(sums[0]), -6, np.log10(sums[2])])
