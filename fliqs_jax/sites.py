"""The sites of a linen model: its contractions with weights, found without computing.

Two abstract passes. `init` tells where the parameters live and along which axes
`nn.scan` or `nn.vmap` stack them. A trace of `apply` tells how often each site runs:
loops trace their body once or more and run it many times, so calls are counted in the
traced program, not while tracing. Which layers count is in `site_types`, quantizing
them in `quantized_model`.
"""

import dataclasses
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

from fliqs_jax.site_types import SiteCall, SiteType, site_type_of

_PROBE = "fliqs_jax_probe"
_TAG = "fliqs_jax_site:"
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
class Site:
    """A contraction with weights, or layer i of a stack of them.

    Sizes and MACs are per example and summed over calls. Padding counts as MACs.
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

    @property
    def module_path(self) -> tuple[str, ...]:
        """Where the parameters live in the tree: the same for all layers of a stack."""
        path = self.path.partition("[")[0]
        return () if path == "." else tuple(path.split("/"))

    @property
    def layer(self) -> tuple[int, ...]:
        """Index of this layer in its stack, () outside stacks."""
        index = self.path.partition("[")[2].removesuffix("]")
        return tuple(int(i) for i in index.split(",")) if index else ()


@dataclasses.dataclass
class _Found:
    """What the two passes learn of the sites at one module path."""

    site_type: SiteType
    call: SiteCall
    weights: tuple[Weight, ...] = ()
    weight_count: int = 0
    stack_shape: tuple[int, ...] = ()
    macs: int = 0
    input_size: int = 0
    output_size: int = 0
    calls: int = 0


def find_sites(model: Any, *args: Any, **kwargs: Any) -> tuple[Site, ...]:
    """Lists the contractions with weights in a linen model, in call order.

    Only shapes are used; nothing is computed and the model needs no variables. A module
    called twice is one site with its MACs summed. A stack of layers (`nn.scan`, or
    `nn.vmap` with parameters of their own) gives one site per layer,
    "layers/Dense_0[3]"; in nested stacks the index counts along the stacking axes of
    the stored parameters in their order ("[1,3]"). Weights shared by all steps of a
    loop are one site with as many calls. Every branch of a conditional counts as if it
    ran, a `while` loop as if it ran once.

    Args:
      model: a `flax.linen.Module`; its sites are layers of the classes known to
        `register_site_type`.
      *args: arguments of the model, arrays or `jax.ShapeDtypeStruct`. The leading axis
        of the first array is the batch, by which sizes and MACs are divided (rounded
        up).
      **kwargs: further arguments (`train=False`, ...), and `method` as in `apply`.

    Returns:
      The sites, a non-empty tuple.

    Raises:
      TypeError: if `model` is no linen module.
      ValueError: if the model has no site, or no argument is an array with a batch.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
      >>> (site,) = find_sites(nn.Conv(16, (3, 3)), image)
      >>> site.op, site.weight_shape, site.macs
      ('conv', (3, 3, 3, 16), 27648)
    """
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model)
        raise TypeError(
            f"model must be a flax.linen Module instance, got {kind}: pass the linen"
            " module itself, for example nn.Dense(10), not its apply function,"
            " variables, class or an NNX module"
        )
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

    variables, found, axis_names = _run_init(model, arrays, rebuilt)
    _count_runs(model, variables, arrays, rebuilt, found, axis_names)
    sites = tuple(
        site
        for path, entry in found.items()
        if entry.calls
        for site in _layers(path, entry, batch)
    )
    if not sites:
        raise ValueError(
            f"model {type(model).__name__} has no site: none of its layers is a Conv,"
            " ConvTranspose, ConvLocal, Dense, DenseGeneral, Einsum or"
            " OptimizedLSTMCell. A layer class of your own becomes a site by"
            " register_site_type"
        )
    return sites


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _keys() -> dict[str, jax.Array]:
    return {name: jax.random.key(0) for name in _RNG_STREAMS}


def site_path(module: nn.Module) -> str:
    """Returns the path of a bound module as sites have it."""
    return "/".join(module.path) or "."


def _parameter(module: nn.Module, name: str) -> Any:
    """Returns a parameter of a site, unboxed, or None if there is none."""
    own, *below = name.split("/")
    value = module.get_variable("params", own)
    for part in below:
        value = None if value is None else value.get(part)
    return nn.meta.unbox(value)


def site_call(
    module: nn.Module, site_type: SiteType, args: tuple, kwargs: dict, output: Any
) -> SiteCall:
    """Returns a site's call as its own code sees it, inside an intercepted method."""
    first = _parameter(module, site_type.weights[0])
    if first is None:
        raise ValueError(
            f"site {site_path(module)!r}: {type(module).__name__} has no parameter"
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


def _run_init(model, arrays, rebuilt):
    """First pass: variables, sites with their weights, and named axes of the model."""
    found: dict[str, _Found] = {}
    axis_names: dict[str, int] = {}

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        module = context.module
        # BatchNorm(axis_name="data") and the like average over a mesh axis.
        if isinstance(name := getattr(module, "axis_name", None), str):
            axis_names[name] = 1
        if site_type := site_type_of(context):
            call = site_call(module, site_type, args, kwargs, output)
            found[site_path(module)] = _Found(site_type, call)
            for name in site_type.weights:
                # An empty array of the weight's rank: in the returned tree, the axes
                # that are not empty are those along which layers were stacked.
                rank = _parameter(module, name).ndim
                module.put_variable("params", _PROBE + name, jnp.zeros((0,) * rank))
        return output

    def init(traced):
        args, kwargs = rebuilt(traced)
        with nn.intercept_methods(record):
            return model.init(_keys(), *args, **kwargs)

    variables = jax.eval_shape(init, arrays)
    flat = flax.traverse_util.flatten_dict(dict(variables.get("params", {})))
    for path, entry in found.items():
        scope = () if path == "." else tuple(path.split("/"))
        contracted = entry.site_type.contracted_axes(entry.call)
        for name in entry.site_type.weights:
            probe = flat.pop((*scope, _PROBE + name))
            if entry.weights:  # the site type speaks of the first weight only
                contracted = tuple(range(probe.ndim - len(entry.stack_shape) - 1))
            stacks = tuple(i for i, size in enumerate(probe.shape) if size)
            entry.stack_shape = tuple(probe.shape[i] for i in stacks)
            weight = Weight(name=name, stack_axes=stacks, contracted_axes=contracted)
            entry.weights += (weight,)
            stored = nn.meta.unbox(flat[*scope, *weight.path])
            entry.weight_count += stored.size // math.prod(entry.stack_shape)
    params = flax.traverse_util.unflatten_dict(flat)
    return {**variables, "params": params}, found, axis_names


def _count_runs(model, variables, arrays, rebuilt, found, axis_names) -> None:
    """Second pass: adds to `found` what each site does in one run of the model."""

    def tag(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        if not (site_type := site_type_of(context)):
            return output
        module = context.module
        call = site_call(module, site_type, args, kwargs, output)
        sizes = [math.prod(call.input_shape), math.prod(call.output_shape)]
        note = json.dumps([site_path(module), site_type.macs(call), *sizes])
        # A name in the traced program. It says everything: nn.jit may reuse traces.
        first, *others = jax.tree.leaves(output)
        first = checkpoint_name(first, _TAG + note)
        return jax.tree.unflatten(jax.tree.structure(output), [first, *others])

    def apply(variables, traced):
        args, kwargs = rebuilt(traced)
        # Not "params": models ask whether it is mutable to know that this is init.
        mutable = flax.core.DenyList("params")
        with nn.intercept_methods(tag):
            return model.apply(
                variables, *args, rngs=_keys(), mutable=mutable, **kwargs
            )

    axis_env = list(axis_names.items())
    jaxpr = jax.make_jaxpr(apply, axis_env=axis_env)(variables, arrays).jaxpr
    for note, size, loops in _tags(jaxpr, ()):
        path, macs, input_size, output_size = json.loads(note)
        # In the order of the calls, which need not be that of init.
        entry = found[path] = found.pop(path)
        # nn.vmap hides its axis from the layer, but not from the traced program.
        times = math.prod(loops) * size // max(output_size, 1)
        entry.macs += times * macs
        entry.input_size += times * input_size
        entry.output_size += times * output_size
        entry.calls += _calls_per_layer(loops, entry.stack_shape)


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


def _calls_per_layer(loops: tuple[int, ...], stack_shape: tuple[int, ...]) -> int:
    """Runs of one layer: a loop over its stack runs it once, any other repeats it."""
    stacked, calls = list(stack_shape), 1
    for length in loops:
        if length in stacked:
            stacked.remove(length)
        else:
            calls *= length
    return calls


def _layers(path: str, entry: _Found, batch: int) -> Iterator[Site]:
    """Yields the site at a path, or one for each layer of a stack."""
    share = batch * math.prod(entry.stack_shape)
    for index in np.ndindex(*entry.stack_shape):
        suffix = f"[{','.join(map(str, index))}]" if index else ""
        yield Site(
            path=path + suffix,
            op=entry.site_type.op,
            weight_shape=entry.call.weight_shape,
            macs=-(-entry.macs // share),
            weight_count=entry.weight_count,
            input_size=-(-entry.input_size // share),
            output_size=-(-entry.output_size // share),
            calls=entry.calls,
            weights=entry.weights,
        )
