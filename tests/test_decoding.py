"""Attention layers with `decode=True`: one token a step, keys and values in a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import stack_formats
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import QuantizedModel

TOKENS, HEADS, SIZE = 6, 2, 4


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 2, TOKENS, 3)

attention = functools.partial(
    nn.MultiHeadDotProductAttention, HEADS, qkv_features=HEADS * SIZE
)


def decoding(formats, **settings):
    """A decoding layer, its variables and a step of it: cache, x -> output, cache."""
    quantized = QuantizedModel(attention(decode=True), **settings)
    variables = jax.eval_shape(quantized.init, jax.random.key(1), X)  # a full cache
    variables = jax.tree.map(
        lambda leaf: normal(leaf.size, *leaf.shape).astype(leaf.dtype), variables
    )
    variables["cache"] = jax.tree.map(jnp.zeros_like, variables["cache"])

    def step(cache, x):
        now = {**variables, "cache": cache}
        y, updates = quantized.apply(now, x, policy=formats, mutable=["cache"])
        return y, updates["cache"]

    return quantized, variables, step


@pytest.mark.slow
@pytest.mark.parametrize("with_products", [False, True])
def test_decoding_token_by_token_equals_the_causal_layer(with_products):
    count = 4 + 2 * with_products
    int4, fp32 = (stack_formats([name] * count) for name in ("int4", "fp32"))
    clips = jnp.full(count, 2.0)
    # Without clips scales are of the tokens seen so far: the last step has seen all,
    # but of queries only its own.
    formats, compared = SiteFormats(int4, int4, clips, clips), slice(None)
    if with_products:
        formats, compared = SiteFormats(int4, fp32), slice(TOKENS - 1, None)
    settings = {"attention_products": with_products}
    _, variables, step = decoding(formats, **settings)
    step, cache, outputs = jax.jit(step), variables["cache"], []
    for token in range(TOKENS):
        y, cache = step(cache, X[:, token : token + 1])
        outputs.append(y)
    got, mask = jnp.concatenate(outputs, axis=1), nn.make_causal_mask(X[..., 0])
    want = QuantizedModel(attention(), **settings).apply(
        {"params": variables["params"]}, X, mask=mask, policy=formats
    )
    np.testing.assert_allclose(
        got[:, compared], want[:, compared], rtol=1e-4, atol=1e-4
    )


def test_products_of_a_decoding_layer_count_one_token_and_take_no_clips():
    int4, clips = stack_formats(["int4"] * 6), jnp.ones(6)
    formats = SiteFormats(int4, int4, clips, clips)
    quantized, variables, step = decoding(formats, attention_products=True)
    sites = quantized.sites(X[:, :1])
    assert [site.macs for site in sites if site.product] == [HEADS * SIZE] * 2
    with pytest.raises(ValueError, match=r"'./scores': a clip .* decode=True"):
        jax.eval_shape(step, variables["cache"], X[:, :1])
