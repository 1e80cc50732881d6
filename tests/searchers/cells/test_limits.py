"""Limits: multipliers that rise and fall, look-up graphs, and repairs that hold."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fliqs_jax.models.cells import (
    DARTS,
    NASBENCH201,
    darts_counts,
    darts_network_counts,
    nasbench201_counts,
    nasbench201_grid,
    nasbench201_network_counts,
)
from fliqs_jax.searchers.cells.limits import (
    Limit,
    MultiplierSettings,
    entropy,
    penalty,
    ratios,
    update_multipliers,
)
from fliqs_jax.searchers.cells.look_up_graph import (
    LookUpGraph,
    fit_look_up_graph,
    load_look_up_graph,
    random_look_up_graph,
)
from fliqs_jax.searchers.cells.repair import best_within, merge, repair

SMALL, LARGE = nasbench201_network_counts(), darts_network_counts()


def limit_of(counts, unit, bound, **more):
    return Limit(name=unit, bound=bound, derived=counts.cost(unit), **more)


def random_alphas(space, seed, scale=1.0):
    random = np.random.default_rng(seed)
    shape = (len(space.edges), len(space.operations))
    return {kind: scale * random.normal(size=shape) for kind in space.kinds}


# Minimise (x - 3)^2 for x <= b: x = b, and lambda x / b balances the slope 2 (3 - b).
def solve(bound, settings, steps=4000):
    def step(state, _):
        x, multipliers = state

        def lagrangian(x):
            return (x - 3.0) ** 2 + penalty(multipliers, x[None] / bound, settings)

        x = x - 0.02 * jax.grad(lagrangian)(x)
        multipliers = update_multipliers(multipliers, x[None] / bound, settings)
        return (x, multipliers), jnp.stack([x, multipliers[0]])

    start = jnp.asarray(0.0), jnp.zeros(1)
    return np.array(jax.lax.scan(step, start, length=steps)[1]).tolist()


FORMS = {
    "plain": MultiplierSettings(),
    "hinge": MultiplierSettings(hinge=True, augmentation=1.0),
    "augmented": MultiplierSettings(augmentation=5.0),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_toy_problem_ends_at_its_known_solution(form):
    ends = [solve(bound, form)[-1] for bound in (2.5, 2.0, 1.0)]
    for (x, multiplier), bound in zip(ends, (2.5, 2.0, 1.0), strict=True):
        # A hinge pushes to and fro at the bound, by a step of its slope.
        assert x == pytest.approx(bound, abs=0.1 if form.hinge else 0.02)
        if not form.hinge:
            assert multiplier == pytest.approx(2 * (3 - bound) * bound, abs=0.05)
            assert multiplier * (x / bound - 1) == pytest.approx(0.0, abs=0.02)
    xs, multipliers = zip(*ends, strict=True)
    assert list(xs) == sorted(xs, reverse=True)
    assert list(multipliers) == sorted(multipliers)


@settings(max_examples=30)
@given(multiplier=st.floats(0, 10, width=32), ratio=st.floats(0, 8, width=32))
def test_multiplier_rises_above_the_bound_falls_below_and_is_never_negative(
    multiplier, ratio
):
    (moved,) = update_multipliers(
        jnp.array([multiplier], jnp.float32), jnp.array([ratio], jnp.float32)
    ).tolist()
    expected = max(0.0, multiplier + 0.05 * (ratio - 1))
    assert moved >= 0 and moved == pytest.approx(expected, abs=1e-6)


def test_bound_that_never_binds_changes_nothing():
    free = [x for x, _ in solve(100.0, MultiplierSettings(rate=0.0), steps=50)]
    path = solve(100.0, MultiplierSettings(), steps=50)
    assert [x for x, _ in path] == free and {m for _, m in path} == {0.0}


def test_limit_that_is_to_be_used_is_met_from_below_too():
    form = MultiplierSettings(used=True, augmentation=5.0)
    # The optimum, 3, is within both: the first bound alone is not used by itself.
    for bound in (4.0, 2.0):
        x, multiplier = solve(bound, form)[-1]
        assert x == pytest.approx(bound, abs=0.02)
        assert multiplier == pytest.approx(2 * (3 - bound) * bound, abs=0.05)
    with pytest.raises(ValueError, match=r"used \(--use_limits\) needs hinge=False"):
        MultiplierSettings(used=True, hinge=True)


def test_several_limits_have_a_multiplier_each():
    limits = [limit_of(SMALL, "parameters", 2e5), limit_of(SMALL, "macs", 1e9)]
    alphas = {"cell": np.zeros((6, 5))}
    found = ratios(limits, alphas)
    expected = [(73_306 + 6 * (243_040 + 28_000) / 5) / 2e5]
    expected += [(7_783_040 + 6 * 10 * 3_932_160 / 5) / 1e9]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    multipliers = update_multipliers(jnp.array([0.0, 0.01]), found)
    assert multipliers[0] > 0 and multipliers[1] == 0
    assert ratios([], alphas).shape == (0,)


def test_entropy_is_that_of_the_rows():
    alphas = {"cell": jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))}
    expected = np.mean([np.log(2), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))])
    assert float(entropy(alphas)) == pytest.approx(expected)


@pytest.mark.parametrize("field", ["bound", "search_bound"])
def test_bounds_that_are_not_positive_are_refused(field):
    arguments = {"bound": 1.0, field: 0.0}
    with pytest.raises(ValueError, match=f"{field} of the parameters limit must be"):
        limit_of(SMALL, "parameters", **arguments)


# Every cell of NAS-Bench-201 with its score and parameters: the repairs' brute force.
CELLS = np.array(list(itertools.product(range(5), repeat=6)))
PARAMETERS = 73_306 + 243_040 * (CELLS == 3).sum(1) + 28_000 * (CELLS == 2).sum(1)


def scores_of(alphas):
    logs = np.array(alphas["cell"], np.float64)
    logs = logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return logs[np.arange(6), CELLS].sum(axis=1)


def connected():
    cells = CELLS.reshape(*[5] * 6, 6)
    return NASBENCH201.usable[tuple(np.moveaxis(cells, -1, 0))].ravel()


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), bound=st.sampled_from([8e4, 2e5, 4e5, 8e5, 2e6]))
def test_exact_repair_is_brute_force_and_greedy_is_no_better(seed, bound):
    alphas = random_alphas(NASBENCH201, seed)
    limits = [limit_of(SMALL, "parameters", bound)]
    exact = repair(NASBENCH201, alphas, limits)
    greedy = repair(NASBENCH201, alphas, limits, greedy=True)
    scores = scores_of(alphas)
    best = np.where((PARAMETERS <= bound) & connected(), scores, -np.inf).max()
    (row,) = np.flatnonzero((CELLS == exact.choice).all(axis=1))
    assert scores[row] == pytest.approx(best)
    assert exact.score_lost == pytest.approx(scores.max() - best)
    assert exact.score_lost <= greedy.score_lost + 1e-9
    for found in (exact, greedy):
        counted = nasbench201_counts(NASBENCH201.genotype(found.choice)).parameters
        assert found.costs == {"parameters": counted} and counted <= bound
        if not found.violations:
            assert (found.choice == found.derived).all()
    # Merging decisions must find what looking at all cells finds.
    room = [bound - SMALL.cost("parameters").constant]
    prices = [SMALL.cost("parameters").options(NASBENCH201)]
    merged = merge(NASBENCH201.scores(alphas), prices, room)
    (row,) = np.flatnonzero((CELLS == merged).all(axis=1))
    assert scores[row] == pytest.approx(scores[PARAMETERS <= bound].max())


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_merging_under_three_limits_is_brute_force(seed):
    random = np.random.default_rng(seed)
    sizes = (3, 4, 2, 5)
    scores = [random.normal(size=size) for size in sizes]
    prices = [
        [random.integers(0, 9, size).astype(float) for size in sizes] for _ in "abc"
    ]
    room = random.integers(4, 22, 3).astype(float)
    best, choice = -np.inf, None
    for options in itertools.product(*map(range, sizes)):
        costs = [sum(p[d][o] for d, o in enumerate(options)) for p in prices]
        score = sum(scores[d][o] for d, o in enumerate(options))
        if (np.array(costs) <= room).all() and score > best:
            best, choice = score, options
    found = merge(scores, prices, room.tolist())
    assert (found is None) == (choice is None)
    assert choice is None or tuple(found) == choice


@pytest.mark.parametrize("million", [2.0, 2.5, 3.0, 3.5])
def test_random_darts_cells_are_all_repaired_into_the_limit(million):
    limits = [limit_of(LARGE, "parameters", million * 1e6)]
    violated = 0
    for seed in range(12):
        alphas = random_alphas(DARTS, seed)
        found = repair(DARTS, alphas, limits)
        size = darts_counts(DARTS.genotype(found.choice)).parameters
        assert size <= million * 1e6 and size == found.costs["parameters"]
        violated += bool(found.violations)
        if not found.violations:
            assert (found.choice == found.derived).all() and found.score_lost == 0
    assert violated > 0


@pytest.mark.parametrize("seed", range(3))
def test_darts_repair_under_two_limits_beats_greedy(seed):
    limits = [limit_of(LARGE, "parameters", 2.2e6), limit_of(LARGE, "macs", 3.4e8)]
    alphas = random_alphas(DARTS, seed)
    exact, greedy = (repair(DARTS, alphas, limits, greedy=g) for g in (False, True))
    assert exact.violations and exact.score_lost <= greedy.score_lost
    for found in (exact, greedy):
        counted = darts_counts(DARTS.genotype(found.choice))
        assert counted.parameters <= 2.2e6 and counted.macs <= 3.4e8


def test_score_never_falls_as_the_limit_rises():
    alphas = random_alphas(DARTS, 1)
    lost = [
        repair(DARTS, alphas, [limit_of(LARGE, "parameters", bound)]).score_lost
        for bound in (1.4e6, 1.8e6, 2.2e6, 2.6e6, 3e6, 5.2e6)
    ]
    assert lost == sorted(lost, reverse=True) and lost[-1] == 0


def test_limits_below_the_smallest_network_are_refused_with_its_size():
    for space, counts, floor in ((NASBENCH201, SMALL, 73306), (DARTS, LARGE, 1370134)):
        alphas = random_alphas(space, 0)
        at_floor = repair(space, alphas, [limit_of(counts, "parameters", float(floor))])
        assert at_floor.costs["parameters"] == floor
        with pytest.raises(ValueError, match=f"the smallest cell has {floor}"):
            repair(space, alphas, [limit_of(counts, "parameters", floor - 1.0)])


def test_limits_that_exclude_each_other_are_refused_together():
    # A latency that falls where parameters rise.
    measured = nasbench201_grid(np.zeros(15_625))
    measured[tuple(CELLS.T)] = 2e6 - PARAMETERS
    latency = Limit(
        name="latency_ms",
        bound=1e6,
        derived=SMALL.cost("parameters"),
        measured=measured,
    )
    with pytest.raises(ValueError, match="no cell .* within these limits together"):
        repair(
            NASBENCH201,
            random_alphas(NASBENCH201, 0),
            [limit_of(SMALL, "parameters", 2e5), latency],
        )


def test_measured_costs_decide_and_unknown_ones_are_never_within():
    measured = nasbench201_grid(np.full(15_625, np.nan))
    known = NASBENCH201.choice(6111)
    measured[tuple(known)] = 5.0
    latency = Limit(
        name="latency_ms",
        bound=6.0,
        derived=SMALL.cost("parameters"),
        measured=measured,
    )
    for greedy in (False, True):
        found = repair(
            NASBENCH201, random_alphas(NASBENCH201, 0), [latency], greedy=greedy
        )
        assert (found.choice == known).all() and found.costs == {"latency_ms": 5.0}
        assert found.violations == ("latency_ms",)


def test_disconnected_cell_is_repaired_without_any_limit():
    alphas = {"cell": np.tile([1.0, 0, 0, 0, 0], (6, 1))}
    found = repair(NASBENCH201, alphas, [])
    assert found.violations == ("disconnected",)
    assert (found.choice > 0).sum() == 1 and found.choice[3] > 0  # input to output


def test_best_of_equal_scores_is_the_first_choice():
    flat = [np.zeros(len(decision)) for decision in DARTS.decisions]
    found = best_within(DARTS, flat, [limit_of(LARGE, "parameters", 6e6)])
    assert LARGE.cost("parameters").of(DARTS, found) == 1_370_134  # cheapest first


def measured_points(bounds, curve, spread=0.0):
    pairs = [(b, curve(b) + s * spread) for b in bounds for s in (-1, 1)]
    return (np.array(column, float) for column in zip(*pairs, strict=True))


def test_look_up_graph_is_monotone_exact_on_its_grid_and_on_the_safe_side():
    levels = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    noisy = {1: 10.0, 2: 30.0, 3: 26.0, 4: 40.0, 5: 50.0, 6: 70.0}
    graph = fit_look_up_graph(*measured_points(levels, lambda b: noisy[b], spread=1.0))
    deviation = np.sqrt(2.0)
    np.testing.assert_allclose(
        graph.derived, np.array([10, 28, 28, 40, 50, 70]) + deviation
    )
    for level, derived in zip(graph.bounds, graph.derived, strict=True):
        expected = 3.0 if level == 2.0 else level  # the largest bound of the same band
        assert graph.search_bound(derived) == pytest.approx(expected)
    limits = np.linspace(graph.derived[0], graph.derived[-1], 40)
    found = [graph.search_bound(limit) for limit in limits]
    assert found == sorted(found)
    assert graph.search_bound(34 + deviation) == pytest.approx(3.5)


@pytest.mark.parametrize("limit", [9.0, 71.0])
def test_look_up_graph_refuses_to_extrapolate(limit):
    graph = LookUpGraph(np.array([1.0, 2.0]), np.array([10.0, 70.0]))
    with pytest.raises(ValueError, match="knows derived costs of 10 to 70"):
        graph.search_bound(limit)


def test_look_up_graph_needs_six_bounds_and_two_seeds(tmp_path):
    levels = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    with pytest.raises(ValueError, match="got 5 bounds"):
        fit_look_up_graph(*measured_points(levels[:5], float))
    with pytest.raises(ValueError, match="1 seeds at"):
        fit_look_up_graph(np.array(levels), np.array(levels))
    file = tmp_path / "graph.csv"
    lines = [f"{level},{2 * level}" for level in levels for _ in range(2)]
    file.write_text("\n".join(["bound,derived", *lines]))
    assert load_look_up_graph(file).search_bound(7.0) == 3.5
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="its first line must be bound,derived"):
        load_look_up_graph(file)


def test_look_up_graph_of_one_and_the_same_network_is_nearly_the_identity():
    cost = SMALL.cost("parameters")
    graph = random_look_up_graph(NASBENCH201, cost, cost, num_bounds=8, num_seeds=16)
    assert (np.diff(graph.derived) >= 0).all()
    for limit in (5e5, 8e5):
        # On the safe side: what derives from the bound is on average within the limit.
        assert 0.4 * limit < graph.search_bound(limit) < 1.05 * limit
