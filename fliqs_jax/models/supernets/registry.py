"""The super-networks by name, and the one place where yours joins them."""

from collections.abc import Callable, Mapping
from typing import Any

from fliqs_jax.models.supernets.mobilenet_v2 import CIFAR_STAGES, mobilenet_v2_supernet
from fliqs_jax.models.supernets.network import SuperNetwork
from fliqs_jax.models.supernets.resnet import (
    cifar_resnet_supernet,
    imagenet_resnet_supernet,
)
from fliqs_jax.models.supernets.vit import vit_supernet
from fliqs_jax.site_patterns import nearest

# Makes a super-network from keyword arguments, `num_classes` and `image_shape` among
# them.
Factory = Callable[..., SuperNetwork]

_SMALL = {"num_classes": 10, "image_shape": (32, 32, 3)}
_MOBILENET_CIFAR = {"stages": CIFAR_STAGES, "stem": 16, "stem_stride": 1, "head": 256}
_VIT_CIFAR = {
    "patch_size": 4,
    "dim": 96,
    "head_dim": 32,
    "num_layers": 6,
    "layers": None,
    "heads": (1, 2, 3),
    "mlp_dims": (192, 288, 384),
    "class_token": False,
}
_SUPERNETS: dict[str, tuple[Factory, dict[str, Any]]] = {
    "resnet_cifar": (cifar_resnet_supernet, {}),
    "resnet_imagenet": (imagenet_resnet_supernet, {}),
    "mobilenet_v2_cifar": (mobilenet_v2_supernet, {**_SMALL, **_MOBILENET_CIFAR}),
    "mobilenet_v2_imagenet": (mobilenet_v2_supernet, {}),
    "vit_cifar": (vit_supernet, {**_SMALL, **_VIT_CIFAR}),
    "vit_imagenet": (vit_supernet, {}),
}


def supernet_names() -> tuple[str, ...]:
    """Returns the names that `create_supernet` knows, in alphabetical order.

    Example:
      >>> "vit_cifar" in supernet_names()
      True
    """
    return tuple(sorted(_SUPERNETS))


def register_supernet(
    name: str, factory: Factory, *, defaults: Mapping[str, Any] | None = None
) -> None:
    """Makes a super-network known by name, to searches and launchers alike.

    Args:
      name: a new one, or one registered before, which is replaced.
      factory: returns the `SuperNetwork`; takes `num_classes` and `image_shape` (which
        are handed over where the caller gives them), and settings of its own.
      defaults: settings that it is called with unless the caller overrides them.

    Raises:
      TypeError: if the factory cannot be called.

    Example:
      >>> register_supernet("resnet_two_stages", cifar_resnet_supernet, defaults={
      ...     "depths": ((1,), (1, 2), (1, 2))})
      >>> create_supernet("resnet_two_stages").model.num_classes
      10
    """
    if not callable(factory):
        raise TypeError(f"factory must be callable, got {factory!r}")
    _SUPERNETS[name] = (factory, dict(defaults or {}))


def create_supernet(
    name: str,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    **overrides: Any,
) -> SuperNetwork:
    """Returns the super-network of that name, with some of its settings replaced.

    Args:
      name: one of `supernet_names()`.
      num_classes: length of the logits; None is what the network is made for.
      image_shape: of one image, [H, W, C]; None is what the network is made for.
      **overrides: arguments of its factory, such as `depths` or `dtype`.

    Raises:
      ValueError: if the name is unknown, or a setting's value unusable.
      TypeError: if the factory has no such argument.

    Example:
      >>> net = create_supernet("mobilenet_v2_cifar", multipliers=(0.5, 1))
      >>> net.counts["head/channels"]
      2
    """
    if name not in _SUPERNETS:
        raise ValueError(
            f"super-network {name!r} is unknown; nearest: {nearest(name, _SUPERNETS)}"
        )
    factory, defaults = _SUPERNETS[name]
    given = {"num_classes": num_classes, "image_shape": image_shape}
    given = {key: value for key, value in given.items() if value is not None}
    return factory(**{**defaults, **given, **overrides})
