"""The script as a user runs it: a small table, run again, and its findings."""

import importlib.util
import pathlib
import sys

import pytest

import fliqs_jax as fq
from fliqs_jax.costs import LatencyTable, cost_table, make_table_latency
from fliqs_jax.train.classifier import image_sites

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "measure_latency.py"
SMALL = (
    *("--model=lenet300", "--image_size=8", "--channels=1", "--batch_size=4"),
    *("--rounds=3", "--device=here"),
)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Returns a function that runs the script and gives what it prints."""
    spec = importlib.util.spec_from_file_location("measure_latency", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "SAMPLE_S", 1e-4)

    def run(*arguments):
        out = f"--out={tmp_path / 'table.csv'}"
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), out, *arguments])
        script.main()
        return capsys.readouterr().out

    return run


def test_table_of_a_small_model_is_measured_resumed_and_searched_with(run, tmp_path):
    first = run(*SMALL, "--formats=fp32,int8")
    table = LatencyTable.load(tmp_path / "table.csv")
    assert (table.device, table.batch_sizes, len(table.rows)) == ("here", (4,), 6)
    assert all(row.latency_s > 0 and row.repetitions >= 3 for row in table.rows)
    assert "[3/3] dense 100x10, 100 -> 10 elements, 1000 MACs: fp32, int8" in first
    assert "than fp32 in" in first

    second = run(*SMALL, "--formats=fp32,int8,int4")
    again = LatencyTable.load(tmp_path / "table.csv")
    assert again.rows[:6] == table.rows  # measured once
    assert "1000 MACs: int4" in second
    unexecuted = [row for row in again.rows[6:] if row.latency_s is None]
    assert all(row.remark.startswith("not executed: ") for row in unexecuted)
    if unexecuted:
        assert "int4: 3 of 3 not executed: " in second
    findings = second.splitlines()[5:-1]
    assert len(findings) >= 7 and max(map(len, findings)) <= 88

    sites = image_sites(fq.create_model("lenet300"), (8, 8, 1))
    space = fq.SearchSpace(sites, ["int8", "fp32"])
    prices = cost_table(space, make_table_latency(again)).table
    times = {(row.contraction.macs, row.weights): row.latency_s for row in again.rows}
    assert prices[0].tolist() == pytest.approx(
        [times[19200, "int8"], times[19200, "fp32"]]
    )


def test_table_of_another_device_is_left_alone(run):
    run(*SMALL, "--formats=fp32")
    with pytest.raises(ValueError, match="has latencies of 'here', this is 'there'"):
        run(*SMALL, "--device=there")


def test_unknown_format_ends_the_script_with_the_known_ones(run, capsys):
    with pytest.raises(SystemExit):
        run("--formats=int3")
    assert "--formats: no int3; known: fp32, fp16, bf16" in capsys.readouterr().err
