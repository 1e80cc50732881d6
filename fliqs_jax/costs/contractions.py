"""The contractions of a model as programs of their own, to be timed in any format.

Each site's layer is traced alone; its one dot product or convolution, with the strides,
padding and groups that a `Site` does not know, is compiled on low-bit operands. What a
backend executes is found out by compiling and running, never assumed.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax import lax

from fliqs_jax.costs.latency_table import Contraction
from fliqs_jax.interception import intercept_sites
from fliqs_jax.site_types import SiteCall
from fliqs_jax.sites import find_sites, site_call

# format -> (type of both operands, type that products are summed in)
OPERANDS: Mapping[str, tuple[Any, Any]] = {
    "fp32": (np.float32, np.float32),
    "fp16": (np.float16, np.float32),
    "bf16": (ml_dtypes.bfloat16, np.float32),
    "int8": (np.int8, np.int32),
    "e4m3": (ml_dtypes.float8_e4m3fn, np.float32),
    "e5m2": (ml_dtypes.float8_e5m2, np.float32),
    "int4": (ml_dtypes.int4, np.int32),
    "e2m1": (ml_dtypes.float4_e2m1fn, np.float32),
}


class NotExecuted(Exception):
    """A backend refused to compile or run a contraction; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledContraction:
    """A contraction ready to run on operands of a format."""

    program: jax.stages.Compiled
    operands: tuple[jax.Array, jax.Array]
    # Operand type of the contraction after compilation ("f32" where a backend converts
    # first), "" where the program does not show it.
    executed_as: str

    def run(self) -> None:
        """Runs it once and waits for the result."""
        jax.block_until_ready(self.program(*self.operands))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContractionProgram:
    """A contraction of a model, and how it is computed.

    Two sites of the same `Contraction` are one program.
    """

    contraction: Contraction
    site_paths: tuple[str, ...]  # without layer indices
    primitive: str  # "dot_general" or "conv_general_dilated"
    parameters: Mapping[str, Any]  # of the primitive
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # of the operands, batch included

    def compile(self, format_name: str) -> CompiledContraction:
        """Compiles the contraction for operands of one format, and runs it once.

        Args:
          format_name: one of `OPERANDS`.

        Raises:
          ValueError: if there is no operand type for the format.
          NotExecuted: if the backend refuses it.
        """
        if format_name not in OPERANDS:
            raise ValueError(
                f"format {format_name!r} has no operand type: use one of"
                f" {', '.join(OPERANDS)}"
            )
        dtype, accumulator = OPERANDS[format_name]
        random = np.random.default_rng(0)
        # Whole numbers that every format holds; their values do not matter.
        drawn = [random.integers(-4, 5, shape) for shape in self.shapes]
        try:
            operands = tuple(jnp.asarray(array.astype(dtype)) for array in drawn)
            program = jax.jit(self._function(accumulator)).lower(*operands).compile()
            compiled = CompiledContraction(
                program=program,
                operands=operands,
                executed_as=_operand_type(program.as_text() or ""),
            )
            compiled.run()
        # The kinds that jax raises for types that a backend has not.
        except (jax.errors.JaxRuntimeError, TypeError, ValueError) as error:
            (reason,) = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise NotExecuted(reason) from error
        return compiled

    def _function(self, accumulator: Any):
        options = {**self.parameters, "preferred_element_type": accumulator}
        operation = getattr(lax, self.primitive)
        return lambda first, second: operation(first, second, **options)


_PARAMETERS = {
    "dot_general": ("dimension_numbers", "precision"),
    "conv_general_dilated": (
        *("window_strides", "padding", "lhs_dilation", "rhs_dilation"),
        *("dimension_numbers", "feature_group_count", "batch_group_count", "precision"),
    ),
}


