"""Weights on per-channel grids of their own, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_supernets import Stack

import fliqs_jax as fq
from fliqs_jax.quantized_model.static_weights import (
    find_scale,
    quantize_tensor,
    quantize_weights_by,
)
from fliqs_jax.quantizers.observers import OBSERVERS


def by_numpy(w, bits, symmetric):
    """Min-max quantization of one output channel a column."""
    low, high = np.minimum(w.min(0), 0), np.maximum(w.max(0), 0)
    if symmetric:
        scale = np.maximum(-low, high) / (2 ** (bits - 1) - 1)
        return np.clip(np.round(w / scale), -(2 ** (bits - 1)), None) * scale
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    return (np.clip(np.round(w / scale) + zero, 0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 8])
def test_dense_and_conv_per_channel(symmetric, bits):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(nn.Conv(4, (3, 3))(x).mean((1, 2)))

    net, x = Net(), jnp.ones((1, 4, 4, 2))
    params = net.init(jax.random.key(0), x)["params"]
    sites = fq.find_sites(net, x)
    formats = fq.stack_formats([f"int{bits}"] * 2)
    found = quantize_weights_by(
        params, sites, formats, OBSERVERS["minmax"], symmetric=np.full(2, symmetric)
    )
    for name in ("Conv_0", "Dense_0"):
        kernel = np.asarray(params[name]["kernel"])
        want = by_numpy(kernel.reshape(-1, kernel.shape[-1]), bits, symmetric)
        np.testing.assert_allclose(
            found[name]["kernel"], want.reshape(kernel.shape), atol=1e-6
        )
        np.testing.assert_array_equal(found[name]["bias"], params[name]["bias"])


@pytest.mark.slow
def test_stacked_layers_have_formats_of_their_own():
    net, x = Stack(), jnp.ones((1, 4, 4, 1))
    params = net.init(jax.random.key(0), x)["params"]
    sites = fq.find_sites(net, x)
    names = ["int2" if "[1]" in site.path else "fp32" for site in sites]
    found = quantize_weights_by(
        params,
        sites,
        fq.stack_formats(names),
        OBSERVERS["mse"],
        symmetric=np.ones(len(sites), bool),
    )
    before = params["layers"]["Dense_0"]["kernel"]
    after = found["layers"]["Dense_0"]["kernel"]
    for layer in range(3):
        assert (before[layer] == after[layer]).all() == (layer != 1)
    per_channel = [len(np.unique(channel)) for channel in np.asarray(after[1]).T]
    assert max(per_channel) <= 4


@pytest.mark.parametrize("observer", OBSERVERS)
def test_zeros_stay_and_change_no_grid(observer):
    kernel = jax.random.normal(jax.random.key(1), (6, 4))
    masked = kernel.at[4:].set(0).at[:, 3].set(0)

    @jax.jit
    def quantized(weights, symmetric):
        inputs, outputs = weights.shape
        sites = fq.find_sites(nn.Dense(outputs), jnp.ones((1, inputs)))
        params = {"kernel": weights, "bias": jnp.zeros(outputs)}
        formats, given = fq.stack_formats(["int4"]), OBSERVERS[observer]
        return quantize_weights_by(params, sites, formats, given, symmetric=symmetric)[
            "kernel"
        ]

    for symmetric in (True, False):
        modes = np.array([symmetric])
        full, small = quantized(masked, modes), quantized(kernel[:4, :3], modes)
        assert not full[4:].any() and not full[:, 3].any()
        if observer not in ("percentile", "kl"):
            np.testing.assert_allclose(full[:4, :3], small, atol=1e-6)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("name", ["int2", "int4", "int8", "int12", "e2m1", "e4m3"])
def test_a_grid_is_found_from_the_values_on_it(name, observer):
    x = jax.random.normal(jax.random.key(0), (40, 3)).at[:, 2].set(0.0)
    fmt = fq.parse_format(name)

    @jax.jit
    def quantized(x):
        given = OBSERVERS[observer]
        return quantize_tensor(x, fmt, given, symmetric=True, contracted_axes=(0,))

    on_grid = np.asarray(quantized(x))
    scale = find_scale(on_grid, fmt, contracted_axes=(0,))
    assert scale.shape == (1, 3) and scale[0, 2] == 1.0
    numbers = on_grid / scale
    np.testing.assert_allclose(
        fq.fake_quantize(numbers, fmt, scale=1.0), numbers, rtol=1e-4, atol=1e-4
    )


def test_values_on_no_grid_through_zero_have_no_scale():
    x = np.array([-1.0, 0.013, 0.4142, 1.0], np.float32)
    with pytest.raises(ValueError, match="1 channels are on no symmetric grid"):
        find_scale(x, fq.parse_format("int3"))
