"""Loaded variables put in the place of a model's own: same tree, shapes and types.

Everything that does not fit is named at once. Where the variables come from (a file, by
`pretrained`) and what trains them afterwards is not known here.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key, PyTree

from fliqs_jax.site_patterns import nearest
from fliqs_jax.train._leaves import fingerprint, to_host

_MOST_LISTED = 10  # leaves of one kind in a message


def start_state(
    searcher: Any,
    key: Key[Array, ""],
    images: ArrayLike,
    *,
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the fields of a state before the first step that all methods have.

    Args:
      searcher: with its `classifier`, the `optimizer` of the network's parameters, and
        `variables` to start from, with `params`; None is fresh ones.
      key: gives the initial variables and the key of the run.
      images: of the shape that is trained on, one or more.
      skip: as in `fit_variables`.

    Returns:
      `step`, `key`, `params`, `model_state` and `opt_state`.
    """
    init_key, run_key = jax.random.split(key)
    params, model_state = searcher.classifier.init(init_key, images)
    if searcher.variables is not None:
        own = {"params": params, **model_state}
        model_state = fit_variables(searcher.variables, own, skip=skip)
        params = model_state.pop("params")
    return {
        "step": jnp.zeros((), jnp.int32),
        "key": run_key,
        "params": params,
        "model_state": model_state,
        "opt_state": searcher.optimizer.init(params),
    }


def fit_variables(
    loaded: Mapping[str, Any],
    expected: PyTree,
    *,
    skip: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> PyTree:
    """Returns the model's variables with the loaded values in them.

    A leaf's path is written as "Dense_0/kernel" for a parameter and with its collection
    for another variable: "batch_stats/BatchNorm_0/mean". Boxes (`nn.Partitioned`) are
    kept where the model has them and seen through where the checkpoint has.

    Args:
      loaded: variables with `params`, as `load_variables` returns them.
      expected: the model's own variables, arrays or `jax.ShapeDtypeStruct`.
      skip: regular expressions that must match a whole path. What they match keeps its
        value in `expected`, and is left out where only `loaded` has it.
      say: receives a line for each collection that is not in `loaded` at all (batch
        statistics of a file of parameters) and so keeps its values in `expected`.

    Returns:
      A tree like `expected`. Its loaded leaves are copies, in the type expected.

    Raises:
      ValueError: if leaves are missing, unexpected, or of another shape or kind, each
        named by its path; or if a pattern matches nothing.

    Example:
      >>> model = nn.Dense(2)
      >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> loaded = {"params": {"kernel": jnp.ones((3, 2), jnp.float16)}}
      >>> fitted = fit_variables(loaded, variables, skip=["bias"])
      >>> fitted["params"]["kernel"].dtype, fitted["params"]["bias"].tolist()
      (dtype('float32'), [0.0, 0.0])
    """
    if not isinstance(loaded, Mapping) or "params" not in loaded:
        got = sorted(loaded) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ValueError(f"variables must be a mapping with 'params', got {got}")
    wanted, found = _named(expected), _params_first(loaded)
    for name in wanted.keys() - found.keys():
        if f"{name}/value" in found:  # a box that became a dict on disk
            found[name] = found.pop(f"{name}/value")
    skipped = _skipped(skip, [*wanted, *(found.keys() - wanted.keys())])
    fresh = set(skipped)
    for collection in sorted(expected.keys() - loaded.keys()):
        fresh |= _named({collection: expected[collection]}).keys()
        if say is not None:
            say(f"no {collection} in the checkpoint: they start fresh")
    _check(
        {name: x for name, x in found.items() if name not in skipped},
        {name: x for name, x in _params_first(expected).items() if name not in fresh},
    )
    leaves = [
        # A copy: training donates its state, and the caller's arrays must survive.
        leaf if name in fresh else jnp.array(found[name], leaf.dtype, copy=True)
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def describe_variables(variables: PyTree) -> dict[str, Any]:
    """Returns what tells variables from others: number of leaves and a checksum.

    Example:
      >>> zeros, ones = {"params": {"a": jnp.zeros(2)}}, {"params": {"a": jnp.ones(2)}}
      >>> describe_variables(zeros) == describe_variables(ones)
      False
    """
    prints = {name: fingerprint(to_host(x)) for name, x in _named(variables).items()}
    text = json.dumps(prints, sort_keys=True)
    return {"leaves": len(prints), "crc32": f"{zlib.crc32(text.encode()):08x}"}


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.meta.AxisMetadata)


def _named(variables: PyTree) -> dict[str, Any]:
    """Returns the leaves by path, those in boxes by the path of the box, in order."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_box)
    named = {}
    for keys, node in nodes:
        path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        (named["/".join(path[path[0] == "params" :])],) = jax.tree.leaves(node)
    return named


def _params_first(variables: PyTree) -> dict[str, Any]:
    """Returns what `_named` does, in the order in which a reader wants to see it."""
    return {**_named({"params": variables["params"]}), **_named(variables)}


def _skipped(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    skipped = set()
    for pattern in patterns:
        try:
            matched = {name for name in names if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ValueError(
                f"skip pattern {pattern!r} is no regular expression ({error})"
            ) from error
        if not matched:
            raise ValueError(
                f"skip pattern {pattern!r} matches no leaf (it must match the whole "
                f"path); nearest: {nearest(pattern, names)}"
            )
        skipped |= matched
    return skipped


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses leaves that cannot take each other's places, all in one message."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    other = [
        name
        for name in wanted
        if name in found and not _alike(found[name], wanted[name])
    ]
    if not missing + unexpected + other:
        return
    lines = [
        *_listed("missing", (f"{name}: {_show(wanted[name])}" for name in missing)),
        *_listed(
            "unexpected", (f"{name}: {_show(found[name])}" for name in unexpected)
        ),
        *_listed(
            "of another shape or kind",
            (
                f"{name}: {_show(found[name])} in the checkpoint, "
                f"{_show(wanted[name])} in the model"
                for name in other
            ),
        ),
    ]
    layer = (other + missing + unexpected)[0].rpartition("/")[0]
    example = f"{layer}/.*" if layer else ".*"
    raise ValueError(
        "the checkpoint does not fit the model:\n" + "\n".join(lines) + "\nGive the "
        "model that it was trained as, or skip the layers that are to start fresh, a "
        f"new head for example, by a pattern such as {example!r} (skip, --init_skip)"
    )


def _listed(kind: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    if not lines:
        return []
    more = len(lines) - _MOST_LISTED
    shown = [f"    {line}" for line in lines[:_MOST_LISTED]]
    return [f"  {kind}:", *shown, *([f"    and {more} more"] if more > 0 else [])]


def _alike(found: Any, wanted: Any) -> bool:
    # A stored integer code is no weight: only floats are cast to floats.
    kinds = (jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating)
    same_kind = any(
        jnp.issubdtype(found.dtype, kind) and jnp.issubdtype(wanted.dtype, kind)
        for kind in kinds
    )
    return same_kind and tuple(found.shape) == tuple(wanted.shape)


def _show(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
