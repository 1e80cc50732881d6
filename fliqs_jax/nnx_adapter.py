"""An NNX model used as linen models are: variables beside it, `init` and `apply` pure.

Every run is on a copy of the model made inside the run; the user's object is only read.

The variables are dicts by collection (`params` for `nnx.Param`, `batch_stats` for
`nnx.BatchStat`, and so on) and by the attributes that lead to each variable, a shared
one under the first path in alphabetical order. State of random number generators stays
with the model. To put trained values back into a model::

    network = fq.load_network("runs/mine", model)
    nnx_adapter.update_model(model, network.variables)
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.scope import in_filter
from jaxtyping import PyTree

from fliqs_jax.nnx_layers import Path, hook_sites, parameter, site_name
from fliqs_jax.site_types import LayerHook
from fliqs_jax.training_mode import training_keywords


@typing.no_type_check  # beartype warns of flax's own annotations
@dataclasses.dataclass(frozen=True, eq=False)
class NnxModel:
    """The pure side of an NNX model: its structure, and values from when it was read.

    Example:
      >>> layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> model = NnxModel.of(layer)
      >>> x = jnp.ones((1, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> bool((model.apply(variables, x) == layer(x)).all())
      True
    """

    name: str  # of the user's class
    graphdef: nnx.GraphDef
    state: nnx.State
    hook: LayerHook | None = None  # takes the place of every call of a site's layer

    @classmethod
    def of(cls, model: nnx.Module) -> "NnxModel":
        """Returns the adapter of a model as it is now; later changes don't reach it."""
        graphdef, state = nnx.split(model)
        return cls(type(model).__name__, graphdef, jax.tree.map(lambda x: x, state))

    def hooked(self, hook: LayerHook) -> "NnxModel":
        """Returns the same model with a hook."""
        return dataclasses.replace(self, hook=hook)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Mapped axes over which layers average, as BatchNorm(axis_name="data")."""
        layers = [layer for _, layer in nnx.iter_modules(self._copy())]
        names = [getattr(layer, "axis_name", None) for layer in layers]
        return tuple(name for name in names if isinstance(name, str))

    def init(
        self, rngs: Any, *args: Any, mutable: Any = None, **kwargs: Any
    ) -> dict[str, PyTree]:
        """Returns the model's own values: a pretrained model is the start.

        With a hook, also runs the model; what the hook puts is returned as leaves of
        the layers' params, stacked where the layers are.

        Args:
          rngs: random keys of the run; the values do not depend on them.
          *args: arguments of the run.
          mutable: for linen's sake; all collections are returned.
          **kwargs: as for `apply`.

        Raises:
          ValueError: if layers are stacked along other than the leading axes of their
            parameters, or share a weight without being one layer.
        """
        del mutable
        # Copies: a training step may donate what it is given, and so delete it.
        own = _variables(self.state)
        values = {path: jnp.copy(own[path].get_value()) for path in own}
        if self.hook is None:
            return {"params": {}, **_nest(values)}
        leaves = {}

        def put(layer, path, site_type, name, value):
            weight = site_type.weights[0]
            stored = own["params", *path, *weight.split("/")].shape
            shape = parameter(layer, weight).shape
            stack = stored[: len(stored) - len(shape)]
            if stored != stack + shape:
                raise ValueError(_STACKED.format(site_name(path)))
            leaves["params", *path, name] = jnp.zeros(stack + value.shape)

        self._run(values, rngs, args, kwargs, put)
        found = {**values, **leaves}
        if stacked := [path for path, leaf in leaves.items() if any(leaf.shape)]:
            # The leading axes may have the right sizes and not be the stacking ones.
            # Then the empty axes of what was put would stand where layers are sliced.
            try:
                self._run(found, rngs, args, kwargs, put)
            except ValueError as error:
                raise ValueError(
                    _STACKED.format(site_name(stacked[0][1:-1]))
                ) from error
        return {"params": {}, **_nest(found)}

    def apply(
        self,
        variables: Mapping[str, PyTree],
        *args: Any,
        rngs: Any = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """Runs a copy of the model with the given values.

        Args:
          variables: all that `init` returns, with other values.
          *args: arguments of the model.
          rngs: a key, or keys by stream; a stream not named takes the key of "dropout".
            Without a key, streams start from the model's own state each time.
          mutable: as of linen: False, or which collections to return as they are after.
          **kwargs: further arguments. `train` switches the copy by `train()` or
            `eval()`, and its call too if that takes such an argument; `method` names
            another method to run.

        Raises:
          ValueError: if a value is missing or has another shape.
        """
        output, copy = self._run(_flatten(variables), rngs, args, kwargs, _forget)
        if mutable is False:
            return output
        after = _variables(nnx.state(copy))
        kept = [path for path in after if in_filter(mutable, path[0])]
        return output, _nest({path: after[path].get_value() for path in kept})

    def _copy(self) -> nnx.Module:
        return nnx.merge(self.graphdef, self.state, copy=True)

    def _run(self, flat, rngs, args, kwargs, put):
        """Returns output and the copy that made it."""
        copy, kwargs = self._copy(), dict(kwargs)
        _set_values(copy, flat)
        _start_streams(copy, rngs)
        if self.hook is not None:
            params = {path[1:]: x for path, x in flat.items() if path[0] == "params"}
            own = {path[1:] for path in _variables(self.state) if path[0] == "params"}
            riding = {path: params[path] for path in params.keys() - own}
            hook_sites(copy, self.hook, put, own=own, riding=riding)
        train, method = kwargs.pop("train", None), kwargs.pop("method", "__call__")
        if isinstance(method, str):
            call = getattr(copy, method)
        else:
            call = functools.partial(method, copy)
        if train is not None:
            switch = copy.train if train else copy.eval
            switch()
            kwargs = {**training_keywords(call, train), **kwargs}
        return call(*args, **kwargs), copy


_STACKED = (
    "site {!r}: its layers are stacked along an axis of their parameters that is not"
    " the first; stack them with out_axes=0 in nnx.vmap and run them with in_axes=0 in"
    " nnx.scan or nnx.vmap (in nnx.StateAxes, 0 for nnx.Param)"
)


def update_model(model: nnx.Module, variables: Mapping[str, PyTree]) -> None:
    """Puts values into an NNX model in place, as those of a trained network.

    Args:
      model: of the structure that the variables are of.
      variables: all that `NnxModel.init` returns, with other values.

    Raises:
      ValueError: if a value is missing or has another shape.

    Example:
      >>> layer = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
      >>> params = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
      >>> update_model(layer, {"params": params})
      >>> float(layer.kernel[0, 0])
      1.0
    """
    _set_values(model, _flatten(variables))


def _variables(state: Mapping) -> dict[Path, nnx.Variable]:
    """Returns the variables by collection and path, without those of random streams."""
    found = {}
    for path, leaf in nnx.to_flat_state(state):
        if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.RngState):
            found[_collection(leaf), *map(str, path)] = leaf
    return found


def _collection(variable: nnx.Variable) -> str:
    if isinstance(variable, nnx.Param):
        return "params"
    kind = type(variable)
    return nnx.variablelib.variable_name_from_type(kind, allow_register=True)


def _flatten(variables: Mapping[str, PyTree]) -> dict[Path, Any]:
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(variables))


def _nest(flat: Mapping[Path, Any]) -> dict[str, PyTree]:
    return flax.traverse_util.unflatten_dict(flat)


def _set_values(model: nnx.Module, flat: Mapping[Path, Any]) -> None:
    for path, variable in _variables(nnx.state(model)).items():
        shape = jnp.shape(flat[path]) if path in flat else None
        own = jnp.shape(variable.get_value())
        if shape != own:
            collection, *rest = path
            got = "nothing" if shape is None else f"an array of shape {shape}"
            raise ValueError(
                f"variables[{collection!r}] has {got} at {'/'.join(rest)!r}, where the"
                f" model has one of shape {own}: give all variables of this"
                " model, as `init` returns them"
            )
        variable.set_raw_value(flat[path])


def _start_streams(model: nnx.Module, rngs: Any) -> None:
    """Starts the random streams of a copy anew where there is a key for them."""
    keys = rngs if rngs is None or isinstance(rngs, Mapping) else {"dropout": rngs}
    for index, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(model))):
        if keys and isinstance(variable, nnx.RngKey):
            key, shape = keys.get(variable.tag, keys.get("dropout")), variable.shape
            if key is not None:
                # Forks of a stream keep its name; their masks must not be the same.
                key = jax.random.fold_in(key, index)
                variable.set_raw_value(jax.random.split(key, shape) if shape else key)


def _forget(layer, path, site_type, name, value) -> None:
    """What a hook puts outside `init` goes nowhere."""
