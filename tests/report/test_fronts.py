"""Pictures and page of a joint search, from a summary made by hand."""

import json

import numpy as np
import pytest

from fliqs_jax.report import draw_front, draw_hypervolume, write_front_report
from fliqs_jax.report.front_page import front_sentence, quantity


def row(accuracy, size, bops):
    return {
        "validation_accuracy": accuracy - 0.01,
        "test_accuracy": accuracy,
        "size_mb": size,
        "bops": bops,
    }


FOLD = {"factor": 4.0, "point": 1, "validation_gain": 0.25, "test_gain": -0.5}


@pytest.fixture
def summary():
    return {
        "accuracy": 0.95,
        "accuracy_source": "test set, quantized after training, no retraining",
        "supernet": "resnet_cifar",
        "dataset": "cifar10",
        "evaluations": 30,
        "population": 10,
        "prices_searched": ["size_mb"],
        "accuracy_reference": "int8",
        "front": [row(0.5, 0.1, 3e9), row(0.92, 0.2, 1e9), row(0.96, 0.4, 2e9)],
        "full_network": {"int4": row(0.4, 0.4, 2e9), "int8": row(0.94, 0.8, 8e9)},
        "subnetworks": {"int8": [row(0.9, 0.3, 2e9)], "int4": [row(0.8, 0.15, 1e9)]},
        "dominated": {"int8": [1, 1], "int4": [0, 1]},
        "fold_reductions": {
            "validation": {"size_mb": FOLD, "bops": None},
            "test": {"size_mb": FOLD, "bops": FOLD},
        },
        "hypervolume_curve": [[1, 0.2], [10, 0.5], [30, 0.7]],
        "point": 1,
        "selection": "the cheapest point of <all>",
        "architecture": {"stage0": "depth 1 of 3", "stage0/block1": "left out"},
        "chosen": "points/abc",
        "seconds": 100.0,
        "seconds_of_search": 60.0,
    }


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_front_stands_at_its_prices_and_test_accuracies(summary):
    size, bops = draw_front(summary).axes
    lines = lines_of(size)
    expected = [[100, 50], [200, 92], [400, 96]]  # kB
    np.testing.assert_allclose(lines["front of the search"], expected)
    np.testing.assert_allclose(lines["the point taken"], [[200, 92]])
    np.testing.assert_allclose(lines["sub-networks of the front at int8"], [[300, 90]])
    np.testing.assert_allclose(lines["full network at one format"][1], [800, 94])
    by_bops = lines_of(bops)["front of the search"]
    np.testing.assert_allclose(by_bops, [[1, 92], [2, 96], [3, 50]])
    low, high = size.get_ylim()
    assert 50 < low < 92 and high > 96  # what is far below is left out
    assert "not searched" in bops.get_title(loc="left")


def test_front_without_a_point_taken_is_drawn(summary):
    lines = lines_of(draw_front({**summary, "point": None}).axes[0])
    assert "the point taken" not in lines


def test_hypervolume_is_drawn_as_recorded(summary):
    curve = summary["hypervolume_curve"]
    whole, later = draw_hypervolume(curve, population=10).axes
    np.testing.assert_allclose(whole.get_lines()[0].get_xydata(), curve)
    np.testing.assert_allclose(later.get_lines()[0].get_xydata(), curve[1:])
    (alone,) = draw_hypervolume(curve, population=50).axes
    np.testing.assert_allclose(alone.get_lines()[0].get_xydata(), curve)


def write_run(folder, summary):
    config = {"method": "simq_nas", "model": "resnet_cifar", "dataset": "cifar10"}
    config |= {"flags": {"seed": 0}, "adjustable": {"evaluations": 30}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    point = folder / "points" / "abc"
    point.mkdir(parents=True)
    (point / "config.json").write_text(json.dumps({"method": "simq_nas_point"}))


def test_page_tells_result_reductions_architecture_and_command(summary, tmp_path):
    write_run(tmp_path, summary)
    page = write_front_report(tmp_path).read_text()
    sentence = front_sentence(summary)
    assert sentence in page and "95.0 % test accuracy" in sentence
    assert "200\u00a0kB" in sentence
    assert "4.00 times less than full at int8" in page  # 0.8 / 0.2
    assert "everywhere, 1 of 1 at int8, 0 of 1 at int4." in page
    assert "every point loses accuracy" in page and "left out" in page
    assert "&lt;all&gt;" in page and "<all>" not in page
    assert "--evaluations=30" in page and "--point" in page


def test_page_without_a_point_says_so(summary, tmp_path):
    write_run(tmp_path, {**summary, "point": None, "accuracy": None})
    page = write_front_report(tmp_path).read_text()
    assert "a front of 3 points" in page and "within the limits" in page


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("size_mb", 1.5, "1.50\u00a0MB"),
        ("size_mb", 0.0005, "500\u00a0B"),
        ("latency_ms", 0.01234, "0.0123 ms"),
        ("bops", 12e9, "12.0 G"),
    ],
)
def test_quantities_are_in_units_that_fit(name, value, text):
    assert quantity(name, value) == text
