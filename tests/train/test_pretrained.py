"""Variables come back from every kind of checkpoint as they were written."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax.training.train_state import TrainState

from fliqs_jax.train.checkpoints import Checkpoints
from fliqs_jax.train.pretrained import load_variables

PARAMS = {
    "Dense_0": {
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.array([0.5, 1.5, 2.5], ml_dtypes.bfloat16),
    }
}
STATS = {"BatchNorm_0": {"mean": np.array([1.0, 2.0, 3.0], np.float32)}}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}


class State(TrainState):
    batch_stats: dict


def state(params, **fields):
    """A train state with momentum, which must not be taken for parameters."""
    make = State if fields else TrainState
    params = jax.tree.map(jnp.asarray, params)
    return make.create(apply_fn=None, params=params, tx=optax.adam(0.1), **fields)


def assert_same(loaded, expected):
    def check(a, b):
        assert type(a) is np.ndarray and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, loaded, expected)


def save(folder, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (PARAMS, {"params": PARAMS}),
        (VARIABLES, VARIABLES),
        (state(PARAMS), {"params": PARAMS}),
        (state(PARAMS, batch_stats=STATS), VARIABLES),
        (state(VARIABLES), VARIABLES),
        ({"state": VARIABLES, "epoch": 3}, VARIABLES),
    ],
    ids=["params", "variables", "state", "state_stats", "state_variables", "nested"],
)
def test_orbax_checkpoints_of_all_kinds(tree, expected, tmp_path):
    save(tmp_path / "checkpoint", tree)
    assert_same(load_variables(tmp_path / "checkpoint"), expected)


def test_newest_step_of_a_manager_and_a_step_by_its_folder(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        for step in (9, 10):
            params = {"bias": np.full(2, step, np.float32)}
            manager.save(step, args=ocp.args.StandardSave({"params": params}))
            manager.wait_until_finished()
    for path, value in ((tmp_path, 10), (tmp_path / "9", 9)):
        assert load_variables(path)["params"]["bias"].tolist() == [value, value]


def test_items_of_a_manager_that_keeps_parameters_apart(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(PARAMS),
            batch_stats=ocp.args.StandardSave(STATS),
            opt_state=ocp.args.StandardSave({"count": np.ones(1)}),
            meta=ocp.args.JsonSave({"epoch": 3}),
        )
        manager.save(1, args=items)
        manager.wait_until_finished()
    assert_same(load_variables(tmp_path), VARIABLES)


def test_arrays_saved_from_several_devices_arrive_whole(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    kernel = jax.device_put(jnp.arange(8.0), split)
    save(tmp_path / "checkpoint", {"params": {"kernel": kernel}})
    loaded = load_variables(tmp_path / "checkpoint")
    assert_same(loaded, {"params": {"kernel": np.arange(8, dtype=np.float32)}})


def test_boxes_open_into_a_dict_with_a_value(tmp_path):
    box = nn.Partitioned(jnp.ones(2), names=(None,))
    save(tmp_path / "checkpoint", {"params": {"bias": box}})
    loaded = load_variables(tmp_path / "checkpoint")
    assert_same(loaded, {"params": {"bias": {"value": np.ones(2, np.float32)}}})


def test_our_runs_their_networks_and_their_checkpoints(tmp_path):
    network = {"params": PARAMS, "model_state": {"batch_stats": STATS}}
    clips = {"clips": {"weight_clip": np.ones(1)}, "mean": np.ones(1)}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no finished run.*/checkpoints"):
        load_variables(tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        running = {**network, "opt_state": {"trace": PARAMS}, "step": np.int32(7)}
        checkpoints.save(7, {"state": running, "seconds": np.float64(1)})
    with Checkpoints(tmp_path / "network") as checkpoints:
        checkpoints.save(0, network | clips)
    for name in ("", "network", "network/0", "checkpoints", "checkpoints/7"):
        assert_same(load_variables(tmp_path / name), VARIABLES)


def test_our_network_without_other_collections_has_parameters_alone(tmp_path):
    clips = {"clips": {"weight_clip": np.ones(1)}, "mean": np.ones(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"params": PARAMS, "model_state": {}, **clips})
    assert_same(load_variables(tmp_path), {"params": PARAMS})


@pytest.mark.parametrize("separator", ["/", "."])
def test_safetensors_names_become_paths_and_bf16_stays(separator, tmp_path):
    names = {
        separator.join(("params", "Dense_0", name)): array
        for name, array in PARAMS["Dense_0"].items()
    }
    names[separator.join(("batch_stats", "BatchNorm_0", "mean"))] = STATS[
        "BatchNorm_0"
    ]["mean"]
    safetensors.numpy.save_file(names, tmp_path / "a.safetensors")
    assert_same(load_variables(tmp_path / "a.safetensors"), VARIABLES)


def test_safetensors_keep_dots_within_names_that_have_slashes(tmp_path):
    file = tmp_path / "a.safetensors"
    arrays = {
        "layer.1/kernel": np.zeros((0, 3), np.float16),
        "layer.2/kernel": np.array(2.0),
    }
    safetensors.numpy.save_file(arrays, file)
    expected = {name.split("/")[0]: {"kernel": x} for name, x in arrays.items()}
    assert_same(load_variables(file), {"params": expected})


def test_what_is_no_checkpoint_is_refused_with_what_is(tmp_path):
    accepted = "workdir of a finished run, the folder of an orbax.*or a .safetensors"
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at .*{accepted}"):
        load_variables(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        ValueError, match=f"folder is no orbax checkpoint: .*{accepted}"
    ):
        load_variables(tmp_path / "folder")


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    for name in ("model.pkl", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="can run code|no whole safetensors file"):
            load_variables(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_damage_is_an_error_that_names_the_file(tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones(4)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="a.safetensors is no whole safetensors file"):
        load_variables(file)
    folder = tmp_path / "checkpoint"
    save(folder, {"params": {"bias": np.ones(4)}})  # one leaf: orbax reads in threads
    for chunk in (folder / "d").iterdir():
        chunk.write_bytes(b"")
    with pytest.raises(ValueError, match=f"checkpoint {folder} cannot be read"):
        load_variables(folder)


def test_an_array_that_is_also_a_folder_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones(1), "a.b": np.ones(1)}, file)
    with pytest.raises(ValueError, match="'a' is an array and the folder of 'a.b'"):
        load_variables(file)
