"""Running a comparison, with a stand-in for the launchers that takes no time."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import compare
from experiments.comparison import execution, results
from experiments.comparison.planning import Run

# Writes what it was given; fails, or hangs, where a file beside the workdir says so.
STAND_IN = """
import json, os, pathlib, sys, time
given = dict(flag[2:].partition("=")[::2] for flag in sys.argv[1:])
workdir = pathlib.Path(given["workdir"])
with open(workdir.parent / "started.txt", "a") as file:
    print(workdir.name, file=file)
if (workdir.parent / f".{workdir.name}.fail").exists():
    sys.exit("error: it was to fail")
while (workdir.parent / f"{workdir.name}.hang").exists():
    time.sleep(0.05)
target = float(given.get("cost_target", 0.14))
given["cache"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
given["cores"] = sorted(os.sched_getaffinity(0))
(workdir / "given.json").write_text(json.dumps(given))
(workdir / "policy.json").write_text("{}")
(workdir / "summary.json").write_text(json.dumps({
    "accuracy": 0.9 + target / 10, "cost": 990 * target, "cost_of_reference": 1000.0,
    "cost_target": 1000 * target, "steps": 60, "seconds": 2.0}))
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    real = execution.command

    def command(run, root, shared):
        given = real(run, root, shared)
        return [given[0], "-m", "stand_in", *given[3:]]

    monkeypatch.setattr(execution, "command", command)
    monkeypatch.setattr(execution, "_PAUSE_S", 0.02)


@pytest.fixture
def undrawn(monkeypatch):
    """Without the plot, a second each time."""
    monkeypatch.setattr(results, "write_trade_offs", lambda *_, **__: None)


def launch(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["compare", *arguments])
        compare.run()


def started(root):
    return (root / "started.txt").read_text().split()


def test_a_comparison_leaves_a_table_a_csv_file_and_a_plot(tmp_path, capsys):
    root = tmp_path / "runs"
    launch(f"--workdir={root}", "--seeds=5", "--random_policies=0", "--steps=60")
    given = json.loads((root / "search-seed5" / "given.json").read_text())
    assert (given["seed"], given["steps"]) == ("5", "60")
    assert len((root / "comparison.csv").read_text().splitlines()) == 1 + 3
    table = (root / "comparison.md").read_text()
    assert "| 0.14 | retrain | 1 | 91.40 | 0.1386 | 60 | 0.0 |" in table
    assert table in capsys.readouterr().out
    assert (root / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_every_budget_has_its_rows(tmp_path, undrawn):
    root = tmp_path / "runs"
    budgets = "--cost_targets=0.1,0.2"
    launch(f"--workdir={root}", "--seeds=0,1", "--random_policies=1", budgets)
    assert len(started(root)) == 2 * (3 * 2 + 1)
    given = json.loads((root / "search-at0.2-seed1" / "given.json").read_text())
    assert given["cost_target"] == "0.2"
    table = (root / "comparison.md").read_text()
    assert "| 0.2 | retrain | 2 | 92.00 ± 0.00 | 0.1980 | 60 | 0.0 |" in table


def test_finished_runs_are_skipped_interrupted_ones_started_again(tmp_path, undrawn):
    root = tmp_path / "runs"
    launch(f"--workdir={root}", "--seeds=0", "--random_policies=1")
    (root / "search-seed0" / "summary.json").unlink()  # as if interrupted
    (root / "started.txt").unlink()
    launch(f"--workdir={root}", "--seeds=0,1", "--random_policies=0")
    names = ["search-seed0", *(f"{m}-seed1" for m in ("search", "uniform_int3"))]
    assert started(root) == [*names, "retrain-seed1"]
    assert "random" in (root / "comparison.md").read_text()  # of the first call


def test_failures_are_named_with_reasons_and_do_not_stop_the_others(tmp_path, undrawn):
    root = tmp_path / "runs"
    root.mkdir()
    (root / ".search-seed0.fail").touch()
    arguments = (f"--workdir={root}", "--seeds=0,1", "--random_policies=0")
    with pytest.raises(ValueError) as refused:
        launch(*arguments)
    message = str(refused.value)
    assert "search-seed0: error: it was to fail" in message
    assert "retrain-seed0: needs search-seed0" in message
    assert "seed1" not in message and "uniform" not in message
    assert "error: it was to fail" in (root / "search-seed0.log").read_text()
    (root / ".search-seed0.fail").unlink()
    launch(*arguments)
    assert started(root)[-2:] == ["search-seed0", "retrain-seed0"]


def test_a_run_waits_for_the_one_it_needs_while_later_ones_go_on(tmp_path):
    def run(name, *needs):
        return Run(name=f"{name}-seed0", launcher="x", flags=(), needs=needs)

    runs = [run("first"), run("waits", "first-seed0"), run("a"), run("b")]
    hang = tmp_path / "first-seed0.hang"
    hang.touch()
    finished = []

    def after(run):
        finished.append(run.name)
        if len(finished) == 2:
            hang.unlink()

    failed = execution.execute(runs, root=tmp_path, shared=[], at_a_time=2, after=after)
    assert failed == {}
    assert finished == ["a-seed0", "b-seed0", "first-seed0", "waits-seed0"]


def test_runs_at_a_time_share_the_cores_and_what_is_compiled(tmp_path, undrawn):
    root = tmp_path / "runs"
    launch(f"--workdir={root}", "--seeds=0", "--random_policies=0", "--jobs=2")
    cores = sorted(os.sched_getaffinity(0))
    for name in ("search", "uniform_int3"):
        given = json.loads((root / f"{name}-seed0" / "given.json").read_text())
        assert given["cache"] == str(root / "compilation_cache")
        assert given["cores"] in (cores[::2], cores[1::2] or cores)


def test_terminated_it_ends_its_runs_and_resumes(tmp_path):
    hang = tmp_path / "first-seed0.hang"
    hang.touch()
    script = f"""
import pathlib
from experiments.comparison import execution, results
from experiments.comparison.planning import Run
real = execution.command
execution.command = lambda *a: [real(*a)[0], "-m", "stand_in", *real(*a)[3:]]
run = Run(name="first-seed0", launcher="x", flags=(), needs=())
execution.execute([run], root=pathlib.Path({str(tmp_path)!r}), shared=[], at_a_time=1,
                  after=print)
"""
    checkout = pathlib.Path(compare.__file__).parents[1]
    path = f"{checkout}{os.pathsep}{os.environ['PYTHONPATH']}"
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "started.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    hang.unlink()
    time.sleep(0.5)  # a run left behind would write its results now
    assert not (tmp_path / "first-seed0" / "summary.json").exists()
    run = Run(name="first-seed0", launcher="x", flags=(), needs=())
    assert not execution.execute(
        [run], root=tmp_path, shared=[], at_a_time=1, after=lambda run: None
    )
    assert (tmp_path / "first-seed0" / "summary.json").exists()
