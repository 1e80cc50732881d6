"""Sizes and mean widths of hand-made and found sites."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from fliqs_jax.costs import (
    average_activation_bits,
    average_bits,
    make_site_storage,
    model_bits,
    policy_cost,
)
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantized_model.weights import stored_weights
from fliqs_jax.sites import Site, find_sites

SITES = (
    Site(
        path="Conv_0",
        op="conv",
        weight_shape=(3, 3, 4, 6),
        macs=1,
        weight_count=216,
        input_size=100,
        output_size=1,
    ),
    Site(
        path="Dense_0",
        op="dense",
        weight_shape=(150, 10),
        macs=1,
        weight_count=1500,
        input_size=150,
        output_size=1,
    ),
)
MIXED = Policy({"Conv_0": ("int8", "bf16"), "Dense_0": ("int2", "uint4")})


def test_model_bits_count_weights_only():
    assert model_bits(SITES, MIXED) == 216 * 8 + 1500 * 2
    assert model_bits(SITES, Policy.uniform(SITES, "fp32")) == 32 * 1716


def test_scales_count_once_an_output_channel_and_not_for_casts():
    policy = Policy({"Conv_0": ("int8", "int8"), "Dense_0": ("bf16", "int8")})
    without = model_bits(SITES, policy)
    assert model_bits(SITES, policy, scale_bits=32) - without == 6 * 32
    with pytest.raises(ValueError, match="scale_bits must be 0 or more, got -1"):
        model_bits(SITES, policy, scale_bits=-1)


# Conv_0: 216 weights, 36 in each of 6 channels. Dense_0: 1500, 150 in each of 10.
@pytest.mark.parametrize(
    ("scales", "conv", "dense"),
    [
        (dict(), 6 * 32, 10 * 32),  # a float32 a channel
        (dict(per_channel=False), 32, 32),
        (dict(scale_bits=16), 6 * 16, 10 * 16),
        (dict(scale_bits=8, block_size=32), 6 * 2 * 8, 10 * 5 * 8),  # MX
        (dict(scale_bits=8, block_size=50), 6 * 1 * 8, 10 * 3 * 8),
    ],
)
def test_stored_scales_by_hand(scales, conv, dense):
    cost = make_site_storage(**scales)
    assert cost.function(SITES[0], "int4", "bf16") == 216 * 4 + conv
    assert policy_cost(cost, SITES, MIXED) == 216 * 8 + 1500 * 2 + conv + dense


def test_a_scale_is_stored_where_the_format_needs_one_whatever_its_width():
    cost = make_site_storage()
    for name, bits in {"bf16": 16, "fp16": 16, "fp32": 32, "e8m3": 12}.items():
        assert cost.function(SITES[1], name, name) == 1500 * bits
    assert cost.function(SITES[1], "int16", "int16") == 1500 * 16 + 320
    assert cost.function(SITES[1], "e2m1", "e2m1") == 1500 * 4 + 320
    policy = Policy.uniform(SITES, "int16")
    assert model_bits(SITES, policy, scale_bits=32) == 1716 * 16 + 16 * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scale_bits=-8), "scale_bits must be 0 or more, got -8"),
        (dict(block_size=0), "block_size must be None or at least 1, got 0"),
        (dict(block_size=32, per_channel=False), "block_size divides channels"),
    ],
)
def test_impossible_scales_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_site_storage(**arguments)


def test_output_channels_are_all_axes_that_the_layer_does_not_sum_over():
    model = nn.DenseGeneral(features=(2, 5))  # kernel [3, 2, 5]
    sites = find_sites(model, jnp.zeros((1, 3)))
    policy = Policy.uniform(sites, "int4")
    extra = model_bits(sites, policy, scale_bits=16) - model_bits(sites, policy)
    assert extra == 10 * 16


def test_weights_of_a_recurrent_cell_have_scales_each():
    cell, carry, x = nn.OptimizedLSTMCell(5), (jnp.zeros((1, 5)),) * 2, jnp.ones((1, 4))
    qm = QuantizedModel(cell)
    sites = qm.sites(carry, x)
    policy = Policy.uniform(sites, "int4")
    params = qm.init(jax.random.key(0), carry, x)["params"]
    stored = stored_weights(params, sites, policy.formats(sites), per_channel=True)
    scales = sum(part.scale.size for part in stored.values())
    extra = model_bits(sites, policy, scale_bits=32) - model_bits(sites, policy)
    assert extra == 32 * scales == 32 * 8 * 5


def test_averages_are_weighted_by_elements():
    assert average_bits(SITES, MIXED) == (216 * 8 + 1500 * 2) / 1716
    assert average_activation_bits(SITES, MIXED) == (100 * 16 + 150 * 4) / 250
    assert average_bits(SITES, Policy.uniform(SITES, "e3m2")) == 6.0


def test_where_counts_some_of_the_sites():
    def dense(site):
        return site.op == "dense"

    assert model_bits(SITES, MIXED, where=dense) == 1500 * 2
    assert average_bits(SITES, MIXED, where=dense) == 2.0
    assert average_activation_bits(SITES, MIXED, where=dense) == 4.0
    with pytest.raises(ValueError, match="where is true for none of the 2 sites"):
        average_bits(SITES, MIXED, where=lambda site: site.op == "einsum")
