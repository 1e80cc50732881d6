"""The two products inside attention layers: found, counted, quantized, observed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fliqs_jax as fq
from fliqs_jax.costs import average_bits, cost_table, model_bits, site_bops
from fliqs_jax.formats import stack_formats
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import find_sites

B, Q, K, HEADS, SIZE = 2, 6, 5, 2, 4  # examples, queries, keys, heads, head size
MACS = HEADS * Q * Q * SIZE  # of either product in self attention


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, B, Q, 3)
EXAMPLE = jax.ShapeDtypeStruct(X.shape, X.dtype)


class Model(nn.Module):
    """Runs `body(self, x)`: the models below differ in their body alone."""

    body: object

    @nn.compact
    def __call__(self, x):
        return self.body(x)


attention = functools.partial(
    nn.MultiHeadDotProductAttention, HEADS, qkv_features=HEADS * SIZE
)


def products(model, *args, **kwargs):
    """Path -> (MACs, calls) of the products; the other sites are as without them."""
    plain = find_sites(model, *args, **kwargs)
    sites = find_sites(model, *args, attention_products=True, **kwargs)
    assert tuple(site for site in sites if site.product is None) == plain
    found = [site for site in sites if site.product]
    for site in found:
        assert site.op == "attention_product"
        assert (site.weight_shape, site.weight_count, site.weights) == ((), 0, ())
    return {site.path: (site.macs, site.calls) for site in found}


def test_cross_attention_counts_queries_times_keys():
    model, keys = attention(), jax.ShapeDtypeStruct((B, K, 7), jnp.float32)
    sites = find_sites(model, EXAMPLE, keys, attention_products=True)
    order = ["query", "key", "value", "scores", "values", "out"]
    assert [site.path for site in sites] == order
    scores, values = sites[3:5]
    assert scores.macs == values.macs == Q * K * HEADS * SIZE
    # Query in, scores out; probabilities in, weighted values out.
    assert (scores.input_size, scores.output_size) == (Q * HEADS * SIZE, HEADS * Q * K)
    assert (values.input_size, values.output_size) == (HEADS * Q * K, Q * HEADS * SIZE)
    assert scores.module_path == values.module_path == ()


class Own(nn.MultiHeadDotProductAttention):
    @nn.compact
    def __call__(self, x):
        return super().__call__(2.0 * x)


@pytest.mark.parametrize(
    "layer_class",
    [
        nn.MultiHeadDotProductAttention,
        nn.MultiHeadAttention,
        pytest.param(
            nn.SelfAttention, marks=pytest.mark.filterwarnings("ignore:SelfAttention")
        ),
        Own,
        nn.remat(nn.MultiHeadAttention),
        nn.jit(nn.MultiHeadAttention),  # which remembers traces
    ],
)
def test_every_class_of_attention_has_the_same_two(layer_class):
    model = Model(lambda x: layer_class(HEADS, qkv_features=8, name="attend")(x))
    found = products(model, EXAMPLE)
    assert found == {"attend/scores": (MACS, 1), "attend/values": (MACS, 1)}


def test_mask_and_dropout_do_not_matter_and_a_second_call_counts_again():
    def body(x):
        layer = attention(dropout_rate=0.5, deterministic=False, name="attend")
        return layer(layer(x, mask=nn.make_causal_mask(x[..., 0])))

    found = products(Model(body), EXAMPLE)
    assert found == {"attend/scores": (2 * MACS, 2), "attend/values": (2 * MACS, 2)}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + attention(use_bias=False, name="attend")(x), None


class Stack(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=2,
        )
        return layers(name="layers")(x, None)[0]


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x, _ = Layer(name=f"layers_{i}")(x)
        return x


@pytest.mark.parametrize("axis", [0, 2, -1])  # all that the kernels have
def test_scan_gives_a_site_per_layer(axis):
    assert products(Stack(axis), EXAMPLE) == {
        f"layers/attend/{name}[{i}]": (MACS, 1)
        for name in ("scores", "values")
        for i in range(2)
    }
    sites = find_sites(Stack(axis), EXAMPLE, attention_products=True)
    assert sites[6].module_path == ("layers", "attend")
    assert sites[6].product.stack_axes == (axis % 4,)


def test_vmap_over_examples_shares_and_over_layers_stacks():
    def vmapped(stack, **axes):
        lifted = nn.vmap(
            nn.MultiHeadDotProductAttention,
            variable_axes={"params": stack},
            split_rngs={"params": stack is not None},
            **axes,
        )
        return Model(lambda x: lifted(HEADS, qkv_features=8, name="attend")(x))

    found = products(vmapped(None), EXAMPLE)
    assert found == {"attend/scores": (MACS, 1), "attend/values": (MACS, 1)}
    groups = jax.ShapeDtypeStruct((B, 3, Q, 4), jnp.float32)
    found = products(vmapped(0, in_axes=1, out_axes=1), groups)
    assert found == {
        f"attend/{name}[{i}]": (MACS, 1)
        for name in ("scores", "values")
        for i in range(3)
    }


def plain_attention(query, key, value, mask=None):
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key)
    return jnp.einsum("...hqk,...khd->...qhd", nn.softmax(scores), value)


def test_a_model_without_such_layers_has_no_such_sites():
    assert not products(nn.Dense(3), EXAMPLE)
    # Computes on its own, out of reach.
    assert not products(attention(attention_fn=plain_attention), EXAMPLE)


# What flax or the user may have set; none may change under fp32. Without any: a row of
# tests/contracts/test_unmodified_models.py.
SETTINGS = {
    "precision": {"precision": "highest"},
    "bfloat16": {"dtype": jnp.bfloat16, "force_fp32_for_softmax": True},
    "dropout": {"dropout_rate": 0.5, "deterministic": False},
    "einsums of the user": {
        "qk_attn_weights_einsum_cls": lambda: lambda *a: 2 * jnp.einsum(*a),
        "attn_weights_value_einsum_cls": lambda: jnp.einsum,
    },
    "dot product of the user": {
        "attention_fn": functools.partial(
            nn.dot_product_attention,
            einsum_dot_general=lambda *a, **k: 2 * jax.lax.dot_general(*a, **k),
        )
    },
}


SLOW = ("bfloat16", "einsums of the user")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SETTINGS[name], id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in SETTINGS
    ],
)
def test_fp32_changes_no_bit_and_int3_does(settings):
    model = attention(**settings)
    rngs = {"dropout": jax.random.key(2)}
    variables = jax.jit(model.init)({"params": jax.random.key(1), **rngs}, X)
    qm = QuantizedModel(model, attention_products=True)
    sites = qm.sites(X)
    mask = nn.make_causal_mask(X[..., 0])

    @jax.jit
    def run(variables, policy):
        return qm.apply(variables, X, policy=policy, mask=mask, rngs=rngs)

    def products_in(name):
        pins = {"scores": name, "values": name}
        return Policy.uniform(sites, "fp32", pins=pins).formats(sites)

    plain = run(variables, None)
    assert (run(variables, products_in("fp32")) == plain).all()
    assert not (run(variables, products_in("int3")) == plain).all()


def on_grid(x, bits, bound):
    """Two's complement, by hand."""
    top = 2 ** (bits - 1) - 1
    scale = np.asarray(bound, np.float64) / top
    return np.clip(np.round(np.asarray(x, np.float64) / scale), -top - 1, top) * scale


