"""Costs of architecture and formats together, against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_supernets import SMALL, perceptron_supernet, random_choice, small_supernet

import fliqs_jax as fq
from fliqs_jax.costs import DEVICES, make_site_latency, make_site_storage, site_bops
from fliqs_jax.models.supernets import (
    site_decisions,
    site_variants,
    subnetwork_sites,
)
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.space import JointSpace

COSTS = {
    "bops": site_bops,
    "size": make_site_storage(),
    "latency": make_site_latency(DEVICES["a100"]),
}
SPACES = {
    "tied": {},
    "separate": {"separate": True},
    "pinned": {"pins": {"Dense_0": "int8"}},
}


def joint_cost(net, cost, formats=("int2", "int4", "e4m3"), **settings):
    space = fq.SearchSpace(net.sites, formats, **settings)
    return JointCost(JointSpace(net, space), cost)


def random_vector(costs, seed):
    return np.random.default_rng(seed).integers(0, costs.counts)


def random_probabilities(costs, seed):
    rng = np.random.default_rng(seed)
    chances = rng.gamma(0.5, size=costs.present.shape) * costs.present
    return chances / chances.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("family", [*SMALL, "own"])
def test_variants_are_the_sites_of_sub_networks(family):
    net = small_supernet(family)
    decisions = site_decisions(net)
    for seed in range(2):
        choice = random_choice(net, seed)
        sites = {site.path: site for site in subnetwork_sites(net, choice)}
        for number, (whole, own) in enumerate(zip(net.sites, decisions, strict=True)):
            counts = [len(net.decisions[d].options) for d in own]
            row = np.ravel_multi_index(choice[list(own)], counts) if own else 0
            assert site_variants(net, number, own)[row] == sites.get(whole.path)


def test_only_decisions_with_an_effect_are_named():
    net = perceptron_supernet()
    assert site_decisions(net) == ((0,), (0, 1), (1,))


@pytest.mark.parametrize(
    "cost, settings",
    [*((cost, "tied") for cost in COSTS), ("size", "separate"), ("bops", "pinned")],
)
def test_traced_cost_is_that_of_the_small_network(cost, settings):
    cost = COSTS[cost]
    costs = joint_cost(perceptron_supernet(), cost, **SPACES[settings])
    of = jax.jit(costs.of)
    for seed in range(10):
        vector = random_vector(costs, seed)
        sites = subnetwork_sites(costs.space.net, vector[:2])
        policy = costs.space.policy(vector)
        if cost is site_bops:
            assert costs.exact_cost(vector) == fq.bops(sites, policy)
        assert float(of(vector)) == pytest.approx(costs.exact_cost(vector), rel=1e-6)
        table = costs.formats_table(vector[:2].astype(np.int32))
        assert table.exact_cost(vector[2:]) == pytest.approx(costs.exact_cost(vector))


@pytest.mark.parametrize("settings", SPACES.values(), ids=SPACES)
def test_expected_cost_is_the_mean_over_all_vectors(settings):
    costs = joint_cost(perceptron_supernet(), site_bops, ("int2", "e4m3"), **settings)
    chances = random_probabilities(costs, 3)
    vectors = np.array(list(itertools.product(*map(range, costs.counts))))
    weights = chances[np.arange(len(costs.counts)), vectors].prod(axis=1)
    mean = weights @ [costs.exact_cost(vector) for vector in vectors]
    assert weights.sum() == pytest.approx(1.0)
    found = jax.jit(costs.expected)(jnp.asarray(chances, jnp.float32))
    assert float(found) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("family", ["resnet_cifar", "mobilenet_v2_cifar"])
def test_expected_cost_of_a_sure_policy_is_the_vectors_own(family):
    """Also where layers are left out, and where groups span them."""
    net = small_supernet(family)
    groups = {".*Conv_0|.*Dense_0|.*/project": "some"}
    costs = joint_cost(net, site_bops, groups=groups)
    expected = jax.jit(costs.expected)
    for seed in range(3):
        vector = random_vector(costs, seed)
        sure = jnp.asarray(np.eye(costs.counts.max())[vector], jnp.float32)
        exact = costs.exact_cost(vector)
        assert float(expected(sure)) == pytest.approx(exact, rel=1e-6)


def test_gradient_of_the_expected_cost_is_what_each_option_costs():
    costs = joint_cost(perceptron_supernet(), site_bops)
    chances = jnp.asarray(random_probabilities(costs, 1), jnp.float32)
    gradient = jax.grad(costs.expected)(chances)
    row, expected = 1, jax.jit(costs.expected)  # a decision about sizes
    for option in range(costs.counts[row]):
        sure = chances.at[row].set(jnp.eye(costs.counts.max())[option])
        without = chances.at[row].set(0.0)
        effect = expected(sure) - expected(without)
        assert float(gradient[row, option]) == pytest.approx(float(effect), rel=1e-4)


def test_widths_are_the_formats_and_none_the_architectures():
    costs = joint_cost(perceptron_supernet(), site_bops)
    assert (
        costs.present.tolist() == [[True] * 3, [True, True, False]] + [[True] * 3] * 3
    )
    assert costs.option_bits.tolist() == [[0] * 3] * 2 + [[2, 4, 8]] * 3


def test_reference_is_the_full_network():
    net = perceptron_supernet()
    costs = joint_cost(net, site_bops)
    assert costs.reference("int8") == fq.bops(
        net.sites, fq.Policy.uniform(net.sites, "int8")
    )


def test_vectors_of_another_space_are_refused():
    costs = joint_cost(perceptron_supernet(), site_bops)
    with pytest.raises(ValueError, match="each below its entry"):
        costs.exact_cost(np.full(5, 2))
    with pytest.raises(ValueError, match="5 indices"):
        costs.exact_cost(np.zeros(4, int))
    net = perceptron_supernet()
    modes = JointSpace(
        net, fq.SearchSpace(net.sites, ["int2", "int4"]), weight_modes=True
    )
    with pytest.raises(ValueError, match="weight modes"):
        JointCost(modes, site_bops)


def test_price_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite and not negative"):
        joint_cost(perceptron_supernet(), lambda site, w, a: float("nan"))
