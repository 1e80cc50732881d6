"""The networks by name: the one place where text becomes a model.

Not a plugin system: a network of your own is any linen module, passed as it is.
"""

import dataclasses
import difflib
from collections.abc import Iterable

import flax.linen as nn

from fliqs_jax.models.cells import DartsNetwork, NasBench201Network
from fliqs_jax.models.cifar_resnet import CifarResNet
from fliqs_jax.models.efficientnet import EfficientNet
from fliqs_jax.models.imagenet_resnet import ImageNetResNet
from fliqs_jax.models.inception_v3 import InceptionV3
from fliqs_jax.models.lenet import LeNet5, LeNet300
from fliqs_jax.models.mobilenet_v2 import MobileNetV2
from fliqs_jax.models.vit import ViT

_MNIST, _CIFAR, _IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
_VIT = {"patch_size": 16, "num_layers": 12, "num_heads": None, "class_token": True}
_VIT |= {"num_classes": 1000}
_DARTS_IMAGENET = {"channels": 48, "layers": 14, "imagenet_stem": True}
_DARTS_IMAGENET |= {"num_classes": 1000}

# Class, native input shape, fields.
_MODELS: dict[str, tuple[type[nn.Module], tuple[int, int, int], dict]] = {
    "lenet300": (LeNet300, _MNIST, {}),
    "lenet5": (LeNet5, _MNIST, {}),
    "resnet8": (CifarResNet, _CIFAR, {"num_blocks": 1}),
    "resnet20": (CifarResNet, _CIFAR, {"num_blocks": 3}),
    "resnet32": (CifarResNet, _CIFAR, {"num_blocks": 5}),
    "resnet56": (CifarResNet, _CIFAR, {"num_blocks": 9}),
    "nasbench201": (NasBench201Network, _CIFAR, {}),
    "darts": (DartsNetwork, _CIFAR, {}),
    "vit_mini": (ViT, _CIFAR, {}),
    "resnet18": (ImageNetResNet, _IMAGENET, {}),
    "resnet50": (
        ImageNetResNet,
        _IMAGENET,
        {"num_blocks": (3, 4, 6, 3), "bottleneck": True},
    ),
    "mobilenet_v2": (MobileNetV2, _IMAGENET, {}),
    "efficientnet_b0": (EfficientNet, _IMAGENET, {}),
    "efficientnet_b1": (EfficientNet, (240, 240, 3), {"depth": 1.1}),
    "efficientnet_b2": (EfficientNet, (260, 260, 3), {"width": 1.1, "depth": 1.2}),
    "efficientnet_b3": (EfficientNet, (300, 300, 3), {"width": 1.2, "depth": 1.4}),
    "efficientnet_b4": (EfficientNet, (380, 380, 3), {"width": 1.4, "depth": 1.8}),
    "inception_v3": (InceptionV3, (299, 299, 3), {}),
    "darts_imagenet": (DartsNetwork, _IMAGENET, _DARTS_IMAGENET),
    "vit_tiny": (ViT, _IMAGENET, {**_VIT, "dim": 192}),
    "vit_small": (ViT, _IMAGENET, {**_VIT, "dim": 384}),
    "vit_base": (ViT, _IMAGENET, {**_VIT, "dim": 768}),
    "deit_tiny": (ViT, _IMAGENET, {**_VIT, "dim": 192}),
    "deit_small": (ViT, _IMAGENET, {**_VIT, "dim": 384}),
    "deit_base": (ViT, _IMAGENET, {**_VIT, "dim": 768}),
}


def model_names() -> tuple[str, ...]:
    """Returns the names that `create_model` knows, in alphabetical order.

    Example:
      >>> "resnet20" in model_names()
      True
    """
    return tuple(sorted(_MODELS))


def input_shape(name: str) -> tuple[int, int, int]:
    """Returns the (height, width, channels) that a network is made for.

    Networks accept others too, unless their class says so; published costs and, of the
    vision transformers, parameter counts are of this shape.

    Args:
      name: one of `model_names()`.

    Raises:
      ValueError: if the name is unknown.

    Example:
      >>> input_shape("efficientnet_b2")
      (260, 260, 3)
    """
    return _entry(name)[1]


def create_model(
    name: str, *, num_classes: int | None = None, **overrides
) -> nn.Module:
    """Returns the network of that name, with some of its fields replaced.

    Every network is called as `model.apply(variables, images, train=False)` on floats
    [B, H, W, C] and returns float32 logits [B, num_classes].

    Args:
      name: one of `model_names()`.
      num_classes: length of the logits; None is 1000 for networks made for ImageNet and
        10 for the others.
      **overrides: fields of the network's class, such as `width` or `dtype`.

    Returns:
      A linen module.

    Raises:
      ValueError: if the name or an override is unknown, or a field's value unusable.

    Example:
      >>> create_model("resnet20", num_classes=100, width=8).num_blocks
      3
      >>> create_model("mobilenet_v2", width=1.4).num_classes
      1000
    """
    family, _, defaults = _entry(name)
    # linen adds `parent` and `name` to every module's fields; they are not settings.
    fields = {field.name for field in dataclasses.fields(family)} - {"parent", "name"}
    for key, value in overrides.items():
        if key not in fields:
            choices = ", ".join(_nearest_first(key, fields))
            raise ValueError(
                f"model {name!r} has no field {key!r} (got {key}={value!r}): "
                f"its fields are {choices}"
            )
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return family(**{**defaults, **overrides})


def _entry(name: str) -> tuple[type[nn.Module], tuple[int, int, int], dict]:
    if name not in _MODELS:
        names = ", ".join(_nearest_first(name, model_names()))
        raise ValueError(f"model {name!r} is unknown: use one of {names}")
    return _MODELS[name]


def _nearest_first(word: str, choices: Iterable[str]) -> list[str]:
    def distance(choice: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, word, choice).ratio(), choice

    return sorted(choices, key=distance)
