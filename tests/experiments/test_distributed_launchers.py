"""Launchers as several processes on the loopback address: results, losses, restarts."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
import several_processes
import small_supernets
from absl import flags
from absl.testing import flagsaver
from launching import SMALL

from experiments import (
    dca_nas,
    fliqnas,
    fliqs,
    learning_compression,
    program,
    qbitopt,
    sensitivity,
    simq_nas,
)
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.metrics import read_metrics

LOST_AFTER_S = 20
STOPPED_WITHIN_S = 60  # with time for a busy machine


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def command(workdir, *changed, launcher="fliqs"):
    heartbeat = f"--heartbeat_timeout={LOST_AFTER_S}"
    return [
        *("-m", f"experiments.{launcher}", *SMALL, heartbeat, *changed),
        f"--workdir={workdir}",
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A run of one process with two devices, uninterrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    several_processes.run(command(workdir), processes=1, devices=2, cache=cache)
    return workdir


def result_of(workdir):
    """The last state, the lines of metrics and the summary, timings left out."""
    state = restore_tree(workdir / "checkpoints")
    state.pop("seconds")
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "steps_per_second")}
        for row in read_metrics(workdir)
    ]
    summary = json.loads((workdir / "summary.json").read_text())
    for name in ("seconds", "compile_count"):
        summary.pop(name)
    policy = json.loads((workdir / "policy.json").read_text())
    return state, rows, summary, policy


def assert_identical(workdir, other):
    (state, *results), (other_state, *other_results) = map(result_of, (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert results == other_results


@pytest.mark.slow
def test_two_processes_of_one_device_are_bit_identical_to_one_of_two(
    whole, tmp_path, cache
):
    workdir = tmp_path / "two"
    first, second = several_processes.run(
        command(workdir), processes=2, devices=1, cache=cache
    )
    assert_identical(workdir, whole)
    # One of them speaks.
    assert "uniform int8" in first and "60/60" in first
    assert "uniform" not in second and "/60" not in second


@pytest.mark.slow
def test_two_processes_of_four_devices_agree_with_one_of_eight(tmp_path, cache):
    one, two = tmp_path / "one", tmp_path / "two"
    # In floats: eight gradients are added up in another order, and rounding to few bits
    # makes a last bit as large as a step of the grid.
    for workdir, processes, devices in ((one, 1, 8), (two, 2, 4)):
        several_processes.run(
            command(workdir, "--policy=fp32"),
            processes=processes,
            devices=devices,
            cache=cache,
        )
    (state, rows, summary, _), (state2, rows2, summary2, _) = map(result_of, (one, two))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        state["state"]["params"],
        state2["state"]["params"],
    )
    assert summary["accuracy"] == pytest.approx(summary2["accuracy"], abs=0.003)
    losses = [
        [row["loss"] for row in found if row["kind"] == "train"]
        for found in (rows, rows2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def wait_for_checkpoint(workdir, started):
    deadline = time.monotonic() + 600
    while not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_others_stop_when_one_is_killed_and_a_restart_ends_the_same(
    lost, whole, tmp_path, cache
):
    workdir = tmp_path / "killed"
    arguments = command(workdir)
    started = several_processes.start(arguments, processes=2, devices=1, cache=cache)
    wait_for_checkpoint(workdir, started)
    started[lost].send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    texts = several_processes.outputs(started, timeout=STOPPED_WITHIN_S)
    assert time.monotonic() - killed_at < STOPPED_WITHIN_S
    other = 1 - lost
    assert started[other].returncode not in (0, None)
    assert "start the same command on all processes again" in texts[other]
    assert not (workdir / "summary.json").exists()
    first, second = several_processes.run(
        arguments, processes=2, devices=1, cache=cache
    )
    assert "resumed at step" in first and "resumed" not in second
    assert_identical(workdir, whole)


@pytest.mark.slow
def test_all_save_and_stop_when_one_is_told_to_terminate(tmp_path, cache):
    workdir = tmp_path / "terminated"
    steps = 20_000
    started = several_processes.start(
        command(workdir, f"--steps={steps}"), processes=2, devices=1, cache=cache
    )
    wait_for_checkpoint(workdir, started)
    started[1].send_signal(signal.SIGTERM)
    for process, text in zip(
        started, several_processes.outputs(started, timeout=300), strict=True
    ):
        assert process.returncode == 1
        assert f"of {steps}: start the same command again to go on" in text
        saved = int(text.partition("saved step ")[2].split()[0])
        assert saved < steps
        assert max(map(int, checkpoints_of(workdir))) == saved


def checkpoints_of(workdir):
    folder = workdir / "checkpoints"
    return [path.name for path in folder.iterdir() if path.name.isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "changed"),
    [
        ("qbitopt", ("--undefok=policy_every,calibrate_every", "--update_every=10")),
        (
            "learning_compression",
            (
                "--undefok=policy_every,calibrate_every",
                *("--lc_steps=4", "--mu=0.01", "--codebook_size=4"),
            ),
        ),
        (
            "fliqnas",
            (
                "--undefok=model",
                *("--supernet=resnet_cifar", "--cost_target=0.05", "--steps=120"),
                "--supernet_options=depths=((1,), (1,), (1,));"
                " widths=((4, 8), (8,), (12,))",
            ),
        ),
        (
            "dca_nas",
            (
                "--undefok=model,cost_target,formats,policy_every,calibrate_every",
                *("--model_options=width=8,num_cells=1", "--steps=30"),
                *("--final_steps=90", "--parameter_limit=30000"),
                "--search_options=bottleneck=2",
                "--validation_fraction=0.5",
            ),
        ),
    ],
)
def test_other_launchers_end_with_two_processes(launcher, changed, tmp_path, cache):
    workdir = tmp_path / launcher
    several_processes.run(
        command(workdir, *changed, launcher=launcher),
        processes=2,
        devices=2,
        cache=cache,
    )
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["accuracy"] > 0.5  # chance is 0.1


# A joint search of seconds; its point is trained on.
JOINT = (
    "--undefok=policy_every,calibrate_every,model",
    "--supernet=small_supernets:digits_supernet",
    "--formats=int4,int8",
    "--evaluations=12",
    "--population=6",
    "--reference_networks=1",
    "--finetune_steps=10",
    "--evaluate_every=0",
)


@pytest.fixture
def own_supernet(monkeypatch):
    """Has the launchers' processes import `small_supernets`."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(small_supernets.__file__))


