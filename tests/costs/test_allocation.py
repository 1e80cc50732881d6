"""Allocation: exact against brute force and the knapsack, greedy against exact."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from priced_spaces import BOPS, OPTIONS, TABLES, make_sites

from fliqs_jax.costs import (
    allocate_exact,
    allocate_greedy,
    allocate_rows,
    cost_table,
    monotone_values,
    most_probable_within,
    site_bops,
    total_value,
)
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site

ALLOCATE = {"exact": allocate_exact, "greedy": allocate_greedy}


def instance(table, seed, share):
    """Sensitivities as measured ones are: halving with bits, and noisy."""
    random = np.random.default_rng(seed)
    space = table.space
    falling = 2.0 ** -np.arange(space.num_options)
    scale = np.exp(random.normal(size=(space.num_decisions, 1)))
    values = scale * falling + 0.02 * random.normal(size=(len(scale), len(falling)))
    return values, table.minimum() + share * (table.maximum() - table.minimum())


def brute_force(values, table, budget):
    """The least total within the budget, of all options there are."""
    shape = values.shape
    every = itertools.product(range(shape[1]), repeat=shape[0])
    return min(
        sum(values[n, option] for n, option in enumerate(options))
        for options in every
        if table.exact_cost(options) <= budget
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_exact_is_the_best_of_all_options_and_greedy_no_better(table, seed, share):
    values, budget = instance(table, seed, share)
    options = allocate_exact(values, table, budget)
    assert table.exact_cost(options) <= budget
    best = brute_force(values, table, budget)
    assert total_value(values, options) == pytest.approx(best, abs=1e-8)
    greedy = allocate_greedy(values, table, budget)
    assert table.exact_cost(greedy) <= budget
    assert total_value(values, greedy) >= best - 1e-12


@pytest.mark.parametrize("separate", [False, True], ids=["tied", "separate"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_agrees_with_the_knapsack_on_log_probabilities(separate, seed):
    sites = make_sites(10 if separate else 20, seed)
    names = [f"int{bits}" for bits in range(2, 9)]
    space = SearchSpace(sites, names, separate=separate)
    table = cost_table(space, site_bops)
    logits = np.random.default_rng(seed).normal(size=(20, 7))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    budget = 0.3 * table.reference("int8")
    options = allocate_exact(-log_probabilities, table, budget)
    knapsack = most_probable_within(log_probabilities, table, budget)
    assert table.exact_cost(options) <= budget
    # The knapsack is exact to 1e-6 nats.
    assert total_value(-log_probabilities, options) == pytest.approx(
        total_value(-log_probabilities, knapsack), abs=2e-6
    )


@pytest.mark.parametrize("allocate", ALLOCATE.values(), ids=ALLOCATE)
@pytest.mark.parametrize("name", TABLES)
def test_the_least_budget_is_met_and_less_refused(name, allocate):
    table = TABLES[name]
    values, _ = instance(table, 0, 0.0)
    options = allocate(values, table, table.minimum())
    assert table.exact_cost(options) == table.minimum()
    with pytest.raises(ValueError, match="least reachable cost is") as error:
        allocate(values, table, 0.999 * table.minimum())
    least = float(str(error.value).split("cost is ")[1].split(". ")[0])
    assert allocate(values, table, least).tolist() == options.tolist()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_a_policy_of_exactly_the_budget_is_not_lost(seed):
    # The values make one policy the best by far, and the budget is its own cost.
    random = np.random.default_rng(seed)
    wanted = random.integers(0, 4, size=4)
    values = np.ones((4, 4))
    values[np.arange(4), wanted] = 0.0
    options = allocate_exact(values, BOPS, BOPS.exact_cost(wanted))
    assert total_value(values, options) == 0.0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_the_values_changes_nothing(scale):
    values, budget = instance(BOPS, 3, 0.4)
    expected = allocate_exact(values, BOPS, budget)
    assert (allocate_exact(scale * values, BOPS, budget) == expected).all()


@pytest.mark.parametrize("allocate", ALLOCATE.values(), ids=ALLOCATE)
def test_roomy_budget_takes_the_least_of_every_row(allocate):
    values, _ = instance(BOPS, 1, 1.0)
    options = allocate(values, BOPS, 2 * BOPS.maximum())
    assert options.tolist() == values.argmin(axis=1).tolist()
    assert options.dtype == np.int32


def test_greedy_can_miss_what_the_exact_allocation_finds():
    # At most 3 units above the cheapest: greedy takes the bargain of 2 units (1.2 for
    # 2) and cannot use the third; the best is the single step of 3 units (1.5).
    sites = [
        Site(
            path=path, op="dense", weight_shape=(1, macs), macs=macs,
            weight_count=macs, input_size=1, output_size=macs,
        )
        for path, macs in (("a", 2), ("b", 3))
    ]  # fmt: skip
    table = cost_table(SearchSpace(sites, ["int2", "int3"]), lambda s, w, a: s.macs * w)
    values = [[1.2, 0.0], [1.5, 0.0]]
    assert allocate_greedy(values, table, 13).tolist() == [1, 0]
    assert allocate_exact(values, table, 13).tolist() == [0, 1]
    assert total_value(values, [1, 0]) == 1.5 and total_value(values, [0, 1]) == 1.2


@pytest.mark.parametrize("seed", range(3))
def test_the_solver_writes_nothing_to_the_terminal(seed, capfd):
    space = SearchSpace(make_sites(10, seed), OPTIONS, separate=True)
    table = cost_table(space, site_bops)
    values, budget = instance(table, seed, 0.1)
    allocate_exact(values, table, budget)
    print("still heard")
    assert capfd.readouterr().out == "still heard\n"


def test_sixty_decisions_take_seconds_and_greedy_comes_close():
    table = cost_table(SearchSpace(make_sites(60, 3), OPTIONS), site_bops)
    values, budget = instance(table, 4, 0.3)
    values = monotone_values(values, [2, 3, 4, 8])
    start = time.perf_counter()
    exact = allocate_exact(values, table, budget)
    greedy = allocate_greedy(values, table, budget)
    assert time.perf_counter() - start < 10.0
    best = total_value(values, exact)
    assert best <= total_value(values, greedy) <= best + 0.05 * abs(best)


def test_monotone_values_never_rise_with_bits_and_leave_equal_bits_alone():
    values = [[0.3, 0.5, 0.1, 0.2], [0.0, 0.4, 0.3, -0.1]]
    # e4m3 and int8 have as many bits: neither bounds the other.
    expected = [[0.3, 0.3, 0.1, 0.2], [0.0, 0.0, 0.0, -0.1]]
    assert monotone_values(values, [2, 4, 8, 8]).tolist() == expected
    with pytest.raises(ValueError, match="4 options, got"):
        monotone_values(values, [2, 4])


@pytest.mark.parametrize("allocate", ALLOCATE.values(), ids=ALLOCATE)
def test_wrong_values_are_refused(allocate):
    with pytest.raises(ValueError, match=r"shape \[4, 4\], .* got \[4, 3\]"):
        allocate(np.zeros((4, 3)), BOPS, BOPS.maximum())
    broken = np.zeros((4, 4))
    broken[2, 1] = np.inf
    with pytest.raises(ValueError, match="'Dense_2' are not finite"):
        allocate(broken, BOPS, BOPS.maximum())
    with pytest.raises(ValueError, match="budget nan"):
        allocate(np.zeros((4, 4)), BOPS, float("nan"))


@pytest.mark.parametrize("seed", range(5))
def test_plain_rows_are_allocated_as_brute_force_does(seed):
    random = np.random.default_rng(seed)
    values, costs = random.random((5, 4)), random.integers(1, 50, (5, 4))
    budget = int(costs.min(axis=1).sum() + 20)
    options = allocate_rows(values, costs, budget)
    every = np.array(list(itertools.product(range(4), repeat=5)))
    spent, total = (table[np.arange(5), every].sum(axis=1) for table in (costs, values))
    assert costs[np.arange(5), options].sum() <= budget
    least = total[spent <= budget].min()
    assert values[np.arange(5), options].sum() == pytest.approx(least, abs=1e-9)


def test_plain_rows_out_of_reach_are_refused_with_the_least_cost():
    with pytest.raises(ValueError, match="budget 3 is out of reach: .* cost is 7"):
        allocate_rows([[1, 0], [1, 0]], [[4, 8], [3, 8]], 3)
