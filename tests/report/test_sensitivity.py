"""Ranking and heat map: in order, within the width, complete when folded."""

import numpy as np
import pytest

from fliqs_jax.report import (
    draw_sensitivity,
    sensitivity_table,
    write_sensitivity_plot,
)

DECISIONS = [f"encoder/layers_{n}/attention/query:weights" for n in range(12)]
OPTIONS = ["int2", "int3", "int4", "e4m3", "int8", "int16"]
VALUES = np.random.default_rng(0).normal(size=(12, 6)) * 10.0 ** -np.arange(6)
CHOSEN = np.arange(12) % 6


@pytest.mark.parametrize("width", [60, 80, 96])
def test_rows_are_ranked_and_fit_the_width(width):
    lines = sensitivity_table(
        DECISIONS, OPTIONS, VALUES, CHOSEN, unit="nats", width=width
    ).splitlines()
    assert max(map(len, lines)) <= width
    rows = lines[2:14]
    first = VALUES.max(axis=1).argmax()
    assert width < 96 or DECISIONS[first] in rows[0]
    assert f" {VALUES[first, 0]:.2f} " in rows[0]
    assert rows[0].endswith(OPTIONS[CHOSEN[first]])
    assert "more options in sensitivity.csv" in lines[-1]


def test_decisions_left_out_are_counted():
    text = sensitivity_table(
        DECISIONS, OPTIONS, VALUES, CHOSEN, unit="nats", max_rows=5
    )
    assert text.endswith("… 7 less sensitive decisions")


def test_heat_map_outlines_the_choice_and_names_the_unit(tmp_path):
    shown = (DECISIONS, OPTIONS, VALUES, CHOSEN)
    figure = draw_sensitivity(*shown, unit="loss change (nats)")
    axes, bar = figure.axes
    assert bar.get_ylabel() == "loss change (nats)" and axes.get_title(loc="left")
    columns = [round(patch.get_x() + 0.47) for patch in axes.patches]
    assert columns == CHOSEN.tolist()
    assert axes.get_legend().get_texts()[0].get_text() == "chosen within the budget"
    path = write_sensitivity_plot(tmp_path / "a.png", *shown, unit="nats")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("values", [np.zeros((12, 6)), -np.ones((12, 6))])
def test_nothing_to_see_is_drawn_all_the_same(values, tmp_path):
    shown = (DECISIONS, OPTIONS, values, CHOSEN)
    write_sensitivity_plot(tmp_path / "a.png", *shown, unit="nats")
