"""What test_processes runs in each of several processes; prints `passed` at the end."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from experiments import common, program
from fliqs_jax.data import batches, evaluation_batches, load_dataset
from fliqs_jax.train import mapping, processes
from fliqs_jax.train.checkpoints import Checkpoints
from fliqs_jax.train.workdir import open_workdir, write_json

FLAGS = flags.FLAGS
common.define_workdir_flags()
common.define_process_flags()
BATCH_SIZE = 8


def error_of(work) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    raise AssertionError("no error")


def check_batches(mesh) -> None:
    rows = mapping.local_rows(BATCH_SIZE, mesh)
    half = BATCH_SIZE // 2
    assert rows.tolist() == [half * FLAGS.process_id + i for i in range(half)]
    digits = load_dataset("digits")
    settings = {"batch_size": BATCH_SIZE, "seed": 3}
    own = batches(digits.train, **settings, rows=rows).batch(5)
    whole = batches(digits.train, **settings).batch(5)
    assert (own["image"] == whole["image"][rows]).all()

    placed = mapping.shard_batch(own, mesh)
    # The whole batch in its order: what each device holds is what one process had.
    weights = jnp.arange(1.0, BATCH_SIZE + 1)
    total = jax.jit(lambda labels: (labels * weights).sum())(placed["label"])
    assert float(total) == (whole["label"] * np.arange(1, BATCH_SIZE + 1)).sum()

    last, whole = (
        list(evaluation_batches(digits.test, BATCH_SIZE, part))[-1]
        for part in (rows, slice(None))
    )
    for name in whole:
        assert (last[name] == whole[name][rows]).all()


def check_steps(mesh) -> None:
    def step(state, batch):
        drawn = jax.random.normal(mapping.device_keys(state["key"], 0, ["a"])["a"])
        everybody = lax.all_gather(drawn, mapping.AXIS)
        return {**state, "draws": everybody}, lax.pmean(batch.mean(), mapping.AXIS)

    key = jax.random.key(7)
    state = {"key": key, "draws": jnp.full(mesh.size, jnp.nan)}
    state = mapping.replicate(state, mesh)  # keys and NaN, too
    rows = mapping.local_rows(BATCH_SIZE, mesh)
    batch = mapping.shard_batch(np.arange(BATCH_SIZE, dtype=np.float32)[rows], mesh)
    state, mean = mapping.shard_map_step(step, mesh)(state, batch)
    assert float(mean) == (BATCH_SIZE - 1) / 2
    # Keys follow the place in the whole mesh, not in the process.
    base = jax.random.fold_in(key, 0)
    expected = [
        jax.random.normal(jax.random.split(jax.random.fold_in(base, i), 1)[0])
        for i in range(mesh.size)
    ]
    assert np.asarray(state["draws"]).tolist() == [float(x) for x in expected]
    check_checkpoints(state)


def check_checkpoints(state) -> None:
    folder = pathlib.Path(FLAGS.workdir) / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, {"state": state, "own": np.float64(FLAGS.process_id)})
    example = {"state": state, "own": np.float64(0)}
    step, restored = Checkpoints(folder).restore(example)
    assert step == 3 and restored["own"] == 0.0  # what the main process had
    for old, new in zip(
        jax.tree.leaves(state), jax.tree.leaves(restored["state"]), strict=True
    ):
        assert new.sharding == old.sharding
        assert jax.device_get(jnp.all(old == new))


def check_errors() -> None:
    def fail():
        raise ValueError("only the main process knows")

    assert error_of(lambda: processes.on_main(fail)) == "only the main process knows"
    index = jax.process_index()
    assert processes.on_main(lambda: {"index": index, "long": "x" * 5000}) == {
        "index": 0,
        "long": "x" * 5000,
    }
    text = error_of(
        lambda: processes.check_same(str(FLAGS.process_id).encode, "number")
    )
    assert "processes [1] have another number than process 0" in text
    assert not processes.all_agree(processes.is_main())

    folder = pathlib.Path(FLAGS.workdir) / "run"
    with open_workdir(folder, {"seed": 0}):
        assert (folder / "config.json").exists()
        processes.on_main(lambda: write_json(folder / "summary.json", {}))

    def open_as_another_run():
        with open_workdir(folder, {"seed": 1}):
            raise AssertionError("opened")

    assert "seed: 0 there, 1 now" in error_of(open_as_another_run)


def check_all() -> None:
    assert jax.process_count() == 2
    mesh = mapping.make_mesh()
    assert mesh.size == 4
    check_batches(mesh)
    check_steps(mesh)
    check_errors()
    program.say("said once")
    print("passed")


def main(argv: list[str]) -> None:
    program.run_or_exit(argv, check_all, distributed=True)


if __name__ == "__main__":
    app.run(main)
