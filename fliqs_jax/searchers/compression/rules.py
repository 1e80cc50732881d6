"""Which weights get which codebook: C steps by name, rules by path, and their scopes.

A scope is one vector of weights under one codebook: a tensor, or several that share
theirs. What is done with scopes is in `learning_compression`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers import codebook as c_steps
from fliqs_jax.quantizers.codebook import Codebook
from fliqs_jax.site_patterns import nearest

# (weights [P], values of the codebook before [K], or None) -> nearest codebook
Projection = Callable[[Float[ArrayLike, "P"], Float[ArrayLike, "K"] | None], Codebook]

_NO_WEIGHTS = ("bias", "scale")
_LARGEST_FORMAT = 8  # bits, whose values can be listed


@dataclasses.dataclass(frozen=True)
class CStep:
    """A kind of codebook: the projection of weights onto it."""

    name: str  # as in reports
    num_values: int
    project: Projection


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionRule:
    """A codebook for each weight that a pattern matches, or one for them all.

    Never compressed are leaves of fewer than two axes, and those named "bias" or
    "scale", which have more in attention layers and in stacks of layers. Others such as
    embeddings of positions are, if a pattern matches them.
    """

    pattern: str  # must match the whole path, "Dense_0/kernel"; the first rule wins
    c_step: CStep
    shared: bool = False  # one codebook for all that it matches


@dataclasses.dataclass(frozen=True)
class Scope:
    """The weights of one codebook, concatenated in this order."""

    name: str
    paths: tuple[str, ...]
    c_step: CStep


_CLOSED_FORMS = {
    "binary": (2, c_steps.binary),
    "binary_scaled": (2, c_steps.binary_scaled),
    "ternary": (3, c_steps.ternary),
    "ternary_scaled": (3, c_steps.ternary_scaled),
}
CODEBOOKS = ("kmeans", *_CLOSED_FORMS, "powers_of_two")


def kmeans_step(num_values: int) -> CStep:
    """Returns the C step of K free values: warm-started, the first one the best of 10.

    Example:
      >>> kmeans_step(2).project(jnp.array([0.0, 1.0, 5.0]), None).values.tolist()
      [0.5, 5.0]
    """
    c_steps.kmeans(jnp.zeros(0), num_values)  # refuses sizes below 1

    def project(w, before):
        return c_steps.kmeans(w, num_values, init=before)

    return CStep(f"kmeans, K = {num_values}", num_values, project)


def parse_codebook(name: str, num_values: int | None = None) -> CStep:
    """Returns the C step that a name stands for.

    Args:
      name: "kmeans", "binary", "binary_scaled", "ternary", "ternary_scaled" or
        "powers_of_two"; a number format of at most 8 bits ("int4", "e2m1") for its
        values; "scaled:int4" for its values times a learned scale.
      num_values: K. "kmeans" needs it; "powers_of_two" as well, 2 C + 3 values for
        0, +-1 ... +-2**-C. The other names imply it.

    Raises:
      ValueError: if the name is unknown, or K is missing, impossible or another one.

    Example:
      >>> parse_codebook("scaled:e2m1").num_values
      15
    """
    if name in ("kmeans", "powers_of_two") and num_values is None:
        raise ValueError(f"codebook {name!r} needs a size: give codebook_size=K")
    if name == "kmeans":
        return kmeans_step(num_values)
    if name == "powers_of_two":
        if num_values < 3 or num_values % 2 == 0:
            raise ValueError(
                "codebook_size of powers_of_two must be 2 C + 3 (0 and +-1 ... "
                f"+-2**-C): 3, 5, 7, ...; got {num_values}"
            )
        project = functools.partial(c_steps.powers_of_two, c=(num_values - 3) // 2)
        return CStep(f"powers of two, K = {num_values}", num_values, _cold(project))
    step = _of_known_size(name)
    if num_values not in (None, step.num_values):
        raise ValueError(
            f"codebook {name!r} has {step.num_values} values, so codebook_size="
            f"{num_values} cannot be: leave it out"
        )
    return step


def _of_known_size(name: str) -> CStep:
    if name in _CLOSED_FORMS:
        num_values, project = _CLOSED_FORMS[name]
        return CStep(name.replace("_", ", "), num_values, _cold(project))
    prefix, _, format_name = name.rpartition(":")
    try:
        if prefix not in ("", "scaled"):
            raise ValueError(f"unknown prefix {prefix!r}")
        fmt = parse_format(format_name)
        if fmt.storage_bits > _LARGEST_FORMAT:
            raise ValueError(f"{format_name!r} has more than {_LARGEST_FORMAT} bits")
    except ValueError as error:
        raise ValueError(
            f"codebook {name!r}: use {', '.join(CODEBOOKS)}, a format of at most 8 bits"
            f" (int4) or scaled:FORMAT ({error})"
        ) from error
    # A list without repeats: formats with a minus zero name 0 twice.
    values = np.unique(np.asarray(fmt.values(), np.float32) + np.float32(0))
    project = c_steps.scaled if prefix else c_steps.fixed
    return CStep(
        f"{format_name}, scaled" if prefix else format_name,
        len(values),
        _cold(functools.partial(project, codebook=values)),
    )


def _cold(project: Callable[[Float[ArrayLike, "P"]], Codebook]) -> Projection:
    """Returns the projection of a closed form, which no earlier codebook helps."""
    return lambda w, before: project(w)


def find_scopes(params: PyTree, rules: Sequence[CompressionRule]) -> tuple[Scope, ...]:
    """Returns the scopes of the weights that the rules match, in the tree's order.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`; nested dicts give the usual paths.
      rules: the first whose pattern matches a path takes it.

    Raises:
      ValueError: if a rule takes nothing, or a pattern is no regular expression.

    Example:
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> rule = CompressionRule(pattern=".*", c_step=kmeans_step(2))
      >>> [scope.paths for scope in find_scopes(params, [rule])]
      [('Dense_0/kernel',)]
    """
    shapes = {path: leaf.shape for path, leaf in named_leaves(params).items()}
    free = [
        path
        for path, shape in shapes.items()
        if len(shape) > 1 and path.rpartition("/")[2] not in _NO_WEIGHTS
    ]
    scopes: list[Scope] = []
    for rule in rules:
        try:
            paths = [path for path in free if re.fullmatch(rule.pattern, path)]
        except re.error as error:
            raise ValueError(
                f"pattern {rule.pattern!r} is no regular expression ({error})"
            ) from error
        if not paths:
            raise ValueError(
                f"pattern {rule.pattern!r} takes no weight: it must match the whole "
                "path of a leaf with two axes or more that no rule before it matches; "
                f"nearest: {nearest(rule.pattern, free)}"
            )
        free = [path for path in free if path not in paths]
        if rule.shared:
            others = f" and {len(paths) - 1} more" if paths[1:] else ""
            name = paths[0] + others
            scopes.append(Scope(name, tuple(paths), rule.c_step))
        else:
            scopes += [Scope(path, (path,), rule.c_step) for path in paths]
    order = list(shapes)
    return tuple(sorted(scopes, key=lambda scope: order.index(scope.paths[0])))


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path, such as "Dense_0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in leaves
    }


def scope_weights(
    params: PyTree, scopes: Sequence[Scope]
) -> tuple[Float[Array, "..."], ...]:
    """Returns the weights of each scope as a vector, float32."""
    leaves = named_leaves(params)
    return tuple(
        jnp.concatenate([jnp.ravel(leaves[path]) for path in scope.paths]).astype(
            jnp.float32
        )
        for scope in scopes
    )


def with_weights(
    params: PyTree, scopes: Sequence[Scope], vectors: Sequence[Float[ArrayLike, "..."]]
) -> PyTree:
    """Returns params with the vectors in their places, in the leaves' own types."""
    return _replaced(
        params,
        scopes,
        vectors,
        lambda vector, part, leaf: vector[part].reshape(leaf.shape).astype(leaf.dtype),
    )


def with_codebooks(
    params: PyTree, scopes: Sequence[Scope], codebooks: Sequence[Codebook]
) -> PyTree:
    """Returns params with a Codebook for each compressed leaf, in the leaf's shape."""

    def of_leaf(codebook, part, leaf):
        return codebook.replace(indices=codebook.indices[part].reshape(leaf.shape))

    return _replaced(params, scopes, codebooks, of_leaf)


def _replaced(params, scopes, items, of_leaf):
    """Returns params with `of_leaf` of a scope's item and a leaf's part of it."""
    leaves = named_leaves(params)
    for scope, item in zip(scopes, items, strict=True):
        first = 0
        for path in scope.paths:
            leaf = leaves[path]
            part = slice(first, first + leaf.size)
            leaves[path] = of_leaf(item, part, leaf)
            first += leaf.size
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())
