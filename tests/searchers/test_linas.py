"""LINAS and its rivals: brute-force fronts, resuming, duplicates, real tables."""

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
from nasbench201_problem import COUNTS, read_cells

from fliqs_jax.searchers import linas

METHODS = {
    "linas": functools.partial(linas.search, inner_evaluations=400),
    "nsga2": linas.nsga2,
    "random": linas.random_search,
}
NAMES = ["error", "cost"]
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

GAIN = np.random.default_rng(5).exponential(size=20)
PRICE = np.random.default_rng(6).exponential(size=20)


def evaluate(vectors):
    """Two objectives in conflict, with interactions.

    Sums, not matrix products, whose last bit depends on the number of rows.
    """
    width = vectors.shape[1]
    quality = (np.sqrt(vectors) * GAIN[:width]).sum(axis=1)
    quality = quality + 0.1 * vectors[:, 0] * vectors[:, 1]
    return np.stack([-quality, (vectors * PRICE[:width]).sum(axis=1)], axis=1)


def brute_force_front(vectors):
    """The values on the front of all vectors, by the definition."""
    values = evaluate(vectors)
    return {
        tuple(a)
        for a in values
        if not any((b <= a).all() and (b < a).any() for b in values)
    }


@every_method
def test_whole_small_space_gives_the_brute_force_front_and_ends_early(method):
    space, said = [3, 2, 2], []
    result = method(
        space, evaluate, NAMES, evaluations=50, population=5, say=said.append
    )
    everything = np.array(list(itertools.product(*map(range, space))))
    assert result.exhausted and len(result.vectors) == 12
    assert said == [
        "the space has no further vectors: ended after 12 of 50 evaluations"
    ]
    found = set(map(tuple, result.values[result.front]))
    assert found == brute_force_front(everything)


@every_method
def test_no_vector_is_evaluated_twice_and_values_belong_to_their_vectors(method):
    seen = []

    def counting(vectors):
        seen.extend(map(tuple, vectors.tolist()))
        return evaluate(vectors)

    result = method([3] * 20, counting, NAMES, evaluations=50, population=12, seed=3)
    assert len(set(seen)) == len(seen) == 50
    assert seen == list(map(tuple, result.vectors.tolist()))
    np.testing.assert_array_equal(result.values, evaluate(result.vectors))


@every_method
@pytest.mark.parametrize("stop", [24, 29])  # after a generation, within one
def test_resumed_equals_uninterrupted(method, stop, tmp_path):
    job = dict(population=12, seed=7, say=[].append)
    whole = method([3] * 20, evaluate, NAMES, evaluations=42, **job)
    log = tmp_path / "runs" / "log.csv"
    method([3] * 20, evaluate, NAMES, evaluations=stop, log=log, **job)
    late = []

    def counting(vectors):
        late.extend(vectors.tolist())
        return evaluate(vectors)

    again = method([3] * 20, counting, NAMES, evaluations=42, log=log, **job)
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    np.testing.assert_array_equal(again.values, whole.values)
    assert late == whole.vectors[stop:].tolist()


def test_seed_decides_and_first_generations_are_the_random_ones():
    first = [
        method([3] * 20, evaluate, NAMES, evaluations=10, population=10, seed=seed)
        for seed in (0, 1)
        for method in METHODS.values()
    ]
    for other in (1, 2):
        np.testing.assert_array_equal(first[0].vectors, first[other].vectors)
    assert (first[0].vectors != first[3].vectors).any()


@every_method
def test_dead_decisions_are_zero_and_their_duplicates_recognised(method):
    def active(vectors):  # the first decision switches the other two off
        return np.c_[np.ones(len(vectors)), np.repeat(vectors[:, :1], 2, axis=1)] > 0

    result = method(
        [2, 4, 4], evaluate, NAMES, evaluations=32, population=4, active=active
    )
    assert result.exhausted and len(result.vectors) == 1 + 16
    assert not result.vectors[result.vectors[:, 0] == 0].any()


@pytest.mark.parametrize(
    "method", [pytest.param("linas", marks=pytest.mark.slow), "nsga2"]
)
def test_search_keeps_to_limits_and_finds_cheaper_points_within_them(method):
    """The mean over seeds of the least cost at a quality, with a limit and without."""
    limit, least, within = -16.0, {}, {}
    for limits in ({}, {"error": limit}):
        runs = [
            METHODS[method](
                [3] * 20,
                evaluate,
                NAMES,
                evaluations=96,
                population=12,
                seed=seed,
                limits=limits,
            )
            for seed in range(5)
        ]
        values = np.stack([run.values for run in runs])
        kept = values[..., 0] <= limit
        within[bool(limits)] = kept[:, 48:].mean()  # of the second half
        least[bool(limits)] = np.where(kept, values[..., 1], np.inf).min(axis=1).mean()
    assert within[True] > within[False] + 0.3
    assert least[True] < least[False]


def test_limit_of_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="limits must be numbers by name"):
        linas.search([2, 2], evaluate, NAMES, limits={"speed": 1.0})


def test_initial_vectors_come_first_and_known_ones_are_not_evaluated():
    known = np.eye(20, dtype=int)[:12]
    initial = [[2] * 20, known[0].tolist(), [1] * 20]
    evaluated = []

    def counting(vectors):
        evaluated.extend(vectors.tolist())
        return evaluate(vectors)

    result = METHODS["linas"](
        [3] * 20,
        counting,
        NAMES,
        evaluations=15,
        population=12,
        initial=initial,
        known=(known, evaluate(known)),
    )
    assert evaluated[:2] == [[2] * 20, [1] * 20]
    assert result.num_known == 12 and len(result.vectors) == 27
    assert evaluated == result.vectors[12:].tolist()


