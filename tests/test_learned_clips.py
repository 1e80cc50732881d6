"""What training of bits asks of QuantizedModel: learned clips, squared gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers import fake_quantize, lsq

INT4 = parse_format("int4")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(3)(x)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        return layer(jnp.tanh(layer(x)))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return jnp.tanh(nn.Dense(4)(carry)), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return layers(name="layers")(x, None)[0]


def formats(qm, x, weight_clip, activation_clip, name="int4"):
    count = len(qm.sites(x))
    stacked = stack_formats([name] * count)
    return SiteFormats(stacked, stacked, weight_clip, activation_clip)


def squared_gradients(qm, params, x, policy, watched, cotangent):
    def loss(zeros):
        y = qm.apply({"params": params}, x, policy=policy, gradient_zeros=zeros)
        return (y * cotangent).sum()

    return jax.grad(loss)({path: jnp.zeros(()) for path in watched})


def test_squared_gradient_at_a_dense_layers_quantized_input():
    x = jax.random.normal(jax.random.key(0), (6, 8))
    cotangent = jax.random.normal(jax.random.key(1), (6, 3))
    qm = QuantizedModel(Net())
    params = qm.init(jax.random.key(2), x)["params"]
    policy = Policy.uniform(qm.sites(x), "int4")
    found = squared_gradients(qm, params, x, policy, ["Dense_0", "Dense_1"], cotangent)
    # By hand: back through the second layer's quantized kernel, the straight-through
    # quantizer (absmax scales clip nothing), the ReLU and the first kernel.
    kernels = [fake_quantize(params[f"Dense_{i}"]["kernel"], INT4) for i in (0, 1)]
    at_second = cotangent @ kernels[1].T
    hidden = fake_quantize(x, INT4) @ kernels[0]
    at_first = (at_second * (hidden > 0)) @ kernels[0].T
    np.testing.assert_allclose(found["Dense_1"], (at_second**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(found["Dense_0"], (at_first**2).sum(), rtol=1e-4)


def test_a_shared_layers_calls_add_up():
    x = jax.random.normal(jax.random.key(0), (6, 4))
    qm = QuantizedModel(Twice())
    params = qm.init(jax.random.key(2), x)["params"]
    policy = Policy.uniform(qm.sites(x), "fp32")
    found = squared_gradients(qm, params, x, policy, ["Dense_0"], jnp.ones((6, 4)))
    kernel = params["Dense_0"]["kernel"]  # biases start at zero
    inner = jnp.tanh(x @ kernel)
    second = jnp.ones((6, 4)) @ kernel.T
    first = (second * (1 - inner**2)) @ kernel.T
    want = (first**2).sum() + (second**2).sum()
    np.testing.assert_allclose(found["Dense_0"], want, rtol=1e-5)


def test_layers_of_a_scan_are_watched_apart():
    x = jax.random.normal(jax.random.key(0), (6, 4))
    qm = QuantizedModel(Stack())
    params = qm.init(jax.random.key(2), x)["params"]
    sites = qm.sites(x)
    policy = Policy.uniform(sites, "fp32")
    watched = [sites[0].path, sites[2].path]
    found = squared_gradients(qm, params, x, policy, watched, jnp.ones((6, 4)))
    kernels = params["layers"]["Dense_0"]["kernel"]
    states = [x]
    for kernel in kernels:  # the biases start at zero
        states.append(jnp.tanh(states[-1] @ kernel))
    gradient, squares = jnp.ones((6, 4)), []
    for kernel, after in zip(kernels[::-1], states[:0:-1], strict=True):
        gradient = (gradient * (1 - after**2)) @ kernel.T
        squares.append((gradient**2).sum())
    np.testing.assert_allclose(found[sites[2].path], squares[0], rtol=1e-5)
    np.testing.assert_allclose(found[sites[0].path], squares[2], rtol=1e-4)


def test_watching_changes_no_output_and_leaves_no_trace():
    x = jax.random.normal(jax.random.key(0), (6, 8))
    qm = QuantizedModel(Net())
    variables = qm.init(jax.random.key(2), x)
    policy = Policy.uniform(qm.sites(x), "int4")
    plain = qm.apply(variables, x, policy=policy)
    watched, mutated = qm.apply(
        variables,
        x,
        policy=policy,
        gradient_zeros={"Dense_0": jnp.zeros(())},
        mutable=["params"],
    )
    np.testing.assert_array_equal(plain, watched)
    jax.tree.map(np.testing.assert_array_equal, mutated["params"], variables["params"])


def test_watching_what_is_no_site_is_refused():
    x, qm = jnp.ones((1, 8)), QuantizedModel(Net())
    variables = qm.init(jax.random.key(0), x)
    policy = Policy.uniform(qm.sites(x), "int4")
    zeros = {"Dense_7": jnp.zeros(())}
    with pytest.raises(ValueError, match="names 'Dense_7', which is no site"):
        qm.apply(variables, x, policy=policy, gradient_zeros=zeros)
    with pytest.raises(ValueError, match="gradient_zeros needs a policy"):
        qm.apply(variables, x, gradient_zeros=zeros)


@pytest.mark.parametrize("per_channel", [False, True])
def test_clips_have_the_slopes_of_lsq(per_channel):
    x = jax.random.normal(jax.random.key(0), (6, 8))
    qm = QuantizedModel(nn.Dense(3), learned_clips=True, per_channel=per_channel)
    params = qm.init(jax.random.key(2), x)["params"]
    cotangent = jax.random.normal(jax.random.key(1), (6, 3))

    def loss(weight_clip, activation_clip):
        policy = formats(qm, x, weight_clip, activation_clip)
        y = qm.apply({"params": params}, x, policy=policy)
        return (y * cotangent).sum()

    def by_hand(weight_clip, activation_clip):
        kernel = params["kernel"]
        axis = 0 if per_channel else None
        rms = jnp.sqrt(jnp.mean(kernel**2, axis=axis, keepdims=True))
        kernel = lsq(kernel, weight_clip[0] * rms / 7.0, INT4)
        y = lsq(x, activation_clip[0] / 7.0, INT4) @ kernel
        return (y * cotangent).sum()

    clips = jnp.array([1.1]), jnp.array([1.4])  # below the largest magnitudes
    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(*clips)
    want, want_slopes = jax.value_and_grad(by_hand, argnums=(0, 1))(*clips)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slopes, want_slopes, rtol=1e-4)
    assert all(abs(float(slope[0])) > 1e-3 for slope in slopes)


def test_a_clip_beyond_the_largest_weight_finds_its_way_back():
    x = jax.random.normal(jax.random.key(0), (6, 8))
    qm = QuantizedModel(nn.Dense(3), learned_clips=True)
    params = qm.init(jax.random.key(2), x)["params"]

    def output(clip):
        policy = formats(qm, x, clip[None], jnp.array([1.5]), name="int2")
        return qm.apply({"params": params}, x, policy=policy)

    def loss(clip):
        return jnp.square(output(clip) - x @ params["kernel"]).mean()

    far = jnp.float32(4.0)  # in root mean squares; of 8 weights none is as large
    np.testing.assert_array_equal(output(far), output(2 * far))
    assert jax.grad(loss)(far) > 1e-3  # less of it is better


def test_learned_clips_quantize_as_given_ones_do():
    x = jax.random.normal(jax.random.key(0), (6, 8))
    outputs = []
    for learned in (False, True):
        qm = QuantizedModel(Net(), learned_clips=learned, per_channel=True)
        variables = qm.init(jax.random.key(2), x)
        policy = formats(qm, x, jnp.array([1.7, 2.0]), jnp.array([2.0, 1.0]), "int3")
        outputs.append(qm.apply(variables, x, policy=policy))
    np.testing.assert_array_equal(*outputs)  # a saved network needs no learning


def test_learned_clips_without_a_mask_are_refused():
    with pytest.raises(ValueError, match="learned_clips needs clip_gradient=True"):
        QuantizedModel(Net(), learned_clips=True, clip_gradient=False)
