"""What is saved comes back bit for bit, as the state it was."""

import os
import pathlib
import subprocess
import sys
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
