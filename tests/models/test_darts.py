"""The DARTS space: genotypes, published counts, and the networks."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fliqs_jax as fq
from fliqs_jax.models import cells
from fliqs_jax.models.batch_norm import BatchNorm


class Same(nn.Module):
    """Stands for a normalisation that has nothing to do."""

    def __call__(self, x):
        return x


# The tuple of the published code.
Published = collections.namedtuple(
    "Published", "normal normal_concat reduce reduce_concat"
)
P_DARTS = (
    "Genotype(normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0),"
    " ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 3),"
    " ('sep_conv_3x3', 0), ('dil_conv_5x5', 4)], normal_concat=range(2, 6),"
    " reduce=[('avg_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0),"
    " ('dil_conv_5x5', 2), ('max_pool_3x3', 0), ('dil_conv_3x3', 1),"
    " ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)], reduce_concat=range(2, 6))"
)
PC_DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0),"
    " ('dil_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1),"
    " ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=[2, 3, 4, 5],"
    " reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1),"
    " ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3),"
    " ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], reduce_concat=[2, 3, 4, 5])"
)
IMAGENET = {
    "channels": 48,
    "layers": 14,
    "num_classes": 1000,
    "dataset": "imagenet",
}


def uniform(operation):
    pairs = ((operation, 0), (operation, 1)) * 4
    return cells.DartsGenotype(normal=pairs, reduce=pairs)


def random_genotype(seed):
    """Operations and sources of both cells, each operation likely to occur."""
    rng = np.random.default_rng(seed)

    def cell():
        for node in cells.DARTS_NODES:
            for source in rng.choice(node, 2, replace=False):
                yield str(rng.choice(cells.DARTS_OPERATIONS[1:])), int(source)

    return cells.DartsGenotype(normal=tuple(cell()), reduce=tuple(cell()))


def built_counts(model, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    sites = fq.find_sites(model, images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return parameters, sum(site.macs for site in sites)


# Published in million parameters: 3.3 and 4.7 (DARTS, second order), 3.3 (first order),
# 3.4 and 4.9 (P-DARTS), 3.6 and 5.3 (PC-DARTS, found on CIFAR-10).
@pytest.mark.parametrize(
    ("genotype", "cifar", "imagenet"),
    [
        ("DARTS_V2", 3_349_342, 4_718_752),
        ("DARTS_V1", 3_169_414, 4.5e6),
        (P_DARTS, 3.43e6, 4.94e6),
        (PC_DARTS, 3.63e6, 5.27e6),
    ],
)
def test_published_parameters(genotype, cifar, imagenet):
    for count, found in (
        (cifar, cells.darts_counts(genotype)),
        (imagenet, cells.darts_counts(genotype, **IMAGENET)),
    ):
        # Exact where the whole count is known, else to the last digit printed.
        digit = 0 if isinstance(count, int) else 1e4 if count % 1e5 else 1e5
        assert found.parameters == pytest.approx(count, abs=digit / 2)


# Multiplications and additions in million, from the papers of P-DARTS and PC-DARTS; the
# tools that counted them add element-wise layers (ReLU, normalisation, pooling).
@pytest.mark.parametrize("genotype, millions", [(P_DARTS, 557), (PC_DARTS, 586)])
def test_macs_are_the_published_ones_less_element_wise_layers(genotype, millions):
    macs = cells.darts_counts(genotype, **IMAGENET).macs / 1e6
    assert 0.97 * millions < macs < millions


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("max_pool_3x3", 1_370_134),
        ("avg_pool_3x3", 1_370_134),
        ("skip_connect", 1_580_950),
        ("dil_conv_3x3", 3_035_926),
        ("dil_conv_5x5", 3_257_110),
        ("sep_conv_3x3", 4_701_718),
        ("sep_conv_5x5", 5_144_086),
    ],
)
def test_parameters_of_a_uniform_genotype(operation, parameters):
    assert cells.darts_counts(uniform(operation)).parameters == parameters


def test_edges_of_a_search_network_add_up():
    """16 channels, 8 cells, normalisations without scale and bias, but the stem's."""
    constant = 3 * 16 * 27 + 6 * 16 + 256 * 10 + 10
    per_operation = dict.fromkeys(cells.DARTS_OPERATIONS, 0)
    for place in cells.darts_places(16, 8):
        constant += cells.darts_input_counts(place, affine=False).parameters
        for operation in per_operation:
            per_operation[operation] += sum(
                cells.darts_edge_counts(
                    place, operation, source, affine=False
                ).parameters
                for source, _ in cells.DARTS_EDGES
            )
    assert len(cells.DARTS_EDGES) == 14
    assert constant + per_operation["none"] == 99_450
    assert constant + per_operation["sep_conv_5x5"] == 767_866
    assert constant + sum(per_operation.values()) == 1_930_618
    assert constant + sum(per_operation.values()) / 8 == pytest.approx(328_346, abs=0.5)


