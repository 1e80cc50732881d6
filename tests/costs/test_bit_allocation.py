"""Bit allocation against brute force, scipy's solvers and closed forms."""

import fractions
import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse

from fliqs_jax.costs import allocate, noise_objective, relax, relaxed_gap

METHODS = ("exact", "greedy")
# f(1), ..., f(8) as published with the method.
NOISE = [1.0, 1 / 9, 1 / 49, 1 / 225, 1 / 961, 1 / 3969, 1 / 16129, 1 / 65025]
seeds = st.integers(0, 10**6)


def instance(seed, count, *, sizes=(1, 40), decades=3.0):
    """Sensitivities over some decades, whole sizes, an average in 2…8."""
    random = np.random.default_rng(seed)
    a = 10.0 ** random.uniform(-decades / 2, decades / 2, count)
    return a, random.integers(*sizes, count, endpoint=True), random.uniform(2, 8)


def average(bits, sizes):
    """The weighted average as a fraction, of whole or float sizes."""
    sizes = [fractions.Fraction(size) for size in np.asarray(sizes).tolist()]
    return sum(n * b for n, b in zip(sizes, bits.tolist(), strict=True)) / sum(sizes)


def brute_force(a, sizes, limit, low=2, high=8):
    """The least objective of all whole bits within the limit."""
    bits = np.array(list(itertools.product(range(low, high + 1), repeat=len(a))))
    within = (bits @ sizes) / sizes.sum() <= limit
    return ((2.0 ** bits[within] - 1.0) ** -2.0 @ a).min()


# The integer problem.


@settings(max_examples=60)
@given(seed=seeds, count=st.integers(1, 5))
def test_exact_is_the_best_of_all_bits(seed, count):
    a, sizes, limit = instance(seed, count)
    bits = allocate(a, sizes, limit)
    assert average(bits, sizes) <= limit
    best = brute_force(a, sizes, limit)
    assert noise_objective(bits, a) == pytest.approx(best, rel=1e-12)
    greedy = allocate(a, sizes, limit, method="greedy")
    assert average(greedy, sizes) <= limit
    assert noise_objective(greedy, a) >= best * (1 - 1e-12)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30)
@given(seed=seeds, count=st.integers(1, 6))
def test_equal_sizes_need_no_more_than_greed(method, seed, count):
    a, _, limit = instance(seed, count)
    sizes = np.full(count, 7)
    bits = allocate(a, sizes, limit, max_bits=6, method=method)
    best = brute_force(a, sizes, limit, high=6)
    assert noise_objective(bits, a) == pytest.approx(best, rel=1e-12)


def scipy_best(a, sizes, limit):
    """The least objective by HiGHS: a binary variable for each quantizer and width."""
    widths = np.arange(2, 9)
    values = (a[:, None] * (2.0**widths - 1.0) ** -2.0).ravel()
    costs = (sizes[:, None] * widths).ravel().astype(float)
    one_each = sparse.kron(sparse.eye(len(a)), np.ones((1, 7)))
    result = optimize.milp(
        values / values.max() * 1e3,
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(costs[None] / sizes.mean(), -np.inf,
                                      limit * len(a)),
        ],
        integrality=np.ones(len(values)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )  # fmt: skip
    return values[result.x > 0.5].sum()


@pytest.mark.parametrize("seed", range(3))
def test_exact_agrees_with_an_integer_programme_of_scipy(seed):
    a, sizes, _ = instance(seed, 40, sizes=(100, 2_000_000))
    bits = allocate(a, sizes, 3.7)
    best = scipy_best(a, sizes, 3.7)
    assert noise_objective(bits, a) == pytest.approx(best, rel=1e-6)


def test_greedy_can_miss_what_exact_finds():
    # One quantizer's bit is 10 times another's; greedy buys the small one first and can
    # then not afford the large one's, which would save more in all.
    a, sizes = np.array([2.0, 10.0]), np.array([1, 10])
    assert allocate(a, sizes, 32 / 11, method="greedy").tolist() == [8, 2]
    assert allocate(a, sizes, 32 / 11).tolist() == [2, 3]
    assert noise_objective([2, 3], a) < noise_objective([8, 2], a)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(seed=seeds, whole=st.booleans())
