"""Sites of single layers and of lifted transforms: paths, shapes, hand-counted MACs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fliqs_jax import site_types
from fliqs_jax.site_types import register_site_type
from fliqs_jax.sites import find_sites

B = 4  # examples in the batch; every number below is per example


def struct(*shape):
    return jax.ShapeDtypeStruct((B, *shape), jnp.float32)


# name: (layer, input, op, weight shape, MACs, output size)
LAYERS = {
    "dense": (nn.Dense(7), struct(5), "dense", (5, 7), 35, 7),
    "dense on tokens": (nn.Dense(7), struct(3, 5), "dense", (5, 7), 105, 21),
    "conv": (nn.Conv(6, (3, 3)), struct(8, 8, 4), "conv", (3, 3, 4, 6), 13824, 384),
    "conv strided, valid": (
        nn.Conv(6, (3, 3), strides=2, padding="VALID"),
        struct(9, 9, 4),
        "conv",
        (3, 3, 4, 6),
        4 * 4 * 6 * 36,
        96,
    ),
    "conv 1-D dilated": (
        nn.Conv(6, (3,), kernel_dilation=2, padding="VALID"),
        struct(10, 4),
        "conv",
        (3, 4, 6),
        6 * 6 * 12,
        36,
    ),
    "conv 3-D": (
        nn.Conv(2, (2, 2, 2)),
        struct(3, 3, 3, 5),
        "conv",
        (2,) * 3 + (5, 2),
        2160,
        54,
    ),
    "conv grouped": (
        nn.Conv(6, (3, 3), feature_group_count=2),
        struct(4, 4, 8),
        "conv",
        (3, 3, 4, 6),
        16 * 6 * 36,
        96,
    ),
    "conv depthwise": (
        nn.Conv(8, (3, 3), feature_group_count=8),
        struct(4, 4, 8),
        "conv",
        (3, 3, 1, 8),
        16 * 8 * 9,
        128,
    ),
    "conv local": (
        nn.ConvLocal(6, (3,), padding="VALID"),
        struct(8, 4),
        "conv_local",
        (6, 12, 6),
        6 * 6 * 12,
        36,
    ),
    "conv transposed": (
        nn.ConvTranspose(6, (2, 2), strides=(2, 2)),
        struct(4, 4, 3),
        "conv_transpose",
        (2, 2, 3, 6),
        16 * 3 * 4 * 6,
        64 * 6,
    ),
    "conv transposed, kernel swapped": (
        nn.ConvTranspose(6, (2, 2), strides=(2, 2), transpose_kernel=True),
        struct(4, 4, 3),
        "conv_transpose",
        (2, 2, 6, 3),
        16 * 3 * 4 * 6,
        64 * 6,
    ),
    "dense general, several axes": (
        nn.DenseGeneral((2, 3), axis=(-2, -1)),
        struct(6, 4, 5),
        "dense_general",
        (4, 5, 2, 3),
        6 * 20 * 6,
        36,
    ),
    "einsum": (
        nn.Einsum((5, 2, 3), "bte,ehd->bthd"),
        struct(6, 5),
        "einsum",
        (5, 2, 3),
        6 * 5 * 6,
        36,
    ),
    "einsum with ellipsis and a shared axis": (
        nn.Einsum((2, 3, 7), "...hd,hdf->...hf"),
        struct(6, 2, 3),
        "einsum",
        (2, 3, 7),
        6 * 2 * 3 * 7,
        6 * 2 * 7,
    ),
}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_layer_is_one_site_with_counted_macs(case):
    layer, example, op, weight_shape, macs, output_size = case
    (site,) = find_sites(layer, example)
    assert (site.path, site.op, site.calls) == (".", op, 1)
    assert site.weight_shape == weight_shape
    assert site.macs == macs
    assert site.output_size == output_size
    assert site.input_size == example.size // B


def test_dense_general_with_batch_axis_counts_its_own_kernel_once_per_element():
    layer = nn.DenseGeneral(3, axis=-1, batch_dims=0)
    (site,) = find_sites(layer, struct(6, 5))
    # A kernel per example: [B, 5, 3].
    assert site.weight_shape == (B, 5, 3)
    assert site.macs == 6 * 5 * 3
    assert site.weights[0].contracted_axes == (1,)


@pytest.mark.parametrize(
    ("layer", "example", "contracted"),
    [
        (nn.Conv(6, (3, 3)), struct(8, 8, 4), (0, 1, 2)),
        (nn.ConvTranspose(6, (2, 2)), struct(8, 8, 4), (0, 1, 2)),
        (
            nn.ConvTranspose(6, (2, 2), transpose_kernel=True),
            struct(8, 8, 4),
            (0, 1, 3),
        ),
        (nn.DenseGeneral((2, 3), axis=(-2, -1)), struct(6, 4, 5), (0, 1)),
        (
            nn.Einsum((2, 3, 7), "bthd,hfd->bthf".replace("hfd", "hdf")),
            struct(6, 2, 3),
            (1,),
        ),
    ],
)
def test_contracted_axes_leave_the_output_channels(layer, example, contracted):
    (site,) = find_sites(layer, example)
    assert site.weights[0].contracted_axes == contracted


class Layer(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(self.width)(x)), None


def scanned(length, axis, target=Layer):
    return nn.scan(
        target,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=length,
    )


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return scanned(2, 1)(name="inner")(x, None)


class Model(nn.Module):
    """Runs `body(self, x)`: the models below differ in their body alone."""

    body: object

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def macs_by_path(body, example=None):
    model = Model(body)
    sites = find_sites(model, struct(4) if example is None else example)
    return {site.path: (site.macs, site.calls) for site in sites}


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(
    "wrap", [lambda m: m, nn.remat, nn.jit], ids=["", "remat", "jit"]
)
def test_scan_gives_a_site_per_layer(axis, wrap):
    # Four layers of width four: the stacking axis cannot be told from the shape alone.
    found = macs_by_path(lambda x: scanned(4, axis, wrap(Layer))(name="l")(x, None)[0])
    assert found == {f"l/Dense_0[{i}]": (16, 1) for i in range(4)}


def test_nested_scan_indexes_along_the_stored_axes():
    found = macs_by_path(
        lambda x: scanned(3, 0, nn.remat(Nested))(name="l")(x, None)[0]
    )
    assert found == {
        f"l/inner/Dense_0[{i},{j}]": (16, 1) for i in range(3) for j in range(2)
    }
    sites = find_sites(
        Model(lambda x: scanned(3, 0, Nested)(name="l")(x, None)[0]), struct(4)
    )
    # Inner stack along axis 1 of [4, 4], then the outer one in front: [3, 4, 2, 4].
    assert sites[0].weights[0].stack_axes == (0, 2)
    assert sites[0].module_path == ("l", "inner", "Dense_0")
    assert sites[5].layer == (2, 1)


def test_weights_shared_by_all_steps_are_one_site_with_many_calls():
    shared = nn.scan(
        Layer, variable_broadcast="params", split_rngs={"params": False}, length=5
    )
    assert macs_by_path(lambda x: shared(name="l")(x, None)[0]) == {
        "l/Dense_0": (5 * 16, 5)
    }


def test_recurrent_cell_counts_every_time_step():
    rnn = functools.partial(nn.RNN, nn.SimpleCell(4))
    found = macs_by_path(lambda x: rnn()(x), struct(6, 4))
    assert set(found.values()) == {(6 * 16, 6)} and len(found) == 2


def test_vmap_over_examples_shares_and_over_layers_stacks():
    shared = nn.vmap(
        nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}
    )
    assert macs_by_path(lambda x: shared(3, name="d")(x)) == {"d": (12, 1)}
    experts = nn.vmap(
        nn.Dense,
        in_axes=1,
        out_axes=1,
        variable_axes={"params": 0},
        split_rngs={"params": True},
    )
    found = macs_by_path(lambda x: experts(3, name="d")(x), struct(2, 4))
    assert found == {"d[0]": (12, 1), "d[1]": (12, 1)}


def test_shared_module_is_one_site_with_summed_macs():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(4)
            return nn.Dense(2)(dense(dense(x)))

    sites = find_sites(Shared(), struct(4))
    assert [(s.path, s.macs, s.calls) for s in sites] == [
        ("Dense_0", 32, 2),
        ("Dense_1", 8, 1),
    ]
    assert sites[0].input_size == 8 and sites[0].weight_count == 16


def test_sites_come_in_call_order_not_in_order_of_creation():
    class Backwards(nn.Module):
        def setup(self):
            self.last = nn.Dense(2)
            self.first = nn.Dense(3)

        def __call__(self, x):
            return self.last(self.first(x))

    assert [s.path for s in find_sites(Backwards(), struct(4))] == ["first", "last"]


def test_early_return_of_init_and_axis_names_do_not_disturb():
    class Early(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            y = nn.BatchNorm(axis_name="data", use_running_average=not train)(x)
            heads = [nn.Dense(2), nn.Dense(2)]
            if self.is_mutable_collection("params"):
                return [head(y) for head in heads][0]
            return nn.Dropout(0.5, deterministic=not train)(heads[1](y))

    found = find_sites(Early(), struct(4), train=True)
    assert [site.path for site in found] == ["Dense_1"]


def test_subclass_around_super_call_stays_one_site():
    class Doubled(nn.Dense):
        def __call__(self, inputs):
            return super().__call__(2.0 * inputs)

    (site,) = find_sites(Doubled(3), struct(4))
    assert (site.op, site.macs, site.calls) == ("dense", 12, 1)


def test_input_may_be_given_by_name():
    (site,) = find_sites(Model(lambda x: nn.Dense(3, name="d")(inputs=x)), struct(4))
    assert site.macs == 12


def test_registered_layer_becomes_a_site(monkeypatch):
    monkeypatch.setattr(site_types, "_SITE_TYPES", site_types._SITE_TYPES)

    class LowRank(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.lecun_normal()
            down = self.param("down", init, (x.shape[-1], 2))
            up = self.param("up", init, (2, 3))
            return x @ down @ up

    with pytest.raises(ValueError, match="LowRank has no site.*register_site_type"):
        find_sites(LowRank(), struct(4))
    register_site_type(
        LowRank,
        op="low_rank",
        weights=("down", "up"),
        macs=lambda call: B * (4 * 2 + 2 * 3),
    )
    (site,) = find_sites(LowRank(), struct(4))
    assert (site.op, site.macs, site.weight_count) == ("low_rank", 14, 14)


def test_registration_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="module_class must be a flax.linen or"):
        register_site_type(int, op="x", macs=lambda call: 0)


def test_wrong_weight_name_is_named(monkeypatch):
    monkeypatch.setattr(site_types, "_SITE_TYPES", site_types._SITE_TYPES)

    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gain", nn.initializers.ones, ())

    register_site_type(Other, op="other", macs=lambda call: 0)
    with pytest.raises(ValueError, match="Other has no parameter 'kernel'"):
        find_sites(Other(), struct(4))


def test_other_objects_are_refused_with_a_cure():
    for wrong in (nn.Dense, nnx.Linear, lambda x: x, {"params": {}}):
        with pytest.raises(TypeError, match="pass the module itself"):
            find_sites(wrong, struct(4))
    with pytest.raises(ValueError, match="leading batch axis"):
        find_sites(nn.Dense(2))
    with pytest.raises(ValueError, match="has no site"):
        find_sites(nn.LayerNorm(), struct(4))


def test_nothing_is_computed():
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)
    (site,) = find_sites(nn.Dense(2**20), huge)
    assert site.macs == 2**40


class JitBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4)(x))


class JitNet(nn.Module):
    """Two layers of one nn.jit class: flax traces the first alone."""

    @nn.compact
    def __call__(self, x):
        block = nn.jit(JitBlock)
        return nn.Dense(2)(block(name="second")(block(name="first")(x)))


def test_layers_of_one_jit_class_are_sites_each_under_their_own_name():
    x = jnp.ones((1, 4))
    JitNet().init(jax.random.key(0), x)  # leaves traces without a hook behind
    for _ in range(2):
        sites = find_sites(JitNet(), x)
        paths = [site.path for site in sites]
        assert paths == ["first/Dense_0", "second/Dense_0", "Dense_0"]
        assert [site.macs for site in sites] == [16, 16, 8]
        assert [site.calls for site in sites] == [1, 1, 1]
