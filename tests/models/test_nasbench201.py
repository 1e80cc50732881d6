"""NAS-Bench-201: its encodings, its order, its counts, and its network."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fliqs_jax as fq
from fliqs_jax.models import cells
from fliqs_jax.models.batch_norm import BatchNorm

# Cells of the benchmark with their index, parameters and MACs (its own numbers).
BEST = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    "+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
)
FIRST = (
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
    "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
)
PUBLISHED = {
    FIRST: (0, 129_306, 15_647_360),
    BEST: (6111, 1_073_466, 153_272_960),
    cells.RESNET_CELL: (None, 559_386, 78_561_920),
}


@pytest.fixture(scope="module")
def rows(shared_data):
    file = shared_data / "nasbench201" / "nasbench201_cifar10.csv"
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def built_counts(model, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    sites = fq.find_sites(model, images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return parameters, sum(site.macs for site in sites)


def test_published_cells_have_their_index_and_counts():
    for text, (index, *counts) in PUBLISHED.items():
        assert cells.nasbench201_counts(text) == tuple(counts)
        if index is not None:
            assert cells.nasbench201_index(text) == index
            assert cells.nasbench201_string(index) == text
            assert cells.nasbench201_counts(index) == tuple(counts)
    assert cells.nasbench201_index(["skip_connect"] * 6) == 1835


def test_every_row_of_the_benchmark_has_its_index_and_counts(rows):
    assert len(rows) == cells.NASBENCH201_SIZE
    for row in rows:
        text, index = row["architecture"], int(row["index"])
        assert cells.nasbench201_index(text) == index
        counts = int(row["parameters"]), int(row["macs"])
        assert cells.nasbench201_counts(text) == counts
    for row in rows[::25]:
        assert cells.nasbench201_string(int(row["index"])) == row["architecture"]


def test_cells_at_chance_are_those_that_are_not_connected(rows):
    # 10 % in ten classes; the next worst cell is far above.
    chance = {
        row["architecture"]
        for row in rows
        if float(row["cifar10_test_accuracy_200_epochs"]) < 10.5
    }
    assert len(chance) == 341
    every = (row["architecture"] for row in rows)
    assert chance == {text for text in every if not cells.nasbench201_connected(text)}


def test_all_forms_of_all_cells_agree():
    every = cells.nasbench201_all()
    assert len(set(every)) == len(every) == 5**6
    for index in range(0, len(every), 97):
        forms = (index, np.int64(index), cells.nasbench201_string(index), every[index])
        for form in (*forms, list(every[index])):
            assert cells.nasbench201_index(form) == index
            assert cells.nasbench201_operations(form) == every[index]
            assert cells.nasbench201_string(form) == forms[2]


def test_classes_cost_their_weights_and_bias():
    (few, least), (many, most) = (cells.nasbench201_counts(0, k) for k in (10, 120))
    assert (many - few, most - least) == (110 * 65, 110 * 64)


@pytest.mark.parametrize("text", [FIRST, cells.RESNET_CELL])
def test_network_has_the_published_counts(text):
    model = fq.create_model("nasbench201", cell=text)
    assert built_counts(model, (32, 32, 3)) == PUBLISHED[text][1:]


# No operation twice in a row, so that all edges are told apart; one cell has an edge
# behind a `none`.
@pytest.mark.parametrize("cell", [5, 777, 9])
@pytest.mark.parametrize("image_shape", [(8, 8, 1), (13, 10, 3)])
def test_closed_form_is_that_of_any_network(cell, image_shape):
    fields = {"width": 6, "num_cells": 1}
    model = cells.NasBench201Network(num_classes=7, cell=cell, **fields)
    closed = cells.nasbench201_counts(cell, 7, image_shape=image_shape, **fields)
    assert built_counts(model, image_shape) == closed


@pytest.mark.slow
@pytest.mark.parametrize("cell", np.random.default_rng(0).integers(0, 15_625, 12))
def test_random_networks_have_the_benchmarks_counts(cell, rows):
    (row,) = (row for row in rows if int(row["index"]) == cell)
    counts = int(row["parameters"]), int(row["macs"])
    model = cells.NasBench201Network(cell=int(cell))
    assert built_counts(model, (32, 32, 3)) == counts


@pytest.mark.parametrize(
    ("operations", "multiple"),
    [
        (["skip_connect"] * 6, 4),  # nodes x, x, x + x, x + x + 2 x
        (["skip_connect", "none", "skip_connect", "none", "none", "skip_connect"], 1),
        (["none", "skip_connect", "skip_connect", "none", "skip_connect", "none"], 0),
        (["none"] * 6, 0),
    ],
)
def test_node_is_the_sum_of_its_edges(operations, multiple):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)))
    cell = cells.NasBench201Cell(tuple(operations), BatchNorm)
    np.testing.assert_allclose(cell.apply({}, images), multiple * images, rtol=1e-6)


@pytest.mark.slow
def test_disconnected_cell_still_gives_finite_logits():
    model = cells.NasBench201Network(cell=("none",) * 6, width=4, num_cells=1)
    images = jnp.ones((2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    policy = fq.Policy.uniform(fq.find_sites(model, images), "int4")
    quantized = fq.QuantizedModel(model)
    logits = jax.jit(functools.partial(quantized.apply, policy=policy))(
        variables, images
    )
    assert np.isfinite(logits).all() and (logits[0] == logits[1]).all()


def test_sites_are_named_by_cell_operation_and_edge():
    model = cells.NasBench201Network(cell=BEST, width=4, num_cells=1)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    paths = [site.path for site in fq.find_sites(model, images)]
    assert paths[0] == "stem" and paths[-1] == "Dense_0"
    operations = [path for path in paths if path.startswith("cell_2/")]
    assert operations == [
        "cell_2/nor_conv_3x3_0_1/Conv_0",
        "cell_2/nor_conv_3x3_0_2/Conv_0",
        "cell_2/nor_conv_3x3_1_2/Conv_0",
        "cell_2/nor_conv_3x3_1_3/Conv_0",
        "cell_2/nor_conv_1x1_2_3/Conv_0",
    ]
    blocks = [path for path in paths if path.startswith("reduce_1/")]
    assert blocks == [f"reduce_1/{name}" for name in ("Conv_0", "Conv_1", "shortcut")]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (15_625, "index must be 0 to 15624 .*, got 15625: the nearest is 15624"),
        (-1, "index must be 0 to 15624 .*, got -1: the nearest is 0"),
        (
            BEST.replace("skip_connect~0", "skip~0"),
            "'skip' .edge 0 to 3 .* use one of sk",
        ),
        (
            BEST.replace("+", ""),
            r"cell must be like \|op~0\|.*the nearest is \|nor_conv",
        ),
        (BEST[:40], r"cell must be like .*: for example \|nor_conv_3x3~0\|\+"),
        ("", "cell must be like"),
        (["none"] * 5, "has six operations, .* got 5"),
        (
            ["none"] * 5 + ["conv_3x3"],
            "'conv_3x3' .edge 2 to 3. .* one of nor_conv_3x3",
        ),
    ],
)
def test_what_is_no_cell_is_refused_with_the_nearest(cell, message):
    for function in (
        cells.nasbench201_string,
        cells.nasbench201_index,
        cells.nasbench201_operations,
        cells.nasbench201_counts,
    ):
        with pytest.raises(ValueError, match=message):
            function(cell)


def test_missing_separators_are_repaired_in_the_message():
    with pytest.raises(ValueError) as error:
        cells.nasbench201_index(FIRST.replace("+", " "))
    assert str(error.value).endswith(f"the nearest is {FIRST}")
