"""The NNX adapter: random streams, switches, odd layers, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fliqs_jax import site_types
from fliqs_jax.costs.contractions import find_contractions
from fliqs_jax.nnx_adapter import NnxModel, update_model
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import init_calibration
from fliqs_jax.searchers.sensitivities.fisher import FisherMeter
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.sites import find_sites
from fliqs_jax.train.classifier import Classifier, training_arguments

KEY = jax.random.key(0)


def linear(inputs, outputs, **kwargs):
    """A layer of counted weights: random ones take a second to compile."""
    counted = lambda _, shape, dtype: jnp.arange(1.0, np.prod(shape) + 1).reshape(shape)  # noqa: E731
    return nnx.Linear(
        inputs, outputs, use_bias=False, kernel_init=counted, rngs=nnx.Rngs(0), **kwargs
    )


class Model(nnx.Module):
    """Runs `body(self, x)` over the layers given."""

    def __init__(self, body, **layers):
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x):
        return self.body(self, x)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def macs_by_path(model, example=None):
    sites = find_sites(model, struct(2, 4) if example is None else example)
    return {site.path: (site.op, site.macs, site.calls) for site in sites}


def test_a_layer_alone_is_a_model():
    assert macs_by_path(linear(4, 3)) == {".": ("dense", 12, 1)}


def test_subclass_around_super_call_stays_one_site():
    class Doubled(nnx.Linear):
        def __call__(self, inputs):
            return super().__call__(2.0 * inputs)

    layer = Doubled(4, 3, rngs=nnx.Rngs(0))
    assert macs_by_path(Model(lambda m, x: m.d(x), d=layer)) == {"d": ("dense", 12, 1)}
    assert type(layer) is Doubled and "__call__" in vars(Doubled)


def test_registered_layer_becomes_a_site(monkeypatch):
    monkeypatch.setattr(site_types, "_SITE_TYPES", site_types._SITE_TYPES)

    class Gain(nnx.Module):
        def __init__(self):
            self.gain = nnx.Param(jnp.ones((1, 4)))

        def __call__(self, x):
            return x * self.gain[...]

    with pytest.raises(ValueError, match="model Gain has no site.*LinearGeneral"):
        find_sites(Gain(), struct(2, 4))
    site_types.register_site_type(Gain, op="gain", weights="gain", macs=lambda call: 8)
    assert macs_by_path(Gain()) == {".": ("gain", 4, 1)}


def test_weights_in_attributes_below_are_those_of_the_site(monkeypatch):
    monkeypatch.setattr(site_types, "_SITE_TYPES", site_types._SITE_TYPES)

    class Holder(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.array([[0.9, -0.4]]))

    class Pair(nnx.Module):
        def __init__(self):
            self.left, self.right = Holder(), Holder()

        def __call__(self, x):
            return x @ (self.left.kernel[...] + self.right.kernel[...])

    names = ("left/kernel", "right/kernel")
    site_types.register_site_type(Pair, op="pair", weights=names, macs=lambda call: 8)
    qm, x = QuantizedModel(Pair()), jnp.array([[1.0], [0.0]])
    (site,) = qm.sites(x)
    assert (site.weight_shape, site.weight_count) == ((1, 2), 4)
    policy = Policy.uniform([site], "int2")
    # Of int2's codes -1, 0, 1 times 0.9, -0.4 is nearest 0; the input is on its grid.
    got = qm.apply(qm.init(KEY, x), x, policy=policy)
    np.testing.assert_allclose(got, [[1.8, 0.0], [0.0, 0.0]])


def test_what_only_linen_models_have_is_refused():
    layer = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    model = Model(lambda m, x: m.attention(x), attention=layer)
    x = struct(2, 3, 4)
    refused = "products are found in linen models only, but Model is an NNX model"
    with pytest.raises(ValueError, match=refused):
        find_sites(model, x, attention_products=True)
    with pytest.raises(ValueError, match=refused):
        QuantizedModel(model, attention_products=True).sites(x)
    with pytest.raises(TypeError, match="linen models only, but Linear is an NNX"):
        find_contractions(linear(4, 2), struct(2, 4))
    quantized = QuantizedModel(linear(4, 2))
    space = SearchSpace(quantized.sites(struct(2, 4)), ["int4", "int8"])
    classifier = Classifier(quantized=quantized, mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match="linen models only, but Linear is an NNX"):
        FisherMeter(
            classifier, TrainedState({}, {}), space, init_calibration(space), []
        )


def test_layers_inside_nnx_jit_are_quantized():
    class Jitted(nnx.Module):
        def __init__(self):
            self.dense = linear(4, 2)

        @nnx.jit
        def __call__(self, x):
            return self.dense(x)

    model, plain, x = Jitted(), linear(4, 2), jnp.array([[1.0, 0.3, -0.4, 0.6]])
    assert macs_by_path(model) == {"dense": ("dense", 8, 1)}
    for clip_gradient in (True, False):  # one function cached must not serve the other
        qm, ref = (
            QuantizedModel(m, clip_gradient=clip_gradient) for m in (model, plain)
        )
        variables, own = qm.init(KEY, x), ref.init(KEY, x)
        policy = Policy.uniform(qm.sites(x), "int3")
        gradients = [
            jax.grad(lambda x, m=m, v=v, p=p: m.apply(v, x, policy=p).sum())(x)
            for m, v, p in [
                (qm, variables, policy),
                (ref, own, Policy.uniform(ref.sites(x), "int3")),
            ]
        ]
        np.testing.assert_array_equal(*gradients)
    assert not jnp.array_equal(qm.apply(variables, x, policy=policy), model(x))


def test_random_streams_follow_the_keys_given():
    def body(m, x):
        return m.first(x), m.second(x), m.dense(x)

    rngs = nnx.Rngs(0)
    dropouts = {name: nnx.Dropout(0.5, rngs=rngs) for name in ("first", "second")}
    model = NnxModel.of(Model(body, dense=linear(32, 1), **dropouts))
    x = jnp.ones((4, 32))
    run = functools.partial(model.apply, model.init(KEY, x), x)
    first, second, _ = run(rngs={"dropout": KEY}, train=True)
    again, _, _ = run(rngs=KEY, train=True)
    other, _, _ = run(rngs={"dropout": jax.random.key(1)}, train=True)
    assert (first == again).all()
    assert (first != other).any() and (first != second).any()
    assert (run(rngs=KEY, train=False)[0] == x).all()
    assert (run(train=True)[0] == run(train=True)[0]).all()  # the model's own state


def test_train_switches_attributes_and_arguments():
    class Both(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, x, deterministic=None):
            return self.norm.use_running_average, deterministic

        def other(self, x):
            return self.norm.use_running_average

    user, x = Both(), jnp.ones((2, 4))
    assert training_arguments(user, train=True) == {"train": True}
    model = NnxModel.of(user)
    assert training_arguments(model, train=False) == {"train": False}
    variables = model.init(KEY, x)
    assert model.apply(variables, x) == (False, None)
    assert model.apply(variables, x, train=True) == (False, False)
    assert model.apply(variables, x, train=False) == (True, True)
    assert model.apply(variables, x, train=False, deterministic=0) == (True, 0)
    for method in ("other", Both.other):
        assert model.apply(variables, x, train=False, method=method)
    assert not user.norm.use_running_average


def test_mutable_collections_come_back_and_no_others():
    model = NnxModel.of(
        Model(lambda m, x: m.norm(x), norm=nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    )
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    variables = model.init(KEY, x)
    _, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
    # flax's momentum is 0.99: 0.01 of the batch's mean (2, 3).
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["mean"], [0.02, 0.03])
    assert set(updates) == {"batch_stats"}
    assert model.apply(variables, x, train=True, mutable=[])[1] == {}
    assert (variables["batch_stats"]["norm"]["mean"] == 0).all()


def test_batch_norm_over_a_mesh_axis_is_traced_outside_of_it():
    norm = nnx.BatchNorm(4, axis_name="data", rngs=nnx.Rngs(0))
    model = Model(lambda m, x: m.dense(m.norm(x)), norm=norm, dense=linear(4, 2))
    assert macs_by_path(model) == {"dense": ("dense", 8, 1)}


def test_init_returns_copies_that_may_be_donated():
    layer, x = linear(4, 2), jnp.ones((1, 4))
    qm = QuantizedModel(layer)
    variables = qm.init(KEY, x)
    variables["params"]["kernel"].delete()
    assert layer(x).shape == (1, 2)
    qm.init(KEY, x)
    layer.kernel[...] = jnp.zeros((4, 2))  # later changes are not seen
    assert (qm.init(KEY, x)["params"]["kernel"] != 0).all()


def stacked(axis, layers, width):
    def make(rngs):
        return nnx.Linear(width, width, rngs=rngs)

    axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
    vmapped = nnx.split_rngs(splits=layers)(nnx.vmap(make, out_axes=axes))

    def body(m, x):
        run = nnx.scan(lambda x, d: d(x), in_axes=(nnx.Carry, axes), out_axes=nnx.Carry)
        return run(x, m.layers)

    return nnx.eval_shape(lambda: Model(body, layers=vmapped(nnx.Rngs(0))))


@pytest.mark.parametrize(("layers", "width"), [(3, 4), (4, 4)])
def test_layers_stacked_along_a_later_axis_are_refused(layers, width):
    # As many layers as channels: the shapes alone would pass for a stack along axis 0.
    assert len(find_sites(zeros(stacked(0, layers, width)), struct(2, width))) == layers
    with pytest.raises(ValueError, match=r"site 'layers'.*out_axes=0 in nnx\.vmap"):
        find_sites(zeros(stacked(1, layers, width)), struct(2, width))


def zeros(abstract):
    graphdef, state = nnx.split(abstract, nnx.Param)
    filled = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return nnx.merge(graphdef, filled)


def test_tied_weights_and_weights_of_another_kind_are_refused():
    model = Model(lambda m, x: m.b(m.a(x)), a=linear(4, 4), b=linear(4, 4))
    model.b.kernel = model.a.kernel
    with pytest.raises(ValueError, match="site 'b': its 'kernel' is another layer's"):
        find_sites(model, struct(2, 4))
    layer = linear(4, 4)
    layer.kernel = nnx.BatchStat(layer.kernel[...])
    with pytest.raises(ValueError, match=r"site '\.': .* make weights nnx\.Param"):
        find_sites(layer, struct(2, 4))


def test_variables_of_another_model_are_named():
    layer, x = linear(4, 2), jnp.ones((1, 4))
    qm = QuantizedModel(layer)
    with pytest.raises(ValueError, match="has nothing at 'kernel'.*as `init` returns"):
        qm.apply({"params": {}}, x)
    wrong = {"params": {"kernel": jnp.ones((4, 3))}}
    with pytest.raises(ValueError, match=r"an array of shape \(4, 3\) at 'kernel'"):
        qm.apply(wrong, x)
    with pytest.raises(ValueError, match=r"model has one of shape \(4, 2\)"):
        update_model(layer, wrong)
    with pytest.raises(TypeError, match="pass the module itself"):
        QuantizedModel(nnx.Linear)
