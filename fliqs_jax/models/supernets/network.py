"""Super-networks: one ordinary model, and which part of it each sub-network is.

A sub-network is a mask over the parameters, so the model itself knows nothing of it.
Where all that writes to a channel is zero (weights, bias, scale and bias of a
normalisation) the channel is exactly zero, also after activations, pooling and
attention, and adds exactly nothing to what reads it. A residual block of zeros is the
identity. Hence the choice is data: one compilation runs every sub-network, under every
policy, as the scales of masked weights are those of the small network.

Not here: making the small network (`extraction`), what it costs (`costs`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, Key, PyTree

from fliqs_jax.site_patterns import nearest
from fliqs_jax.sites import Site, find_sites
from fliqs_jax.training_mode import training_keywords

# A whole number: Python's, an array over candidates, or traced.
Number = Any
# Option of every decision by its name -> live size of every dimension by its name.
LiveSizes = Callable[[Mapping[str, Number]], Mapping[str, Number]]

# Their statistics run over channels: a part of them dead would count as zeros.
_OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """One choice of an architecture, made by an index into its options."""

    name: str  # "stage1/depth"
    options: tuple[int, ...]  # ascending; the last is that of the full network
    # A dimension that is 0 where the decision has no effect, as its layer is left out.
    within: str | None = None

    def __post_init__(self):
        if not self.options or list(self.options) != sorted(set(self.options)):
            raise ValueError(
                f"options of {self.name!r} must be different whole numbers in ascending"
                f" order, got {self.options}"
            )


class Leaf(NamedTuple):
    """A variable of the full network: its size, and what decides how much is live."""

    collection: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dims: tuple[str | None, ...]  # of each axis; None is always live as a whole

    @property
    def elastic(self) -> bool:
        """Whether any choice leaves less than all of it."""
        return any(dim is not None for dim in self.dims)

    def extents(self, sizes: Mapping[str, Number]) -> tuple[Number, ...]:
        """Returns how many entries of each axis are live."""
        pairs = zip(self.shape, self.dims, strict=True)
        return tuple(size if dim is None else sizes[dim] for size, dim in pairs)


class _Layout(NamedTuple):
    leaves: tuple[Leaf, ...]
    grouped: frozenset[tuple[str, ...]]  # scopes of convolutions with groups


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SuperNetwork:
    """A model, the decisions about it, and what each leaves of every parameter.

    Of an axis the first entries are live: W[:in, :out]. Of the dimensions named in
    `windows` it is those in the middle: the smaller kernel is the centre of the larger
    one, which padding "SAME" puts in the same place if no stride is larger than it.

    `sizes` uses arithmetic alone (`a * (b < c)`, no `if`), for it is called with whole
    numbers, with arrays of them, and while tracing. A layer left out has a dimension of
    size 0 in every one of its variables.

    Args:
      model: the full network, a linen module called with images.
      decisions: what may be chosen, in the order of a choice's entries.
      sizes: from options to live sizes, by name.
      axes: for variables by path ("Block_0/Conv_0/kernel"; a regular expression that
        must match all of it) the dimension of each axis. What no pattern matches is
        part of every sub-network.
      build: from live sizes, whole numbers, to the small network: a module whose
        variables have the paths that they have in the full one.
      image_shape: of one image, [H, W, C].
      windows: dimensions of which the middle is kept.

    Raises:
      ValueError: if two decisions have one name; when first used, if axes, sizes and
        model do not fit, naming what does not. Also if a normalisation over channels
        (LayerNorm and the like) would see part of them dead.

    Example:
      >>> net = SuperNetwork(
      ...     model=nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]),
      ...     decisions=(Decision(name="units", options=(1, 3, 4)),),
      ...     sizes=lambda options: {"hidden": options["units"]},
      ...     axes={"layers_0/kernel": (None, "hidden"), "layers_0/bias": ("hidden",),
      ...         "layers_2/kernel": ("hidden", None)},
      ...     build=lambda sizes: nn.Sequential(
      ...         [nn.Dense(sizes["hidden"]), nn.relu, nn.Dense(2)]),
      ...     image_shape=(3,))
      >>> params = net.model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
      >>> masked = net.mask(params, jnp.array([1]))  # three of four units
      >>> (masked["layers_2"]["kernel"] != 0).tolist()
      [[True, True], [True, True], [True, True], [False, False]]
    """

    model: nn.Module
    decisions: tuple[Decision, ...]
    sizes: LiveSizes
    axes: Mapping[str, tuple[str | None, ...]]
    build: Callable[[Mapping[str, int]], nn.Module]
    image_shape: tuple[int, ...]
    windows: frozenset[str] = frozenset()

    def __post_init__(self):
        names = [decision.name for decision in self.decisions]
        if len(set(names)) < len(names) or not names:
            raise ValueError(
                f"decisions must have different names, one or more, got {names}"
            )

    @property
    def counts(self) -> dict[str, int]:
        """Number of options of each decision by name: the space of a search."""
        return {decision.name: len(decision.options) for decision in self.decisions}

    @property
    def full(self) -> Int[np.ndarray, "A"]:
        """The choice that is the full network."""
        return np.asarray(list(self.counts.values()), np.int32) - 1

    @property
    def smallest(self) -> Int[np.ndarray, "A"]:
        """The choice with the first option of every decision."""
        return np.zeros(len(self.decisions), np.int32)

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the full network."""
        return find_sites(self.model, self._images(), **self._evaluation)

    @functools.cached_property
    def layout(self) -> _Layout:
        """All variables of the full network, checked against `axes` and `sizes`."""
        return _checked_layout(self)

    def sample(self, key: Key[Array, ""]) -> Int[Array, "A"]:
        """Draws every option of a choice uniformly."""
        counts = self.full + 1
        return jax.random.randint(key, counts.shape, 0, counts, jnp.int32)

    def check_choice(self, choice: ArrayLike | Sequence) -> Int[np.ndarray, "A"]:
        """Returns a concrete choice as an array if it is one of this network's.

        Raises:
          ValueError: if the shape is not [A], or an option is no integer in [0, K).
        """
        choice, counts = np.asarray(choice), self.full + 1
        right = choice.shape == counts.shape and np.issubdtype(choice.dtype, np.integer)
        if not right or ((choice < 0) | (choice >= counts)).any():
            raise ValueError(
                f"choice must be {len(counts)} integers, each below its entry of"
                f" {counts.tolist()}, got {choice.tolist()}"
            )
        return choice.astype(np.int32)

    def options(self, choice: Int[ArrayLike, "*N A"]) -> dict[str, Number]:
        """Returns the option taken of each decision, by name: values, not indices.

        NumPy for a NumPy choice: then all that follows from it is done on the host.
        """
        xp = np if isinstance(choice, np.ndarray) else jnp
        return {
            decision.name: xp.asarray(decision.options, np.int32)[choice[..., number]]
            for number, decision in enumerate(self.decisions)
        }

    def live_sizes(self, choice: Int[ArrayLike, "*N A"]) -> Mapping[str, Number]:
        """Returns the live size of every dimension; traced if the choice is."""
        return self.sizes(self.options(choice))

    def subnetwork(self, choice: Int[ArrayLike, "A"] | Sequence) -> nn.Module:
        """Returns the small model of a choice; `extraction` also gives its variables.

        Raises:
          ValueError: if the choice is none of this network's.
        """
        sizes = self.live_sizes(self.check_choice(choice))
        return self.build({name: int(size) for name, size in sizes.items()})

    def active(self, choices: Int[np.ndarray, "N A"]) -> Bool[np.ndarray, "N A"]:
        """Returns which decisions matter, given the others: for `linas.search`."""
        sizes = self.live_sizes(np.asarray(choices))
        columns = [
            np.broadcast_to(
                True if decision.within is None else sizes[decision.within] > 0,
                len(choices),
            )
            for decision in self.decisions
        ]
        return np.stack(columns, axis=1)

    def mask(self, params: PyTree, choice: Int[ArrayLike, "A"]) -> PyTree:
        """Returns the full network's parameters with all that is dead set to zero.

        Their gradient is that of the sub-network, zero where dead.

        Args:
          params: of `model`.
          choice: option indices, may be traced; `jax.vmap` for a population.
        """
        sizes = self.live_sizes(choice)
        flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(params))
        for leaf in self.layout.leaves:
            if leaf.collection == "params" and leaf.elastic:
                kept = self._kept(leaf, sizes)
                flat[leaf.path] = jax.tree.map(  # through a box
                    lambda array, kept=kept: jnp.where(kept, array, 0), flat[leaf.path]
                )
        return flax.traverse_util.unflatten_dict(flat)

    def slices(self, leaf: Leaf, sizes: Mapping[str, int]) -> tuple[slice, ...]:
        """Returns the live part of a variable, for whole numbers."""
        parts = []
        for size, extent, dim in zip(
            leaf.shape, leaf.extents(sizes), leaf.dims, strict=True
        ):
            start = (size - extent) // 2 if dim in self.windows else 0
            parts.append(slice(start, start + extent))
        return tuple(parts)

    def abstract_variables(self, model: nn.Module) -> PyTree:
        """Returns the shapes of a network's variables, boxes opened."""
        init = functools.partial(model.init, **self._evaluation)
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        return nn.meta.unbox(jax.eval_shape(init, keys, self._images()))

    def _kept(
        self, leaf: Leaf, sizes: Mapping[str, Number]
    ) -> Bool[Array | np.ndarray, "..."]:
        kept = np.ones((1,) * len(leaf.shape), bool)
        for axis, (size, extent, dim) in enumerate(
            zip(leaf.shape, leaf.extents(sizes), leaf.dims, strict=True)
        ):
            if dim is not None:
                start = (size - extent) // 2 if dim in self.windows else 0
                index = np.arange(size)
                live = (index >= start) & (index < start + extent)
                kept = kept & live.reshape(
                    [-1 if a == axis else 1 for a in range(kept.ndim)]
                )
        return kept

    @property
    def _evaluation(self) -> dict[str, bool]:
        return training_keywords(type(self.model).__call__, train=False)

    def _images(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)


