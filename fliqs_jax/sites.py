"""The sites of a model: its contractions with weights, found without computing.

On request also the products inside attention layers, which have none.

Two abstract passes. `init` tells where the parameters live and along which axes scans
and vmaps over layers stack them. A trace of `apply` tells how often each site runs:
loops trace their body once or more and run it many times, so calls are counted in the
traced program, not while tracing. Which layers count is in `site_types`, quantizing
them in `quantized_model`.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from fliqs_jax import attention_products as attention
from fliqs_jax.interception import (
    as_model,
    intercept_sites,
    model_name,
    record_axis_names,
)
from fliqs_jax.site_types import SiteCall, SiteLayer, SiteType

_PROBE = "fliqs_jax_probe"
_TAG = "fliqs_jax_site:"
_COUNTER = itertools.count()
_RNG_STREAMS = ("params", "dropout")  # any other stream falls back to "params"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter of a site: its name, and the meaning of its axes."""

    name: str  # in the site's scope; "hi/kernel" is in that of its submodule
    # Axes of the stored array along which layers are stacked; empty without nn.scan.
    stack_axes: tuple[int, ...] = ()
    # Axes of one layer's array that the layer sums over; the others are its channels.
    contracted_axes: tuple[int, ...] = ()

    @property
    def path(self) -> tuple[str, ...]:
        """Where the parameter lies in the params of the site's own scope."""
        return tuple(self.name.split("/"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """A product inside an attention layer: which, and how its layers are stacked."""

    name: str  # "scores" or "values", the last part of the site's path
    stack_axes: tuple[int, ...] = ()  # of the layer's kernels; empty without nn.scan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A contraction with weights, or layer i of a stack of them.

    Sizes and MACs are per example and summed over calls. Padding counts as MACs.

    A site of op "attention_product" has no weights and `weight_count` 0. Of its two
    formats the one named first, elsewhere the weights', is that of key (or value); the
    input's is that of query (or probabilities), whose size `input_size` is.
    """

    path: str  # "Block_0/Conv_1"; layer 3 of a stack: "layers/Dense_0[3]"; root: "."
    op: str
    weight_shape: tuple[int, ...]  # of this layer, without the stacking axes
    macs: int
    weight_count: int
    input_size: int  # elements
    output_size: int  # elements
    calls: int = 1
    weights: tuple[Weight, ...] = ()
    product: Product | None = None  # of op "attention_product" alone

    @property
    def module_path(self) -> tuple[str, ...]:
        """Where the parameters live in the tree: the same for all layers of a stack.

        For a product, the path of its attention layer.
        """
        path = self.path.partition("[")[0]
        names = () if path == "." else tuple(path.split("/"))
        return names[:-1] if self.product else names

    @property
    def layer(self) -> tuple[int, ...]:
        """Index of this layer in its stack, () outside stacks."""
        index = self.path.partition("[")[2].removesuffix("]")
        return tuple(int(i) for i in index.split(",")) if index else ()


@dataclasses.dataclass
class _Found:
    """What the two passes learn of the sites at one path."""

    site_type: SiteType
    call: SiteCall
    scope: tuple[str, ...] = ()  # of the parameters
    product: Product | None = None
    probes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    weights: tuple[Weight, ...] = ()
    weight_count: int = 0
    stack_shape: tuple[int, ...] = ()
    macs: int = 0
    input_size: int = 0
    output_size: int = 0
    calls: int = 0


def find_sites(
    model: Any, *args: Any, attention_products: bool = False, **kwargs: Any
) -> tuple[Site, ...]:
    """Lists the contractions with weights in a linen or NNX model, in call order.

    Only shapes are used; nothing is computed and the model needs no variables. A module
    called twice is one site with its MACs summed. A stack of layers (`nn.scan`, or
    `nn.vmap` with parameters of their own) gives one site per layer,
    "layers/Dense_0[3]"; in nested stacks the index counts along the stacking axes of
    the stored parameters in their order ("[1,3]"). Weights shared by all steps of a
    loop are one site with as many calls. Every branch of a conditional counts as if it
    ran, a `while` loop as if it ran once. The sites of an NNX model are named by the
    attributes that lead to them, "blocks/0/linear"; of several ways, the first in
    alphabetical order.

    With `attention_products` the two products inside each attention layer are sites as
    well, "MultiHeadDotProductAttention_0/scores" and ".../values" (see `Site`). These
    are the layers of the class `nn.MultiHeadDotProductAttention` and its subclasses. A
    layer whose `attention_fn` does not take its einsums as arguments, or a model that
    computes attention by its own `jnp.einsum`, has no such sites. They are found in
    linen models only. A model with `decode=True` is given one token, as in each of its
    steps; the products then count a cache of one token.

    Args:
      model: a `flax.linen.Module` or `flax.nnx.Module`; its sites are layers of the
        classes known to `register_site_type`.
      *args: arguments of the model, arrays or `jax.ShapeDtypeStruct`. The leading axis
        of the first array is the batch, by which sizes and MACs are divided (rounded
        up).
      attention_products: list the products inside attention layers, too.
      **kwargs: further arguments (`train=False`, ...), and `method` as in `apply`. For
        any NNX model `train` means its `train()` and `eval()`.

    Returns:
      The sites, a non-empty tuple.

    Raises:
      TypeError: if `model` is no Flax module.
      ValueError: if the model has no site, or no argument is an array with a batch; for
        an NNX model also if layers are stacked or tied in a way not served, or with
        `attention_products`.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
      >>> (site,) = find_sites(nn.Conv(16, (3, 3)), image)
      >>> site.op, site.weight_shape, site.macs
      ('conv', (3, 3, 3, 16), 27648)
    """
    model = as_model(model)
    for name in ("mutable", "rngs", "capture_intermediates"):
        kwargs.pop(name, None)  # of no effect on which sites there are
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = {i: _abstract(leaf) for i, leaf in enumerate(leaves) if _is_array(leaf)}
    batch = next((array.shape[0] for array in arrays.values() if array.shape), None)
    if not batch:
        raise ValueError(
            "find_sites needs an example input with a leading batch axis that is not"
            f" empty, got arguments {args!r}: for example jnp.zeros((1, 32, 32, 3))"
        )

    def rebuilt(traced: dict) -> tuple[tuple, dict]:
        return tree.unflatten([traced.get(i, leaf) for i, leaf in enumerate(leaves)])

    variables, found, axis_names = _run_init(model, arrays, rebuilt, attention_products)
    _count_runs(model, variables, arrays, rebuilt, found, axis_names)
    sites = tuple(
        site
        for path, entry in found.items()
        if entry.calls
        for site in _layers(path, entry, batch)
    )
    if not sites:
        raise ValueError(
            f"model {model_name(model)} has no site: none of its layers is a Conv,"
            " ConvTranspose, ConvLocal, Dense, DenseGeneral, Einsum or"
            " OptimizedLSTMCell (in NNX Linear, LinearGeneral). A layer class of your"
            " own becomes a site by register_site_type"
        )
    return sites


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _all_but(collection: str) -> flax.core.DenyList:
    """Returns a filter of mutable collections that is equal to no earlier one.

    nn.jit reuses traces where the filter is the same: with what an earlier call of
    `find_sites` recorded in them, or nothing.
    """
    return flax.core.DenyList((collection, f"{_PROBE}{next(_COUNTER)}"))


def _keys() -> dict[str, jax.Array]:
    return {name: jax.random.key(0) for name in _RNG_STREAMS}


def site_call(layer: SiteLayer, args: tuple, kwargs: dict, output: Any) -> SiteCall:
    """Returns a site's call as its own code sees it, in a hook of `intercept_sites`."""
    site_type, module = layer.site_type, layer.module
    first = layer.get(site_type.weights[0])
    if first is None:
        raise ValueError(
            f"site {layer.path!r}: {type(module).__name__} has no parameter"
            f" {site_type.weights[0]!r}; name its weights in register_site_type"
        )
    shapes = [jnp.shape(x) for x in site_type.split_inputs(args, kwargs)[0]]
    joined = sum(shape[-1] for shape in shapes) if len(shapes) > 1 else None
    return SiteCall(
        module=module,
        args=args,
        kwargs=kwargs,
        input_shape=shapes[0] if joined is None else (*shapes[0][:-1], joined),
        weight_shape=first.shape,
        output_shape=jax.tree.leaves(output)[0].shape,
    )


def _product_path(layer: SiteLayer, name: str) -> str:
    """Returns the path of an attention layer's product as sites have it."""
    return "/".join((*layer.scope, name))


def _run_init(model, arrays, rebuilt, attention_products: bool):
    """First pass: variables, sites with their weights, and named axes of the model."""
    recorded: list[_Found] = []

    def record(entry, layer, ranks):
        # Empty arrays of the weights' ranks: in the returned tree, the axes that are
        # not empty are those along which layers were stacked. They tell the place, too:
        # where nn.jit reuses the trace of a layer like this one, no hook runs.
        for name, rank in ranks.items():
            probe = f"{_PROBE}{len(recorded)}:{name}"
            layer.put(probe, jnp.zeros((0,) * rank))
        recorded.append(entry)

    def record_product(layer, name, einsum, equation, first, second):
        output = einsum(equation, first, second)
        call = attention.product_call(layer.module, equation, first, second, output)
        entry = _Found(attention.SITE_TYPE, call, product=Product(name=name))
        record(entry, layer, {name: attention.KERNEL_RANK})
        return output

    def record_layer(next_fun, args, kwargs, layer):
        output = next_fun(*args, **kwargs)
        call = site_call(layer, args, kwargs, output)
        ranks = {name: layer.get(name).ndim for name in layer.site_type.weights}
        record(_Found(layer.site_type, call), layer, ranks)
        return output

    def init(traced):
        args, kwargs = rebuilt(traced)
        product_hook = record_product if attention_products else None
        with intercept_sites(model, record_layer, product_hook) as hooked:
            mutable = _all_but("intermediates")  # as init has it
            return hooked.init(_keys(), *args, mutable=mutable, **kwargs)

    with record_axis_names(model) as axis_names:
        axis_env = list(axis_names.items())
        make = jax.make_jaxpr(init, axis_env=axis_env, return_shape=True)
        _, variables = make(arrays)
    flat = flax.traverse_util.flatten_dict(dict(variables.get("params", {})))
    found: dict[str, _Found] = {}
    for path in [path for path in flat if path[-1].startswith(_PROBE)]:
        *scope, probe_name = path
        number, _, name = probe_name.removeprefix(_PROBE).partition(":")
        entry = dataclasses.replace(recorded[int(number)], scope=tuple(scope))
        parts = (*scope, name) if entry.product else scope
        entry = found.setdefault("/".join(parts) or ".", entry)
        entry.probes = {**entry.probes, name: flat.pop(path).shape}
    for entry in found.values():
        _read_probes(entry, flat)
    params = flax.traverse_util.unflatten_dict(flat)
    return {**variables, "params": params}, found, axis_names


def _read_probes(entry: _Found, flat: dict[tuple[str, ...], Any]) -> None:
    """Fills in what the probes say of a site's weights, or of its product."""
    contracted = ()
    for name in (entry.product.name,) if entry.product else entry.site_type.weights:
        shape = entry.probes[name]
        stacks = tuple(axis for axis, size in enumerate(shape) if size)
        entry.stack_shape = tuple(shape[axis] for axis in stacks)
        if entry.product:
            entry.product = dataclasses.replace(entry.product, stack_axes=stacks)
            continue
        if entry.weights:  # the site type speaks of the first weight only
            contracted = tuple(range(len(shape) - len(stacks) - 1))
        else:
            contracted = entry.site_type.contracted_axes(entry.call)
        weight = Weight(name=name, stack_axes=stacks, contracted_axes=contracted)
        entry.weights += (weight,)
        stored = nn.meta.unbox(flat[*entry.scope, *weight.path])
        entry.weight_count += stored.size // math.prod(entry.stack_shape)


def _count_runs(model, variables, arrays, rebuilt, found, axis_names) -> None:
    """Second pass: adds to `found` what each site does in one run of the model."""

    def contract(layer, name, einsum, equation, first, second):
        output = einsum(equation, first, second)
        call = attention.product_call(layer.module, equation, first, second, output)
        path = _product_path(layer, name)
        return tagged(output, path, attention.SITE_TYPE, call, layer, name)

    def tag(next_fun, args, kwargs, layer):
        output = next_fun(*args, **kwargs)
        call = site_call(layer, args, kwargs, output)
        return tagged(output, layer.path, layer.site_type, call, layer)

    def tagged(output, path, site_type, call, layer, product=""):
        leaf = layer.get(_PROBE + product)
        if leaf is not None:  # what nn.vmap adds to it are copies of the parameters
            checkpoint_name(leaf, _TAG + json.dumps([path, leaf.size]))
        sizes = [math.prod(call.input_shape), math.prod(call.output_shape)]
        note = json.dumps([path, site_type.macs(call), *sizes])
        # A name in the traced program. It says everything: nn.jit may reuse traces.
        first, *others = jax.tree.leaves(output)
        first = checkpoint_name(first, _TAG + note)
        return jax.tree.unflatten(jax.tree.structure(output), [first, *others])

    def apply(variables, traced):
        args, kwargs = rebuilt(traced)
        # Not "params": models ask whether it is mutable to know that this is init.
        mutable = _all_but("params")
        with intercept_sites(model, tag, contract if has_products else None) as hooked:
            return hooked.apply(
                variables, *args, rngs=_keys(), mutable=mutable, **kwargs
            )

    has_products = any(entry.product for entry in found.values())
    variables = {**variables, "params": _told_apart(variables["params"], found)}
    axis_env = list(axis_names.items())
    jaxpr = jax.make_jaxpr(apply, axis_env=axis_env)(variables, arrays).jaxpr
    tags = [(json.loads(note), *tag) for note, *tag in _tags(jaxpr, ())]
    # The parameters' copies in one call. Their loops would say nothing: nn.scan hoists
    # what no step changes.
    copies = {}
    for (path, *rest), size, _ in tags:
        if len(rest) == 1:
            copies[path] = max(copies.get(path, 1), size // rest[0])
    for (path, *rest), size, loops in tags:
        if len(rest) == 1:
            continue
        macs, input_size, output_size = rest
        # In the order of the calls, which need not be that of init.
        entry = found[path] = found.pop(path)
        # nn.vmap hides its axis from the layer, but not from the traced program.
        times = math.prod(loops) * size // max(output_size, 1)
        entry.macs += times * macs
        entry.input_size += times * input_size
        entry.output_size += times * output_size
        runs = math.prod(loops) * copies.get(path, 1)
        entry.calls += runs // math.prod(entry.stack_shape)


def _told_apart(params: dict, found: dict[str, _Found]) -> dict:
    """Returns params with a leaf of a shape of its own at each site.

    nn.jit reuses the trace of a layer, and the path tagged in it, for another one with
    variables of the same shapes.
    """
    flat = flax.traverse_util.flatten_dict(params)
    for number, entry in enumerate(found.values(), start=1):
        name, stack_axes, rank = "", (), attention.KERNEL_RANK
        if entry.product:
            name, stack_axes = entry.product.name, entry.product.stack_axes
        else:
            stack_axes, rank = entry.weights[0].stack_axes, len(entry.call.weight_shape)
        # A vector outside stacks, as numbers that ride: see `quantized_model.riding`.
        shape = [number] + [1] * (rank - 1 if stack_axes else 0)
        for axis, size in zip(stack_axes, entry.stack_shape, strict=True):
            shape.insert(axis, size)
        leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
        flat[*entry.scope, _PROBE + name] = leaf
    return flax.traverse_util.unflatten_dict(flat)


def _tags(jaxpr, loops: tuple[int, ...]) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yields (text, size, lengths of the loops around) of each tag in a program."""
    for eqn in jaxpr.eqns:
        name = eqn.params.get("name")
        if eqn.primitive.name == "name" and name.startswith(_TAG):
            yield name.removeprefix(_TAG), eqn.outvars[0].aval.size, loops
        inner = (*loops, eqn.params["length"]) if "length" in eqn.params else loops
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from _tags(part, inner)


def _layers(path: str, entry: _Found, batch: int) -> Iterator[Site]:
    """Yields the site at a path, or one for each layer of a stack."""
    share = batch * math.prod(entry.stack_shape)
    for index in np.ndindex(*entry.stack_shape):
        suffix = f"[{','.join(map(str, index))}]" if index else ""
        yield Site(
            path=path + suffix,
            op=entry.site_type.op,
            weight_shape=() if entry.product else entry.call.weight_shape,
            macs=-(-entry.macs // share),
            weight_count=entry.weight_count,
            input_size=-(-entry.input_size // share),
            output_size=-(-entry.output_size // share),
            calls=entry.calls,
            weights=entry.weights,
            product=entry.product,
        )
