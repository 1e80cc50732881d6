"""Cell spaces as a search sees them: choices, derivation, expected costs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fliqs_jax as fq
from fliqs_jax.models import cells

SPACES = [cells.NASBENCH201, cells.DARTS]
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
SEARCH = cells.darts_network_counts(channels=16, layers=8, affine=False)
DERIVED = cells.darts_network_counts()


def random_alphas(space, seed, scale=2.0):
    random = np.random.default_rng(seed)
    shape = (len(space.edges), len(space.operations))
    return {kind: scale * random.normal(size=shape) for kind in space.kinds}


def random_choice(space, seed):
    random = np.random.default_rng(seed)
    return np.array([random.integers(len(d)) for d in space.decisions])


def all_mass_on(space, operation):
    row = np.eye(len(space.operations))[space.operations.index(operation)]
    return {kind: np.tile(row, (len(space.edges), 1)) for kind in space.kinds}


def uniform_cell(operation):
    pairs = ((operation, 0), (operation, 1)) * 4
    return cells.DartsGenotype(normal=pairs, reduce=pairs)


def test_spaces_have_the_published_numbers_of_cells():
    sizes = [[len(decision) for decision in space.decisions] for space in SPACES]
    assert np.prod(sizes[0]) == 15_625
    # 7^8 operations, and pairs of 2, 3, 4 and 5 predecessors, of both cells.
    assert np.prod([float(size) for size in sizes[1]]) == (7**8 * 1 * 3 * 6 * 10) ** 2


@every_space
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_choice_and_genotype_are_inverse(space, seed):
    choice = random_choice(space, seed)
    genotype = space.genotype(choice)
    assert (space.choice(genotype) == choice).all()
    assert (space.choice(str(genotype)) == choice).all()


def test_all_benchmark_cells_have_their_own_choice():
    choices = [tuple(cells.NASBENCH201.choice(cell)) for cell in range(15_625)]
    assert len(set(choices)) == 15_625


def darts_rule(alpha, node):
    """The two edges of the best operation other than none, as the published code."""
    edges = [
        edge for edge, (_, target) in enumerate(cells.DARTS_EDGES) if target == node
    ]
    weights = np.exp(alpha) / np.exp(alpha).sum(axis=1, keepdims=True)
    kept = sorted(edges, key=lambda edge: -weights[edge, 1:].max())[:2]
    names = {
        edge: cells.DARTS_OPERATIONS[1 + weights[edge, 1:].argmax()] for edge in kept
    }
    return {(names[edge], cells.DARTS_EDGES[edge][0]) for edge in kept}


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5))
def test_darts_derivation_is_the_published_rule_and_ignores_a_shift(seed, shift):
    alphas = random_alphas(cells.DARTS, seed)
    genotype = cells.DARTS.genotype(cells.DARTS.derive(alphas))
    for kind in cells.DARTS.kinds:
        pairs = getattr(genotype, kind)
        for number, node in enumerate(cells.DARTS_NODES):
            kept = pairs[2 * number : 2 * number + 2]
            assert len({source for _, source in kept}) == 2
            assert set(kept) == darts_rule(alphas[kind], node)
    shifted = {kind: alpha + shift for kind, alpha in alphas.items()}
    assert cells.DARTS.genotype(cells.DARTS.derive(shifted)) == genotype


def test_benchmark_derivation_takes_the_most_probable_operation_of_each_edge():
    alphas = random_alphas(cells.NASBENCH201, 3)
    found = cells.NASBENCH201.derive(alphas)
    assert (found == alphas["cell"].argmax(axis=1)).all()


@every_space
def test_ties_go_to_the_first_option(space):
    shape = (len(space.edges), len(space.operations))
    alphas = {kind: np.zeros(shape) for kind in space.kinds}
    assert not space.derive(alphas).any()


def test_published_sizes_of_the_search_network():
    cost = SEARCH.cost("parameters")
    uniform = {kind: np.full((14, 8), 1 / 8) for kind in cells.DARTS.kinds}
    assert float(cost.expected(uniform)) == 328_346
    assert float(cost.expected(all_mass_on(cells.DARTS, "none"))) == 99_450
    assert float(cost.expected(all_mass_on(cells.DARTS, "sep_conv_5x5"))) == 767_866
    everything = {kind: np.ones((14, 8)) for kind in cells.DARTS.kinds}
    assert float(cost.expected(everything)) == 1_930_618


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("avg_pool_3x3", 1_370_134),
        ("max_pool_3x3", 1_370_134),
        ("skip_connect", 1_580_950),
        ("dil_conv_3x3", 3_035_926),
        ("dil_conv_5x5", 3_257_110),
        ("sep_conv_3x3", 4_701_718),
        ("sep_conv_5x5", 5_144_086),
    ],
)
def test_published_sizes_of_uniform_genotypes(operation, parameters):
    choice = cells.DARTS.choice(uniform_cell(operation))
    assert DERIVED.cost("parameters").of(cells.DARTS, choice) == parameters


def test_published_contribution_of_an_edge():
    tables = DERIVED.cost("parameters").tables
    index = cells.DARTS_OPERATIONS.index
    from_input = cells.DARTS_EDGES.index((1, 4))
    from_node = cells.DARTS_EDGES.index((2, 4))
    for name, normal, reduce in (
        ("sep_conv_3x3", 359_856, 56_592),
        ("sep_conv_5x5", 408_240, 63_504),
        ("dil_conv_3x3", 179_928, 28_296),
        ("dil_conv_5x5", 204_120, 31_752),
    ):
        for edge in (from_input, from_node):
            assert tables["normal"][edge, index(name)] == normal
            assert tables["reduce"][edge, index(name)] == reduce
    skip = index("skip_connect")
    assert not tables["normal"][:, skip].any()
    assert tables["reduce"][from_input, skip] == 26_352
    assert tables["reduce"][from_node, skip] == 0


def test_uniform_random_genotypes_have_the_published_mean_and_shares():
    options = DERIVED.cost("parameters").options(cells.DARTS)
    random = np.random.default_rng(0)
    draws = sum(random.choice(prices, 40_000) for prices in options)
    sizes = (DERIVED.cost("parameters").constant + draws) / 1e6
    assert sizes.mean() == pytest.approx(2.91, abs=0.01)
    assert sizes.std() == pytest.approx(0.45, abs=0.01)
    for limit, share in ((2.0, 0.018), (2.5, 0.183), (3.0, 0.587), (3.5, 0.902)):
        assert (sizes <= limit).mean() == pytest.approx(share, abs=0.01)


NASBENCH201_SEVEN = cells.nasbench201_network_counts(7)
DARTS_SEVEN = cells.darts_network_counts(7)


def nasbench201_exact(cell):
    return cells.nasbench201_counts(cell, 7)


def darts_exact(genotype):
    return cells.darts_counts(genotype, num_classes=7)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("space", "counts", "exact"),
    [
        (cells.NASBENCH201, NASBENCH201_SEVEN, nasbench201_exact),
        (cells.DARTS, DARTS_SEVEN, darts_exact),
    ],
    ids=["nasbench201", "darts"],
)
def test_one_hot_probabilities_cost_what_the_derived_network_does(
    space, counts, exact, seed
):
    choice = random_choice(space, seed)
    numbers = exact(space.genotype(choice))
    for unit, number in zip(("parameters", "macs"), numbers, strict=True):
        cost = counts.cost(unit)
        assert cost.of(space, choice) == number
        expected = float(cost.expected(space.one_hot(choice)))
        assert expected == pytest.approx(number, rel=1e-6)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_weights_times_bits_are_the_bits_of_the_built_model(bits):
    for space, counts, model in (
        (
            cells.NASBENCH201,
            cells.nasbench201_network_counts(num_cells=1, width=8),
            lambda cell: cells.NasBench201Network(cell=cell, num_cells=1, width=8),
        ),
        (
            cells.DARTS,
            cells.darts_network_counts(channels=4, layers=3),
            lambda text: cells.DartsNetwork(genotype=text, channels=4, layers=3),
        ),
    ):
        choice = random_choice(space, 5)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        sites = fq.find_sites(model(space.genotype(choice)), image)
        policy = fq.Policy.uniform(sites, f"int{bits}" if bits < 32 else "fp32")
        cost = counts.cost("weights").scaled(bits)
        assert cost.of(space, choice) == fq.model_bits(sites, policy)


def test_gradient_is_the_published_formula():
    cost, alphas = SEARCH.cost("parameters"), random_alphas(cells.DARTS, 1)
    alphas = {kind: jnp.asarray(alpha, jnp.float32) for kind, alpha in alphas.items()}
    gradient = jax.grad(cost.of_alphas)(alphas)
    for kind, table in cost.tables.items():
        p = np.exp(cells.log_softmax(alphas[kind]))
        expected = p * (table - (p * table).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(gradient[kind], expected, rtol=1e-4, atol=0.5)


@every_space
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), shift=st.floats(-5, 5))
def test_expected_cost_ignores_a_shift_and_stays_between_the_extremes(
    space, seed, shift
):
    counts = SEARCH if space is cells.DARTS else cells.nasbench201_network_counts()
    cost, alphas = counts.cost("parameters"), random_alphas(space, seed)
    price = float(cost.of_alphas(alphas))
    shifted = {kind: alpha + shift for kind, alpha in alphas.items()}
    assert float(cost.of_alphas(shifted)) == pytest.approx(price, rel=1e-5)
    least = cost.constant + sum(t.min(axis=1).sum() for t in cost.tables.values())
    most = cost.constant + sum(t.max(axis=1).sum() for t in cost.tables.values())
    assert least <= price <= most


def test_limit_on_skips_counts_them():
    cost = cells.marked_cost(cells.NASBENCH201, "skip_connect")
    assert cost.of(cells.NASBENCH201, cells.NASBENCH201.choice(1835)) == 6
    cost = cells.marked_cost(cells.DARTS, "skip_connect")
    assert cost.of(cells.DARTS, cells.DARTS.choice("DARTS_V2")) == 5


def test_fitted_cost_recovers_a_sum_over_edges_and_reports_how_well_it_fits():
    space, random = cells.NASBENCH201, np.random.default_rng(0)
    choices = np.array(list(itertools.product(range(5), repeat=6)))
    table = random.normal(size=(6, 5))
    values = 3.0 + table[np.arange(6), choices].sum(axis=1)
    values[random.random(len(values)) < 0.5] = np.nan
    cost, r_squared = cells.fitted_cost(space, choices, values)
    known = np.isfinite(values)
    np.testing.assert_allclose(cost.of(space, choices[known]), values[known])
    assert r_squared == pytest.approx(1.0)
    noise = values + random.normal(size=len(values))
    _, r_squared = cells.fitted_cost(space, choices, noise)
    explained = np.nanvar(values) / np.nanvar(noise)
    assert r_squared == pytest.approx(explained, abs=0.02)
    with pytest.raises(ValueError, match="more than 30 cells"):
        cells.fitted_cost(space, choices[:9], values[:9])


def test_bottleneck_that_leaves_a_fraction_of_a_channel_is_refused():
    with pytest.raises(ValueError, match="bottleneck must divide the 16 channels"):
        cells.nasbench201_network_counts(bottleneck=3)
