"""Which point limits single out, reductions at no loss, what is out of reach."""

import csv
import itertools

import numpy as np
import pytest
from small_supernets import perceptron_supernet

import fliqs_jax as fq
from fliqs_jax.costs import make_site_storage, policy_cost, site_bops
from fliqs_jax.models.supernets import subnetwork_sites
from fliqs_jax.searchers.joint.front import (
    Point,
    Selection,
    check_reachable,
    count_dominated,
    fold_reductions,
    named_decisions,
    select_point,
    write_front,
)
from fliqs_jax.searchers.joint.space import JointSpace

MB, MS = 8e6, 1e-3


def point(validation, size, *, test=None, bops=1.0):
    return Point(
        vector=np.zeros(1, int),
        validation_accuracy=validation,
        test_accuracy=validation if test is None else test,
        prices={"size_bits": size * MB, "bops": bops, "latency_s": size * MS / 2},
    )


POINTS = [point(0.70, 1.0), point(0.85, 2.0), point(0.90, 3.0), point(0.91, 5.0)]
WHOLE = point(0.90, 8.0)


def taken(**wanted):
    return select_point(POINTS, Selection(**wanted), WHOLE, cost="size_bits")


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({}, 2),  # the cheapest that loses nothing
        ({"point": 3}, 3),
        ({"accuracy_loss": 5.0}, 1),
        ({"accuracy_loss": 4.9}, 2),
        ({"accuracy_loss": -1.0}, 3),  # must be better
        ({"limits": {"size_bits": 3.0 * MB}}, 2),
        ({"limits": {"size_bits": 2.9 * MB}}, 1),
        ({"limits": {"latency_s": 0.5 * MS}}, 0),
        ({"limits": {"size_bits": 4 * MB}, "accuracy_loss": 20.0}, 0),
    ],
)
def test_limits_single_out_a_point(wanted, index):
    assert taken(**wanted) == index


def test_most_accurate_is_taken_where_all_lose():
    better = point(0.95, 8.0)
    found = select_point(POINTS, Selection(), better, cost="size_bits")
    assert found == 3


@pytest.mark.parametrize(
    ("wanted", "messages"),
    [
        (
            {"limits": {"size_bits": 0.5 * MB}},
            ["within size_limit=0.5 MB", "size_limit can be 1 MB at least"],
        ),
        ({"limits": {"latency_s": 0.1 * MS}}, ["latency_limit can be 0.5 ms"]),
        (
            {"limits": {"size_bits": 1.5 * MB}, "accuracy_loss": 5.0},
            [
                "against uniform int8",
                "size_limit can be 2 MB at least with the other limits",
                "accuracy_loss_limit can be 20 points at least with the other limits",
            ],
        ),
        (
            {"limits": {"size_bits": 0.5 * MB}, "accuracy_loss": -5.0},
            ["alone size_limit can be 1 MB", "alone accuracy_loss_limit can be -1 poi"],
        ),
        ({"point": 4}, ["point=4 is none of the front's 4 points: give 0 to 3"]),
    ],
)
def test_limits_that_nothing_meets_are_refused_with_what_can_be(wanted, messages):
    with pytest.raises(ValueError) as caught:
        taken(**wanted)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"point": 1, "accuracy_loss": 1.0}, "leave out the limits, or the point"),
        ({"point": -1}, "point must be 0 or more, got -1"),
        ({"limits": {"size_bits": 0.0}}, "size_limit must be positive, got 0 MB"),
    ],
)
def test_selections_without_sense(wanted, message):
    with pytest.raises(ValueError, match=message):
        Selection(**wanted)


def test_reductions_are_those_of_the_cheapest_point_that_loses_nothing():
    points = [
        point(0.89, 1.0, test=0.92, bops=0.1),
        point(0.90, 2.0, test=0.88, bops=0.5),
        point(0.93, 4.0, test=0.91, bops=0.25),
    ]
    whole = point(0.90, 8.0, test=0.90, bops=1.0)
    by_validation = fold_reductions(points, whole, lambda p: p.validation_accuracy)
    size, bops = by_validation["size_bits"], by_validation["bops"]
    assert (size["factor"], size["point"]) == (4.0, 1)
    assert size["test_gain"] == pytest.approx(-2.0)
    assert (bops["factor"], bops["point"]) == (4.0, 2)
    assert bops["validation_gain"] == pytest.approx(3.0)
    by_test = fold_reductions(points, whole, lambda p: p.test_accuracy)
    assert by_test["size_bits"]["factor"] == 8.0
    worse = fold_reductions(points[:1], whole, lambda p: p.validation_accuracy)
    assert worse == {"size_bits": None, "bops": None, "latency_s": None}


@pytest.mark.parametrize(
    ("rival", "beaten"),
    [
        (point(0.85, 2.5), 1),
        (point(0.84, 2.0), 1),
        (point(0.85, 2.0), 0),  # equal
        (point(0.86, 2.0), 0),
        (point(0.5, 0.9), 0),
    ],
)
def test_points_beat_what_is_nowhere_better(rival, beaten):
    assert count_dominated(POINTS, [rival], ["size_bits"]) == beaten


@pytest.fixture(scope="module")
def space():
    net = perceptron_supernet()
    formats = fq.SearchSpace(net.sites, ["int8", "int3"], pins={"Dense_0": "int4"})
    return JointSpace(net, formats)


@pytest.mark.parametrize("cost", [make_site_storage(), site_bops], ids=["size", "bops"])
def test_limit_below_every_candidate_is_refused_with_the_least(space, cost):
    everything = itertools.product(*map(range, space.counts.values()))
    prices = [
        policy_cost(
            cost,
            subnetwork_sites(space.net, space.split(vector).choice),
            space.policy(vector),
        )
        for vector in map(np.array, everything)
    ]
    least, name = min(prices), "bops" if cost is site_bops else "size_bits"
    check_reachable(space, {name: cost}, {name: float(least)})
    with pytest.raises(ValueError, match="smallest sub-network .* has") as caught:
        check_reachable(space, {name: cost}, {name: 0.99 * least})
    shown = least if name == "bops" else least / MB
    assert f"{shown:.4g} " in str(caught.value)


def test_front_reads_back_as_sizes_and_formats(space, tmp_path):
    rng = np.random.default_rng(0)
    counts = np.array(list(space.counts.values()))
    points = [
        Point(
            vector=rng.integers(0, counts),
            validation_accuracy=0.1 * n,
            test_accuracy=0.2 * n,
            prices={"size_bits": 8e6 * n, "bops": 3.0},
        )
        for n in range(3)
    ]
    write_front(tmp_path / "front.csv", space, points)
    with open(tmp_path / "front.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows] == ["0", "1", "2"]
    for row, own in zip(rows, points, strict=True):
        assert float(row["size_mb"]) == own.prices["size_bits"] / 8e6
        assert float(row["test_accuracy"]) == own.test_accuracy
        decided = named_decisions(space, own.vector)
        assert {name: row[name] for name in decided} == {
            name: str(value) for name, value in decided.items()
        }
        assert row["first"] == str([4, 8, 16][own.vector[0]])
        assert row["Dense_2"] == ["int8", "int3"][own.vector[-1]]
