"""Prices from a hand-made table: exact rows, points between, formats, refusals."""

import math

import pytest

from fliqs_jax.costs import (
    Contraction,
    LatencyTable,
    Measurement,
    cost_table,
    make_table_latency,
    policy_cost,
)
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site


def dense(inputs, outputs, calls=1, path="Dense_0"):
    return Site(
        path=path,
        op="dense",
        weight_shape=(inputs, outputs),
        macs=inputs * outputs * calls,
        weight_count=inputs * outputs,
        input_size=inputs * calls,
        output_size=outputs * calls,
        calls=calls,
    )


def conv(window, inputs, outputs, side, path="Conv_0"):
    return Site(
        path=path,
        op="conv",
        weight_shape=(window, window, inputs, outputs),
        macs=side**2 * window**2 * inputs * outputs,
        weight_count=window**2 * inputs * outputs,
        input_size=side**2 * inputs,
        output_size=side**2 * outputs,
    )


def row(site, name, latency_s, *, batch_size=8, remark=""):
    return Measurement(
        contraction=Contraction.of(site),
        batch_size=batch_size,
        weights=name,
        activations=name,
        latency_s=latency_s,
        remark=remark,
    )


SMALL, LARGE = dense(10, 10), dense(100, 100)  # 100 and 10,000 MACs
# int8 is slower than bf16, as on CPUs; e4m3 has another speed than int8.
TIMES = {"int8": 9.0, "e4m3": 3.0, "bf16": 4.0, "fp32": 8.0}
TABLE = LatencyTable(
    "chip",
    (
        *(row(SMALL, name, seconds) for name, seconds in TIMES.items()),
        *(row(LARGE, name, 4 * seconds) for name, seconds in TIMES.items()),
        *(row(site, "int4", None, remark="no unit") for site in (SMALL, LARGE)),
    ),
    "chip.csv",
)
PRICE = make_table_latency(TABLE).function


@pytest.mark.parametrize(("name", "seconds"), TIMES.items())
def test_measured_site_costs_what_was_measured(name, seconds):
    assert PRICE(SMALL, name, name) == seconds
    assert PRICE(LARGE, name, name) == 4 * seconds


def test_point_between_lies_on_the_logarithmic_line():
    # 1,000 MACs: half way from 100 to 10,000, so twice the first of 3 and 12 seconds.
    assert PRICE(dense(50, 20), "e4m3", "e4m3") == pytest.approx(6.0)
    # 316.2 MACs would be a quarter of the way; 320 are log(3.2)/log(100) of it.
    exponent = math.log(3.2) / math.log(100)
    assert PRICE(dense(16, 20), "bf16", "bf16") == pytest.approx(4.0 * 4.0**exponent)


def test_latency_between_never_falls_with_size_even_if_measurements_do():
    # At 100, 200, 400 and 800 MACs; the middle two are pooled to sqrt(4 * 1) = 2.
    sizes = [(10, 10, 1.0), (10, 20, 4.0), (20, 20, 1.0), (20, 40, 8.0)]
    rows = [row(dense(i, o), "int8", seconds) for i, o, seconds in sizes]
    price = make_table_latency(LatencyTable("chip", tuple(rows))).function
    assert price(dense(20, 20), "int8", "int8") == 1.0  # measured: as it is
    # One output less a row of the same 200 MACs, in another shape.
    assert price(dense(20, 10), "int8", "int8") == pytest.approx(2.0)
    assert price(dense(25, 16), "int8", "int8") == pytest.approx(2.0)
    prices = [price(dense(1, macs), "int8", "int8") for macs in range(100, 801, 7)]
    assert prices == sorted(prices) and prices[0] == pytest.approx(1.0)


def test_shapes_of_as_many_macs_count_by_their_geometric_mean():
    rows = [row(dense(10, 10), "int8", 2.0), row(dense(5, 20), "int8", 8.0)]
    price = make_table_latency(LatencyTable("chip", tuple(rows))).function
    assert price(dense(20, 5), "int8", "int8") == pytest.approx(4.0)


def test_site_called_twice_costs_two_calls():
    assert PRICE(dense(10, 10, calls=2), "bf16", "bf16") == 2 * 4.0


@pytest.mark.parametrize(
    ("asked", "runs_as"),
    [
        (("int4", "int4"), "int8"),  # not executed: the next wider integer
        (("int2", "uint8"), "int8"),
        (("e2m1", "e3m2"), "e4m3"),
        (("e5m2", "e5m2"), "bf16"),  # e4m3 has too few exponent bits
        (("int4", "e4m3"), "e4m3"),  # one operand type: e4m3 holds 4-bit integers
        (("int8", "e4m3"), "bf16"),  # but not 8-bit ones
        (("int8", "bf16"), "bf16"),
        (("int9", "int4"), "fp32"),  # nine significant bits
        (("fp16", "int8"), "fp32"),
        (("int4", "fp32"), "fp32"),  # weights alone gain nothing
    ],
)
def test_format_runs_at_the_narrowest_measured_pair_that_holds_it(asked, runs_as):
    assert PRICE(SMALL, *asked) == TIMES[runs_as]


