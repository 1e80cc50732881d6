"""Sites' layers of an NNX model under a hook, on a copy that may be changed.

NNX has no hook around calls, and patching its classes would change every model. Here a
site's layer of the copy becomes an instance of a subclass whose call is the hook's. It
carries what the hook needs as attributes: numbers that ride in are `nnx.Param`s, so
`nnx.scan` and `nnx.vmap` slice them with the weights; path and hook are static, so the
caches of `nnx.jit` tell one hook from another.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array

from fliqs_jax.site_types import LayerHook, SiteLayer, SiteType, nearest_site_type

Path = tuple[str, ...]  # attributes and indices from the root of a model

# (layer, its path, its type, name, value): what a hook adds to a layer's params.
Put = Callable[[nnx.Module, Path, SiteType, str, Array], None]


@dataclasses.dataclass(frozen=True)
class _HookedSite:
    """What a hooked layer knows of itself, one static attribute of it."""

    site_type: SiteType
    path: Path
    hook: LayerHook
    put: Put


def hook_sites(
    model: nnx.Module,
    hook: LayerHook,
    put: Put,
    *,
    own: Collection[Path],
    riding: Mapping[Path, Any],
) -> None:
    """Hooks the sites of a model, in place.

    Args:
      model: a copy that nobody else uses.
      hook: takes the place of every call of a site's layer.
      put: receives what the hook adds.
      own: paths of the model's own parameters.
      riding: further leaves by path, to be parameters of the sites' layers.

    Raises:
      ValueError: if a site's weight is not a parameter of its own.
    """
    by_layer: dict[Path, dict[str, Any]] = {}
    for path, leaf in riding.items():
        by_layer.setdefault(path[:-1], {})[path[-1]] = leaf
    for parts, layer in list(nnx.iter_modules(model)):
        if not (nearest := nearest_site_type(type(layer))):
            continue
        registered, site_type = nearest
        path = tuple(map(str, parts))
        for name in site_type.weights:
            held = parameter(layer, name) is not None
            if held and (*path, *name.split("/")) not in own:
                raise ValueError(
                    f"site {site_name(path)!r}: its {name!r} is another layer's too, or"
                    " no nnx.Param; call one layer twice instead of tying the weights"
                    " of two, and make weights nnx.Param"
                )
        for name, leaf in by_layer.get(path, {}).items():
            setattr(layer, name, nnx.Param(leaf))
        layer.fliqs_jax_site = _HookedSite(site_type, path, hook, put)
        object.__setattr__(layer, "__class__", _hooked_class(registered, type(layer)))


def site_name(path: Path) -> str:
    """Returns a layer's path as sites have it."""
    return "/".join(path) or "."


def parameter(layer: nnx.Module, name: str) -> nnx.Variable | None:
    """Returns a layer's variable of that name; "hi/kernel" is an attribute's own."""
    found = layer
    for part in name.split("/"):
        found = getattr(found, part, None)
    return found


@functools.cache  # a new class each time would be another model to nnx.jit
def _hooked_class(registered: type, layer_class: type) -> type:
    """Returns a subclass in which the registered class's own call is the hook's."""

    class Hooked(registered):
        def __call__(self, *args, **kwargs):
            site = self.fliqs_jax_site
            return site.hook(super().__call__, args, kwargs, _site_layer(self, site))

    if layer_class is registered:
        return Hooked
    # Between the two, so that super().__call__() of the layer's class meets it.
    return type(layer_class.__name__, (layer_class, Hooked), {})


def _site_layer(layer: nnx.Module, site: _HookedSite) -> SiteLayer:
    def get(name):
        variable = parameter(layer, name)
        return None if variable is None else variable.get_value()

    return SiteLayer(
        module=layer,
        site_type=site.site_type,
        scope=site.path,
        get=get,
        put=functools.partial(site.put, layer, site.path, site.site_type),
    )
