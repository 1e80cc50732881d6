"""The terminal's tables: readable, within their width, complete when folded."""

import json

import numpy as np
import pytest

from fliqs_jax.report import (
    SiteRecord,
    comparison_table,
    draw_accuracy_cost,
    read_run,
    render_report,
    sites_table,
)


def transformer(layers):
    """Four projections a layer, all layers alike."""
    return [
        SiteRecord(
            path=f"encoder/layers_{layer}/attention/{name}", op="dense_general",
            weight_shape=(192, 3, 64), macs=7_262_208, weight_count=36_864,
        )
        for layer in range(layers)
        for name in ("query", "key", "value", "out")
    ]  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100])
def test_lines_fit_and_paths_keep_their_end(width):
    sites = transformer(3)
    table = sites_table(sites, {s.path: ("int4", "uint8") for s in sites}, width=width)
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 3 + 12 + 1
    assert all("100.0 %" in line or "/" in line or "-" in line for line in lines)
    assert "int4 / uint8" in lines[2] and "8.3 %" in lines[2]


def test_sites_alike_are_folded_and_counted():
    sites = transformer(30)
    policy = {site.path: ("int4", "int4") for site in sites}
    policy[sites[8].path] = ("int8", "int8")
    lines = sites_table(sites, policy, width=100, max_rows=10).splitlines()
    rows = lines[2:-2]
    assert len(rows) == 5  # four projections, and the one of another format
    assert "+28 alike" in rows[0] and "+29 alike" in rows[1]
    assert "layers_2/attention/query" in rows[4] and "alike" not in rows[4]
    assert lines[-1].startswith("120 sites") and lines[-1].endswith("100.0 %")


def test_cheapest_are_summed_up_where_nothing_is_alike():
    sites = [
        SiteRecord(
            path=f"Dense_{i}", op="dense", weight_shape=(i, 10), macs=10 * i,
            weight_count=10 * i,
        )
        for i in range(1, 21)
    ]  # fmt: skip
    policy = {site.path: ("int8", "int8") for site in sites}
    rows = sites_table(sites, policy, max_rows=5).splitlines()[2:-2]
    assert [row.split()[0] for row in rows[:4]] == [f"Dense_{i}" for i in range(17, 21)]
    assert rows[4].startswith("… 16 cheaper sites")
    assert rows[4].endswith(f"{100 * 136 / 210:.1f} %")


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 60 columns, got 20"):
        sites_table([], {}, width=20)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        sites_table([], {}, max_rows=1)


def test_comparison_marks_the_run_among_uniform_policies(make_run):
    lines = comparison_table(read_run(make_run(steps=100))).splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[-0 if line[0] == ">" else 1] for line in lines[1:6]]
    assert names == ["int8", "int4", "int3", ">", "int2"]
    assert "81.2 %" in lines[4] and "0.140" in lines[4]


def test_comparison_of_an_unfinished_run_is_empty(make_run):
    assert comparison_table(read_run(make_run(steps=100, finished=False))) == ""


def with_other_budgets(folder):
    """Adds what the method found for other budgets to a run's summary.json."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    rows = [("trade_off/0.json", 0.703, 0.5), ("trade_off/1.json", 0.844, 2.0)]
    names = ("policy", "accuracy", "cost_ratio")
    summary["trade_off"] = [dict(zip(names, row, strict=True)) for row in rows]
    file.write_text(json.dumps(summary))
    return read_run(folder)


def test_other_budgets_stand_between_by_their_cost(make_run):
    run = with_other_budgets(make_run(steps=100))
    lines = comparison_table(run).splitlines()
    assert max(map(len, lines)) <= 80
    order = [line.split("  ")[1 if line[0] == " " else 0] for line in lines[1:8]]
    assert order == [
        *("uniform int8", "trade_off/1.json", "uniform int4", "uniform int3"),
        *("> this run's policy", "trade_off/0.json", "uniform int2"),
    ]
    (row,) = [line for line in lines if "trade_off/1.json" in line]
    assert "84.4 %" in row and "0.281" in row  # twice the target


def test_page_draws_and_lists_other_budgets(make_run):
    run = with_other_budgets(make_run(steps=100))
    axes = draw_accuracy_cost(run).axes[0]
    (line,) = [
        line for line in axes.lines if line.get_label().startswith("chosen for other")
    ]
    x, y = line.get_data()
    np.testing.assert_allclose(y, [70.3, 81.2, 84.4], atol=0.05)
    np.testing.assert_allclose(x[[0, 2]], 0.1406 * np.array([0.5, 2.0]))
    page = render_report(run)
    assert "trade_off/0.json" in page and "Small orange points" in page
    plain = render_report(read_run(make_run(steps=100)))
    assert "Small orange points" not in plain
