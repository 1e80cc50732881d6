"""Several processes as one: two of them on the loopback address check themselves."""

import os
import pathlib

import jax
import pytest
import several_processes

from fliqs_jax.train import processes

CHECKS = pathlib.Path(__file__).parents[1] / "support" / "process_checks.py"


def test_two_processes_share_batches_states_checkpoints_and_errors(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    first, second = several_processes.run(
        [str(CHECKS), f"--workdir={tmp_path}"],
        processes=2,
        devices=2,
        cache=tmp_path / "cache",
    )
    assert "passed" in first and "passed" in second
    assert "said once" in first and "said once" not in second


def test_one_process_is_the_main_one_and_asks_nobody():
    assert processes.is_main() and not processes.are_several()
    assert processes.all_agree(True) and not processes.all_agree(False)
    assert processes.spoken_once(print) is print
    done = []
    processes.on_main(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(KeyError):  # not wrapped: who fails is who asked
        processes.on_main(lambda: {}["absent"])
    processes.check_same(lambda: 1 / 0, "never asked for")
    assert not processes.preempted(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator_address": "localhost"}, "HOST:PORT"),
        ({"heartbeat_timeout_s": 0}, "at least 1 second"),
        ({"num_processes": 2, "process_id": 2}, "got 2 of 2"),
    ],
)
def test_processes_that_cannot_be_joined_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.initialize(**arguments)


def test_where_jax_finds_no_cluster_the_error_names_what_is_missing(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=r"elsewhere give .*; got None, 2 and None"):
        processes.initialize(num_processes=2)


@pytest.mark.parametrize(
    ("error", "several", "lost"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: closed by peer"), True, True),
        (ValueError("UNKNOWN: Gloo all-reduce failed: closed by peer"), False, False),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: tasks are gone"), True, True),
        (ValueError("steps must be at least 1, got 0"), True, False),
        (KeyError("UNKNOWN: "), True, False),
    ],
)
def test_a_lost_process_is_told_from_a_mistake(monkeypatch, error, several, lost):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
    assert processes.tells_a_loss(error) == lost