def test_batches_have_the_size_asked_for_and_are_logged_one_by_one(tmp_path):
    sizes, log = [], tmp_path / "log.csv"

    def fails_later(vectors):
        sizes.append(len(vectors))
        if len(sizes) == 4:
            raise RuntimeError("out of memory")
        return evaluate(vectors)

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        linas.random_search(
            [3] * 20, fails_later, NAMES, population=10, batch_size=4, log=log
        )
    assert sizes == [4, 4, 2, 4]
    assert len(log.read_text().splitlines()) == 1 + 10
    assert "on 4 vectors beginning with [" in caught.value.__notes__[0]


def test_value_that_is_not_finite_names_the_vector_and_keeps_the_others(tmp_path):
    log = tmp_path / "log.csv"

    def fails_for_one(vectors):
        values = evaluate(vectors)
        values[(vectors == [1, 0]).all(axis=1), 1] = np.nan
        return values

    with pytest.raises(ValueError, match=r"'cost' of \[1, 0\] is nan, but must be"):
        linas.random_search(
            [2, 2], fails_for_one, NAMES, evaluations=4, population=2, log=log
        )
    rows = log.read_text().splitlines()[1:]
    assert len(rows) < 4 and not any("nan" in row for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(space=[]), "space must be a sequence of option counts"),
        (dict(space=[2, 0]), "from 1 up, got"),
        (dict(objectives="error"), "objectives must be a sequence"),
        (dict(objectives=["a", "a"]), "different names"),
        (dict(population=1), "population must be at least 2, got 1"),
        (dict(evaluations=0), "evaluations must be at least 1, got 0"),
        (dict(initial=[[0, 3]]), "initial, row 0: option 3 of 'decision_1' is outside"),
        (dict(evaluate=lambda v: v[:, :1]), r"must return shape \[4, 2\]"),
        (dict(known=([[0, 1]], [[1.0]])), r"known values must have shape \[1, 2\]"),
        (dict(active=lambda v: v[:, 0] > 0), "active must return bool"),
        (dict(active=lambda v: v[:, ::-1] == 1), "may depend on live decisions only"),
    ],
)
def test_mistakes_are_explained(change, message):
    arguments = dict(space=[2, 2], evaluate=evaluate, objectives=NAMES, evaluations=4)
    with pytest.raises(ValueError, match=message):
        linas.random_search(**{**arguments, **change})


def test_constant_objective_and_one_objective_are_searched():
    for columns in (slice(0, 1), slice(0, 2)):

        def half_constant(vectors, columns=columns):
            return np.stack([0 * vectors[:, 0], -vectors.sum(axis=1)], 1)[:, columns]

        result = METHODS["linas"](
            [3] * 20, half_constant, NAMES[columns], evaluations=24, population=8
        )
        assert len(result.vectors) == 24


def test_search_space_names_the_decisions(tmp_path):
    import fliqs_jax as fq

    sites = [
        fq.Site(
            path=path,
            op="dense",
            weight_shape=(4, 4),
            macs=16,
            weight_count=16,
            input_size=4,
            output_size=4,
        )
        for path in ("Dense_0", "Dense_1")
    ]
    space, log = fq.SearchSpace(sites, ["int2", "int4", "int8"]), tmp_path / "log.csv"
    result = linas.random_search(space, evaluate, NAMES, evaluations=4, log=log)
    assert log.read_text().startswith("Dense_0:3,Dense_1:3,error,cost\n")
    assert space.policy(result.vectors[0])["Dense_0"]


def test_package_is_imported_without_pymoo_and_scikit_learn():
    code = (
        "import sys, fliqs_jax.searchers.linas;"
        "print([m for m in ('pymoo', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def median_hypervolume(method, evaluate, reference, seeds, **job):
    runs = (method(COUNTS, evaluate, NAMES, seed=seed, **job) for seed in seeds)
    return np.median([linas.hypervolume(run.values, reference) for run in runs])


def test_nsga2_beats_random_search_on_real_cells(shared_data):
    cells = read_cells(shared_data)
    job = dict(reference=(-70.0, 1.6e6), seeds=range(5), evaluations=120, population=20)
    evolved = median_hypervolume(linas.nsga2, cells, **job)
    assert evolved > median_hypervolume(linas.random_search, cells, **job)


@pytest.mark.slow
def test_linas_beats_random_search_on_real_cells(shared_data):
    cells = read_cells(shared_data)
    job = dict(reference=(-70.0, 1.6e6), seeds=range(7), evaluations=200, population=20)
    found = median_hypervolume(linas.search, cells, **job)
    assert found > median_hypervolume(linas.random_search, cells, **job)


@pytest.mark.parametrize("search", [linas.search, linas.nsga2])
@pytest.mark.parametrize("counts, population", [([2, 2], 4), ([3], 2), ([2, 2], 2)])
def test_a_space_as_small_as_a_population_is_listed(search, counts, population):
    def evaluate(vectors):
        return np.stack([vectors.sum(axis=1), -vectors[:, 0]], axis=1).astype(float)

    found = search(
        counts, evaluate, NAMES, evaluations=50, population=population,
        say=lambda text: None,
    )  # fmt: skip
    assert found.exhausted and len(found.vectors) == np.prod(counts)


def test_an_objective_that_is_mostly_at_its_best_stays_visible():
    values = np.array([0.0, 0.0, 0.0, 5.0, 7.0])
    np.testing.assert_array_equal(linas._capped(values), values)
    np.testing.assert_array_equal(linas._capped(np.array([1.0, 2.0, 9.0])), [1, 2, 3])
