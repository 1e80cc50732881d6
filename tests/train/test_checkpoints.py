"""What is saved comes back bit for bit, whatever happens to process and files."""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fliqs_jax.train.checkpoints import Checkpoints, restore_tree


class Controller(NamedTuple):
    logits: Any
    key: Any


@flax.struct.dataclass
class State:
    params: Any
    optimizer: Any
    controller: Any
    step: Any


def make_state(seed=0):
    key = jax.random.key(seed)
    params = {
        "Conv_0": {"kernel": jax.random.normal(key, (3, 3, 2, 4)), "bias": jnp.ones(4)},
        "half": jax.random.normal(key, (5,), jnp.bfloat16),
        "eighth": jnp.arange(3).astype(jnp.float8_e4m3fn),
        "codes": jnp.arange(-8, 8).astype(jnp.int4),
        "odd": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45], jnp.float32),
        "a/b": {"c.d[0]": jnp.arange(2)},  # site paths are keys in a controller
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "none": None,
    }
    moments = {"Conv_0": params["Conv_0"]}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(moments)
    keys = {
        "each": jax.random.split(key, 3),
        "rbg": jax.random.key(seed, impl="rbg"),
        "no": jax.random.split(key, 1)[:0],
    }
    return State(
        params, optimizer, Controller(jnp.zeros((4, 3)), keys), jnp.int32(seed)
    )


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype == jnp.int4:
        array = array.astype(np.int8)
    return array.tobytes()


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert bits(one) == bits(other)


def on_mesh(state, devices):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def test_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        assert checkpoints.latest_step() is None
        assert checkpoints.save(12, state)
        assert checkpoints.latest_step() == 12
    later = Checkpoints(tmp_path)
    assert later.latest_step() == 12
    step, restored = later.restore(make_state(0))
    assert step == 12
    assert_same(restored, state)
    # The stream goes on as it would have.
    draws = [
        jax.random.normal(x.controller.key["rbg"], (3,)) for x in (restored, state)
    ]
    assert bits(draws[0]) == bits(draws[1])


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 2), (1, 8)])
def test_every_leaf_gets_the_sharding_of_the_example(tmp_path, saved_on, restored_on):
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, on_mesh(state, saved_on))
    example = on_mesh(make_state(0), restored_on)
    _, restored = Checkpoints(tmp_path).restore(example)
    assert_same(restored, state)
    for one, other in zip(*map(jax.tree.leaves, (restored, example)), strict=True):
        assert one.sharding == other.sharding and one.committed == other.committed


def test_partly_sharded_array_and_abstract_example(tmp_path):
    mesh = on_mesh(jnp.zeros(1), 8).sharding.mesh
    split = NamedSharding(mesh, PartitionSpec("data"))
    state = {"x": jax.device_put(jnp.arange(16.0), split), "key": jax.random.key(5)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    _, restored = Checkpoints(tmp_path).restore(example)
    assert_same(restored, state)
    assert restored["x"].sharding == split


def test_uncommitted_example_stays_free_to_move(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(8)})
    _, restored = Checkpoints(tmp_path).restore({"x": jnp.zeros(8)})
    assert not restored["x"].committed
    # Committed to one device, this sum would be refused.
    assert (restored["x"] + on_mesh(jnp.ones(8), 8)).tolist() == [2.0] * 8


def test_python_and_numpy_numbers_keep_their_type(tmp_path):
    state = {"i": 3, "f": 0.1, "b": True, "n": np.float64(1e300), "a": np.arange(3)}
    example = {"i": 0, "f": 0.0, "b": False, "n": np.float64(0), "a": np.zeros(3, int)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    _, restored = Checkpoints(tmp_path).restore(example)
    for name, value in state.items():
        assert type(restored[name]) is type(value)
        assert np.array_equal(restored[name], value)


def test_saved_state_may_be_donated_at_once(tmp_path):
    advance = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.zeros(500_000)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(1, 4):
            x = advance(x)
            checkpoints.save(step, {"x": x})
    for step in range(1, 4):
        assert (restore_tree(tmp_path, step)["x"] == step).all()


def test_saves_every_so_many_steps_even_in_strides(tmp_path):
    with Checkpoints(tmp_path, every=10, keep=2) as checkpoints:
        steps = range(0, 60, 4)
        saved = [s for s in steps if checkpoints.maybe_save(s, {"x": jnp.ones(2)})]
    assert saved == [12, 20, 32, 40, 52]
    assert sorted(os.listdir(tmp_path)) == ["40", "52"]
    resumed = Checkpoints(tmp_path, every=10)
    assert not resumed.maybe_save(59, {"x": jnp.ones(2)})


def test_same_step_is_saved_once_and_an_earlier_one_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(5, {"x": jnp.ones(2)})
        assert not checkpoints.save(5, {"x": jnp.zeros(2)})
        with pytest.raises(ValueError, match=r"step 4 comes before .* step 5"):
            checkpoints.save(4, {"x": jnp.ones(2)})
    with Checkpoints(tmp_path) as later:
        assert not later.save(5, {"x": jnp.zeros(2)})
    assert restore_tree(tmp_path)["x"].tolist() == [1.0, 1.0]


def test_relative_directory_is_that_of_the_moment_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("run/checkpoints")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoints.save(1, {"x": jnp.ones(2)})
    checkpoints.close()
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


@pytest.mark.parametrize("setting", ["keep", "every"])
def test_settings_below_one_are_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        Checkpoints(tmp_path, **{setting: 0})


def test_leaf_that_is_no_array_is_named_before_anything_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="state leaf a/name is 'resnet', a str"):
        checkpoints.save(1, {"a": {"name": "resnet"}})
    assert not list(tmp_path.iterdir())


