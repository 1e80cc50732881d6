"""What every cost keeps to: hand counts, additivity, monotony, and its table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.costs import (
    DEVICES,
    Contraction,
    Device,
    LatencyTable,
    Measurement,
    cost_table,
    make_site_latency,
    make_site_storage,
    make_table_latency,
    policy_cost,
    site_bops,
    site_cost_where,
    site_linear_ops,
    site_price,
    site_size,
)
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site

# 3x3 convolution, 4 -> 6 channels, 5x5 outputs from 5x5 inputs; dense 150 -> 10.
CONV = Site(
    path="Conv_0",
    op="conv",
    weight_shape=(3, 3, 4, 6),
    macs=5 * 5 * 3 * 3 * 4 * 6,
    weight_count=3 * 3 * 4 * 6,
    input_size=5 * 5 * 4,
    output_size=5 * 5 * 6,
)
DENSE = Site(
    path="Dense_0",
    op="dense",
    weight_shape=(150, 10),
    macs=1500,
    weight_count=1500,
    input_size=150,
    output_size=10,
)
HEAD = Site(
    path="head",
    op="dense",
    weight_shape=(10, 3),
    macs=30,
    weight_count=30,
    input_size=10,
    output_size=3,
)
SITES = (CONV, DENSE, HEAD)

CHIP = Device(
    name="chip", ops_per_second={8: 1000.0, 16: 500.0, 32: 250.0}, bytes_per_second=80.0
)
# For a batch of 2; narrower is quicker here, so that latency is monotone.
SECONDS_PER_MAC = {"int8": 2.0, "e4m3": 3.0, "bf16": 4.0, "fp32": 7.0}
MEASURED = LatencyTable(
    "chip",
    tuple(
        Measurement(
            contraction=Contraction.of(site),
            batch_size=2,
            weights=name,
            activations=name,
            latency_s=seconds * site.macs,
        )
        for site in SITES
        for name, seconds in SECONDS_PER_MAC.items()
    ),
)
# cost function -> by hand for CONV (5400 MACs, 216 weights, 100 in, 150 out, 6
# channels of 36 weights) at int4 weights and int8 inputs
COSTS = {
    "bops": (site_bops, 5400 * 4 * 8),
    "linear ops": (site_linear_ops, 5400 * 8),
    "bops of convolutions": (
        site_cost_where(site_bops, lambda site: site.op == "conv"),
        5400 * 4 * 8,
    ),
    "size": (site_size, 216 * 4),
    "size with scales": (make_site_storage(), 216 * 4 + 6 * 32),
    "size with a scale a tensor": (make_site_storage(per_channel=False), 216 * 4 + 32),
    "size with MX scales": (
        make_site_storage(scale_bits=8, block_size=32),
        216 * 4 + 6 * 2 * 8,
    ),
    "latency, measured": (make_table_latency(MEASURED), 2.0 * 5400),
    # 10.8 s of arithmetic against (108 + 250) / 80 = 4.475 s of traffic.
    "latency, compute bound": (make_site_latency(CHIP), 10.8),
    # 128 inputs on the 2-core roofline: (108 + 128 * 250) bytes at 51.2 GB/s.
    "latency, batch on a CPU": (
        make_site_latency(DEVICES["cpu_2_cores"], batch_size=128),
        2 * 128 * 5400 / 192e9,
    ),
    # Against 21.6 ps of arithmetic.
    "latency, memory bound": (
        make_site_latency(DEVICES["h100"]),
        (108 + 250) / 3.35e12,
    ),
}

OPTIONS = ("int4", "e4m3", "bf16")
SPACES = {
    "tied": SearchSpace(SITES, OPTIONS),
    "pinned": SearchSpace(SITES, OPTIONS, pins={"head": ("int8", "fp32")}),
    "grouped": SearchSpace(SITES, OPTIONS, groups={"Conv_0|head": "ends"}),
    "weights only": SearchSpace(SITES, OPTIONS, weights_only=True),
    "separate": SearchSpace(SITES, OPTIONS[:2], separate=True),
    "separate, grouped, pinned": SearchSpace(
        SITES,
        OPTIONS,
        separate=True,
        groups=["Conv_0|Dense_0"],
        pins={"head": "int8"},
    ),
}

every_cost = pytest.mark.parametrize(
    "site_cost", [cost for cost, _ in COSTS.values()], ids=COSTS
)
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@pytest.mark.parametrize(("site_cost", "expected"), COSTS.values(), ids=COSTS)
def test_hand_count(site_cost, expected):
    price = site_price(site_cost, CONV, "int4", "int8")
    assert price == pytest.approx(expected, rel=1e-12)


@every_cost
def test_cost_adds_up_over_sites(site_cost):
    policy = Policy.uniform(SITES, "int4", "e4m3", pins={"head": "bf16"})
    formats = [("int4", "e4m3"), ("int4", "e4m3"), ("bf16", "bf16")]
    total = sum(
        site_price(site_cost, site, *pair)
        for site, pair in zip(SITES, formats, strict=True)
    )
    assert policy_cost(site_cost, SITES, policy) == pytest.approx(total, rel=1e-12)
    parts = [
        policy_cost(site_cost, [site], Policy({site.path: policy[site.path]}))
        for site in SITES
    ]
    assert sum(parts) == pytest.approx(total, rel=1e-12)


INTEGERS = [f"int{bits}" for bits in range(2, 17)]


@every_cost
def test_more_bits_never_cost_less(site_cost):
    # Casts need no scales, so weights are compared within each kind.
    inputs = [*INTEGERS, "fp32"]
    for names in (INTEGERS, ["bf16", "fp32"], ["e2m1", "e4m3"]):
        for weights, wider in itertools.pairwise(names):
            for activations in inputs:
                cost = site_price(site_cost, DENSE, weights, activations)
                assert cost <= site_price(site_cost, DENSE, wider, activations)
    for activations, wider in itertools.pairwise(inputs):
        cost = site_price(site_cost, DENSE, "int8", activations)
        assert cost <= site_price(site_cost, DENSE, "int8", wider)


def every_options(space):
    shape = range(space.num_options), space.num_decisions
    return np.array(list(itertools.product(shape[0], repeat=shape[1])), np.int32)


@every_cost
@every_space
def test_table_prices_every_policy_like_the_sum(site_cost, space):
    table, options = cost_table(space, site_cost), every_options(space)
    prices = [policy_cost(site_cost, SITES, space.policy(row)) for row in options]
    exact = [table.exact_cost(row) for row in options]
    np.testing.assert_allclose(exact, prices, rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(table.of)(options), prices, rtol=1e-6)
    assert (table.minimum(), table.maximum()) == (min(exact), max(exact))
    if isinstance(prices[0], int):
        assert exact == prices


@every_cost
@every_space
def test_expected_cost_is_the_mean_over_all_policies(site_cost, space):
    table, options = cost_table(space, site_cost), every_options(space)
    shape = (space.num_decisions, space.num_options)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(shape[1]), shape[0])
    weights = probabilities[np.arange(shape[0]), options].prod(axis=1)
    prices = np.array([table.exact_cost(row) for row in options])
    expected = jax.jit(table.expected)(probabilities.astype(np.float32))
    np.testing.assert_allclose(expected, weights @ prices, rtol=2e-6)


@every_space
@pytest.mark.parametrize("name", ["bops", "size with MX scales", "latency, measured"])
def test_gradient_of_the_expectation_is_the_price_of_each_option(name, space):
    # dE/dp[l, k] = E[cost | option k at l], up to a constant of the decision.
    table, options = cost_table(space, COSTS[name][0]), every_options(space)
    shape = (space.num_decisions, space.num_options)
    probabilities = np.random.default_rng(1).dirichlet(np.ones(shape[1]), shape[0])
    gradient = jax.grad(table.expected)(jnp.asarray(probabilities, jnp.float32))
    weights = probabilities[np.arange(shape[0]), options].prod(axis=1)
    prices = np.array([table.exact_cost(row) for row in options])
    for decision in range(shape[0]):
        conditional = []
        for option in range(shape[1]):
            here = options[:, decision] == option
            conditional.append(np.average(prices[here], weights=weights[here]))
        np.testing.assert_allclose(
            gradient[decision] - gradient[decision, 0],
            np.subtract(conditional, conditional[0]),
            rtol=1e-4,
            atol=1e-6 * max(prices),
        )
