"""Which layer classes are sites, and how their weights and MACs are read.

Flax's own layers, linen and NNX, are rows of the table that `register_site_type`
extends; and here is what a hook around a layer's call gets to see of it. Finding the
sites of a model is `fliqs_jax.sites`; quantizing them, `quantized_model`.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax import nnx
from jaxtyping import Array

# (args, kwargs) of a call -> the tensors to quantize, and what puts others in their
# place: tensors -> (args, kwargs).
SplitInputs = Callable[
    [tuple, Mapping], tuple[list, Callable[[list], tuple[tuple, dict]]]
]


@typing.no_type_check  # modules and call arguments are whatever the user's layer takes
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteCall:
    """One call of a site's layer as its own code sees it: no scan or vmap axis."""

    module: nn.Module | nnx.Module
    args: tuple  # of the call, the input included
    kwargs: Mapping[str, object]
    input_shape: tuple[int, ...]  # of several inputs: joined along the last axis
    weight_shape: tuple[int, ...]  # of the first weight
    output_shape: tuple[int, ...]


def _all_but_last(call: SiteCall) -> tuple[int, ...]:
    return tuple(range(len(call.weight_shape) - 1))


def split_first_input(args: tuple, kwargs: Mapping) -> tuple:
    """Splits off the first argument of a call, given by position or by name."""
    if args:
        return [args[0]], lambda new: ((*new, *args[1:]), dict(kwargs))
    name = next(iter(kwargs))
    return [kwargs[name]], lambda new: ((), {**kwargs, name: new[0]})


@typing.no_type_check  # the callables take whatever the user's layer takes
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteType:
    """How a layer class is read as a site."""

    op: str
    # Parameters that take the site's weight format; "hi/kernel" is in the scope below.
    weights: tuple[str, ...]
    macs: Callable[[SiteCall], int]  # of the whole call, batch included
    # Axes of the weights that the layer sums over; the others are output channels.
    contracted_axes: Callable[[SiteCall], tuple[int, ...]] = _all_but_last
    split_inputs: SplitInputs = split_first_input


@typing.no_type_check  # its functions close over modules, its arrays are traced
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteLayer:
    """A site's layer during one of its calls, linen or NNX."""

    module: nn.Module | nnx.Module
    site_type: SiteType
    scope: tuple[str, ...]  # where its parameters live
    # A leaf of its params by name, or None; "hi/kernel" is in the scope below.
    get: Callable[[str], Any]
    put: Callable[[str, Array], None]  # adds a leaf; while the model is in `init`

    @property
    def path(self) -> str:
        """The path of the layer as sites have it."""
        return "/".join(self.scope) or "."


# (the layer's own call, args, kwargs, layer) -> output
LayerHook = Callable[[Callable[..., Any], tuple, dict[str, Any], SiteLayer], Any]


def register_site_type(
    module_class: type,
    *,
    op: str,
    macs: Callable[[SiteCall], int],
    weights: str | tuple[str, ...] = "kernel",
    contracted_axes: Callable[[SiteCall], tuple[int, ...]] = _all_but_last,
) -> None:
    """Makes a layer class, and its subclasses, sites from now on.

    The class's `__call__` takes the tensor to quantize as its first argument and owns
    the weights. A subclass that calls `super().__call__` stays one site; one that
    computes on its own is registered on its own. The last registration of a class wins.
    Register when the class is defined: sites found before do not change.

    Args:
      module_class: a subclass of linen's or NNX's `Module`.
      op: the site's kind, for tables and cost models ("dense", "conv", ...).
      macs: multiply-accumulates of one call, batch included, from its shapes.
      weights: name or names of the parameters, in the layer's own scope, that take the
        weight format.
      contracted_axes: axes of the first weight that are summed over (per-channel scales
        reduce over them); all but the last by default.

    Raises:
      TypeError: if `module_class` is no such class.

    Example:
      >>> class Scale(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x * self.param("gain", nn.initializers.ones, x.shape[-1:])
      >>> register_site_type(Scale, op="scale", weights="gain",
      ...     macs=lambda call: math.prod(call.input_shape))
    """
    kinds = (nn.Module, nnx.Module)
    if not (inspect.isclass(module_class) and issubclass(module_class, kinds)):
        raise TypeError(
            "module_class must be a flax.linen or flax.nnx Module class, got"
            f" {module_class!r}"
        )
    names = (weights,) if isinstance(weights, str) else tuple(weights)
    global _SITE_TYPES  # a new table each time: readers never see one change
    site_type = SiteType(
        op=op, weights=names, macs=macs, contracted_axes=contracted_axes
    )
    _SITE_TYPES = types.MappingProxyType({**_SITE_TYPES, module_class: site_type})


def nearest_site_type(module_class: type) -> tuple[type, SiteType] | None:
    """Returns the first registered class in a layer class's ancestry, and its type."""
    ancestry = module_class.__mro__
    return next(((c, _SITE_TYPES[c]) for c in ancestry if c in _SITE_TYPES), None)


def site_type_of(context: nn.module.InterceptorContext) -> SiteType | None:
    """Returns the type of the site whose contraction this linen call is, if any."""
    nearest = nearest_site_type(type(context.module))
    if context.method_name != "__call__" or nearest is None:
        return None
    registered, site_type = nearest
    return site_type if runs_call_of(registered, context) else None


def runs_call_of(module_class: type, context: nn.module.InterceptorContext) -> bool:
    """Returns whether a method call is that class's own `__call__`."""
    if not isinstance(context.module, module_class):
        return False
    # A subclass's own __call__ around super().__call__ is intercepted too: only the
    # method of the class itself contracts.
    method = getattr(context.orig_method, "func", context.orig_method)
    return inspect.unwrap(method) is inspect.unwrap(module_class.__call__)


