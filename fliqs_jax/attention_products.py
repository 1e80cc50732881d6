"""The two products inside an attention layer: scores = q k^T, values = softmax(s) v.

They have no weights and are no layers of their own, so a hook inside the layer's call
is needed. Flax offers one: an attention function takes the two einsums as arguments.
What to do with the products is up to `sites` and `quantized_model`. A model that
computes attention with its own `jnp.einsum` has no such products here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fliqs_jax.site_types import SiteCall, SiteType, einsum_macs, runs_call_of

# Names of the products, in call order, and the arguments that compute them.
_EINSUM_ARGUMENTS = {
    "scores": "qk_attn_weights_einsum",
    "values": "attn_weights_value_einsum",
}

SITE_TYPE = SiteType(op="attention_product", weights=(), macs=einsum_macs)
# Of the layer's query kernel [inputs, heads, head size]: a leaf of this rank is stacked
# by nn.scan wherever the kernels are.
KERNEL_RANK = 3

Einsum = Callable[..., Float[Array, "..."]]
# (name, einsum, equation, first operand, second operand) -> product. The operands as
# the einsum gets them: scaled query and key; probabilities (after dropout) and value.
Contract = Callable[[str, Einsum, str, Array, Array], Array]


def has_products(context: nn.module.InterceptorContext) -> bool:
    """Returns whether a method call computes an attention layer's two products.

    It does if it is that of `nn.MultiHeadDotProductAttention` (which `nn.SelfAttention`
    and other subclasses run, too) and the layer's `attention_fn` takes its einsums as
    arguments, as `nn.dot_product_attention` does.
    """
    if not runs_call_of(nn.MultiHeadDotProductAttention, context):
        return False
    accepted = inspect.signature(context.module.attention_fn).parameters
    return set(_EINSUM_ARGUMENTS.values()) <= accepted.keys()


def with_products(
    next_fun: Callable[..., Any],
    context: nn.module.InterceptorContext,
    contract: Contract,
) -> Callable[..., Any]:
    """Returns `next_fun`, the attention products in it computed by `contract`.

    For a method interceptor of `nn.intercept_methods`; without products it is
    `next_fun` itself. If `contract` returns einsum(equation, first, second), no bit of
    the result changes.

    Args:
      next_fun: what the interceptor got.
      context: what the interceptor got.
      contract: see `Contract`.
    """
    if not has_products(context):
        return next_fun
    module, own = context.module, context.module.attention_fn

    def attention_fn(*args, **kwargs):
        return own(*args, **_with_einsums(own, kwargs, contract))

    # Linen passes the arguments that the signature names.
    attention_fn.__signature__ = inspect.signature(own)

    def run(*args, **kwargs):
        # A field of this bound instance alone, and for this call alone. A clone would
        # be a second child of the same name.
        object.__setattr__(module, "attention_fn", attention_fn)
        try:
            return next_fun(*args, **kwargs)
        finally:
            object.__setattr__(module, "attention_fn", own)

    return run


def product_call(
    module: nn.Module, equation: str, first: Array, second: Array, output: Array
) -> SiteCall:
    """Returns a product as a site's call; the second operand stands for a weight."""
    return SiteCall(
        module=module,
        args=(first, equation),
        kwargs={},
        input_shape=first.shape,
        weight_shape=second.shape,
        output_shape=output.shape,
    )


def _with_einsums(own: Callable, kwargs: dict, contract: Contract) -> dict:
    """Returns an attention function's keyword arguments with einsums that call back."""
    settings = {**getattr(own, "keywords", {}), **kwargs}  # those of a partial first
    einsums = {name: settings.get(name) for name in _EINSUM_ARGUMENTS.values()}
    if not any(einsums.values()):
        # The einsum that flax would make; it refuses these settings beside einsums.
        options = {"precision": settings.get("precision")}
        if dot_general := settings.get("einsum_dot_general"):
            options["_dot_general"] = dot_general
        einsums = dict.fromkeys(einsums, functools.partial(jnp.einsum, **options))
        refused = {"precision", "einsum_dot_general"} & settings.keys()
        kwargs = {**kwargs, **dict.fromkeys(refused)}
    calling_back = {
        argument: functools.partial(contract, name, einsums[argument])
        for name, argument in _EINSUM_ARGUMENTS.items()
        if einsums[argument]  # flax refuses one without the other
    }
    return {**kwargs, **calling_back}
