"""What a workdir's files say, and what becomes of damaged ones."""

import json
import math

import numpy as np
import pytest

from fliqs_jax.report import read_run


def append(folder, *rows):
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def test_files_become_records(make_run):
    run = read_run(make_run(steps=200, every=10, policy_every=40))
    assert run.config.model == "resnet8"
    assert run.config.sites[0].weight_shape == (3, 3, 3, 16)
    assert run.config.sites[0].macs == 3 * 3 * 3 * 16 * 32 * 32
    assert run.config.phases.search_end == 160
    assert run.summary.accuracy == 0.8123
    assert [row.format for row in run.summary.uniform] == [
        "int2",
        "int3",
        "int4",
        "int8",
    ]
    assert run.policy["Conv_0"] == ("int8", "int8")
    assert run.train["loss"].steps.tolist() == list(range(0, 201, 10))
    assert run.evaluation["validation", "accuracy"].steps[0] == 20
    assert run.probabilities.values.shape == (5, 10, 4)
    assert np.allclose(run.probabilities.values.sum(axis=2), 1, atol=1e-4)


def test_only_the_configuration_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json.*--workdir"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model": "vit"}')
    run = read_run(tmp_path)
    assert (run.summary, run.policy, run.probabilities) == (None, None, None)
    assert not run.train and not run.evaluation


def test_configuration_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("model: vit")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        read_run(tmp_path)


def test_later_row_of_a_repeated_step_counts(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    rows = [{"step": s, "kind": "train", "loss": float(s)} for s in (0, 10, 20, 30)]
    resumed = [{"step": s, "kind": "train", "loss": -float(s)} for s in (20, 30)]
    append(tmp_path, *rows, *resumed)
    loss = read_run(tmp_path).train["loss"]
    assert loss.steps.tolist() == [0, 10, 20, 30]
    assert loss.values.tolist() == [0, 10, -20, -30]


def test_rows_cut_short_are_counted_and_left_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "kind": "train", "loss": 2.0}\n{"step": 10, "ki\n'
        '{"step": 10, "kind": "train", "loss": 1.0}\n\n{"step": 20'
    )
    run = read_run(tmp_path)
    assert run.damaged_rows == 2
    assert run.train["loss"].values.tolist() == [2.0, 1.0]


def test_null_and_nan_both_read_as_nan(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    values = (1.0, None, math.nan)
    rows = [{"step": i, "kind": "train", "loss": v} for i, v in enumerate(values)]
    append(tmp_path, *rows)
    assert np.isnan(read_run(tmp_path).train["loss"].values).tolist() == [0, 1, 1]


def test_decisions_of_fewer_options_are_filled_with_nan(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    append(
        tmp_path, {"step": 0, "kind": "policy", "probabilities": [[1.0], [0.4, 0.6]]}
    )
    values = read_run(tmp_path).probabilities.values[0]
    assert np.array_equal(values, [[1.0, math.nan], [0.4, 0.6]], equal_nan=True)


def test_policy_rows_of_two_runs_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    rows = [{"step": n, "kind": "policy", "probabilities": [[1.0]] * n} for n in (1, 2)]
    append(tmp_path, *rows)
    with pytest.raises(ValueError, match=r"\[1, 2\] decisions"):
        read_run(tmp_path)