@pytest.mark.parametrize(
    ("layers", "reductions"), [(8, {2, 5}), (14, {4, 9}), (20, {6, 13}), (3, {1, 2})]
)
def test_reductions_stand_at_a_third_and_two(layers, reductions):
    places = cells.darts_places(4, layers)
    assert {i for i, place in enumerate(places) if place.reduction} == reductions
    after = {i for i, place in enumerate(places) if place.after_reduction}
    assert after == {i + 1 for i in reductions if i + 1 < layers}
    assert (places[0].size, places[-1].channels) == ((32, 32), 16)


@pytest.mark.slow
@pytest.mark.parametrize("genotype", ["DARTS_V1", PC_DARTS])
def test_whole_network_has_the_counts_in_closed_form(genotype):
    model = fq.create_model("darts", genotype=genotype)
    assert built_counts(model, (32, 32, 3)) == cells.darts_counts(genotype)
    model = fq.create_model("darts_imagenet", genotype=genotype)
    counts = cells.darts_counts(genotype, **IMAGENET)
    assert built_counts(model, (224, 224, 3)) == counts


@pytest.mark.parametrize(
    ("seed", "layers", "dataset", "image_shape"),
    [
        (0, 3, "cifar10", (17, 12, 1)),
        (2, 3, "imagenet", (50, 64, 3)),
        pytest.param(1, 8, "cifar10", (16, 16, 3), marks=pytest.mark.slow),
    ],
)
def test_closed_form_is_that_of_any_network(seed, layers, dataset, image_shape):
    genotype = random_genotype(seed)
    model = cells.DartsNetwork(
        num_classes=7,
        genotype=genotype,
        channels=6,
        layers=layers,
        imagenet_stem=dataset == "imagenet",
    )
    counts = cells.darts_counts(
        genotype, 6, layers, 7, dataset, image_shape=image_shape
    )
    assert built_counts(model, image_shape) == counts


def test_every_form_of_a_genotype_is_read():
    genotype = cells.DARTS_V1
    normal, reduce = map(list, (genotype.normal, genotype.reduce))
    forms = [
        genotype,
        "DARTS_V1",
        "darts_v1",
        str(genotype),
        f"  {genotype}\n",
        Published(normal, range(2, 6), reduce, [2, 3, 4, 5]),
        {"normal": [list(pair) for pair in normal], "reduce": reduce},
    ]
    assert all(cells.darts_genotype(form) == genotype for form in forms)
    assert len({cells.darts_counts(form) for form in forms}) == 1


NORMAL = cells.DARTS_V2.normal


@pytest.mark.parametrize(
    ("normal", "message"),
    [
        (NORMAL[:7], "normal must be 8 pairs .* got 7"),
        ((("sep_conv_7x7", 0), *NORMAL[1:]), "'sep_conv_7x7' .normal cell, node 2. is"),
        (
            (("none", 0), *NORMAL[1:]),
            "operation none .normal cell, node 2.: .* use one",
        ),
        ((("sep_conv_3x3", 2), *NORMAL[1:]), "must be 0 to 1, got 2: the nearest is 1"),
        (
            (*NORMAL[:7], ("skip_connect", -1)),
            "must be 0 to 4, got -1: the nearest is 0",
        ),
        (
            (("skip_connect", 1), *NORMAL[1:]),
            r"takes node 1 twice: .* may be any of \[0",
        ),
        (5, "genotype needs normal=.*got 5"),
    ],
)
def test_what_is_no_genotype_is_refused(normal, message):
    with pytest.raises(ValueError, match=message):
        cells.darts_counts({"normal": normal, "reduce": NORMAL})


def test_other_refusals_say_what_is_accepted():
    with pytest.raises(
        ValueError, match="'DARTS' cannot be read: use DARTS_V1 or DARTS"
    ):
        cells.darts_genotype("DARTS")
    with pytest.raises(ValueError, match="normal_concat must be the nodes 2 to 5"):
        cells.darts_genotype(Published(NORMAL, [4, 5], NORMAL, [2, 3, 4, 5]))
    with pytest.raises(ValueError, match="genotype needs normal=.* got None"):
        cells.darts_genotype(7)
    with pytest.raises(ValueError, match="dataset must be 'cifar10' .* got 'cifar100'"):
        cells.darts_counts("DARTS_V1", dataset="cifar100")
    with pytest.raises(ValueError, match="channels must be even.* got 35: .* is 36"):
        cells.darts_counts("DARTS_V1", 35)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        cells.darts_counts("DARTS_V1", layers=0)


