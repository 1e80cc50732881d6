"""What is read from finished runs: rows, the table, the points of the plot."""

import csv
import json
import statistics

import pytest

from experiments.comparison.planning import parse_run_name, run_name, split_method
from experiments.comparison.results import (
    comparison_table,
    read_rows,
    title,
    trade_offs,
    write_results,
)

RUNS = {  # accuracy, cost / reference; the budget of runs without -at is 0.14
    "search-seed0": (0.76, 0.139),
    "search-seed1": (0.78, 0.137),
    "search-seed10": (0.80, 0.138),
    "random_0-seed0": (0.70, 0.141),
    "random_1-seed0": (0.72, 0.143),
    "uniform_int3-seed0": (0.74, 0.1406),
    "float-seed0": (0.85, 16.0),
    "qbitopt-at0.25-seed0": (0.79, 0.25),
    "qbitopt-at1e-05-seed0": (0.1, 1e-5),
    "sensitivity_loss_untrained-at0.25-seed0": (0.6, 0.2),
}


@pytest.fixture
def root(tmp_path):
    for name, (accuracy, cost) in RUNS.items():
        (tmp_path / name).mkdir()
        summary = {
            "accuracy": accuracy, "cost": cost * 800, "cost_of_reference": 800.0,
            "cost_target": 112.0, "steps": 100, "seconds": 90.0,
        }  # fmt: skip
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "search-seed2").mkdir()  # unfinished
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "summary.json").write_text("{}")
    return tmp_path


def test_csv_has_a_row_for_each_finished_run(root):
    write_results(root, cost="bops", reference="int8")
    rows = list(csv.DictReader((root / "comparison.csv").read_text().splitlines()))
    assert {row["run"] for row in rows} == set(RUNS)
    found = {row["run"]: row for row in rows}
    assert found["search-seed10"]["seed"] == "10"
    assert found["search-seed10"]["budget"] == "0.14"
    assert found["random_1-seed0"]["method"] == "random"
    assert found["uniform_int3-seed0"]["budget"] == ""
    assert found["qbitopt-at1e-05-seed0"]["budget"] == "1e-05"
    assert float(found["float-seed0"]["cost_of_reference"]) == 16.0
    assert (root / "comparison.png").exists()


def test_table_has_mean_deviation_and_sample_size_best_first_in_a_budget(root):
    lines = comparison_table(read_rows(root, cost="bops")).splitlines()
    deviation = statistics.stdev([76, 78, 80])
    assert lines[0].startswith("| budget | method | runs | test accuracy, % |")
    assert lines[2:] == [
        "|  | float | 1 | 85.00 | 16.0000 | 100 | 1.5 |",
        "|  | uniform_int3 | 1 | 74.00 | 0.1406 | 100 | 1.5 |",
        "| 1e-05 | qbitopt | 1 | 10.00 | 0.0000 | 100 | 1.5 |",
        f"| 0.14 | search | 3 | 78.00 ± {deviation:.2f} | 0.1380 | 100 | 1.5 |",
        "| 0.14 | random | 2 | 71.00 ± 1.41 | 0.1420 | 100 | 1.5 |",
        "| 0.25 | qbitopt | 1 | 79.00 | 0.2500 | 100 | 1.5 |",
        "| 0.25 | sensitivity_loss_untrained | 1 | 60.00 | 0.2000 | 100 | 1.5 |",
    ]


def test_points_of_the_plot_are_in_the_order_of_the_legend(root):
    points = trade_offs(read_rows(root, cost="bops"))
    assert [point.series for point in points] == [
        "search (FLIQS)", "QBitOpt", "QBitOpt", "uniform", "random policies",
        "by sensitivity (loss), untrained", "float",
    ]  # fmt: skip
    (uniform,) = [point for point in points if point.series == "uniform"]
    assert (uniform.note, uniform.budget) == ("int3", None)
    assert points[0].accuracies == (0.76, 0.78, 0.80)


def test_no_finished_run_is_no_table(tmp_path):
    assert write_results(tmp_path, cost="bops", reference="int8") == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", [None, 0.14, 1e-7, 12.5])
@pytest.mark.parametrize("method", ["search", "uniform_e4m3", "some-at-method"])
def test_names_of_runs_are_read_back(method, budget):
    assert parse_run_name(run_name(method, budget, 3)) == (method, budget, 3)
    assert parse_run_name("anything else") is None


@pytest.mark.parametrize(
    ("method", "family", "member"),
    [
        ("uniform_int3", "uniform", "int3"),
        ("qbitopt_uniform_int3", "qbitopt_uniform", "int3"),
        ("random_12", "random", "12"),
        ("sensitivity_kl", "sensitivity_kl", ""),
        ("float", "float", ""),
    ],
)
def test_methods_are_members_of_families(method, family, member):
    assert split_method(method) == (family, member)


def test_a_method_without_a_title_has_its_name():
    assert title("new_one") == "new one"
    assert title("sensitivity_kl") == "by sensitivity (kl), trained"
    assert title("qbitopt_uniform_int4") == "uniform, learned steps"


def test_sizes_are_not_drawn_among_bit_operations(root):
    (root / "search-seed0").rename(root / "lc_k2-seed0")
    known = {cost: {r.method for r in read_rows(root, cost=cost)} for cost in COSTS}
    assert "lc_k2" in known["size"] and "lc_k2" not in known["bops"]


COSTS = ("bops", "size")