def test_budget_is_met_and_used(method, seed, whole):
    a, sizes, limit = instance(seed, 30, sizes=(1, 5000), decades=12)
    sizes = sizes if whole else sizes * math.pi
    a[::7] = 0.0
    bits = allocate(a, sizes, limit, method=method)
    assert average(bits, sizes) <= limit
    assert (bits[a == 0] == 2).all() and (bits >= 2).all() and (bits <= 8).all()
    wanting = (a > 0) & (bits < 8)
    slack = (fractions.Fraction(limit) - average(bits, sizes)) * sum(
        fractions.Fraction(size) for size in sizes.tolist()
    )
    assert not wanting.any() or slack < sizes[wanting].min()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("limit", "sizes", "bits_in_all"),
    [
        (2.7, [1] * 10, 27),
        (2.3, [1] * 10, 23),  # the float64 2.3 is below 23/10, and 23/10 rounds to it
        (2.3, [10] * 10, 230),  # 2.3 * 100 is 229.99999999999997
        (2.3, [0.1] * 10, 2.3),
        (8 / 3, [1] * 3, 8),  # the float64 is below 8/3
        (math.nextafter(8 / 3, 0), [1] * 3, 7),
        (7 / 3, [1e-3] * 3, 7e-3),
        (4.1, [1] * 10, 41),
        (4.1 - 1e-15, [1] * 10, 40),
        (2.5, [3] * 5, 36),  # 37.5 is no multiple of 3
        (3, [2**40 + 1] * 4, 3 * (2**42 + 4)),
    ],
    ids=str,
)
def test_average_is_decided_in_exact_arithmetic(method, limit, sizes, bits_in_all):
    a = np.linspace(1.0, 1.5, len(sizes))
    bits = allocate(a, sizes, limit, method=method)
    assert float(average(bits, sizes)) <= limit
    assert np.dot(bits, sizes) == pytest.approx(bits_in_all, rel=1e-14)


@settings(max_examples=40)
@given(seed=seeds)
def test_a_budget_of_just_some_bits_average_admits_them(seed):
    # `wanted` is the optimum of its own average, as that of a Lagrangian problem is.
    a, sizes, _ = instance(seed, 12, sizes=(1, 10**6))
    gain = a[:, None] * -np.diff(NOISE[1:]) / sizes[:, None]
    wanted = 2 + (gain > np.median(gain)).sum(axis=1)
    limit = float(average(wanted, sizes))
    assert (allocate(a, sizes, limit) == wanted).all()
    assert (allocate(a, sizes / 8.0, limit) == wanted).all()
    below = allocate(a, sizes, math.nextafter(limit, 0))
    assert average(below, sizes) < average(wanted, sizes)


def test_sizes_of_more_digits_than_an_integer_has():
    a, sizes = [1.0, 1.0, 1e-6], [1.0, 1 / 3, 1e-30]
    # 4e-30 more than 4 rounds to 4.
    assert allocate(a, sizes, 4).tolist() == [4, 4, 8]
    # Just below, [4, 4] costs too much; 1/49 + 1/3969 is less than 1/225 + 1/49.
    assert allocate(a, sizes, math.nextafter(4, 0)).tolist() == [3, 6, 8]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(seed=seeds)
def test_unit_of_sensitivity_and_order_change_nothing(method, seed):
    a, sizes, limit = instance(seed, 12, sizes=(1, 10**5), decades=8)
    bits = allocate(a, sizes, limit, method=method)
    for unit in (2.0**-300, 1e-9, 1e9, 2.0**300):
        assert (allocate(unit * a, sizes, limit, method=method) == bits).all()
    order = np.random.default_rng(seed).permutation(12)
    moved = allocate(a[order], sizes[order], limit, method=method)
    assert (moved == bits[order]).all()


