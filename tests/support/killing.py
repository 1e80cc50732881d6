"""Launchers killed without a warning, run again, and held against whole runs."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.metrics import read_metrics

_TIMING = ("seconds", "steps_per_second")


def kill_and_resume(launcher, workdir, *flags):
    """Runs a launcher, kills it once it has a checkpoint, and runs it to its end.

    Returns what the second process printed.
    """
    process = _start(launcher, workdir, flags)
    deadline = time.monotonic() + 300
    while not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # with luck while the next one is being saved
    process.communicate()
    assert not (workdir / "summary.json").exists()
    process = _start(launcher, workdir, flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def assert_same_end(whole, resumed):
    """Asserts that two runs have the same last state, bit for bit, and metrics."""
    states = [restore_tree(workdir / "checkpoints") for workdir in (whole, resumed)]
    for state in states:
        state.pop("seconds", None)
    jax.tree.map(np.testing.assert_array_equal, *states)
    rows = [
        [
            {k: v for k, v in row.items() if k not in _TIMING}
            for row in read_metrics(workdir)
        ]
        for workdir in (whole, resumed)
    ]
    assert rows[0] == rows[1]


def _start(launcher, workdir, flags):
    environment = {
        "PYTHONPATH": os.pathsep.join(["tests/support", "."]),
        # The second process need not compile again what the first one has.
        "JAX_COMPILATION_CACHE_DIR": f"{workdir.parent}/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", launcher.__name__, f"--workdir={workdir}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
