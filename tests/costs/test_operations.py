"""Bit operations and the linear model: published ratios and widths by hand."""

import pytest

from fliqs_jax.costs import (
    bops,
    linear_ops,
    site_bops,
    site_cost_where,
    site_linear_ops,
)
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site


def make_site(path, macs):
    sizes = dict(weight_count=8, input_size=4, output_size=2)
    return Site(path=path, op="dense", weight_shape=(4, 2), macs=macs, **sizes)


SITES = (make_site("a", 10**12 + 1), make_site("b", 7))


def test_bf16_e4m3_e2m1_cost_16_4_1():
    prices = [bops(SITES, Policy.uniform(SITES, f)) for f in ("bf16", "e4m3", "e2m1")]
    assert prices == [16 * prices[2], 4 * prices[2], prices[2]]


def test_bops_of_large_networks_are_exact():
    # 32 * 32 * (1e12 + 8) has more digits than float32 holds.
    assert bops(SITES, Policy.uniform(SITES, "fp32")) == 1024 * (10**12 + 8)


def test_weights_and_inputs_multiply():
    policy = Policy({"a": ("int2", "uint3"), "b": ("fp32", "e5m2")})
    assert bops(SITES, policy) == (10**12 + 1) * 2 * 3 + 7 * 32 * 8


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "width"),
    [(2, 2, 4), (4, 4, 4), (4, 5, 8), (8, 8, 8), (9, 2, 16), (4, 16, 16), (32, 8, 32)],
)
def test_linear_ops_run_at_the_next_width_of_the_wider_operand(
    weight_bits, activation_bits, width
):
    assert site_linear_ops(SITES[1], weight_bits, activation_bits) == 7 * width


def test_linear_ops_sum_over_sites():
    policy = Policy({"a": ("int4", "int4"), "b": ("int4", "int6")})
    assert linear_ops(SITES, policy) == 4 * (10**12 + 1) + 7 * 8


def test_policy_of_another_network_is_refused():
    with pytest.raises(ValueError, match="no entry for 'b'"):
        bops(SITES, Policy.uniform(SITES[:1], "int4"))


def test_where_counts_some_of_the_sites():
    policy = Policy({"a": ("int2", "uint3"), "b": ("fp32", "e5m2")})
    assert bops(SITES, policy, where=lambda site: site.path != "a") == 7 * 32 * 8
    assert linear_ops(SITES, policy, where=lambda site: site.path == "b") == 7 * 32
    assert bops(SITES, policy, where=lambda site: True) == bops(SITES, policy)


def test_where_leaves_a_price_of_zero_to_the_others():
    site_cost = site_cost_where(site_bops, lambda site: site.macs < 10)
    assert [site_cost(site, 2, 3) for site in SITES] == [0, 7 * 2 * 3]


def test_where_that_is_true_for_no_site_is_refused():
    policy = Policy.uniform(SITES, "int4")
    with pytest.raises(ValueError, match=r"none of the 2 sites \('a' to 'b'\)"):
        bops(SITES, policy, where=lambda site: site.op == "conv")


def test_where_does_not_excuse_a_policy_of_another_network():
    with pytest.raises(ValueError, match="no entry for 'b'"):
        bops(SITES, Policy.uniform(SITES[:1], "int4"), where=lambda s: s.path == "a")
