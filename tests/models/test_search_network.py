"""Search networks: counted, shared as unshared, a mixture of what they mix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fliqs_jax as fq
from fliqs_jax.models import cells
from fliqs_jax.models.batch_norm import BatchNorm

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 4)), jnp.float32)


def edges_of(space, share):
    norm = functools.partial(BatchNorm, affine=False)
    return cells.MixedEdges(space, norm, lambda source: 1, share)


def inputs_of(space):
    return [IMAGES, IMAGES[::-1]][: 1 if space is cells.NASBENCH201 else 2]


def probabilities_of(space):
    shape = (len(space.edges), len(space.operations))
    return jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(shape[1]), shape[0]))


def output(module, space):
    def apply(params):
        variables = {"params": params, "batch_stats": statistics[module.share]}
        nodes, _ = module.apply(
            variables,
            inputs_of(space),
            probabilities_of(space),
            mutable=["batch_stats"],
        )
        return (jnp.stack(nodes) ** 2).mean()

    return apply


statistics = {}


@pytest.mark.parametrize("space", [cells.NASBENCH201], ids=lambda space: space.name)
def test_shared_operations_are_unshared_ones_with_copied_weights(space):
    shared, unshared = (edges_of(space, share) for share in (True, False))
    init = lambda module: module.init(  # noqa: E731
        jax.random.key(0), inputs_of(space), probabilities_of(space)
    )
    variables, others = init(shared), init(unshared)
    statistics.update({True: variables["batch_stats"], False: others["batch_stats"]})
    copies = {name: variables["params"][name[:-2]] for name in others["params"]}
    value, gradient = jax.value_and_grad(output(shared, space))(variables["params"])
    same, gradients = jax.value_and_grad(output(unshared, space))(copies)
    assert float(value) == pytest.approx(float(same), rel=1e-6)
    for name, tree in gradient.items():
        parts = [gradients[copy] for copy in gradients if copy[:-2] == name]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            tree,
            total,
        )


@pytest.mark.parametrize(
    ("space", "share", "count"),
    [
        (cells.NASBENCH201, True, 3 * 5),
        (cells.NASBENCH201, False, 6 * 5),
        (cells.DARTS, True, 5 * 8),
        (cells.DARTS, False, 14 * 8),
    ],
)
def test_each_operation_is_computed_once_for_a_source(space, share, count, monkeypatch):
    made, make = [], cells.MixedEdges._operation

    def counted(self, *key):
        made.append(key)
        return make(self, *key)

    monkeypatch.setattr(cells.MixedEdges, "_operation", counted)
    init = edges_of(space, share).init
    jax.eval_shape(init, jax.random.key(0), inputs_of(space), probabilities_of(space))
    assert len(made) == len(set(made)) == count


MODELS = {
    "nasbench201": (
        cells.NasBench201SearchNetwork(width=8, num_cells=2, share=False),
        functools.partial(cells.nasbench201_network_counts, width=8, num_cells=2),
    ),
    "darts": (
        cells.DartsSearchNetwork(channels=8, layers=4, share=False),
        functools.partial(cells.darts_network_counts, channels=8, layers=4),
    ),
}


@pytest.mark.parametrize("bottleneck", [1, 2])
@pytest.mark.parametrize(
    "name", ["nasbench201", pytest.param("darts", marks=pytest.mark.slow)]
)
def test_built_network_has_the_counts_of_all_edges_together(name, bottleneck):
    model, counts = MODELS[name]
    model = model.clone(bottleneck=bottleneck)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params.pop(cells.ARCHITECTURE)
    counts = counts(bottleneck=bottleneck, affine=False)

    def everything(unit):
        cost = counts.cost(unit)
        return cost.constant + sum(table.sum() for table in cost.tables.values())

    built = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert built == everything("parameters")
    sites = fq.find_sites(model, image)
    assert sum(site.macs for site in sites) == everything("macs")
    assert sum(site.weight_count for site in sites) == everything("weights")


def test_one_hot_network_computes_the_derived_cell():
    space, cell = cells.NASBENCH201, cells.NASBENCH201.choice(0)
    search = edges_of(space, share=False)
    one_hot = jnp.asarray(space.one_hot(cell)["cell"], jnp.float32)
    variables = search.init(jax.random.key(0), [IMAGES], one_hot)
    mixed, _ = search.apply(variables, [IMAGES], one_hot, mutable=["batch_stats"])
    derived = cells.NasBench201Cell(
        cells.nasbench201_operations(0), functools.partial(BatchNorm, affine=False)
    )
    own = derived.init(jax.random.key(1), IMAGES)
    copied = {
        kind: {name: variables[kind][name] for name in own.get(kind, {})}
        for kind in ("params", "batch_stats")
    }
    expected, _ = derived.apply(copied, IMAGES, mutable=["batch_stats"])
    np.testing.assert_allclose(mixed[-1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bottleneck", [0, 4])
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(cells.NasBench201SearchNetwork, width=6),
        functools.partial(cells.DartsSearchNetwork, channels=6, layers=3),
    ],
)
def test_a_bottleneck_that_does_not_divide_is_refused(make, bottleneck):
    network = make(bottleneck=bottleneck)
    with pytest.raises(ValueError, match="bottleneck must divide the 6 channels"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
