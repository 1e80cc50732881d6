"""Formats of stages: exact costs, repairs that hold, a search that takes what pays."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import costs
from fliqs_jax.formats import stack_formats
from fliqs_jax.models import cells, create_model
from fliqs_jax.models.cells import DARTS, FORMATS, NASBENCH201
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers import gaussian_clip_factors
from fliqs_jax.searchers.cells.architecture import Architecture, ArchitectureSettings
from fliqs_jax.searchers.cells.limits import Limit, ratios
from fliqs_jax.searchers.cells.look_up_graph import random_look_up_graph
from fliqs_jax.searchers.cells.repair import check_limits, repair
from fliqs_jax.searchers.cells.stage_formats import StageFormats, cell_stages
from fliqs_jax.train.classifier import image_sites

OPTIONS = ("int4", "int6", "int8")
STAGES = StageFormats(options=OPTIONS, cells=(0, 1, 2))
COUNTS = cells.nasbench201_network_counts(
    10, width=8, num_cells=1, image_shape=(8, 8, 1)
)
BOPS, BITS = STAGES.bit_operations(COUNTS), STAGES.weight_bits(COUNTS)
DARTS_GENOTYPES = ("DARTS_V1", "DARTS_V2")


def derived_network(index):
    return create_model("nasbench201", cell=index, width=8, num_cells=1)


@pytest.mark.parametrize("index", [0, 9, 6111, 15_624])
@pytest.mark.parametrize("formats", [(0, 0, 0), (2, 0, 1), (2, 2, 2)])
def test_costs_are_those_of_the_derived_networks_policy(index, formats):
    sites = image_sites(derived_network(index), (8, 8, 1))
    policy = STAGES.policy(formats, sites)
    choice = NASBENCH201.choice(index)
    found = costs.policy_cost(costs.site_bops, sites, policy)
    assert BOPS.at(formats).of(NASBENCH201, choice) == found
    size = costs.model_bits(sites, policy)
    assert BITS.at(formats).of(NASBENCH201, choice) == size


@pytest.mark.parametrize("genotype", DARTS_GENOTYPES)
def test_darts_costs_are_those_of_its_policy(genotype):
    layout = {"channels": 8, "layers": 5}
    model = create_model("darts", genotype=genotype, **layout)
    stages = StageFormats(options=OPTIONS, cells=cell_stages(DARTS, model))
    assert stages.cells == (0, 1, 1, 2, 2)
    counts = cells.darts_network_counts(10, image_shape=(16, 16, 3), **layout)
    sites, choice = image_sites(model, (16, 16, 3)), DARTS.choice(genotype)
    for formats in itertools.product(range(3), repeat=3):
        policy = stages.policy(formats, sites)
        bops = stages.bit_operations(counts).at(formats).of(DARTS, choice)
        assert bops == costs.policy_cost(costs.site_bops, sites, policy)
        bits = stages.weight_bits(counts).at(formats).of(DARTS, choice)
        assert bits == costs.model_bits(sites, policy)


def random_alphas(seed, scale=1.0):
    key = jax.random.key(seed)
    alphas = NASBENCH201.init_alphas(key, scale=scale)
    alphas[FORMATS] = STAGES.init_logits(jax.random.fold_in(key, 1), scale=scale)
    return jax.device_get(alphas)


def test_expected_cost_is_the_mean_over_independent_draws():
    alphas = random_alphas(0)
    p = jax.nn.softmax(alphas[FORMATS])
    parts = []
    for formats in itertools.product(range(3), repeat=3):
        share = np.prod([p[s, f] for s, f in enumerate(formats)])
        rest = {"cell": alphas["cell"]}
        parts.append(share * float(BOPS.at(formats).of_alphas(rest)))
    np.testing.assert_allclose(BOPS.of_alphas(alphas), sum(parts), rtol=1e-5)
    limit = Limit(name="bops", bound=1e6, derived=BOPS)
    expected = [float(BOPS.of_alphas(alphas)) / 1e6]
    np.testing.assert_allclose(ratios([limit], alphas), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_repair_is_the_best_within_the_limits(seed):
    alphas = random_alphas(seed)
    low, high = BOPS.span()
    bound = low + (0.02 + 0.05 * seed) * (high - low)
    small, large = BITS.span()
    limits = [
        Limit(name="bops", bound=bound, derived=BOPS),
        Limit(name="size_bits", bound=small + 0.3 * (large - small), derived=BITS),
    ]
    found = repair(NASBENCH201, alphas, limits)
    within = [limit.at(found.formats) for limit in limits]
    assert all(w.cost(NASBENCH201, found.choice) <= w.bound for w in within)
    assert found.costs == {w.name: w.cost(NASBENCH201, found.choice) for w in within}
    # All 421,875 cells with formats.
    scores = functools.reduce(np.add.outer, NASBENCH201.scores(alphas))
    rows = cells.log_softmax(alphas[FORMATS])
    best = -np.inf
    for formats in itertools.product(range(3), repeat=3):
        allowed = NASBENCH201.usable.copy()
        for limit in limits:
            prices = limit.at(formats).derived.options(NASBENCH201)
            total = functools.reduce(np.add.outer, prices)
            allowed &= limit.at(formats).derived.constant + total <= limit.bound
        if allowed.any():
            log_p = sum(rows[s, f] for s, f in enumerate(formats))
            best = max(best, scores[allowed].max() + log_p)
    if found.violations:
        got = scores[tuple(found.choice)]
        got += sum(rows[s, f] for s, f in enumerate(found.formats))
        assert got == pytest.approx(best)
        assert found.score_lost >= 0
    else:
        assert found.formats == found.derived_formats
        assert (found.choice == found.derived).all()


def test_limits_below_the_cheapest_formats_are_refused():
    low = BOPS.at((0, 0, 0)).constant
    limit = Limit(name="bops", bound=0.99 * low, derived=BOPS)
    with pytest.raises(ValueError, match="no cell of nasbench201 is within"):
        repair(NASBENCH201, random_alphas(0), [limit])
    with pytest.raises(ValueError, match="greedy repair knows no formats"):
        repair(NASBENCH201, random_alphas(0), [limit], greedy=True)
    check_limits(NASBENCH201, [Limit(name="bops", bound=2 * low, derived=BOPS)])


def test_random_graph_rises_with_the_bound():
    graph = random_look_up_graph(
        NASBENCH201, BOPS, BOPS, STAGES, num_bounds=6, num_seeds=8, steps=100
    )
    assert (np.diff(graph.derived) >= 0).all()
    assert graph.derived[-1] > 1.5 * graph.derived[0]


def test_a_lagrangian_takes_the_formats_that_pay():
    """Stage 0 gains by bits, stage 2 does not and makes room under the limit."""
    alphas = random_alphas(3, scale=1e-3)
    convolution = NASBENCH201.operations.index("nor_conv_3x3")
    decided = 6.0 * np.eye(len(NASBENCH201.operations))[convolution]
    alphas["cell"] = alphas["cell"] + decided
    full = BOPS.at((2, 2, 2)).of_alphas({"cell": alphas["cell"]})
    limit = Limit(name="bops", bound=0.75 * float(full), derived=BOPS)
    settings = ArchitectureSettings(learning_rate=0.03, weight_decay=0.0)
    architecture = Architecture((limit,), settings)

    def loss(alphas):
        bits = jax.nn.softmax(alphas[FORMATS]) @ jnp.array([4.0, 6.0, 8.0])
        operations = jax.nn.softmax(alphas["cell"])[:, convolution]
        gain = 0.5 * bits[0] + 0.2 * bits[1] + 0.01 * bits[2]
        return -gain - 100.0 * operations.mean()

    def step(state, n):
        state = architecture.step(state, jax.grad(loss)(state.alphas), n / 600)
        return state, None

    state = architecture.init(alphas)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(600.0)))(state)
    found = architecture.derive(NASBENCH201, jax.device_get(state))
    assert found.formats[0] == 2 and found.formats[2] == 0
    within = limit.at(found.formats)
    assert within.cost(NASBENCH201, found.choice) <= limit.bound


@pytest.mark.slow
def test_certain_stages_run_as_their_policy():
    model = cells.NasBench201SearchNetwork(width=4, num_cells=1, bottleneck=2)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    quantized = QuantizedModel(model)
    variables = jax.jit(quantized.init)(jax.random.key(1), images)
    sites = quantized.sites(images)
    certain = jnp.where(jnp.eye(3)[jnp.array([2, 0, 1])] > 0, 0.0, -1e9)
    mixture = jax.jit(lambda logits: STAGES.mixture(logits, sites))(certain)
    policy = STAGES.policy((2, 0, 1), sites)
    formats = policy.formats(sites)
    names = [weights for weights, _ in policy.values()]
    clips = gaussian_clip_factors(stack_formats(names))
    apply = jax.jit(lambda policy: quantized.apply(variables, images, policy=policy))
    want, got = apply(formats.replace(weight_clip=clips)), apply(mixture)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    outside = Policy.uniform(sites, "int8")
    stages = {site.path: STAGES.stage_of(site.path) for site in sites}
    assert {policy[p] for p, s in stages.items() if s is None} == {outside["stem"]}
    assert set(stages.values()) == {None, 0, 1, 2}


@pytest.mark.parametrize("options", [("int4",), ("int4", "int4"), ("int4", "int99")])
def test_options_that_are_none_are_refused(options):
    with pytest.raises(ValueError):
        StageFormats(options=options, cells=(0,))