def operands_by_hand(params, x, keys):
    """Query, key and value [B, length, heads, size], as they enter the products."""
    x, keys = np.asarray(x, np.float64), np.asarray(keys, np.float64)
    query, key, value = (
        np.einsum("btc,chd->bthd", inputs, params[name]["kernel"])
        for name, inputs in (("query", x), ("key", keys), ("value", keys))
    )
    return query / np.sqrt(SIZE), key, value


def probabilities(scores, mask):
    scores = np.exp(np.where(mask, scores, -np.inf))
    return scores / scores.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def cross():
    """Cross attention without biases under a mask, its variables and its arguments."""
    model = attention(use_bias=False)
    keys = normal(3, B, K, 7)
    mask = np.arange(K) < np.arange(2, Q + 2)[:, None]
    variables = jax.jit(model.init)(jax.random.key(4), X, keys)
    return model, variables, keys, mask[None, None]


@pytest.mark.parametrize("clipped", [False, True])
def test_output_equals_attention_quantized_by_hand(cross, clipped):
    model, variables, keys, mask = cross
    qm = QuantizedModel(model, attention_products=True)
    sites = qm.sites(X, keys, mask=mask)
    # key int4, query int3; value int5, probabilities int4
    rows = {"scores": ("int4", "int3"), "values": ("int5", "int4")}
    formats = Policy.uniform(sites, "fp32", pins=rows).formats(sites)
    bounds = {"query": 0.8, "probability": 0.6}
    factors = {"key": 1.2, "value": 1.5}
    if clipped:
        formats = formats.replace(
            weight_clip=jnp.array([1.0, 1.0, 1.0, 1.2, 1.5, 1.0]),
            activation_clip=jnp.array([1.0, 1.0, 1.0, 0.8, 0.6, 1.0]),
        )
    got = jax.jit(lambda f: qm.apply(variables, X, keys, policy=f, mask=mask))(formats)

    def bound(name, x):
        if not clipped:
            return np.abs(x).max()
        if name in bounds:
            return bounds[name]
        axes = {"axis": (1, 2, 3), "keepdims": True}  # each example's own
        rms = np.sqrt(np.square(x).mean(**axes))
        return np.minimum(np.abs(x).max(**axes), factors[name] * rms)

    params = variables["params"]
    query, key, value = operands_by_hand(params, X, keys)
    query = on_grid(query, 3, bound("query", query))
    key = on_grid(key, 4, bound("key", key))
    weights = probabilities(np.einsum("bqhd,bkhd->bhqk", query, key), mask)
    weights = on_grid(weights, 4, bound("probability", weights))
    value = on_grid(value, 5, bound("value", value))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
    want = np.einsum("bqhd,hdc->bqc", mixed, params["out"]["kernel"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_observed_are_query_and_probabilities(cross):
    model, variables, keys, mask = cross
    qm = QuantizedModel(model, attention_products=True)
    seen = jax.jit(
        lambda v: qm.observe(v, X, keys, mask=mask, num_samples=B * HEADS * Q * K)
    )(variables)
    query, key, _ = operands_by_hand(variables["params"], X, keys)
    weights = probabilities(np.einsum("bqhd,bkhd->bhqk", query, key), mask)
    for row, want in ((3, query), (4, weights)):
        assert seen.absmax[row] == pytest.approx(np.abs(want).max(), rel=1e-4)
        assert seen.minimum[row] == pytest.approx(want.min(), rel=1e-4)
        assert seen.mean_square[row] == pytest.approx(np.square(want).mean(), rel=1e-4)
    assert seen.minimum[4] == 0  # masked: so its integers need no sign
    np.testing.assert_allclose(
        seen.samples[4], np.sort(weights.ravel()), rtol=1e-4, atol=1e-6
    )


def test_a_layer_called_twice_is_observed_over_both_calls():
    def body(x):
        layer = attention(name="attend")
        return layer(3.0 * layer(x))

    shared = Model(body)
    variables = jax.jit(shared.init)(jax.random.key(5), X)
    qm = QuantizedModel(shared, attention_products=True)
    seen = jax.jit(lambda v: qm.observe(v, X, num_samples=8))(variables)
    _, state = shared.apply(
        variables, X, capture_intermediates=lambda m, _: m.name == "query", mutable=True
    )
    calls = state["intermediates"]["attend"]["query"]["__call__"]
    largest = max(float(jnp.abs(query).max()) / np.sqrt(SIZE) for query in calls)
    assert seen.absmax[3] == pytest.approx(largest, rel=1e-5)
    assert not jnp.isnan(seen.mean_square).any()


def test_formats_per_layer_under_scan_equal_the_unrolled_model():
    variables = jax.jit(Stack(2).init)(jax.random.key(6), X)
    stacked = variables["params"]["layers"]
    params = {
        f"layers_{i}": jax.tree.map(lambda leaf: leaf.take(i, 2), stacked)  # noqa: B023
        for i in range(2)
    }
    names = [f"int{bits}" for bits in range(2, 14)]  # a format a site
    formats = SiteFormats(stack_formats(names), stack_formats(names[::-1]))
    scan, unrolled = (
        QuantizedModel(model, attention_products=True)
        for model in (Stack(2), Unrolled())
    )
    paths = [site.path for site in scan.sites(X)]
    order = [
        paths.index(f"layers/attend/{site.path.rpartition('/')[2]}[{site.path[7]}]")
        for site in unrolled.sites(X)
    ]
    reordered = jax.tree.map(lambda leaf: leaf[np.array(order)], formats)
    got = jax.jit(lambda f: scan.apply(variables, X, policy=f))(formats)
    want = jax.jit(lambda f: unrolled.apply({"params": params}, X, policy=f))(reordered)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_layer_is_as_before_after_a_run_and_after_an_error():
    class Keeping(nn.Module):
        def setup(self):
            self.attend = attention()

        def __call__(self, x, fail=False):
            try:
                return self.attend(x[..., 0] if fail else x)
            finally:
                assert self.attend.attention_fn is nn.dot_product_attention

    qm = QuantizedModel(Keeping(), attention_products=True)
    variables = jax.eval_shape(qm.init, jax.random.key(0), X)
    policy = Policy.uniform(qm.sites(X), "int8")
    run = functools.partial(qm.apply, policy=policy, mutable=["params"])
    _, changed = jax.eval_shape(run, variables, X)
    assert jax.tree.structure(changed) == jax.tree.structure(variables)  # nothing rides
    sited = QuantizedModel(Keeping(), sites=qm.sites(X))
    with pytest.raises(Exception, match="[Ss]hape"):
        jax.eval_shape(
            functools.partial(sited.apply, policy=policy, fail=True), variables, X
        )


def test_costs_count_the_products_macs_and_no_storage():
    sites = find_sites(attention(), EXAMPLE, attention_products=True)
    projections = find_sites(attention(), EXAMPLE)
    pins = {"scores": ("int4", "int2"), "values": ("int3", "int8")}
    policy = Policy.uniform(sites, "int8", pins=pins)
    rest = Policy.uniform(projections, "int8")
    extra = MACS * 4 * 2 + MACS * 3 * 8
    assert fq.bops(sites, policy) == fq.bops(projections, rest) + extra
    for scale_bits in (0, 32):
        assert model_bits(sites, policy, scale_bits=scale_bits) == model_bits(
            projections, rest, scale_bits=scale_bits
        )
    assert average_bits(sites, policy) == 8
    space = SearchSpace(sites, ["int4", "int8"], separate=True)
    assert "scores:weights" in space.decision_names
    table = cost_table(space, site_bops)
    options = space.options(Policy.uniform(sites, "int4"))
    assert table.exact_cost(options) == fq.bops(sites, space.policy(options))