def _checked_layout(net: SuperNetwork) -> _Layout:
    classes: dict[tuple[str, ...], type] = {}
    grouped: set[tuple[str, ...]] = set()

    def record(next_fun, args, kwargs, context):
        module = context.module
        classes[module.path] = type(module)
        if isinstance(module, nn.Conv) and module.feature_group_count > 1:
            grouped.add(module.path)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = net.abstract_variables(net.model)
    full = net.live_sizes(net.full)
    for decision in net.decisions:
        if decision.within is not None and decision.within not in full:
            raise ValueError(
                f"decision {decision.name!r} is within {decision.within!r}, which is"
                f" none of the sizes; nearest: {nearest(decision.within, full)}"
            )
    leaves = []
    for path, abstract in flax.traverse_util.flatten_dict(variables).items():
        collection, *own = path
        dims = _dims(net, "/".join(own)) or (None,) * len(abstract.shape)
        leaf = Leaf(collection, tuple(own), abstract.shape, dims)
        _check_leaf(leaf, full)
        if issubclass(classes.get(leaf.path[:-1], object), _OVER_CHANNELS):
            _check_whole(net, leaf)
        leaves.append(leaf)
    found = ["/".join(leaf.path) for leaf in leaves]
    for pattern in net.axes:
        if not any(re.fullmatch(pattern, path) for path in found):
            raise ValueError(
                f"axes: pattern {pattern!r} matches no variable of the model (it must"
                f" match the whole path); nearest: {nearest(pattern, found)}"
            )
    return _Layout(tuple(leaves), frozenset(grouped))


