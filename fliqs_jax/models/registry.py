"""The networks by name: the one place where text becomes a model.

Not a plugin system: a network of your own is any linen module, passed as it is.
"""

import dataclasses
import difflib
from collections.abc import Iterable

import flax.linen as nn

from fliqs_jax.models.lenet import LeNet5, LeNet300
from fliqs_jax.models.resnet import ResNet
from fliqs_jax.models.vit import ViT

_MODELS: dict[str, tuple[type[nn.Module], dict]] = {
    "lenet300": (LeNet300, {}),
    "lenet5": (LeNet5, {}),
    "resnet8": (ResNet, {"num_blocks": 1}),
    "resnet20": (ResNet, {"num_blocks": 3}),
    "resnet32": (ResNet, {"num_blocks": 5}),
    "resnet56": (ResNet, {"num_blocks": 9}),
    "vit_mini": (ViT, {}),
}


def model_names() -> tuple[str, ...]:
    """Returns the names that `create_model` knows, in alphabetical order.

    Example:
      >>> "resnet20" in model_names()
      True
    """
    return tuple(sorted(_MODELS))


def create_model(name: str, *, num_classes: int = 10, **overrides) -> nn.Module:
    """Returns the network of that name, with some of its fields replaced.

    Every network is called as `model.apply(variables, images, train=False)` on floats
    [B, H, W, C] and returns float32 logits [B, num_classes].

    Args:
      name: one of `model_names()`.
      num_classes: length of the logits.
      **overrides: fields of the network's class, such as `width` or `dtype`.

    Returns:
      A linen module.

    Raises:
      ValueError: if the name or an override is unknown, or a field's value unusable.

    Example:
      >>> create_model("resnet20", num_classes=100, width=8).num_blocks
      3
    """
    if name not in _MODELS:
        names = ", ".join(_nearest_first(name, model_names()))
        raise ValueError(f"model {name!r} is unknown: use one of {names}")
    family, defaults = _MODELS[name]
    # linen adds `parent` and `name` to every module's fields; they are not settings.
    fields = {field.name for field in dataclasses.fields(family)} - {"parent", "name"}
    for key, value in overrides.items():
        if key not in fields:
            choices = ", ".join(_nearest_first(key, fields))
            raise ValueError(
                f"model {name!r} has no field {key!r} (got {key}={value!r}): "
                f"its fields are {choices}"
            )
    return family(num_classes=num_classes, **{**defaults, **overrides})


def _nearest_first(word: str, choices: Iterable[str]) -> list[str]:
    def distance(choice: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, word, choice).ratio(), choice

    return sorted(choices, key=distance)