def _conv_macs(call: SiteCall) -> int:
    # The kernel is [*window, inputs of one group, outputs].
    return math.prod(call.output_shape) * math.prod(call.weight_shape[:-1])


def _conv_local_macs(call: SiteCall) -> int:
    # A kernel per output position: [*positions, window * inputs, outputs].
    return math.prod(call.output_shape) * call.weight_shape[-2]


def _conv_transpose_macs(call: SiteCall) -> int:
    # Every input element meets the whole window of every output channel.
    *window, first, second = call.weight_shape
    outputs = first if call.module.transpose_kernel else second
    return math.prod(call.input_shape) * math.prod(window) * outputs


def _conv_transpose_axes(call: SiteCall) -> tuple[int, ...]:
    rank = len(call.weight_shape)
    channel_axis = rank - 2 if call.module.transpose_kernel else rank - 1
    return tuple(axis for axis in range(rank) if axis != channel_axis)


def _dense_macs(call: SiteCall) -> int:
    return math.prod(call.input_shape) * call.weight_shape[-1]


def _dense_general_axes(call: SiteCall) -> tuple[int, ...]:
    # The kernel is [*batch axes, *contracted axes, *features].
    layer, axis = call.module, call.module.axis
    is_nnx = isinstance(layer, nnx.LinearGeneral)
    batch = layer.batch_axis if is_nnx else layer.batch_dims
    skipped = 1 if isinstance(batch, int) else len(batch)
    contracted = 1 if isinstance(axis, int) else len(axis)
    return tuple(range(skipped, skipped + contracted))


def _dense_general_macs(call: SiteCall) -> int:
    first_feature = max(_dense_general_axes(call)) + 1
    return math.prod(call.input_shape) * math.prod(call.weight_shape[first_feature:])


def _einsum_labels(call: SiteCall) -> tuple[list[str], list[str], list[str]]:
    """Labels of input, weight and output axes; an ellipsis gets labels of its own."""
    given = call.kwargs.get("einsum_str") or (call.args[1:2] or (None,))[0]
    equation = (given or call.module.einsum_str).replace(" ", "")
    inputs, output = equation.split("->")
    terms = [*inputs.split(","), output]
    shapes = [call.input_shape, call.weight_shape, call.output_shape]
    return tuple(_axis_labels(*item) for item in zip(terms, shapes, strict=True))


def _axis_labels(term: str, shape: tuple[int, ...]) -> list[str]:
    before, ellipsis, after = term.partition("...")
    hidden = len(shape) - len(before) - len(after) if ellipsis else 0
    # Ellipsis axes align at their last one, as in broadcasting.
    return [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]


def einsum_macs(call: SiteCall) -> int:
    """Returns the MACs of an einsum of two operands: one for each choice of labels."""
    inputs, weights, _ = _einsum_labels(call)
    sizes: dict[str, int] = {}
    for labels, shape in [(inputs, call.input_shape), (weights, call.weight_shape)]:
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))  # an ellipsis broadcasts
    return math.prod(sizes.values())


def _einsum_axes(call: SiteCall) -> tuple[int, ...]:
    _, weights, outputs = _einsum_labels(call)
    return tuple(i for i, label in enumerate(weights) if label not in outputs)


def _lstm_macs(call: SiteCall) -> int:
    # The input is [*batch, state and input features], all of them meet four gates.
    return math.prod(call.input_shape) * 4 * call.weight_shape[-1]


def _lstm_inputs(args: tuple, kwargs: Mapping) -> tuple:
    """Splits off what the gates contract: hidden state and input."""
    call = inspect.signature(lambda carry, inputs: None).bind(*args, **kwargs)
    (cell, hidden), x = call.args
    return [hidden, x], lambda new: (((cell, new[0]), new[1]), {})


_KERNEL = ("kernel",)
_CONV = SiteType(op="conv", weights=_KERNEL, macs=_conv_macs)
_CONV_TRANSPOSE = SiteType(
    op="conv_transpose",
    weights=_KERNEL,
    macs=_conv_transpose_macs,
    contracted_axes=_conv_transpose_axes,
)
_DENSE = SiteType(op="dense", weights=_KERNEL, macs=_dense_macs)
_DENSE_GENERAL = SiteType(
    op="dense_general",
    weights=_KERNEL,
    macs=_dense_general_macs,
    contracted_axes=_dense_general_axes,
)
_EINSUM = SiteType(
    op="einsum", weights=_KERNEL, macs=einsum_macs, contracted_axes=_einsum_axes
)
_SITE_TYPES: Mapping[type, SiteType] = types.MappingProxyType(
    {
        nn.Conv: _CONV,
        nn.ConvLocal: SiteType(op="conv_local", weights=_KERNEL, macs=_conv_local_macs),
        nn.ConvTranspose: _CONV_TRANSPOSE,
        nn.Dense: _DENSE,
        nn.DenseGeneral: _DENSE_GENERAL,
        nn.Einsum: _EINSUM,
        # Its gates have no layers of their own that would contract: all kernels of both
        # inputs are joined to two products, so they share one format.
        nn.OptimizedLSTMCell: SiteType(
            op="lstm",
            weights=tuple(f"{side}{gate}/kernel" for side in "ih" for gate in "ifgo"),
            macs=_lstm_macs,
            split_inputs=_lstm_inputs,
        ),
        nnx.Conv: _CONV,
        nnx.ConvTranspose: _CONV_TRANSPOSE,
        nnx.Linear: _DENSE,
        nnx.LinearGeneral: _DENSE_GENERAL,
        nnx.Einsum: _EINSUM,
    }
)
