"""The best architecture and formats within a budget, against brute force."""

import functools
import itertools
import zlib

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from small_supernets import perceptron_supernet, small_supernet

import fliqs_jax as fq
from fliqs_jax.controller import default
from fliqs_jax.costs import site_bops, site_size
from fliqs_jax.searchers.fliqnas import allowed_options
from fliqs_jax.searchers.in_training.controllers import recipe
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.joint.budget import best_within, joint_extremes
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.elimination import Elimination, elimination_order
from fliqs_jax.searchers.joint.space import JointSpace


@functools.cache
def problem(cost=site_bops):
    net = perceptron_supernet()
    space = fq.SearchSpace(net.sites, ["int2", "int4", "int8"])
    costs = JointCost(JointSpace(net, space), cost)
    vectors = np.array(list(itertools.product(*map(range, costs.counts))))
    return costs, vectors, np.array([costs.exact_cost(vector) for vector in vectors])


def absent_as_minus_infinity(costs, scores):
    return np.where(costs.present, scores, -np.inf)


def with_best(scores, share):
    """The problem at a share of its range of prices, and its optimum by brute force."""
    costs, vectors, prices = problem()
    scores = absent_as_minus_infinity(costs, scores)
    budget = prices.min() + share * (prices.max() - prices.min())
    totals = scores[np.arange(5), vectors].sum(axis=1)
    return costs, scores, budget, totals[prices <= budget].max()


logits = arrays(np.float64, (5, 3), elements=st.floats(-3, 3, width=32))


@given(scores=logits, share=st.floats(0.01, 1.2))
@settings(max_examples=25)
def test_choice_is_the_best_of_all_within_the_budget(scores, share):
    costs, scores, budget, best = with_best(scores, share)
    found = best_within(scores, costs, budget)
    assert costs.exact_cost(found.options) <= budget
    assert found.score == pytest.approx(best, abs=1e-5)
    assert found.bound >= best - 1e-9
    assert scores[np.arange(5), found.options].sum() == pytest.approx(found.score)


@given(scores=arrays(np.float64, (5, 3), elements=st.floats(-200, 0, width=32)),
       share=st.floats(0.01, 1.0))  # fmt: skip
@settings(max_examples=15)
def test_scores_far_apart_are_told_apart(scores, share):
    costs, scores, budget, best = with_best(scores, share)
    found = best_within(scores, costs, budget)
    # The knapsack counts in parts of the range that it gets.
    assert found.score == pytest.approx(best, abs=1e-3)


@given(scores=arrays(np.float64, 26, elements=st.floats(-1, 1)), share=st.floats(0, 1))
@settings(max_examples=6)
def test_budget_is_met_on_a_network_of_many_decisions(scores, share):
    costs = large_cost()
    rng = np.random.default_rng(zlib.crc32(scores.tobytes()))
    table = rng.choice(scores, size=costs.present.shape)
    table = absent_as_minus_infinity(costs, table)
    least, greatest = joint_extremes(costs, table)
    budget = least + share * (greatest - least)
    found = best_within(table, costs, budget, most_architectures=20)
    assert costs.exact_cost(found.options) <= budget
    assert found.score <= found.bound + 1e-9


@functools.cache
def large_cost():
    net = small_supernet("resnet_cifar")
    space = fq.SearchSpace(net.sites, ["int2", "int4", "int8"])
    return JointCost(JointSpace(net, space), site_bops)


@functools.cache
def layered():
    """Three layers under a scan, of which the last ones may be left out."""
    net = small_supernet("own")
    space = fq.SearchSpace(
        net.sites, ["int2", "int8"], groups={r".*Dense_1.*": "all seconds"}
    )
    costs = JointCost(JointSpace(net, space), site_bops)
    vectors = np.array(list(itertools.product(*map(range, costs.counts))))
    prices = np.array([costs.exact_cost(vector) for vector in vectors])
    return costs, vectors, prices, costs.space.active(vectors)


