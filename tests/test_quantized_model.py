"""QuantizedModel against hand-written references, and its odd cases."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fliqs_jax.formats import stack_formats
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.sites import find_sites


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def formats(*names, weight_clip=None, activation_clip=None):
    stacked = stack_formats(names)
    return SiteFormats(stacked, stacked, weight_clip, activation_clip)


def int4_by_hand(x, bound):
    """Signed 4 bit with one scale: 7 steps up to the bound, 8 down."""
    scale = np.asarray(bound, np.float64) / 7
    return np.clip(np.round(np.asarray(x, np.float64) / scale), -8, 7) * scale


def channel_bounds(kernel, clip=None):
    axes = tuple(range(kernel.ndim - 1))
    kernel = np.asarray(kernel, np.float64)
    bound = np.abs(kernel).max(axes)
    if clip is not None:
        bound = np.minimum(bound, clip * np.sqrt(np.square(kernel).mean(axes)))
    return bound


# How the reference finds the weight's bound: QuantizedModel arguments, clip, bound.
SCALES = {
    "per tensor": ({}, None, lambda w: np.abs(w).max()),
    "per channel": ({"per_channel": True}, None, channel_bounds),
    "clip per channel": (
        {"per_channel": True},
        1.5,
        functools.partial(channel_bounds, clip=1.5),
    ),
    "clip per tensor": ({}, 1.5, lambda w: 1.5 * np.sqrt(np.square(w).mean())),
    "clip beyond the largest": ({}, 99.0, lambda w: np.abs(w).max()),
}


@pytest.mark.parametrize("case", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("op", ["dense", "conv"])
def test_int4_equals_the_reference_written_by_hand(case, op):
    arguments, clip, bound = case
    model = nn.Dense(5) if op == "dense" else nn.Conv(5, (3, 3), padding="VALID")
    x = normal(0, 2, 7) if op == "dense" else normal(0, 2, 5, 5, 3)
    variables = model.init(jax.random.key(1), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"] + 0.1
    policy = formats("int4", weight_clip=None if clip is None else jnp.array([clip]))
    got = QuantizedModel(model, **arguments).apply(
        {"params": {"kernel": kernel, "bias": bias}}, x, policy=policy
    )
    w = jnp.asarray(int4_by_hand(kernel, bound(np.asarray(kernel))), jnp.float32)
    x = jnp.asarray(int4_by_hand(x, np.abs(x).max()), jnp.float32)
    if op == "dense":
        want = x @ w
    else:
        want = lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    shape = (1,) * (want.ndim - 1) + bias.shape
    np.testing.assert_allclose(got, want + bias.reshape(shape), rtol=1e-5, atol=1e-5)


def test_activation_clip_is_the_bound_of_the_input():
    model, x = nn.Dense(2, use_bias=False), jnp.array([[0.3, -2.0, 9.0]])
    kernel = jnp.ones((3, 2))
    clip = SiteFormats(
        stack_formats(["fp32"]), stack_formats(["int4"]), None, jnp.array([3.5])
    )
    got = QuantizedModel(model).apply({"params": {"kernel": kernel}}, x, policy=clip)
    # Steps of 0.5 up to 3.5: 0.5 - 2 + 3.5.
    np.testing.assert_array_equal(got, jnp.full((1, 2), 2.0))


@pytest.mark.parametrize(
    ("clip_gradient", "want"), [(True, [1.0, 1.0, 0.0]), (False, [1.0, 1.0, 1.0])]
)
def test_gradient_of_clipped_inputs(clip_gradient, want):
    model = QuantizedModel(nn.Dense(1, use_bias=False), clip_gradient=clip_gradient)
    policy = formats("int4", activation_clip=jnp.array([3.5]))
    gradient = jax.grad(
        lambda x: model.apply(
            {"params": {"kernel": jnp.ones((3, 1))}}, x, policy=policy
        )[0, 0]
    )(jnp.array([[0.3, -2.0, 9.0]]))
    np.testing.assert_allclose(gradient, [want], rtol=1e-6)


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        self.sow("intermediates", "middle", x)
        return nn.Dense(2)(x)


def test_mutable_collections_come_back_like_the_models():
    x, model = normal(0, 8, 3), BatchNormed()
    variables = model.init(jax.random.key(1), x)
    qm = QuantizedModel(model)
    policy = Policy.uniform(qm.sites(x), "int8")
    mutable = ["batch_stats", "intermediates"]
    _, own = model.apply(variables, x, mutable=mutable)
    _, ours = qm.apply(variables, x, policy=policy, mutable=mutable)
    assert jax.tree.structure(ours) == jax.tree.structure(own)
    _, none = qm.apply(variables, x, policy=policy, mutable=[], train=False)
    assert not none
    for mutable in (True, ["params"], "params"):
        _, changed = qm.apply(variables, x, policy=policy, mutable=mutable, train=False)
        jax.tree.map(
            np.testing.assert_array_equal, changed["params"], variables["params"]
        )


def test_batch_norm_biases_and_embeddings_are_untouched():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(8, 4)(tokens)
            return x, nn.Dense(3)(x)

    tokens = jnp.arange(8)[None]
    variables = Net().init(jax.random.key(0), tokens)
    variables["params"]["Dense_0"]["bias"] += 0.123
    qm = QuantizedModel(Net())
    embedded, out = qm.apply(variables, tokens, policy=formats("int2"))
    own, _ = Net().apply(variables, tokens)
    np.testing.assert_array_equal(embedded, own)
    zero = jax.tree.map(jnp.zeros_like, variables["params"]["Dense_0"]["kernel"])
    variables["params"]["Dense_0"]["kernel"] = zero
    _, out = qm.apply(variables, tokens, policy=formats("int2"))
    np.testing.assert_array_equal(out, jnp.full((1, 8, 3), jnp.float32(0.123)))


def test_compute_in_bfloat16_keeps_its_type_and_integer_inputs_pass():
    model = nn.Dense(3, dtype=jnp.bfloat16)
    x = normal(0, 2, 4).astype(jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    qm = QuantizedModel(model)
    out = qm.apply(variables, x, policy=formats("int8"))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32),
        model.apply(variables, x).astype(jnp.float32),
        atol=0.05,
    )
    counts = jnp.array([[3, 100, 7, 1]])
    weights_only = SiteFormats(stack_formats(["int8"]), stack_formats(["fp32"]))
    np.testing.assert_array_equal(
        qm.apply(variables, counts, policy=formats("int8")),
        qm.apply(variables, counts, policy=weights_only),
    )


def test_boxed_and_frozen_params_are_served():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    model, x = nn.Dense(3, kernel_init=init), normal(0, 2, 4)
    variables = model.init(jax.random.key(0), x)
    assert isinstance(variables["params"]["kernel"], nn.Partitioned)
    qm = QuantizedModel(model)
    boxed = qm.apply(variables, x, policy=formats("int4"))
    plain = flax.core.freeze(nn.meta.unbox(variables))
    np.testing.assert_array_equal(boxed, qm.apply(plain, x, policy=formats("int4")))


def test_policy_of_another_model_names_the_sites():
    x = normal(0, 2, 4)
    qm = QuantizedModel(nn.Sequential([nn.Dense(3), nn.Dense(2)]))
    variables = qm.init(jax.random.key(0), x)
    other = Policy({"Conv_7": ("int8", "int8")})
    with pytest.raises(ValueError, match="Conv_7"):
        qm.apply(variables, x, policy=other)
    with pytest.raises(ValueError, match=r"shape \(1,\), but the model has 2 sites"):
        qm.apply(variables, x, policy=formats("int8"))
    sites = find_sites(nn.Sequential([nn.Dense(3), nn.Dense(2)]), x)
    wrong = QuantizedModel(nn.Dense(3), sites=sites)
    with pytest.raises(ValueError, match="has no 'layers_0/kernel'"):
        wrong.apply(
            nn.Dense(3).init(jax.random.key(0), x), x, policy=formats("int8", "int8")
        )
    with pytest.raises(TypeError, match="pass the module itself"):
        QuantizedModel(nn.Dense)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        qm.observe(variables, x, num_samples=0)


def test_method_of_the_model_runs_with_all_its_sites_given():
    class TwoParts(nn.Module):
        def setup(self):
            self.encoder, self.head = nn.Dense(3), nn.Dense(2)

        def __call__(self, x):
            return self.head(self.encoder(x))

        def encode(self, x):
            return self.encoder(x)

    x, model = normal(0, 2, 4), TwoParts()
    qm = QuantizedModel(model, sites=find_sites(model, x))
    variables = qm.init(jax.random.key(0), x)
    policy = Policy.uniform(qm.sites(x), "int4")
    got = qm.apply(variables, x, policy=policy, method="encode")
    dense = QuantizedModel(nn.Dense(3))
    want = dense.apply(
        {"params": variables["params"]["encoder"]}, x, policy=formats("int4")
    )
    np.testing.assert_array_equal(got, want)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4)(x)), None


class Loops(nn.Module):
    """Weights shared by the steps of a loop, by a vmap; experts of their own."""

    @nn.compact
    def __call__(self, x):
        shared = nn.scan(
            Layer, variable_broadcast="params", split_rngs={"params": False}, length=3
        )
        x, _ = nn.remat(shared)(name="loop")(x, None)
        mapped = nn.vmap(
            nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}
        )
        x = mapped(4, name="mapped")(x)
        experts = nn.vmap(
            nn.Dense,
            in_axes=None,
            variable_axes={"params": -1},
            split_rngs={"params": True},
            axis_size=2,
        )
        y = experts(4, name="experts")(x)
        return nn.jit(nn.Dense)(2, name="last")(y.sum(0))


class Twice(nn.Module):
    layer: nn.Module

    def __call__(self, x):
        return self.layer(self.layer(x))


class NnxTwice(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(self.layer(x))


def test_observed_extremes_of_loops_are_maxima_over_the_steps():
    x, model = 3.0 * normal(0, 5, 4), Loops()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    qm = QuantizedModel(model)
    seen = jax.jit(functools.partial(qm.observe, num_samples=20))(variables, x)
    steps, dense = [x], variables["params"]["loop"]["Dense_0"]
    for _ in range(3):
        steps.append(jnp.tanh(steps[-1] @ dense["kernel"]))
    inputs = jnp.stack(steps[:3])
    paths = [site.path for site in qm.sites(x)]
    assert paths == ["loop/Dense_0", "mapped", "experts[0]", "experts[1]", "last"]
    assert seen.absmax[0] == pytest.approx(float(jnp.abs(inputs).max()), rel=1e-5)
    assert seen.minimum[0] == pytest.approx(float(inputs.min()), rel=1e-5)
    means = float(jnp.square(inputs).mean())
    assert seen.mean_square[0] == pytest.approx(means, rel=1e-4)
    # As many samples as elements: of the order statistics of the steps, the loudest.
    ordered = jnp.sort(inputs.reshape(3, -1), axis=1)
    high, low = ordered.max(axis=0), ordered.min(axis=0)
    loudest = jnp.where(high >= -low, high, low)
    np.testing.assert_allclose(seen.samples[0], loudest, rtol=1e-4, atol=1e-5)
    assert seen.size[0] == x.size
    # One site over all examples: the largest magnitude of the batch.
    last = float(jnp.abs(steps[3]).max())
    assert seen.absmax[1] == pytest.approx(last, rel=1e-5)
    np.testing.assert_allclose(seen.samples[1], jnp.sort(steps[3].ravel()), rtol=1e-4)
    assert seen.absmax[2] == seen.absmax[3]


@pytest.mark.parametrize(
    ("wrapper", "layer"),
    [(Twice, nn.Dense), (NnxTwice, functools.partial(nnx.Linear, 3, rngs=nnx.Rngs(0)))],
    ids=["linen", "nnx"],
)
def test_observed_extremes_of_two_calls_need_no_jit(wrapper, layer):
    flip = lambda key, shape, dtype: -2.0 * jnp.eye(*shape)  # noqa: E731
    qm = QuantizedModel(wrapper(layer(3, use_bias=False, kernel_init=flip)))
    x = jnp.array([[1.0, -2.0, 0.5]])
    seen = qm.observe(qm.init(jax.random.key(0), x), x, num_samples=3)
    # The second call gets [-2, 4, -1].
    assert (float(seen.absmax[0]), float(seen.minimum[0])) == (4.0, -2.0)
    assert float(seen.mean_square[0]) == pytest.approx((5.25 + 21.0) / 6)
    # In order they are [-2, 0.5, 1] and [-2, -1, 4]: the louder at each place.
    np.testing.assert_allclose(seen.samples[0], [-2.0, -1.0, 4.0])
    assert float(seen.size[0]) == 3.0


def test_samples_meet_every_channel():
    # A stride that shares a factor with the channels would see one of them alone.
    x = jnp.broadcast_to(jnp.arange(16.0), (64, 8, 16))
    seen = QuantizedModel(nn.Dense(2)).observe(
        nn.Dense(2).init(jax.random.key(0), x), x, num_samples=256
    )
    values, counts = np.unique(np.asarray(seen.samples[0]), return_counts=True)
    assert len(values) == 16 and counts.min() == counts.max() == 16


def test_unobservable_sites_read_nan():
    class Cut(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(lax.stop_gradient(nn.Dense(3)(x)))

    x = normal(0, 2, 4)
    seen = QuantizedModel(Cut()).observe(Cut().init(jax.random.key(0), x), x)
    assert jnp.isnan(seen.absmax[0]) and jnp.isnan(seen.samples[0]).all()
    assert jnp.isfinite(seen.absmax[1])


def test_observe_under_a_policy_sees_what_reaches_the_site():
    model = nn.Sequential([nn.Dense(3, use_bias=False), nn.Dense(2)])
    x = normal(0, 2, 4)
    qm = QuantizedModel(model)
    variables = qm.init(jax.random.key(0), x)
    seen = qm.observe(variables, x, policy=formats("int2", "fp32"), num_samples=4)
    assert seen.absmax[0] == jnp.abs(x).max()  # before it is quantized
    first = QuantizedModel(nn.Dense(3, use_bias=False))
    second_input = first.apply(
        {"params": variables["params"]["layers_0"]}, x, policy=formats("int2")
    )
    assert seen.absmax[1] == pytest.approx(float(jnp.abs(second_input).max()))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_gives_each_device_its_own(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    x, model = normal(0, 4, 4), Loops()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    qm = QuantizedModel(model, sites=find_sites(model, x))
    policy = Policy.uniform(qm.sites(x), "int4").formats(qm.sites(x))

    def per_device(variables, x):
        local = lax.pcast(variables, "data", to="varying")
        gradient = jax.grad(lambda v: qm.apply(v, x, policy=policy).sum())(local)
        seen = qm.observe(variables, x, num_samples=8)
        out = jax.tree.map(lambda leaf: leaf[None], (gradient, seen))
        return out

    mapped = jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(spec(), spec("data")),
        out_specs=spec("data"),
        check_vma=check_vma,
    )
    together = jax.jit(mapped)(variables, x)

    @jax.jit
    def alone(variables, x):
        gradient = jax.grad(lambda v: qm.apply(v, x, policy=policy).sum())(variables)
        return gradient, qm.observe(variables, x, num_samples=8)

    for i in range(2):
        want = alone(variables, x[2 * i : 2 * i + 2])
        got = jax.tree.map(lambda leaf: leaf[i], together)  # noqa: B023
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            got,
            want,
        )


def test_sites_are_found_once_for_a_shape(monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return find_sites(*args, **kwargs)

    monkeypatch.setattr("fliqs_jax.quantized_model.model.find_sites", counted)
    qm = QuantizedModel(nn.Dense(2))
    variables = qm.init(jax.random.key(0), normal(0, 2, 4))
    for seed in range(3):
        qm.apply(variables, normal(seed, 2, 4), policy=formats("int8"))
    assert len(calls) == 1
