"""Budgets: refusals that name the cure, and the knapsack against other solvers."""

import itertools
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from priced_spaces import BOPS, SITES, TABLES, make_sites
from scipy import optimize, sparse

from fliqs_jax.costs import (
    check_feasible,
    cost_table,
    most_probable_within,
    site_bops,
)
from fliqs_jax.search_space import SearchSpace


def test_budget_out_of_reach_names_the_least_reachable_value():
    least = sum(site.macs for site in SITES) * 4
    with pytest.raises(ValueError, match=f"reachable cost is {least}, with all 4"):
        check_feasible(BOPS, least - 1)
    with pytest.raises(ValueError, match=f"the least reachable cost is {least}"):
        most_probable_within(np.zeros((4, 4), np.float32), BOPS, least - 1)
    check_feasible(BOPS, least)


def test_budget_that_does_nothing_names_the_greatest_cost():
    most = sum(site.macs for site in SITES) * 64
    with pytest.raises(ValueError, match=f"greatest reachable cost is {most}, with"):
        check_feasible(BOPS, most + 1)
    check_feasible(BOPS, most)


def test_nan_budget_is_refused():
    with pytest.raises(ValueError, match="target nan"):
        check_feasible(BOPS, float("nan"))
    with pytest.raises(ValueError, match="budget nan"):
        most_probable_within(np.zeros((4, 4), np.float32), BOPS, float("nan"))


@pytest.mark.parametrize("name", TABLES)
def test_least_cost_of_the_message_can_be_pasted_back(name):
    table = TABLES[name]
    with pytest.raises(ValueError) as error:
        check_feasible(table, 0.0)
    least = float(str(error.value).split("cost is ")[1].split(",")[0])
    check_feasible(table, least)
    shape = (table.space.num_decisions, 4)
    options = most_probable_within(np.zeros(shape, np.float32), table, least)
    assert table.exact_cost(options) <= least


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), sharpness=st.floats(0.1, 20))
def test_projection_is_the_best_of_all_options(table, seed, share, sharpness):
    space = table.space
    random = np.random.default_rng(seed)
    shape = (space.num_decisions, space.num_options)
    logits = sharpness * random.normal(size=shape)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    budget = table.minimum() + share * (table.maximum() - table.minimum())
    options = most_probable_within(log_probabilities, table, budget)
    assert table.exact_cost(options) <= budget

    every = np.array(list(itertools.product(range(shape[1]), repeat=shape[0])))
    clipped = np.maximum(log_probabilities.astype(np.float64), -40.0)
    scores = clipped[np.arange(shape[0]), every].sum(axis=1)
    affordable = np.array([table.exact_cost(row) <= budget for row in every])
    score = clipped[np.arange(shape[0]), options].sum()
    assert score >= scores[affordable].max() - 1e-6


def best_by_milp(log_probabilities, table, budget):
    """Integer programme over joint options, solved by HiGHS."""
    counts = [len(choice.costs) for choice in table.joint_choices]
    values = np.concatenate(
        [
            log_probabilities[list(choice.decisions), choice.options].sum(axis=1)
            for choice in table.joint_choices
        ]
    )
    costs = np.concatenate([choice.costs for choice in table.joint_choices]) / budget
    columns = np.arange(sum(counts))
    rows = np.repeat(np.arange(len(counts)), counts)
    one_each = sparse.csr_matrix((np.ones(len(columns)), (rows, columns)))
    result = optimize.milp(
        -values,
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(
                costs[None], -np.inf, 1 - table.exact_constant / budget
            ),
        ],
        integrality=np.ones(len(columns)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    return -result.fun


WIDE = [f"int{bits}" for bits in range(2, 17)] + "e2m1 e3m1 e2m2 e3m2 bf16 fp32".split()
WIDE += "e4m3 e5m2 e3m3 e4m2 e2m3 e5m1 e2m5 e4m4 e5m5 e3m8 fp16".split()


@pytest.mark.parametrize("separate", [False, True], ids=["tied", "separate"])
def test_sixty_decisions_of_32_options_agree_with_an_integer_programme(separate):
    assert len(WIDE) == 32
    sites = make_sites(30 if separate else 60, seed=3)
    table = cost_table(SearchSpace(sites, WIDE, separate=separate), site_bops)
    logits = np.random.default_rng(4).normal(size=(60, 32))
    log_probabilities = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
    budget = 0.5 * table.reference("int8")
    start = time.perf_counter()
    options = most_probable_within(log_probabilities, table, budget)
    assert time.perf_counter() - start < 2.0
    assert table.exact_cost(options) <= budget
    score = log_probabilities[np.arange(60), options].sum()
    # The solver's own tolerances are about 1e-6.
    assert score == pytest.approx(
        best_by_milp(log_probabilities, table, budget), abs=1e-5
    )


def test_log_probabilities_proportional_to_costs_end_soon_and_close_to_the_budget():
    # Every sum of costs is undominated here: an exact enumeration would never end.
    table = cost_table(SearchSpace(make_sites(60), WIDE[:8]), site_bops)
    log_probabilities = 20.0 * table.table / table.table.max()
    log_probabilities -= log_probabilities.max(axis=1, keepdims=True)
    budget = 0.3 * table.maximum()
    start = time.perf_counter()
    options = most_probable_within(log_probabilities, table, budget)
    assert time.perf_counter() - start < 10.0
    assert 0.99999 * budget < table.exact_cost(options) <= budget


def test_roomy_budget_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    options = most_probable_within(logits, BOPS, 2 * BOPS.maximum())
    assert options.tolist() == logits.argmax(axis=1).tolist()
    assert options.dtype == np.int32


def test_equally_probable_options_spend_the_budget_from_the_first_decision():
    uniform = np.full((4, 4), np.log(0.25), np.float32)
    macs = [site.macs for site in SITES]
    budget = 64 * macs[0] + 16 * macs[1] + 4 * (macs[2] + macs[3])
    options = most_probable_within(uniform, BOPS, budget)
    assert options.tolist() == [3, 2, 0, 0]
    assert (most_probable_within(uniform, BOPS, budget) == options).all()


def test_impossible_options_are_taken_only_where_the_budget_forces_them():
    log_probabilities = np.full((4, 4), -np.inf, np.float32)
    log_probabilities[:, 3] = 0.0
    dear = 64 * (sum(site.macs for site in SITES) - SITES[2].macs)
    budget = dear + 63 * SITES[2].macs
    options = most_probable_within(log_probabilities, BOPS, budget)
    assert (options == 3).sum() == 3 and BOPS.exact_cost(options) <= budget


def test_wrong_log_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"shape \[4, 4\], .* got \[4, 3\]"):
        most_probable_within(np.zeros((4, 3), np.float32), BOPS, BOPS.maximum())
    broken = np.zeros((4, 4), np.float32)
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN for decision 'Dense_2'"):
        most_probable_within(broken, BOPS, BOPS.maximum())