def _dims(net: SuperNetwork, path: str) -> tuple[str | None, ...] | None:
    matching = [pattern for pattern in net.axes if re.fullmatch(pattern, path)]
    if len(matching) > 1:
        raise ValueError(
            f"axes: patterns {matching[0]!r} and {matching[1]!r} both match {path!r}:"
            " make one of them narrower"
        )
    return net.axes[matching[0]] if matching else None


def _check_leaf(leaf: Leaf, full: Mapping[str, Number]) -> None:
    name = "/".join(leaf.path)
    if len(leaf.dims) != len(leaf.shape):
        raise ValueError(
            f"axes: {name!r} has shape {leaf.shape}, but dimensions {leaf.dims}"
        )
    for dim in leaf.dims:
        if dim is not None and dim not in full:
            raise ValueError(
                f"axes: {name!r} has a dimension {dim!r} that is none of the sizes;"
                f" nearest: {nearest(dim, full)}"
            )
    extents = tuple(int(extent) for extent in leaf.extents(full))
    if extents != leaf.shape:
        raise ValueError(
            f"the full network's {name!r} has shape {leaf.shape}, but by `sizes` it"
            f" should be {extents} ({leaf.dims}) at the last option of every decision"
        )


def _check_whole(net: SuperNetwork, leaf: Leaf) -> None:
    """Refuses a layer norm of which a part may be dead."""
    rows = [net.smallest, net.full]
    for number, count in enumerate(net.counts.values()):
        for base in (net.smallest, net.full):
            rows += [np.r_[base[:number], k, base[number + 1 :]] for k in range(count)]
    sizes = net.live_sizes(np.stack(rows))
    size, dim = leaf.shape[-1], leaf.dims[-1]
    if dim is not None and not np.isin(sizes[dim], (0, size)).all():
        raise ValueError(
            f"axes: {'/'.join(leaf.path)!r} belongs to a normalisation over channels,"
            f" of which {dim!r} leaves a part dead; they would count as zeros in its"
            " statistics: keep that dimension whole"
        )