@pytest.mark.parametrize("method", METHODS)
def test_equal_quantizers_share_and_the_first_takes_the_rest(method):
    sizes, a = [7] * 6, [0.3] * 6
    assert allocate(a, sizes, 4, method=method).tolist() == [4] * 6
    assert allocate(a, sizes, 4 + 1 / 6, method=method).tolist() == [5, *[4] * 5]
    # In proportion to sizes too, where every size fits.
    sizes = np.array([1, 2, 3, 5])
    assert allocate(0.3 * sizes, sizes, 4, method=method).tolist() == [4] * 4


@settings(max_examples=40)
@given(seed=seeds, index=st.integers(0, 6), factor=st.floats(1, 1e3))
def test_a_more_sensitive_quantizer_never_gets_fewer_bits(seed, index, factor):
    a, sizes, limit = instance(seed, 7)
    before = allocate(a, sizes, limit)
    a[index] *= factor
    assert allocate(a, sizes, limit)[index] >= before[index]


@settings(max_examples=40)
@given(seed=seeds)
def test_whole_bits_are_no_better_than_fractional_ones(seed):
    a, sizes, limit = instance(seed, 20, sizes=(1, 10**5), decades=8)
    exact, greedy = (allocate(a, sizes, limit, method=m) for m in METHODS)
    gaps = [relaxed_gap(bits, a, sizes, limit) for bits in (exact, greedy)]
    assert -1e-9 <= gaps[0] <= gaps[1] + 1e-12


def test_gap_bounds_what_greed_loses():
    a, sizes = np.array([2.0, 10.0]), np.array([1, 10])
    greedy, exact = np.array([8, 2]), np.array([2, 3])
    lost = noise_objective(greedy, a) / noise_objective(exact, a) - 1
    assert 0 < lost <= relaxed_gap(greedy, a, sizes, 32 / 11)
    assert relaxed_gap([3, 2], [0.0, 0.0], [1, 1], 4) == 0.0


# The relaxed problem.


