"""Cost tables: tracing, references, large numbers, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.costs import bops, cost_table, site_bops
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site


def make_sites(*macs):
    sizes = dict(weight_count=8, input_size=4, output_size=2)
    return tuple(
        Site(path=f"Dense_{n}", op="dense", weight_shape=(4, 2), macs=m, **sizes)
        for n, m in enumerate(macs)
    )


SITES = make_sites(10**9, 3 * 10**9, 7 * 10**9)
SPACE = SearchSpace(SITES, ["int2", "int4", "int8"], pins={"Dense_2": "int8"})


def test_additive_costs_reduce_to_a_table_by_decision_and_option():
    table = cost_table(SPACE, site_bops)
    expected = np.outer([1e9, 3e9], [4, 16, 64])
    assert (table.table == expected.astype(np.float32)).all()
    assert table.constant == np.float32(7e9 * 64)
    assert table.pairs.shape == (0, 3, 3)


def test_table_passes_through_jit_as_an_argument_with_one_compilation():
    traces = []

    @jax.jit
    def prices(table, options):
        traces.append(options)
        return jax.vmap(table.of)(options)

    table = cost_table(SPACE, site_bops)
    options = jnp.array([[0, 0], [2, 1]])
    first = prices(table, options)
    prices(table, options + 0)
    assert len(traces) == 1
    np.testing.assert_allclose(
        first, [table.exact_cost([0, 0]), table.exact_cost([2, 1])], rtol=1e-6
    )


def test_reference_prices_a_uniform_policy_of_all_sites_pins_or_not():
    table = cost_table(SPACE, site_bops)
    for name in ("int4", "bf16"):  # an option and a format outside the space
        expected = bops(SITES, Policy.uniform(SITES, name))
        assert table.reference(name) == expected
    with pytest.raises(ValueError, match="unknown format"):
        table.reference("int99")


def test_exact_cost_keeps_digits_that_float32_loses():
    sites = make_sites(2**40 + 1, 1)
    table = cost_table(SearchSpace(sites, ["int2", "int4"]), site_bops)
    assert table.exact_cost([0, 0]) == 4 * (2**40 + 2)
    assert table.exact_cost([0, 1]) - table.exact_cost([0, 0]) == 12


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_site_cost_names_site_and_bits(value):
    with pytest.raises(ValueError, match="'Dense_0' at 2 weight and 2 input bits"):
        cost_table(SPACE, lambda site, weight_bits, activation_bits: value)


def test_options_outside_the_space_are_refused():
    table = cost_table(SPACE, site_bops)
    with pytest.raises(ValueError, match="option 3 of decision 'Dense_1'"):
        table.exact_cost([0, 3])
