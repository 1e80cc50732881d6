"""The CSV log: exact, refusing other searches, forgiving a torn last line."""

import numpy as np
import pytest

from fliqs_jax.searchers.multi_objective.decisions import Decisions
from fliqs_jax.searchers.multi_objective.log import SearchLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.csv"


def write(path, rows):
    log = SearchLog(path, Decisions([2, 3]), ["error", "cost"])
    vectors = np.array([[number % 2, number % 3] for number in range(rows)])
    values = np.random.default_rng(0).normal(size=(rows, 2))
    log.append(vectors, values)
    return log, vectors, values


def test_values_read_back_exactly(path):
    log, vectors, values = write(path, 5)
    read_vectors, read_values = log.read()
    np.testing.assert_array_equal(read_vectors, vectors)
    np.testing.assert_array_equal(read_values, values)


@pytest.mark.parametrize("lost", [1, 3, 10])
def test_torn_last_line_is_dropped_and_overwritten(path, lost):
    log, vectors, values = write(path, 3)
    path.write_bytes(path.read_bytes()[:-lost])
    np.testing.assert_array_equal(log.read()[0], vectors[:2])
    log.append(vectors[2:], values[2:])
    np.testing.assert_array_equal(log.read()[1], values)


@pytest.mark.parametrize(
    ("counts", "objectives"),
    [
        ([2, 4], ["error", "cost"]),
        ([2, 3, 2], ["error", "cost"]),
        ([2, 3], ["cost", "error"]),
        ([2, 3], ["error"]),
    ],
)
def test_log_of_another_search_is_refused(path, counts, objectives):
    write(path, 1)
    with pytest.raises(ValueError, match="log .*is of another search.*Choose another"):
        SearchLog(path, Decisions(counts), objectives).read()


@pytest.mark.parametrize("line", ["1,0,nan,1.0", "1,5,0.5,1.0", "1,0,0.5", "a,b,c,d"])
def test_senseless_line_is_named(path, line):
    log, _, _ = write(path, 1)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="log"):
        log.read()


def test_file_without_a_whole_line_is_only_replaced_if_it_began_as_this_log(path):
    log = SearchLog(path, Decisions([2, 3]), ["error"])
    path.write_text("decision_0:2,deci")
    assert len(log.read()[0]) == 0
    path.write_text("my notes")
    with pytest.raises(ValueError, match="another search"):
        log.read()


def test_what_the_log_has_is_not_evaluated_again(path):
    log, vectors, values = write(path, 3)
    asked = []

    def evaluate(some):
        asked.extend(map(tuple, some.tolist()))
        return np.stack([some.sum(axis=1), some[:, 0]], axis=1)

    known = (np.array([[1, 0]]), np.array([[7.0, 8.0]]))
    wanted = np.array([[1, 0], [0, 2], [1, 1], [0, 1], [0, 2]])
    found = log.evaluated(wanted, evaluate, known=known, batch_size=1)
    rows = {tuple(v): x for v, x in zip(vectors.tolist(), values, strict=True)}
    expected = [[7.0, 8.0], rows.get((0, 2), [2.0, 0.0]), rows[1, 1], [1.0, 0.0]]
    np.testing.assert_array_equal(found, [*expected, expected[1]])
    assert len(asked) == len(set(asked)) and not set(asked) & {(1, 1), (1, 0)}
    before = list(asked)
    np.testing.assert_array_equal(log.evaluated(wanted, evaluate, known=known), found)
    assert asked == before
    assert log.evaluated(wanted[:0], evaluate).shape == (0, 2)
