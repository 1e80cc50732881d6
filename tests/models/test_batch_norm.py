"""`BatchNorm` against flax's: values, gradients, statistics, devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from fliqs_jax.models.batch_norm import BatchNorm

SHAPES = [(6, 3), (5, 4, 3), (4, 5, 3, 3), (2, 3, 2, 2, 3)]


def _normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _inputs(shape, dtype=jnp.float32):
    """Channels of different means and deviations, and variables that are not 0 or 1."""
    x = 0.5 + _normal(0, shape) * jnp.broadcast_to(jnp.array([0.5, 1.0, 2.0]), shape)
    variables = {
        "params": {"scale": 1 + 0.3 * _normal(1, (3,)), "bias": _normal(2, (3,))},
        "batch_stats": {"mean": _normal(3, (3,)), "var": jnp.array([0.5, 1.0, 3.0])},
    }
    return x.astype(dtype), variables


def _loss(norm, params, x, batch_stats):
    variables = {"params": params, "batch_stats": batch_stats}
    y, updates = norm.apply(variables, x, mutable=["batch_stats"])
    return (jnp.sin(y) * _normal(4, x.shape)).sum(), (y, updates["batch_stats"])


def _assert_close(got, wanted, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        got,
        wanted,
    )


def test_variables_are_those_of_flax():
    ours, flax = (
        cls(use_running_average=False).init(jax.random.key(0), jnp.ones((2, 3)))
        for cls in (BatchNorm, nn.BatchNorm)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_equals_flax(shape):
    x, variables = _inputs(shape)
    results = []
    for cls in (BatchNorm, nn.BatchNorm):
        norm = cls(use_running_average=False, momentum=0.8, epsilon=1e-3)
        run = jax.jit(
            jax.value_and_grad(
                functools.partial(_loss, norm), argnums=(0, 1), has_aux=True
            )
        )
        results.append(run(variables["params"], x, variables["batch_stats"]))
    _assert_close(*results)  # result, running statistics, and gradients of all three


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation_equals_flax(shape):
    x, variables = _inputs(shape)
    ours, flax = (
        cls(use_running_average=True, epsilon=1e-3).apply(variables, x)
        for cls in (BatchNorm, nn.BatchNorm)
    )
    _assert_close(ours, flax, 2e-6)


@pytest.mark.parametrize("use_running_average", [True, False])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=str)
def test_bfloat16_stays_bfloat16_with_float32_statistics(use_running_average, dtype):
    x, variables = _inputs((64, 5, 5, 3), jnp.bfloat16)
    y, updates = BatchNorm(use_running_average, dtype=dtype).apply(
        variables, x, mutable=["batch_stats"]
    )
    flax, flax_updates = nn.BatchNorm(use_running_average, dtype=jnp.bfloat16).apply(
        variables, x, mutable=["batch_stats"]
    )
    assert y.dtype == flax.dtype == jnp.bfloat16
    # flax rounds some steps to bfloat16 (2**-9 relative), we the result only.
    _assert_close(y.astype(jnp.float32), flax.astype(jnp.float32), 3e-2)
    _assert_close(updates, flax_updates, 1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} <= {jnp.dtype("float32")}


def test_gradients_of_bfloat16_are_bfloat16_and_right():
    x, variables = _inputs((64, 5, 5, 3), jnp.bfloat16)
    gradient = jax.grad(functools.partial(_loss, BatchNorm()), (0, 1), has_aux=True)
    stats = variables["batch_stats"]
    (params, of_x), _ = gradient(variables["params"], x, stats)
    wide, _ = gradient(variables["params"], x.astype(jnp.float32), stats)
    assert of_x.dtype == jnp.bfloat16
    assert params["scale"].dtype == params["bias"].dtype == jnp.float32
    for got, wanted in zip(
        jax.tree.leaves((params, of_x)), jax.tree.leaves(wide), strict=True
    ):
        scale = jnp.abs(wanted).max()
        assert jnp.abs(got.astype(jnp.float32) - wanted).max() < 0.02 * scale


def test_dtype_sets_the_result():
    x, variables = _inputs((4, 3), jnp.bfloat16)
    norm = BatchNorm(use_running_average=True, dtype=jnp.float32)
    assert norm.apply(variables, x).dtype == jnp.float32


def test_running_statistics_are_differentiable():
    """Losses on the batch's statistics, as in data-free quantization."""
    x, variables = _inputs((4, 5, 3, 3))

    def loss(cls, x):
        norm = cls(use_running_average=False)
        _, updates = norm.apply(variables, x, mutable=["batch_stats"])
        stats = updates["batch_stats"]
        return 100 * (jnp.sin(stats["mean"]) + jnp.cos(stats["var"])).sum()

    ours, flax = (jax.grad(loss, 1)(cls, x) for cls in (BatchNorm, nn.BatchNorm))
    assert jnp.abs(flax).max() > 1e-3
    _assert_close(ours, flax)


def test_gradient_of_the_gradient_equals_flax():
    x, variables = _inputs((4, 3, 3, 3))
    arguments = (variables["params"], x)
    direction = jax.tree.map(lambda leaf: _normal(7, leaf.shape), arguments)

    def hessian_vector(cls):
        norm = cls(use_running_average=False)

        def slope(arguments):
            loss = functools.partial(_loss, norm, batch_stats=variables["batch_stats"])
            gradients, _ = jax.grad(loss, (0, 1), has_aux=True)(*arguments)
            products = jax.tree.map(jnp.vdot, gradients, direction)
            return sum(jax.tree.leaves(products))

        return jax.jit(jax.grad(slope))(arguments)

    _assert_close(hessian_vector(BatchNorm), hessian_vector(nn.BatchNorm), 1e-4)


def test_vmap_equals_a_loop():
    x, variables = _inputs((2, 5, 3))
    gradient = jax.grad(functools.partial(_loss, BatchNorm()), (0, 1), has_aux=True)
    stats = variables["batch_stats"]
    together = jax.vmap(gradient, (None, 0, None))(variables["params"], x, stats)
    alone = [gradient(variables["params"], part, stats) for part in x]
    _assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


@pytest.mark.parametrize("check_vma", [True, False])
def test_axis_name_makes_eight_devices_one_batch(check_vma):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, variables = _inputs((16, 2, 3, 3))
    weights = _normal(4, x.shape)

    def gradient(axis_name, params, x, weights):
        def loss(params, x):
            y, updates = BatchNorm(axis_name=axis_name).apply(
                {**variables, "params": params}, x, mutable=["batch_stats"]
            )
            return (jnp.sin(y) * weights).sum(), updates["batch_stats"]

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    def local(params, x, weights):
        params = lax.pcast(params, "data", to="varying")
        (of_params, of_x), stats = gradient("data", params, x, weights)
        return (lax.psum(of_params, "data"), of_x), stats

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=((P(), P("data")), P()),
        check_vma=check_vma,
    )
    got = jax.jit(mapped)(variables["params"], x, weights)
    _assert_close(got, gradient(None, variables["params"], x, weights))