# Damage: every kind must cost one checkpoint, say so, and block nothing.


def data_files(folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "commit_success.txt"
    ]


def truncate(folder):
    for path in data_files(folder / "state"):
        os.truncate(path, path.stat().st_size // 2)


def delete_arrays(folder):
    for path in (folder / "state").rglob("d/*"):
        path.unlink()


def delete_everything(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def delete_list(folder):
    (folder / "leaves" / "metadata").unlink()


def garble_list(folder):
    path = folder / "leaves" / "metadata"
    text = path.read_text()
    assert '"x"' in text
    path.write_text(text.replace('"x"', '"y"'))  # still JSON, and the wrong names


def flip_bits(folder):
    """Flips one bit in each of many places: of an array, or of what describes it."""
    generator = np.random.default_rng(0)
    for path in data_files(folder / "state"):
        data = bytearray(path.read_bytes())
        for place in generator.integers(0, len(data), 1 + len(data) // 200):
            data[place] ^= 16
        path.write_bytes(data)


def swap_values(folder):
    """A sound orbax checkpoint with other numbers than those that were saved."""
    other = folder.parent.parent / "other"
    with Checkpoints(other) as checkpoints:
        checkpoints.save(1, {"x": jnp.full(1000, 7.0), "key": jax.random.key(0)})
    (folder / "state").rename(folder.parent.parent / "gone")
    (other / "1" / "state").rename(folder / "state")


# When one of several reads fails, orbax closes the event loop under the others, whose
# "Event loop is closed" then has nobody to go to. Noise, and orbax's own.
orphaned_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

DAMAGES = [
    *(truncate, delete_arrays, delete_everything, delete_list, garble_list),
    *(flip_bits, swap_values),
]


@orphaned_reads
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_newest_falls_back_and_is_kept_aside(tmp_path, damage):
    folder = tmp_path / "checkpoints"
    example = {"x": jnp.zeros(1000), "key": jax.random.key(9)}
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            state = {"x": jnp.arange(1000.0) * step, "key": jax.random.key(step)}
            checkpoints.save(step, state)
    damage(folder / "3")
    left = sorted(path.name for path in (folder / "3").rglob("*"))

    with pytest.warns(UserWarning, match=f"skipped the damaged.*{folder}/3: "):
        assert restore_tree(folder)["x"][1] == 2.0
    assert (folder / "3").is_dir()  # a reader moves nothing
    with pytest.raises(ValueError, match=f"damaged checkpoint {folder}/3: "):
        restore_tree(folder, 3)

    with Checkpoints(folder) as checkpoints:
        with pytest.warns(
            UserWarning, match=f"checkpoint {folder}/3 is damaged"
        ) as log:
            step, state = checkpoints.restore(example)
        message = str(log[0].message)
        assert len(log) == 1 and len(message) < 1000
        assert re.search(r"\(\w+: .+\)", message), message  # and why
        assert step == 2 and state["x"][1] == 2.0
        aside = folder / "damaged" / "3"
        assert str(aside) in message
        assert sorted(path.name for path in aside.rglob("*")) == left
        assert checkpoints.latest_step() == 2
        assert checkpoints.save(3, example | {"x": jnp.full(1000, 3.0)})
    step, state = Checkpoints(folder).restore(example)
    assert step == 3 and state["x"][0] == 3.0


@orphaned_reads
def test_damage_found_while_saving_goes_on(tmp_path):
    state = {"x": jnp.ones(1000), "key": jax.random.key(0)}
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(2):  # the second time, the folder for damaged ones has a 3
            checkpoints.save(2, state)
            checkpoints.save(3, state)
            checkpoints.wait()
            truncate(tmp_path / "3")
            with pytest.warns(UserWarning, match="/3 is damaged"):
                assert checkpoints.restore(state)[0] == 2
    assert sorted(os.listdir(tmp_path / "damaged")) == ["3", "3-1"]
    assert sorted(os.listdir(tmp_path)) == ["2", "damaged"]


@orphaned_reads
def test_all_damaged_starts_afresh_and_loses_nothing(tmp_path):
    state = {"x": jnp.ones(1000)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        checkpoints.wait()
        for step in "12":
            truncate(tmp_path / step)
        with pytest.warns(UserWarning, match="is damaged") as log:
            assert checkpoints.restore(state) is None
        assert len(log) == 2
        assert checkpoints.latest_step() is None
        assert checkpoints.save(1, state)
    assert sorted(os.listdir(tmp_path / "damaged")) == ["1", "2"]
    assert Checkpoints(tmp_path).restore(state)[0] == 1


def test_other_model_is_an_error_that_lists_paths_and_moves_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            1, {"p": {"a": jnp.ones(2), "b": jnp.ones(3)}, "n": jnp.ones(1)}
        )
    other = {
        "p": {"a": jnp.ones(2), "b": jnp.ones((3, 1)), "c": jnp.ones(4)},
        "n": jnp.ones(1, jnp.bfloat16),
    }
    with pytest.raises(ValueError) as caught:
        Checkpoints(tmp_path).restore(other)
    message = str(caught.value)
    assert "another model" in message and str(tmp_path / "1") in message
    assert "p/b: float32[3] in the checkpoint, float32[3, 1] in this run" in message
    assert "p/c: absent in the checkpoint, float32[4] in this run" in message
    assert "n: float32[1] in the checkpoint, bfloat16[1] in this run" in message
    assert "p/a" not in message
    assert os.listdir(tmp_path) == ["1"]


def test_other_kind_of_key_is_another_structure(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"key<fry>\[\] in the .* key<rbg>\[\] in"):
        Checkpoints(tmp_path).restore({"key": jax.random.key(0, impl="rbg")})


def test_long_lists_of_differences_are_cut(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(1)})
    with pytest.raises(ValueError, match="and 81 more") as caught:
        Checkpoints(tmp_path).restore({f"y{i}": jnp.ones(1) for i in range(100)})
    assert len(str(caught.value).splitlines()) < 30


def test_restore_tree_gives_numpy_by_name(tmp_path):
    state = make_state(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, on_mesh(state, 8))
        checkpoints.save(2, state)
    tree = restore_tree(tmp_path, step=1)
    kernel = tree["params"]["Conv_0"]["kernel"]
    assert type(kernel) is np.ndarray
    assert bits(kernel) == bits(state.params["Conv_0"]["kernel"])
    assert tree["params"]["half"].dtype == jnp.bfloat16
    assert tree["params"]["empty"].shape == (0, 3)
    # chain -> adamw, itself a chain -> Adam's state -> first moment
    assert not tree["optimizer"]["1"]["0"]["mu"]["Conv_0"]["bias"].any()
    assert tree["controller"]["logits"].shape == (4, 3)
    assert bits(tree["controller"]["key"]["rbg"]) == bits(state.controller.key["rbg"])


def test_restore_tree_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=f"no checkpoint in {tmp_path}/no"):
        restore_tree(tmp_path / "no")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, {"x": jnp.ones(1)})
        checkpoints.save(8, {"x": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"no checkpoint of step 5.*\[4, 8\]"):
        restore_tree(tmp_path, 5)


def test_orbax_is_silent(tmp_path):
    program = """
import sys, warnings
warnings.simplefilter("error")
import jax.numpy as jnp
from absl import logging
logging.set_verbosity(logging.INFO)
from fliqs_jax.train.checkpoints import Checkpoints, restore_tree
logging.info("our own line")
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 6):
        checkpoints.save(step, {"x": jnp.ones(3)})
    checkpoints.restore({"x": jnp.ones(3)})
restore_tree(sys.argv[1])
"""
    done = run(program, tmp_path)
    assert done.stdout == ""
    assert "our own line" in done.stderr and len(done.stderr.splitlines()) == 1


def run(program, *args):
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        check=True,
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )


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


# kill -9

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