@settings(max_examples=60)
@given(seed=seeds, count=st.integers(1, 40))
def test_relaxed_bits_satisfy_the_optimality_conditions(seed, count):
    a, sizes, limit = instance(seed, count, sizes=(1, 10**6), decades=8)
    result = relax(a, sizes, limit)
    bits, u = result.bits, 2.0**result.bits
    # The derivative of the noise, written without the logarithms of the solver.
    slope = 2 * math.log(2) * a * u / (u - 1) ** 3 / sizes
    assert ((bits >= 2) & (bits <= 8)).all()
    free = (bits > 2) & (bits < 8)
    np.testing.assert_allclose(slope[free], result.multiplier, rtol=1e-6)
    assert (slope[bits == 2] <= result.multiplier * (1 + 1e-9)).all()
    assert (slope[bits == 8] >= result.multiplier * (1 - 1e-9)).all()
    spent = bits @ sizes / sizes.sum()
    assert spent <= limit * (1 + 1e-12)
    if free.any():
        assert spent == pytest.approx(limit, rel=1e-9)
    assert result.objective == pytest.approx((a / (u - 1) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_relaxed_optimum_is_that_of_scipy(seed):
    a, sizes, _ = instance(seed, 8, decades=1.5)
    share = sizes / sizes.sum()
    limit = 3.0 + seed
    result = optimize.minimize(
        lambda b: np.log(a @ (2.0**b - 1.0) ** -2.0),
        np.full(8, limit - 0.1),
        method="SLSQP",
        bounds=[(2, 8)] * 8,
        constraints={"type": "ineq", "fun": lambda b: limit - share @ b},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    relaxed = relax(a, sizes, limit)
    np.testing.assert_allclose(relaxed.bits, result.x, atol=1e-3)
    assert relaxed.objective == pytest.approx(math.exp(result.fun), rel=1e-6)


@settings(max_examples=30)
@given(seed=seeds)
def test_closed_form_of_high_rates_holds_above_six_bits(seed):
    a, sizes, _ = instance(seed, 10, decades=0.2, sizes=(8, 10))
    share = sizes / sizes.sum()
    ratio = np.log2(a / sizes)
    expected = 7.0 + 0.5 * (ratio - share @ ratio)
    assert expected.min() > 6
    np.testing.assert_allclose(relax(a, sizes, 7).bits, expected, atol=0.05)


@settings(max_examples=15)
@given(seed=seeds)
def test_more_budget_never_takes_bits_away(seed):
    a, sizes, _ = instance(seed, 15, sizes=(1, 10**5), decades=8)
    results = [relax(a, sizes, limit) for limit in np.linspace(2, 8, 13)]
    bits = np.stack([result.bits for result in results])
    assert (np.diff(bits, axis=0) >= -1e-9).all()
    multipliers = np.array([result.multiplier for result in results])
    assert (np.diff(multipliers) <= 0).all()


def test_multiplier_is_the_price_of_a_bit():
    a, sizes, _ = instance(5, 10)
    step = 1e-5
    below, at, above = (relax(a, sizes, 4 + shift) for shift in (-step, 0, step))
    slope = (below.objective - above.objective) / (2 * step * sizes.sum())
    assert at.multiplier == pytest.approx(slope, rel=1e-6)


def test_noise_has_the_published_values_and_is_convex():
    values = np.array([noise_objective([bits], [1.0]) for bits in range(1, 9)])
    np.testing.assert_allclose(values, NOISE, rtol=1e-15)
    gains = -np.diff(values)
    assert (gains > 0).all() and (np.diff(gains) < 0).all()
    b, h = np.linspace(1, 8, 30), 1e-4
    at = lambda x: (2.0**x - 1) ** -2.0  # noqa: E731
    u = 2.0**b
    second = 2 * math.log(2) ** 2 * u * (2 * u + 1) / (u - 1) ** 4
    differences = (at(b + h) - 2 * at(b) + at(b - h)) / h**2
    np.testing.assert_allclose(differences, second, rtol=1e-4, atol=1e-7)


# Degenerate input, and what is refused.


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_input(method):
    several = {"sizes": [1, 20, 300], "method": method}
    assert allocate([0, 0, 0], average_bits=5, **several).tolist() == [2, 2, 2]
    assert allocate([1, 2, 3], average_bits=2, **several).tolist() == [2, 2, 2]
    assert allocate([1, 2, 3], average_bits=8, **several).tolist() == [8, 8, 8]
    assert allocate([1, 2, 3], average_bits=math.inf, **several).tolist() == [8, 8, 8]
    assert allocate([1, 0, 3], average_bits=8, **several).tolist() == [8, 2, 8]
    assert allocate([1e-200], [5], 4.9, method=method).tolist() == [4]
    one = allocate([1, 2], [3, 4], 5, min_bits=5, max_bits=5, method=method)
    assert one.tolist() == [5, 5] and one.dtype == np.int64
    # Sensitivities further apart than float64 adds up.
    assert allocate([1e300, 1e-300], [1, 1], 5, method=method).tolist() == [8, 2]


def test_degenerate_input_of_the_relaxed_problem():
    everywhere = relax([1, 2, 3], [1, 20, 300], 9)
    assert everywhere.bits.tolist() == [8, 8, 8] and everywhere.multiplier == 0
    least = relax([1, 2, 3], [1, 20, 300], 2)
    assert least.bits.tolist() == [2, 2, 2] and least.multiplier > 0
    dead = relax([0, 0], [1, 2], 5)
    assert dead.bits.tolist() == [2, 2] and dead.multiplier == dead.objective == 0
    assert relax([3.0], [17], 4.25).bits[0] == pytest.approx(4.25, rel=1e-12)
    roomy = relax([1, 0], [1, 1], 5)  # what the dead one leaves is enough
    assert roomy.bits.tolist() == [8, 2] and roomy.multiplier == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"average_bits": 1.9}, "average_bits 1.9 .* least reachable average is 2"),
        ({"average_bits": math.nan}, "average_bits nan is out of reach"),
        ({"sensitivity": [1, math.nan, 1]}, r"sensitivity\[1\] must be finite .* nan"),
        ({"sensitivity": [1, 1, -2.0]}, r"sensitivity\[2\] must .* got -2.0"),
        ({"sensitivity": []}, r"at least one quantizer, got shape \[0\]"),
        ({"sizes": [1, 2]}, r"sizes must have one entry .* 3 .* got shape \[2\]"),
        ({"sizes": [0, 2, 3]}, r"sizes\[0\] must be positive and finite, got 0"),
        ({"sizes": [1, math.inf, 3]}, r"sizes\[1\] must be positive .* got inf"),
        ({"min_bits": 5, "max_bits": 4}, "got min_bits 5 and max_bits 4"),
        ({"min_bits": 0}, "1 <= min_bits .* got min_bits 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("solve", [allocate, relax])
def test_wrong_arguments_are_named(solve, changed, message):
    good = {"sensitivity": [1, 1, 1], "sizes": [1, 2, 3], "average_bits": 4}
    with pytest.raises(ValueError, match=message):
        solve(**good | changed)


def test_wrong_methods_and_allocations_are_named():
    with pytest.raises(ValueError, match="'exact' or 'greedy', got 'milp'"):
        allocate([1], [1], 4, method="milp")
    with pytest.raises(ValueError, match="average of 4.5, over the budget .* 4"):
        relaxed_gap([5, 4], [1, 1], [1, 1], 4)
    with pytest.raises(ValueError, match=r"bits\[1\] must be in 2…8, got 9"):
        relaxed_gap([2, 9], [1, 1], [1, 1], 8)
    with pytest.raises(ValueError, match="2 whole numbers"):
        relaxed_gap([2], [1, 1], [1, 1], 8)


# Speed.


def large(name):
    random = np.random.default_rng(0)
    a = 10.0 ** random.uniform(-6, 6, 1000)
    sizes = np.exp(random.uniform(math.log(100), math.log(2e6), 1000)).astype(int)
    layers = random.choice([144, 2304, 9216, 36864, 589824, 1048576], 1000)
    return {
        "far apart": (a, sizes),
        "close together": (random.lognormal(size=1000), sizes),
        "sizes of layers": (a, layers),
        "few sensitivities": (10.0 ** random.integers(-6, 6, 1000), layers),
        "in proportion": (sizes / 1.0, sizes),
        "nearly in proportion": (sizes * random.lognormal(0, 1e-6, 1000), sizes),
        "equal sizes": (a, np.full(1000, 4096)),
        "float sizes": (a, sizes * math.pi),
        "all equal": (np.ones(1000), np.ones(1000)),
    }[name]


LARGE = [
    "far apart", "close together", "sizes of layers", "few sensitivities",
    "in proportion", "nearly in proportion", "equal sizes", "float sizes", "all equal",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2.1, 3.3, 6.5])
@pytest.mark.parametrize("name", LARGE)
def test_a_thousand_quantizers_are_allocated_in_a_moment(name, limit):
    a, sizes = large(name)
    solve = {
        "relaxed": lambda: relax(a, sizes, limit),
        "exact": lambda: allocate(a, sizes, limit),
        "greedy": lambda: allocate(a, sizes, limit, method="greedy"),
    }
    seconds, found = {}, {}
    for method, run in solve.items():
        start = time.perf_counter()
        found[method] = run()
        seconds[method] = time.perf_counter() - start
    print(name, limit, {method: f"{1e3 * t:.0f} ms" for method, t in seconds.items()})
    # Some ten times what a quiet machine takes.
    assert seconds["relaxed"] < 0.5 and seconds["exact"] < 10
    exact, greedy = found["exact"], found["greedy"]
    assert float(average(exact, sizes)) <= limit
    least = found["relaxed"].objective * (1 - 1e-9)
    assert least <= noise_objective(exact, a)
    assert noise_objective(exact, a) <= noise_objective(greedy, a) * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["far apart", "sizes of layers", "in proportion"])
def test_large_instances_are_as_good_as_scipy_finds_them(name):
    a, sizes = (values[:200] for values in large(name))
    bits = allocate(a, sizes, 2.7)
    best = scipy_best(a, sizes, 2.7)
    assert noise_objective(bits, a) <= best * (1 + 1e-6)