@pytest.mark.slow
@pytest.mark.usefixtures("own_supernet")
def test_two_processes_find_the_front_of_one_with_two_devices(tmp_path, cache):
    found = []
    for processes, devices in ((1, 2), (2, 1)):
        workdir = tmp_path / f"of_{processes}"
        texts = several_processes.run(
            command(workdir, *JOINT, launcher="simq_nas"),
            processes=processes,
            devices=devices,
            cache=cache,
        )
        assert [f"report: {workdir}" in text for text in texts] == [True, False][
            :processes
        ]
        summary = json.loads((workdir / "summary.json").read_text())
        logs = [(workdir / f"{n}.csv").read_text() for n in ("search", "test", "front")]
        found.append((logs, summary["accuracy"], summary["chosen"], summary["front"]))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.usefixtures("own_supernet")
def test_joint_search_goes_on_in_two_processes_where_one_was_killed(tmp_path, cache):
    workdir = tmp_path / "killed"
    arguments = command(workdir, *JOINT, launcher="simq_nas")
    started = several_processes.start(arguments, processes=2, devices=1, cache=cache)
    deadline, log = time.monotonic() + 600, workdir / "search.csv"
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    started[1].send_signal(signal.SIGKILL)
    texts = several_processes.outputs(started, timeout=STOPPED_WITHIN_S)
    assert "start the same command on all processes again" in texts[0], texts[0]
    rows = log.read_text().splitlines()
    several_processes.run(arguments, processes=2, devices=1, cache=cache)
    evaluated = log.read_text().splitlines()
    assert evaluated[: len(rows)] == rows and len(evaluated) == 13
    assert len(set(evaluated)) == 13


@pytest.mark.slow
@pytest.mark.usefixtures("own_supernet")
def test_joint_search_stops_when_one_process_is_told_to_terminate(tmp_path, cache):
    workdir, log = tmp_path / "terminated", tmp_path / "terminated" / "search.csv"
    arguments = command(workdir, *JOINT, "--evaluations=400", launcher="simq_nas")
    started = several_processes.start(arguments, processes=2, devices=1, cache=cache)
    deadline = time.monotonic() + 600
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    texts = several_processes.outputs(started, timeout=300)
    for process, text in zip(started, texts, strict=True):
        assert process.returncode == 1
        assert "of 400 evaluations: start the same command again to go on" in text
    rows = log.read_text().splitlines()
    assert f"told to stop (SIGTERM) after {len(rows) - 1} of" in texts[0]


def error_of(launcher, *arguments, distributed=True):
    """What a launcher says to these flags, before anything is read or compiled."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS([f"{launcher.__name__}.py", "--workdir=none", *arguments])
        with pytest.raises(SystemExit) as stopped:
            program.run_or_exit([""], lambda: None, distributed=distributed)
    return str(stopped.value)


@pytest.mark.parametrize(
    "launcher", [fliqs, fliqnas, qbitopt, learning_compression, simq_nas, dca_nas]
)
def test_flags_of_processes_need_distributed(launcher):
    assert "--process_id=1 needs --distributed" in error_of(launcher, "--process_id=1")


def test_a_launcher_for_one_process_refuses_more(monkeypatch):
    text = error_of(sensitivity, "--distributed", distributed=False)
    assert "runs in one process: leave out --distributed" in text


@pytest.mark.slow
def test_pmap_and_uneven_batches_are_refused_in_all_processes(tmp_path, cache):
    for changed, message in (
        (["--mapping=pmap"], "use shard_map"),
        (["--batch_size=33"], "multiple of the 2 devices"),
    ):
        started = several_processes.start(
            command(tmp_path / "run", *changed), processes=2, devices=1, cache=cache
        )
        for text in several_processes.outputs(started, timeout=300):
            assert "error: " in text and message in text
        assert all(process.returncode == 1 for process in started)
