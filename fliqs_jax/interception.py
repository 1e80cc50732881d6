"""Running a model with a hook around every call of its sites' layers.

In linen models also around the products inside attention layers. The one place where
linen and NNX models differ for the rest of the library: a linen module is used as it is
and hooked by `nn.intercept_methods`, an NNX module through `nnx_adapter`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
from flax import nnx

from fliqs_jax import attention_products as attention
from fliqs_jax.nnx_adapter import NnxModel
from fliqs_jax.site_types import LayerHook, SiteLayer, SiteType, site_type_of

# (attention layer, name, einsum, equation, first operand, second operand) -> product;
# but for the layer, as `attention_products.Contract`.
ProductHook = Callable[..., Any]


def as_model(model: Any) -> nn.Module | NnxModel:
    """Returns what has the model's `init` and `apply`.

    Args:
      model: a linen or NNX module instance.

    Raises:
      TypeError: if it is neither.
    """
    if isinstance(model, nnx.Module):
        return NnxModel.of(model)
    if isinstance(model, nn.Module | NnxModel):
        return model
    kind = f"the class {model.__name__}" if isinstance(model, type) else type(model)
    raise TypeError(
        f"model must be a flax.linen or flax.nnx Module instance, got {kind}: pass the"
        " module itself, for example nn.Dense(10) or nnx.Linear(8, 10, rngs=rngs), not"
        " its class, apply function, state or variables"
    )


def model_name(model: nn.Module | NnxModel) -> str:
    """Returns the name of the user's class."""
    return model.name if isinstance(model, NnxModel) else type(model).__name__


@contextlib.contextmanager
def intercept_sites(
    model: nn.Module | NnxModel,
    hook: LayerHook,
    product_hook: ProductHook | None = None,
) -> Iterator[nn.Module | NnxModel]:
    """Yields the model as it is to be run; every call of a site's layer is the hook's.

    Args:
      model: from `as_model`.
      hook: called as `hook(call, args, kwargs, layer)` in place of the layer's own
        `call(*args, **kwargs)`.
      product_hook: called in place of each product inside an attention layer; the
        layer it gets is the attention layer. None leaves these layers as they are.

    Raises:
      ValueError: if there is a product hook for an NNX model.
    """
    if isinstance(model, NnxModel):
        if product_hook is not None:
            raise ValueError(
                f"attention products are found in linen models only, but {model.name}"
                " is an NNX model: leave out attention_products (and sites of op"
                " 'attention_product'); its projections are sites all the same"
            )
        yield model.hooked(hook)
        return

    def intercept(next_fun, args, kwargs, context):
        if product_hook is not None and attention.has_products(context):
            layer = _linen_layer(context.module, attention.SITE_TYPE)
            contract = functools.partial(product_hook, layer)
            next_fun = attention.with_products(next_fun, context, contract)
        if not (site_type := site_type_of(context)):
            return next_fun(*args, **kwargs)
        return hook(next_fun, args, kwargs, _linen_layer(context.module, site_type))

    with nn.intercept_methods(intercept):
        yield model


def _linen_layer(module: nn.Module, site_type: SiteType) -> SiteLayer:
    def get(name):
        own, *below = name.split("/")
        value = module.get_variable("params", own)
        for part in below:
            value = None if value is None else value.get(part)
        return nn.meta.unbox(value)

    return SiteLayer(
        module=module,
        site_type=site_type,
        scope=module.path,
        get=get,
        put=lambda name, value: module.put_variable("params", name, value),
    )


@contextlib.contextmanager
def record_axis_names(model: nn.Module | NnxModel) -> Iterator[dict[str, int]]:
    """Yields names of mapped axes that layers average over, as keys; size 1 each.

    Those of a linen model are known once it has run.
    """
    names: dict[str, int] = {}
    if isinstance(model, NnxModel):
        yield dict.fromkeys(model.axis_names, 1)
        return

    def record(next_fun, args, kwargs, context):
        # BatchNorm(axis_name="data") and the like average over a mesh axis.
        if isinstance(name := getattr(context.module, "axis_name", None), str):
            names[name] = 1
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        yield names
