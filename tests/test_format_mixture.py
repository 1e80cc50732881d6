"""Sites that run as a mean over formats: values, gradients, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.policy import FormatMixture, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers import absmax, fake_quantize
from fliqs_jax.sites import find_sites


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def uniform(name, sites=2):
    stacked = stack_formats([name] * sites)
    return SiteFormats(stacked, stacked)


@pytest.fixture(scope="module")
def setting():
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 2))
    quantized = QuantizedModel(Net())
    return quantized, quantized.init(jax.random.key(1), images), images


OPTIONS = ("int2", "int4", "e2m1")


def mixture(probabilities):
    return FormatMixture(tuple(map(uniform, OPTIONS)), jnp.asarray(probabilities))


@pytest.mark.parametrize("option", range(3))
def test_a_certain_mixture_is_its_format(setting, option):
    quantized, variables, images = setting
    certain = mixture(np.eye(3)[[option, option]])
    got = quantized.apply(variables, images, policy=certain)
    want = quantized.apply(variables, images, policy=uniform(OPTIONS[option]))
    np.testing.assert_array_equal(got, want)


def test_weights_and_inputs_are_means_over_their_formats(setting):
    quantized, variables, images = setting
    shares = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])

    def mean(x, row):
        formats = map(parse_format, OPTIONS)
        each = [fake_quantize(x, fmt, scale=absmax(x, fmt)) for fmt in formats]
        return sum(share * part for share, part in zip(row, each, strict=True))

    params = variables["params"]
    kernel = mean(params["Conv_0"]["kernel"], shares[0])
    x = nn.Conv(4, (3, 3)).apply(
        {"params": {**params["Conv_0"], "kernel": kernel}}, mean(images, shares[0])
    )
    x = nn.relu(x).mean((1, 2))
    kernel = mean(params["Dense_0"]["kernel"], shares[1])
    want = mean(x, shares[1]) @ kernel + params["Dense_0"]["bias"][None]
    got = quantized.apply(variables, images, policy=mixture(shares))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_probabilities_have_the_gradient_of_their_definition(setting):
    quantized, variables, images = setting
    shares = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])

    def loss(shares):
        policy = mixture(shares)
        return quantized.apply(variables, images, policy=policy).sum()

    gradient = jax.jit(jax.grad(loss))(shares)
    # In the last site's shares alone the loss is a polynomial of the second degree.
    step = jnp.zeros((2, 3)).at[1, 0].set(0.25)
    slope = (loss(shares + step) - loss(shares - step)) / 0.5
    np.testing.assert_allclose(gradient[1, 0], slope, rtol=1e-4)
    assert (np.abs(gradient) > 0).all()


def test_float_weights_come_back_and_the_weights_have_gradients(setting):
    quantized, variables, images = setting
    shares = mixture(jnp.full((2, 3), 1 / 3))
    _, mutated = quantized.apply(variables, images, policy=shares, mutable=["params"])
    jax.tree.map(np.testing.assert_array_equal, mutated["params"], variables["params"])

    def loss(params):
        return quantized.apply({"params": params}, images, policy=shares).sum()

    gradients = jax.grad(loss)(variables["params"])
    assert all((np.abs(leaf) > 0).any() for leaf in jax.tree.leaves(gradients))


def test_a_mixture_of_another_shape_is_refused(setting):
    quantized, variables, images = setting
    with pytest.raises(ValueError, match=r"probabilities has shape \(1, 3\)"):
        quantized.apply(variables, images, policy=mixture(jnp.ones((1, 3))))


def test_attention_products_are_refused():
    model = nn.MultiHeadDotProductAttention(num_heads=2)
    x = jnp.ones((1, 4, 8))
    quantized = QuantizedModel(model, attention_products=True)
    variables = quantized.init(jax.random.key(0), x)
    sites = find_sites(model, x, attention_products=True)
    policy = FormatMixture((uniform("int8", len(sites)),), jnp.ones((len(sites), 1)))
    with pytest.raises(ValueError, match="attention products"):
        quantized.apply(variables, x, policy=policy)
