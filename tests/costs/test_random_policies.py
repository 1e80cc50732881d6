"""Random policies of equal cost: in the window, repeatable, and fair."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fliqs_jax.costs import cost_table, random_policies_of_equal_cost, site_bops
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site


def make_sites(*macs):
    sizes = dict(weight_count=8, input_size=4, output_size=2)
    return tuple(
        Site(path=f"Dense_{n}", op="dense", weight_shape=(4, 2), macs=m, **sizes)
        for n, m in enumerate(macs)
    )


SITES = make_sites(5, 3, 8, 4, 7)
TABLE = cost_table(SearchSpace(SITES, ["int2", "int3", "int4"]), site_bops)
PAIRS = cost_table(
    SearchSpace(SITES[:3], ["int2", "int4"], separate=True, pins={"Dense_1": "int8"}),
    site_bops,
)


@pytest.mark.parametrize("table", [TABLE, PAIRS], ids=["tied", "separate"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_every_policy_in_the_window_is_equally_likely(table, share):
    # Window of +-10 %: wide enough that the tilt must be evened out inside it.
    target = table.minimum() + share * (table.maximum() - table.minimum())
    space = table.space
    drawn = random_policies_of_equal_cost(
        table, target, tolerance=0.1, count=6000, seed=2
    )
    every = itertools.product(range(space.num_options), repeat=space.num_decisions)
    inside = {row for row in every if abs(table.exact_cost(row) / target - 1) <= 0.1}
    hits = {row: 0 for row in inside}
    for row in map(tuple, drawn.tolist()):
        hits[row] += 1  # KeyError: outside the window
    if len(inside) > 1:
        assert stats.chisquare(list(hits.values())).pvalue > 1e-4


def test_seed_decides():
    first, again, other = (
        random_policies_of_equal_cost(TABLE, 200, count=9, seed=seed)
        for seed in (3, 3, 4)
    )
    assert (first == again).all() and (first != other).any()
    assert first.shape == (9, 5) and first.dtype == np.int32


def test_tight_window_of_a_large_space_is_hit():
    random = np.random.default_rng(0)
    sites = make_sites(*np.exp(random.normal(15, 1, 22)).astype(int).tolist())
    space = SearchSpace(sites, ["int2", "int3", "int4", "int8"])
    table = cost_table(space, site_bops)
    target = table.reference("int3")
    drawn = random_policies_of_equal_cost(
        table, target, tolerance=0.01, count=5, seed=0
    )
    costs = np.array([table.exact_cost(row) for row in drawn])
    assert (abs(costs / target - 1) <= 0.01).all()
    assert len(np.unique(drawn, axis=0)) == 5


def test_unreachable_window_names_the_range():
    with pytest.raises(ValueError, match="run from 108 to 432"):
        random_policies_of_equal_cost(TABLE, 50, count=1, seed=0)


def test_gap_between_costs_names_the_nearest():
    table = cost_table(SearchSpace(SITES[:1], ["int2", "int4"]), site_bops)
    with pytest.raises(ValueError, match="only 0 of 1 .* nearest cost was 20"):
        random_policies_of_equal_cost(table, 40, count=1, seed=0)


@pytest.mark.parametrize("wrong", [{"count": -1}, {"tolerance": 0.0}, {"target": 0}])
def test_meaningless_arguments_are_refused(wrong):
    keywords = {"target": 200, "count": 1, "seed": 0, "tolerance": 0.1} | wrong
    with pytest.raises(ValueError, match="count must be 0 or more"):
        random_policies_of_equal_cost(TABLE, **keywords)
