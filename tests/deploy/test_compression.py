"""Compression ratios against the published networks' table; bits by codebook type."""

import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.deploy import (
    codebook_bits,
    compressed_bits,
    compression_ratio,
    load_codebooks,
    published_ratio,
    save_codebooks,
)
from fliqs_jax.quantizers.codebook import (
    Codebook,
    binary,
    binary_scaled,
    kmeans_exact,
    powers_of_two,
    ternary_scaled,
)

# Shapes of the weights, counts of weights and of biases.
NETWORKS = {
    "lenet300": ([(784, 300), (300, 100), (100, 10)], 266_200, 410),
    "lenet5": ([(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)], 430_500, 580),
}
# One codebook a layer, biases float32.
TABLE = {
    ("lenet300", 2): 30.5,
    ("lenet300", 3): 15.6,
    ("lenet300", 4): 15.6,
    ("lenet300", 8): 10.5,
    ("lenet300", 16): 7.9,
    ("lenet300", 32): 6.3,
    ("lenet300", 64): 5.3,
    ("lenet5", 2): 30.7,
    ("lenet5", 3): 15.7,
    ("lenet5", 4): 15.7,
    ("lenet5", 8): 10.5,
    ("lenet5", 16): 7.9,
    ("lenet5", 32): 6.3,
    ("lenet5", 64): 5.3,
}
every_entry = pytest.mark.parametrize(
    ("name", "num_values"), TABLE, ids=lambda value: str(value)
)


def compressed_network(name, num_values, *, shared=False):
    params = {}
    for number, shape in enumerate(NETWORKS[name][0]):
        rng = np.random.default_rng(number)
        indices = rng.integers(0, num_values, shape).astype(np.int32)
        values = np.arange(num_values, dtype=np.float32) + (0 if shared else number)
        kernel = Codebook(values, indices, num_fitted=num_values)
        bias = np.full(shape[-1], 0.5, np.float32)
        params[f"Layer_{number}"] = {"kernel": kernel, "bias": bias}
    return params


@every_entry
def test_formula_gives_the_published_networks_table(name, num_values):
    layers, num_weights, num_biases = NETWORKS[name]
    ratio = published_ratio(
        num_weights=num_weights,
        num_biases=num_biases,
        num_values=num_values,
        num_codebooks=len(layers),
    )
    assert round(ratio, 1) == TABLE[name, num_values]
    assert ratio < 32 / np.ceil(np.log2(num_values))


@pytest.mark.parametrize(
    ("name", "num_values"), [("lenet300", 2), ("lenet5", 3), ("lenet300", 64)]
)
def test_ratio_of_parameters_and_of_their_file_is_the_tables(
    name, num_values, tmp_path
):
    params = compressed_network(name, num_values)
    assert round(compression_ratio(params), 1) == TABLE[name, num_values]
    file = tmp_path / "net.fqcb"
    save_codebooks(file, params)
    _, num_weights, num_biases = NETWORKS[name]
    size = file.stat().st_size
    ratio = 4 * (num_weights + num_biases) / size
    assert 0.98 < ratio / compression_ratio(params) <= 1.0
    # The rest is the header: 16 bytes, and JSON.
    assert 0 <= size - compressed_bits(params) / 8 < 100 + 60 * 2 * len(params)
    loaded = load_codebooks(file)
    assert compressed_bits(loaded) == compressed_bits(params)


def test_one_shared_codebook_by_hand():
    # To two decimals in the published form: one codebook for the network.
    for name, expected in {"lenet300": 30.54, "lenet5": 30.71}.items():
        params = compressed_network(name, 2, shared=True)
        assert round(compression_ratio(params), 2) == expected
        _, num_weights, num_biases = NETWORKS[name]
        assert compressed_bits(params) == num_weights + 32 * (num_biases + 2)


def test_vgg_like_network_by_hand():
    """Six 3x3 convolutions and three dense layers on 32x32x3, biases everywhere."""
    kernels = [3, 128, 128, 256, 256, 512, 512]
    convs = sum(9 * a * b for a, b in zip(kernels[:-1], kernels[1:], strict=True))
    dense = 4 * 4 * 512 * 1024 + 1024 * 1024 + 1024 * 10
    biases = sum(kernels[1:]) + 1024 + 1024 + 10
    ratio = published_ratio(
        num_weights=convs + dense, num_biases=biases, num_values=2, num_codebooks=9
    )
    bits = convs + dense + 32 * (biases + 18)
    assert ratio == 32 * (convs + dense + biases) / bits


def test_bits_by_codebook_type():
    w = jnp.linspace(-1.0, 1.0, 100)
    by_hand = {
        100: binary(w),
        132: binary_scaled(w),
        232: ternary_scaled(w),
        300: powers_of_two(w, 1),  # five values
        200 + 96: kmeans_exact(w, 3),
        100 + 64: kmeans_exact(w, 2),
    }
    for bits, codebook in by_hand.items():
        assert compressed_bits({"kernel": codebook}) == bits
    assert codebook_bits(100, 3, num_fitted=3) == 296


def test_other_leaves_count_in_their_own_type():
    leaves = {
        "a": jnp.ones(3),
        "b": jnp.ones(3, jnp.bfloat16),
        "c": np.ones(3, np.int8),
    }
    assert compressed_bits(leaves) == 3 * (32 + 16 + 8)
    assert compression_ratio(leaves) == 1.0


def test_nothing_and_stacked_codebooks_are_refused():
    with pytest.raises(ValueError, match="no bits once compressed"):
        compression_ratio({})
    stacked = Codebook(jnp.zeros((3, 2)), jnp.zeros((3, 5), jnp.int32), num_fitted=2)
    with pytest.raises(ValueError, match=r"one axis, got \(3, 2\): make a Codebook"):
        compressed_bits({"kernel": stacked})