SMALL = {"channels": 4, "layers": 3}
AUXILIARY = (64 * 128 + 2 * 128) + (128 * 768 * 4 + 2 * 768) + (768 * 10 + 10)


@pytest.mark.parametrize(
    "stem, last_norm",
    [(False, 0), pytest.param(True, 2 * 768, marks=pytest.mark.slow)],
)
def test_auxiliary_head_answers_in_training_alone(stem, last_norm):
    side = 224 if stem else 32
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    plain = cells.DartsNetwork(**SMALL, imagenet_stem=stem)
    model = cells.DartsNetwork(**SMALL, imagenet_stem=stem, auxiliary=True)
    with_head, without = (
        jax.eval_shape(network.init, jax.random.key(0), images)
        for network in (model, plain)
    )
    assert set(with_head) == {"params", "batch_stats"}
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        for variables in (with_head, without)
    ]
    assert sizes[0] - sizes[1] == AUXILIARY - last_norm

    def apply(variables, images, train):
        collections = ["auxiliary", "batch_stats"] if train else ["auxiliary"]
        return model.apply(variables, images, train=train, mutable=collections)

    for train in (True, False):
        logits, state = jax.eval_shape(
            lambda v, x, train=train: apply(v, x, train), with_head, images
        )
        assert logits.shape == (2, 10)
        found = state.get("auxiliary", {}).get("logits", ())
        assert [leaf.shape for leaf in found] == [(2, 10)] * train
    paths = [site.path for site in fq.find_sites(model, images)]
    assert not any("auxiliary" in path for path in paths)


def test_auxiliary_head_refuses_images_too_small_for_it():
    model = cells.DartsNetwork(**SMALL, auxiliary=True)
    with pytest.raises(ValueError, match="images are 4 x 4 .* needs 8 pixels"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_dropped_paths_are_zero_and_the_others_larger():
    pairs = uniform("avg_pool_3x3").normal
    cell = cells.DartsCell(pairs, 4, False, False, BatchNorm, drop_path=0.75)
    images = jnp.ones((64, 2, 2, 3))

    def dropped(ramp):
        key = {"dropout": jax.random.key(0)}
        return cell.apply({}, images, ramp, rngs=key, method="_dropped")

    assert (dropped(0.0) == images).all()
    values = dropped(1.0)
    examples = values[:, 0, 0, 0]
    assert (values == examples[:, None, None, None]).all()
    assert set(examples.tolist()) == {0.0, 4.0}
    # 16 of 64 are kept on average, with a standard deviation of 3.5.
    assert 4 <= (examples > 0).sum() <= 28
    assert set(dropped(0.5)[:, 0, 0, 0].tolist()) <= {0.0, np.float32(1 / 0.625)}


def test_skip_connections_are_never_dropped():
    skips = tuple(("skip_connect", s) for s in (0, 1, 1, 2, 2, 3, 3, 4))
    cell = cells.DartsCell(skips, 4, False, False, Same, drop_path=0.5)
    images = jnp.ones((2, 2, 2, 4))
    params = jax.eval_shape(
        lambda key: cell.init(key, images, images, False, 1.0), jax.random.key(0)
    )
    # It would ask for a key if it drew anything.
    jax.eval_shape(lambda params: cell.apply(params, images, images, True, 1.0), params)


def test_drop_path_acts_in_training_alone():
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)

    def train(genotype, **fields):
        model = cells.DartsNetwork(genotype=genotype, drop_path=0.2, **SMALL)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        return jax.eval_shape(
            lambda v, x: model.apply(v, x, **fields, mutable=["batch_stats"]),
            variables,
            images,
        )

    train("DARTS_V2")  # no key needed: nothing is drawn
    with pytest.raises(Exception, match="needs PRNG for .dropout."):
        train("DARTS_V2", train=True)


def test_sites_are_named_by_cell_operation_and_edge():
    model = cells.DartsNetwork(**SMALL)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    paths = [site.path for site in fq.find_sites(model, images)]
    assert (paths[0], paths[-1]) == ("stem", "Dense_0")
    first = [path for path in paths if path.startswith("cell_0/")]
    assert first[:3] == [
        "cell_0/input_0/Conv_0",
        "cell_0/input_1/Conv_0",
        "cell_0/sep_conv_3x3_0_2/Conv_0",
    ]
    assert first[-2:] == [f"cell_0/dil_conv_3x3_2_5/Conv_{i}" for i in (0, 1)]
