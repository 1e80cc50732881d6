"""Maps one per-device step over all devices: `shard_map` under `jit`, or `pmap`.

A step is a pure function `(state, batch) -> (state, metrics)` that knows the named
axis `data`: it averages gradients over it and folds its index into keys. The state is
replicated, a batch is split along its leading axis. What a step does is its own matter.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int, Key, PyTree

AXIS = "data"

Step = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def make_mesh() -> Mesh:
    """Returns the one-dimensional mesh over every device, axis `data`."""
    # Under the default, Explicit, axis type a convolution's gradient raises.
    return jax.make_mesh(
        (jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError if the devices can't share a batch evenly."""
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a positive multiple of the {mesh.size} devices, got "
            f"{batch_size}: try {max(1, round(batch_size / mesh.size)) * mesh.size}"
        )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns `tree` with a copy of each array on every device."""
    return place(tree, NamedSharding(mesh, PartitionSpec()))


def place(tree: PyTree, sharding: Sharding) -> PyTree:
    """Returns `tree`, which every process holds alike, with each leaf so sharded.

    As `jax.device_put`, which over several processes takes no keys, and no NaN.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _place_leaf(leaf, sharding), tree)


def _place_leaf(leaf, sharding):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = _place_leaf(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    leaf = np.asarray(leaf)
    leaf = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])


def gather(tree: PyTree) -> PyTree:
    """Returns `tree` as whole NumPy arrays in every process, however it is sharded."""
    from jax.experimental import multihost_utils

    def whole(leaf):
        if getattr(leaf, "is_fully_addressable", True):
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def local_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, "rows"] | slice:
    """Returns which rows of a batch lie on this process's devices, ascending.

    What each process has to load, and hand to `shard_batch`; all rows, as a slice,
    where there is one process.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    if sharding.is_fully_addressable:
        return slice(None)
    # Not always one stretch: on a torus the mesh may order devices otherwise.
    shards = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[at] for at in shards]))


def shard_batch(batch: PyTree, mesh: Mesh, *, leading: int = 0) -> PyTree:
    """Returns a host batch spread over the devices along axis number `leading`.

    Args:
      batch: numpy arrays; of several processes each has its `local_rows` of them.
      mesh: the devices.
      leading: batch axes in front of the one that the devices share.
    """
    spec = PartitionSpec(*[None] * leading, AXIS)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), batch)


def shard_map_step(step: Step, mesh: Mesh, *, leading: int = 0) -> Step:
    """Compiles a per-device step into one program over the mesh; the state is donated.

    Args:
      step: `(state, batch) -> (state, metrics)`, both results equal on all devices.
      mesh: from `make_mesh`.
      leading: batch axes in front of the one that the devices share.

    Returns:
      A function of the same signature on whole batches `[B, ...]`. The state passed in
      is deleted (its memory is reused).
    """
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(*[None] * leading, AXIS)),
        out_specs=PartitionSpec(),
        # With the check on, a user's model that starts a scan from constant zeros (any
        # RNN) is refused: its carry is equal on all devices at first and differs later.
        # Off, gradients are each device's own, as under pmap, and steps average them.
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def pmap_step(step: Step, mesh: Mesh) -> Step:
    """Runs a per-device step under `jax.pmap`; arguments as in `shard_map_step`.

    The state is not donated: pmap can't donate what it broadcasts.
    """
    devices = mesh.devices.ravel().tolist()
    mapped = jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None, devices=devices)

    def on_whole_batch(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        split = jax.tree.map(
            lambda x: x.reshape(mesh.size, x.shape[0] // mesh.size, *x.shape[1:]), batch
        )
        return mapped(state, split)

    return on_whole_batch


MAPPINGS = {"shard_map": shard_map_step, "pmap": pmap_step}


def device_keys(
    key: Key[Array, ""], step: Int[Array, ""], names: Sequence[str]
) -> dict[str, Key[Array, ""]]:
    """Returns the named random keys of one step on this device, from the run's key."""
    own = jax.random.fold_in(jax.random.fold_in(key, step), lax.axis_index(AXIS))
    return dict(zip(names, jax.random.split(own, len(names)), strict=True))


def scan_steps(step: Step) -> Step:
    """Returns a step that runs `step` over batches stacked on a new leading axis.

    For accelerators, where one dispatch for many steps hides the host. On CPU a
    convolution inside `lax.scan` runs 20 to 35 times slower than outside.
    """

    def many(state: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(step, state, batches)

    return many
