"""Checkpoints of processes that are killed, and of several that save together."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import warnings

import jax.numpy as jnp
import pytest

from fliqs_jax.train.checkpoints import Checkpoints, restore_tree

PROCESS = """
import os, sys, warnings
import jax, jax.numpy as jnp, numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec
from fliqs_jax.train.checkpoints import Checkpoints
from fliqs_jax.train.metrics import MetricsWriter
from fliqs_jax.train.workdir import open_workdir
folder, port, index = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
def make(step):
    key = lambda: jax.random.key(step)
    one = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))
    return {
        "key": jax.jit(key, out_shardings=one)(),
        "x": jax.jit(lambda: jnp.full(9, step), out_shardings=one)(),
        "split": jax.jit(lambda: jnp.arange(8.0) * step, out_shardings=split)(),
    }
with (
    open_workdir(folder, {}) as workdir,
    MetricsWriter(workdir, resume_step=None) as writer,
    Checkpoints(workdir / "checkpoints") as checkpoints,
):
    writer.write("train", 1, {"loss": 1.0})
    for step in (1, 2, 3):
        checkpoints.save(step, make(step))
    checkpoints.wait()
    if index == "0":
        os.truncate(workdir / "checkpoints/3/leaves/metadata", 5)
    sync_global_devices("truncated")
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        step, state = checkpoints.restore(make(0))
    assert "3 is damaged" in str(log[0].message)
    assert step == 2
    for name, leaf in make(2).items():
        assert state[name].sharding == leaf.sharding
        for one, other in zip(state[name].addressable_shards, leaf.addressable_shards):
            if name == "key":
                one, other = map(jax.random.key_data, (one.data, other.data))
                assert (np.asarray(one) == np.asarray(other)).all()
            else:
                assert (np.asarray(one.data) == np.asarray(other.data)).all()
"""


@pytest.mark.slow
def test_two_processes_save_together_and_agree_on_the_fallback(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, tmp_path, port, index],
            cwd=pathlib.Path(__file__).resolve().parents[2],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in "01"
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    folder = tmp_path / "checkpoints"
    assert sorted(os.listdir(folder)) == ["1", "2", "damaged"]
    assert restore_tree(folder)["split"].tolist() == list(range(0, 16, 2))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


SAVER = """
import sys
import jax, jax.numpy as jnp
from fliqs_jax.train.checkpoints import Checkpoints
def state(step):
    return {f"x{i}": jnp.full(200_000, step + i) for i in range(10)}
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    restored = checkpoints.restore(state(0))
    step = restored[0] if restored else 0
    while True:
        step += 1
        checkpoints.save(step, state(step))
        checkpoints.wait()
        print(step, flush=True)
"""


def save_until_killed(folder, seconds):
    """Runs a process that saves without pause; returns the last step it had on disk."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SAVER, folder],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL and first
    return int((first + rest).splitlines()[-1])


def assert_survived(folder, last):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill must not even look like damage
        example = {f"x{i}": jnp.zeros(200_000, int) for i in range(10)}
        step, state = Checkpoints(folder).restore(example)
    assert step in (last, last + 1)  # it may have been killed before it could print
    for i in range(10):
        assert (state[f"x{i}"] == step + i).all()
    return step


def test_half_written_checkpoint_is_no_checkpoint_and_goes_at_the_next_save(tmp_path):
    half_written = tmp_path / "7.orbax-checkpoint-tmp" / "state"
    half_written.mkdir(parents=True)
    (half_written / "manifest.ocdbt").write_bytes(b"\x00" * 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore({"x": jnp.ones(1)}) is None
        assert half_written.is_dir()  # it may be a running search that writes it
        checkpoints.save(9, {"x": jnp.ones(1)})
    assert os.listdir(tmp_path) == ["9"]


def test_killed_while_saving_leaves_the_newest_loadable(tmp_path):
    assert_survived(tmp_path, save_until_killed(tmp_path, 0.05))


@pytest.mark.slow
def test_killed_while_saving_many_times(tmp_path):
    generator, left_half_done, steps = random.Random(0), 0, [0]
    for _ in range(12):
        last = save_until_killed(tmp_path, generator.uniform(0.0, 0.3))
        left_half_done += any("tmp" in name for name in os.listdir(tmp_path))
        steps.append(assert_survived(tmp_path, last))
        assert steps[-1] > steps[-2]
    assert left_half_done >= 3  # else the kills missed the saves