def test_integers_run_as_floats_where_no_integers_do():
    floats = tuple(x for x in TABLE.rows if not x.weights.startswith("int"))
    price = make_table_latency(LatencyTable("chip", floats)).function
    assert price(SMALL, "int4", "int4") == TIMES["e4m3"]
    assert price(SMALL, "int8", "int8") == TIMES["bf16"]


def test_shape_that_is_not_executed_goes_wider_where_others_are_executed():
    refused = row(SMALL, "int8", None, remark="no kernel")
    price = make_table_latency(TABLE.extended([refused])).function
    assert price(SMALL, "int8", "int8") == TIMES["bf16"]
    assert price(LARGE, "int8", "int8") == 4 * TIMES["int8"]


def test_pair_measured_itself_comes_first():
    mixed = Measurement(
        contraction=Contraction.of(SMALL),
        batch_size=8,
        weights="int8",
        activations="bf16",
        latency_s=0.5,
    )
    price = make_table_latency(TABLE.extended([mixed])).function
    assert price(SMALL, "int8", "bf16") == 0.5
    assert price(SMALL, "int4", "bf16") == 0.5
    assert price(SMALL, "bf16", "int8") == TIMES["bf16"]


def test_curves_of_other_windows_and_depthwise_filters_are_apart():
    sites = [conv(3, 8, 8, 4), conv(3, 8, 8, 16)]
    rows = [row(sites[0], "int8", 1.0), row(sites[1], "int8", 16.0)]
    price = make_table_latency(LatencyTable("chip", tuple(rows), "chip.csv")).function
    assert price(conv(3, 8, 8, 8), "int8", "int8") == pytest.approx(4.0)
    for other, kind in [
        (conv(1, 24, 24, 8), "conv 1x1"),
        (conv(3, 1, 64, 8), "conv 3x3, one channel a filter"),
    ]:
        with pytest.raises(ValueError, match=rf"of its kind \({kind}\) it has none"):
            price(other, "int8", "int8")


def test_size_beyond_those_measured_is_refused_not_extrapolated():
    with pytest.raises(ValueError) as error:
        PRICE(dense(200, 100, path="head"), "int4", "int8")
    assert str(error.value) == (
        "site 'head' (dense 200x100, 200 -> 100 elements, 20000 MACs): latency table"
        " chip.csv ('chip', batch 8) has no such size as int8/int8, and nothing is"
        " extrapolated: of its kind (dense) it has 100 to 10000 MACs. Add this network"
        " to the table: python scripts/measure_latency.py --model=NAME --batch_size=8"
    )
    with pytest.raises(ValueError, match="100 to 10000 MACs"):
        PRICE(dense(9, 11), "int8", "int8")


def test_unknown_op_is_refused_naming_those_there():
    with pytest.raises(ValueError) as error:
        PRICE(conv(3, 4, 6, 5), "int8", "int8")
    assert str(error.value) == (
        "site 'Conv_0' (conv 3x3x4x6, 100 -> 150 elements, 5400 MACs): latency table"
        " chip.csv ('chip', batch 8) has no op 'conv', only dense. Add this network to"
        " the table: python scripts/measure_latency.py --model=NAME --batch_size=8"
    )


def test_format_that_nothing_holds_is_refused_naming_those_there():
    narrow = tuple(x for x in TABLE.rows if x.weights in ("int4", "int8", "bf16"))
    price = make_table_latency(LatencyTable("chip", narrow, "chip.csv")).function
    with pytest.raises(ValueError) as error:
        price(SMALL, "int12", "int8")
    assert str(error.value) == (
        "site 'Dense_0' (dense 10x10, 10 -> 10 elements, 100 MACs): latency table"
        " chip.csv ('chip', batch 8) has no pair of formats for dense that holds int12"
        " weights and int8 inputs, only bf16/bf16, int8/int8 (not executed: int4/int4)."
        " Measure a wider one, or drop the format"
    )


def test_batch_size_is_chosen_where_there_are_several():
    table = TABLE.extended([row(SMALL, "int8", 99.0, batch_size=64)])
    price = make_table_latency(table, batch_size=64).function
    assert price(SMALL, "int8", "int8") == 99.0
    message = r"batch_size must be one of those in latency table chip.csv, 8, 64, got"
    for batch_size in (None, 16):
        with pytest.raises(ValueError, match=message):
            make_table_latency(table, batch_size=batch_size)


def test_search_table_tells_formats_of_one_width_apart():
    space = SearchSpace([SMALL, dense(100, 100, path="Dense_1")], list(TIMES))
    table = cost_table(space, make_table_latency(TABLE))
    assert table.table.tolist() == [[9.0, 3.0, 4.0, 8.0], [36.0, 12.0, 16.0, 32.0]]
    assert table.exact_cost([0, 1]) == 9.0 + 12.0
    assert table.reference("int8") == 45.0
    policy = Policy({"Dense_0": ("int8", "int8"), "Dense_1": ("e4m3", "e4m3")})
    assert policy_cost(make_table_latency(TABLE), space.sites, policy) == 21.0