def test_decisions_about_layers_left_out_are_known():
    costs, vectors, _, active = layered()
    for number in range(len(costs.counts)):
        known = np.ones(len(vectors))
        if number in costs.effects:
            own = costs.effects[number]
            known = own.values[tuple(vectors[:, list(own.decisions)].T)]
            assert own.decisions == (0,)  # the depth alone, not the width
        np.testing.assert_array_equal(known, active[:, number])
    assert len(costs.effects) == 2  # the first halves of layers two and three
    marked = np.asarray(jax.jit(jax.vmap(costs.marked))(vectors.astype(np.int32)))
    np.testing.assert_array_equal(marked, np.where(active, vectors, -1))


def test_marginal_effects_are_those_of_the_expected_loss():
    costs, vectors, _, active = layered()
    rng = np.random.default_rng(0)
    effects = rng.normal(size=costs.present.shape) * costs.present
    chances = rng.gamma(1.0, size=costs.present.shape) * costs.present
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(costs.counts))
    losses = np.where(active, effects[rows, vectors], 0.0).sum(axis=1)
    found = costs.marginal_effects(
        jnp.asarray(chances, jnp.float32), jnp.asarray(effects, jnp.float32)
    )
    weights = chances[rows, vectors].prod(axis=1)
    means = []  # of the loss, for each depth
    for option in range(3):
        taken = vectors[:, 0] == option
        means.append(weights[taken] @ losses[taken] / weights[taken].sum())
    np.testing.assert_allclose(np.diff(found[0]), np.diff(means), rtol=1e-4)
    np.testing.assert_allclose(found[1:], effects[1:], rtol=1e-5)


def test_controller_learns_how_deep_and_in_which_formats():
    """Two more layers are worth it in int8 alone: depth and formats go together."""
    costs, vectors, prices, active = layered()
    worth = np.zeros(costs.present.shape)
    worth[0] = [0.0, 0.02, 0.04]
    own = list(costs.effects)
    worth[own] = [[-0.05, 0.15, 0.0]] * len(own)
    rows, target = np.arange(len(costs.counts)), float(np.quantile(prices, 0.5))
    phases = Phases(warmup_end=10, search_end=400, steps=400)
    controller = recipe(default, num_samples=4)(costs, target, phases)
    table = jnp.asarray(worth, jnp.float32)

    @jax.jit
    def step(state, at):
        key = jax.random.fold_in(jax.random.key(0), at)
        options = jax.vmap(costs.marked)(controller.sample(key, state))
        taken = jnp.where(options < 0, 0.0, table[rows, options])
        return controller.update(state, options, -taken.sum(axis=1), at)[0], None

    start = controller.init(allowed_options(costs))
    state, _ = jax.lax.scan(step, start, jnp.arange(400))
    totals = np.where(active, worth[rows, vectors], 0.0).sum(axis=1)
    best = totals[prices <= target].max()
    scores = np.asarray(controller.final_scores(state), np.float64)
    options = best_within(scores, costs, target).options
    (found,) = np.flatnonzero((vectors == options).all(axis=1))
    assert prices[found] <= target and totals[found] >= best - 0.02
    # The policy itself has got there, too: it is what the weights were trained for.
    assert np.asarray(state.logits)[0].argmax() == options[0] == 2


@given(seed=st.integers(0, 1000), share=st.floats(0.02, 1.0))
@settings(max_examples=10)
def test_layers_left_out_count_nothing(seed, share):
    costs, vectors, prices, active = layered()
    rng = np.random.default_rng(seed)
    scores = absent_as_minus_infinity(costs, rng.normal(size=costs.present.shape))
    budget = prices.min() + share * (prices.max() - prices.min())
    found = best_within(scores, costs, budget)
    rows = np.arange(len(costs.counts))
    totals = np.where(active, scores[rows, vectors], 0.0).sum(axis=1)
    assert found.score == pytest.approx(totals[prices <= budget].max(), abs=1e-5)
    assert costs.exact_cost(found.options) <= budget


