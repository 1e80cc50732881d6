"""Rows of the contract on unmodified models, and what a promise needs of them."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from fliqs_jax.formats import stack_formats
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel

Inputs = Callable[[jax.Array], tuple[jax.Array, ...]]  # key -> arguments, batch of two


# XLA may leave out a rounding to bfloat16 between two operations: of two programs, in
# one alone.
exact_jit = functools.partial(
    jax.jit, compiler_options={"xla_allow_excess_precision": False}
)


def floats(*shape: int) -> Inputs:
    """One input of normal numbers."""
    return lambda key: (jax.random.normal(key, (2, *shape)),)


def tokens(*lengths: int) -> Inputs:
    """One input of tokens 1...10 a length."""
    return lambda key: tuple(
        jax.random.randint(jax.random.fold_in(key, length), (2, length), 1, 11)
        for length in lengths
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its inputs, and the truth about its sites."""

    model: nn.Module
    inputs: Inputs
    macs: dict[str, int]  # by path, in call order, counted by hand
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    # The same network without scan, vmap or remat, where it has those: its layer i of
    # the stack "layers" is "layers_i".
    unrolled: nn.Module | None = None
    stacks: Mapping[str, int] = dataclasses.field(default_factory=dict)  # name -> axis
    int8_error: float = 0.05  # at most, of the outputs' largest magnitude
    attention_products: bool = False
    joined: tuple[str, ...] = ()  # modules that are one site with all kernels in them


class Run:
    """A row made concrete: variables, an input, and the compiled model."""

    def __init__(self, case: Case):
        self.case = case
        self.inputs = case.inputs(jax.random.key(1))
        variables = jax.jit(case.model.init)(jax.random.key(0), *self.inputs)
        # Zero biases and unit norms would hide a mistake.
        self.variables = jax.tree.map(lambda leaf: leaf + 0.01, variables)
        self.quantized = QuantizedModel(
            case.model, attention_products=case.attention_products
        )
        self.sites = self.quantized.sites(*self.inputs, **case.kwargs)
        self.arguments = {"rngs": {"dropout": jax.random.key(3)}, **case.kwargs}
        self.traces = 0
        self._forward = jax.jit(self.apply)
        self.plain = self.forward(None)

    def apply(self, policy, params, inputs):
        self.traces += 1
        variables = {**self.variables, "params": params}
        return self.quantized.apply(variables, *inputs, policy=policy, **self.arguments)

    def eager(self, policy):
        return self.apply(policy, self.variables["params"], self.inputs)

    def forward(self, policy):
        # Params are arguments: XLA would fold constants, with other roundings.
        return self._forward(policy, self.variables["params"], self.inputs)

    def uniform(self, name) -> SiteFormats:
        return Policy.uniform(self.sites, name).formats(self.sites)

    def mixed(self, *names) -> SiteFormats:
        """Different formats at neighbouring sites: `names` over and over."""
        listed = [names[i % len(names)] for i in range(len(self.sites))]
        return SiteFormats(stack_formats(listed), stack_formats(listed[::-1]))


def flat_kernels(params) -> dict[tuple[str, ...], jax.Array]:
    """The weights of contractions, by path."""
    flat = flax.traverse_util.flatten_dict(nn.meta.unbox(params))
    return {path: leaf for path, leaf in flat.items() if path[-1] == "kernel"}


def inputs_by_path(run: Run) -> dict[str, list[np.ndarray]]:
    """The inputs of each site, recorded without any of our machinery."""
    params, model = unrolled_params(run), run.case.unrolled or run.case.model

    @exact_jit
    def recorded():
        seen = {}

        def record(next_fun, args, kwargs, context):
            module = context.module
            has_kernel = hasattr(
                module.variables.get("params", {}).get("kernel"), "ndim"
            )
            if has_kernel and context.method_name == "__call__":
                path = site_of("/".join(module.path), run.case)
                seen.setdefault(path, []).append(args[0])
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(record):
            variables = {**run.variables, "params": params}
            model.apply(variables, *run.inputs, **run.arguments)
        return seen

    # float32: what the tests compute from bfloat16 would be rounded to it.
    return jax.tree.map(lambda x: np.asarray(x, np.float32), recorded())


def site_of(path: str, case: Case) -> str:
    """layers_2/Dense_0 -> layers/Dense_0[2]; lstm/hi -> lstm if that is one site."""
    head, _, rest = path.partition("/")
    if head in case.joined:
        return head
    match = re.fullmatch(r"(.*)_(\d+)", head)
    if not match or match[1] not in case.stacks:
        return path
    return f"{match[1]}/{rest}[{match[2]}]"


def unrolled_params(run: Run) -> dict:
    """Params of `case.unrolled`: a tree for each layer of a stack."""
    stacked, stacks = nn.meta.unbox(run.variables["params"]), run.case.stacks
    layers = {
        f"{name}_{i}": jax.tree.map(lambda leaf: leaf.take(i, axis), stacked[name])  # noqa: B023
        for name, axis in stacks.items()
        for i in range(jax.tree.leaves(stacked[name])[0].shape[axis])
    }
    return {name: tree for name, tree in stacked.items() if name not in stacks} | layers