def find_contractions(
    model: Any, *args: Any, **kwargs: Any
) -> tuple[tuple[ContractionProgram, ...], dict[str, str]]:
    """Finds the different contractions of a linen model, in the order of its layers.

    Nothing is computed. A site whose layer is not exactly one dot product or
    convolution (a layer class of your own, say) cannot be timed alone. A layer under
    `nn.vmap` is taken as it sees itself, without the mapped axis.

    Args:
      model: a `flax.linen.Module`.
      *args: arguments of the model, arrays or `jax.ShapeDtypeStruct`; the leading axis
        of the first is the batch, of the size to be timed.
      **kwargs: further arguments (`train=False`, ...).

    Returns:
      The contractions; and, for the paths of sites left out, the reason.

    Raises:
      TypeError: if `model` is no linen module.
      ValueError: as `find_sites`, if it has no site.

    Example:
      >>> import flax.linen as nn
      >>> image = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
      >>> (program,), left_out = find_contractions(nn.Conv(16, (3, 3)), image)
      >>> print(program.contraction)
      conv 3x3x3x16, 192 -> 1024 elements, 27648 MACs
      >>> program.compile("int8").operands[0].dtype
      dtype('int8')
    """
    if isinstance(model, nnx.Module):
        raise TypeError(
            "contractions are found in linen models only, but"
            f" {type(model).__name__} is an NNX model: time a linen model of the same"
            " layers; its table serves both"
        )
    find_sites(model, *args, **kwargs)
    batch = next(x.shape[0] for x in jax.tree.leaves((args, kwargs)) if _is_array(x))
    layers: dict[tuple, tuple] = {}

    def record(next_fun, inner_args, inner_kwargs, layer):
        output = next_fun(*inner_args, **inner_kwargs)
        site_type = layer.site_type
        call = dataclasses.replace(
            site_call(layer, inner_args, inner_kwargs, output),
            module=layer.module.clone(parent=None),
            args=jax.tree.map(_abstract, inner_args),
            kwargs=jax.tree.map(_abstract, dict(inner_kwargs)),
        )
        contraction = Contraction(
            op=site_type.op,
            weight_shape=call.weight_shape,
            input_size=-(-math.prod(call.input_shape) // batch),
            output_size=-(-math.prod(call.output_shape) // batch),
            macs=-(-site_type.macs(call) // batch),
        )
        layers[layer.path, contraction] = call
        return output

    def init(arrays):
        leaves = [arrays.get(i, leaf) for i, leaf in enumerate(flat)]
        traced_args, traced_kwargs = tree.unflatten(leaves)
        with intercept_sites(model, record) as hooked:
            return hooked.init(_keys(), *traced_args, **traced_kwargs)

    flat, tree = jax.tree.flatten((args, kwargs))
    jax.eval_shape(
        init, {i: _abstract(leaf) for i, leaf in enumerate(flat) if _is_array(leaf)}
    )
    programs: dict[Contraction, ContractionProgram] = {}
    left_out: dict[str, str] = {}
    for (path, contraction), call in layers.items():
        if known := programs.get(contraction):
            paths = tuple(dict.fromkeys((*known.site_paths, path)))
            programs[contraction] = dataclasses.replace(known, site_paths=paths)
            continue
        equations = list(_equations(_trace(call)))
        if len(equations) != 1:
            left_out[path] = f"{len(equations)} dot products or convolutions, not one"
            continue
        (equation,) = equations
        name = equation.primitive.name
        programs[contraction] = ContractionProgram(
            contraction=contraction,
            site_paths=(path,),
            primitive=name,
            parameters={key: equation.params[key] for key in _PARAMETERS[name]},
            shapes=tuple(variable.aval.shape for variable in equation.invars[:2]),
        )
    return tuple(programs.values()), left_out


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _abstract(leaf: Any) -> Any:
    if not _is_array(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _keys() -> dict[str, jax.Array]:
    return {name: jax.random.key(0) for name in ("params", "dropout")}


def _trace(call: SiteCall):
    """Returns the traced program of a layer alone."""
    flat, tree = jax.tree.flatten((call.args, call.kwargs))
    arrays = {i: leaf for i, leaf in enumerate(flat) if _is_array(leaf)}

    def rebuilt(traced):
        leaves = [traced.get(i, leaf) for i, leaf in enumerate(flat)]
        return tree.unflatten(leaves)

    def init(traced):
        args, kwargs = rebuilt(traced)
        return call.module.init(_keys(), *args, **kwargs)

    def apply(variables, traced):
        args, kwargs = rebuilt(traced)
        return call.module.apply(variables, *args, rngs=_keys(), **kwargs)

    return jax.make_jaxpr(apply)(jax.eval_shape(init, arrays), arrays).jaxpr


def _equations(jaxpr) -> Iterator[Any]:
    """Yields the contractions of a traced program, those of inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PARAMETERS:
            yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from _equations(part)


def _operand_type(program: str) -> str:
    """Returns the operand type of the contraction in a compiled program's text."""
    types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", program))
    operand = re.search(r" (?:dot|convolution)\((?:\w+\[\S* )?(%[\w.-]+)", program)
    return types.get(operand[1], "") if operand else ""