def test_decisions_made_beforehand_are_kept():
    costs, vectors, prices = problem()
    scores = absent_as_minus_infinity(costs, np.zeros((5, 3)))
    scores[0, [0, 2]] = -np.inf  # the first layer has its middle size
    scores[:, 1] += 0.5
    within = vectors[:, 0] == 1
    budget = float(np.quantile(prices[within], 0.3))
    found = best_within(scores, costs, budget)
    assert found.options[0] == 1
    totals = scores[np.arange(5), vectors].sum(axis=1)
    assert found.score == pytest.approx(totals[within & (prices <= budget)].max())
    least, greatest = joint_extremes(costs, scores)
    assert (least, greatest) == (prices[within].min(), prices[within].max())


def test_formats_made_beforehand_are_kept():
    costs, vectors, prices = problem()
    scores = absent_as_minus_infinity(
        costs, np.random.default_rng(0).normal(size=(5, 3))
    )
    scores[2:, :2] = -np.inf  # all in int8
    within = (vectors[:, 2:] == 2).all(axis=1)
    for share in (0.0, 0.4, 0.9):
        budget = float(np.quantile(prices[within], share))
        found = best_within(scores, costs, budget)
        totals = scores[np.arange(5), vectors].sum(axis=1)
        assert found.score == pytest.approx(totals[within & (prices <= budget)].max())
        assert costs.exact_cost(found.options) <= budget


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_what_is_left_goes_to_wider_formats_of_equal_score(share):
    costs, _, prices = problem()
    scores = absent_as_minus_infinity(costs, np.zeros((5, 3)))
    scores[0, 2], scores[2:, 1:] = 0.3, 0.2  # int8 no better than int4
    budget = share * prices.max()
    found = best_within(scores, costs, budget)
    for row in range(2, 5):
        if scores[row, found.options[row]] == 0.2 and found.options[row] < 2:
            wider = found.options.copy()
            wider[row] = 2
            assert costs.exact_cost(wider) > budget
    assert costs.exact_cost(found.options) <= budget


def test_budget_out_of_reach_names_the_least_cost():
    costs, _, prices = problem(site_size)
    scores = absent_as_minus_infinity(costs, np.zeros((5, 3)))
    with pytest.raises(ValueError, match=f"least reachable cost is {prices.min()}"):
        best_within(scores, costs, prices.min() - 1)
    found = best_within(scores, costs, prices.min())
    assert costs.exact_cost(found.options) == prices.min()
    assert joint_extremes(costs, scores) == (prices.min(), prices.max())


def test_scores_of_another_shape_or_nan_are_refused():
    costs, _, _ = problem()
    with pytest.raises(ValueError, match=r"shape \[5, 3\]"):
        best_within(np.zeros((5, 2)), costs, 1e9)
    with pytest.raises(ValueError, match="NaN"):
        best_within(np.full((5, 3), np.nan), costs, 1e9)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_elimination_lists_all_sums_in_descending_order(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, 5).tolist()
    scopes = [(0, 1, 2), (3, 1), (2, 3), (4,), (0,)]
    tables = [
        (scope, rng.normal(size=[counts[d] for d in scope]).round(1))
        for scope in scopes
    ]
    vectors = np.array(list(itertools.product(*map(range, counts))))
    sums = sum(values[tuple(vectors[:, list(s)].T)] for s, values in tables)
    order = elimination_order(scopes, counts, first=[1, 4])
    assert set(order[:2]) == {1, 4}
    found = Elimination(tables, counts, order, num_first=2)
    assert found.maximum == pytest.approx(sums.max())
    at = {tuple(vector): value for vector, value in zip(vectors, sums, strict=True)}
    assert at[tuple(found.best())] == pytest.approx(sums.max())
    rows = list(found.descending())
    kept = [0, 2, 3]
    best = {}
    for vector, value in at.items():
        own = tuple(vector[d] for d in kept)
        best[own] = max(value, best.get(own, -np.inf))
    assert [value for value, _ in rows] == pytest.approx(sorted(best.values())[::-1])
    assert {tuple(vector[kept]) for _, vector in rows} == set(best)
    for value, vector in rows:
        assert at[tuple(vector)] == pytest.approx(value)


def test_decisions_that_all_meet_are_refused():
    with pytest.raises(ValueError, match="too many sites"):
        elimination_order([tuple(range(12))], [7] * 12)
