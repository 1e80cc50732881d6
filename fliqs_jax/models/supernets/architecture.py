"""A choice of a super-network in words: as a mapping, and as a file beside a result."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import ArrayLike, Int

from fliqs_jax.models.supernets.network import SuperNetwork
from fliqs_jax.models.supernets.registry import create_supernet
from fliqs_jax.site_patterns import nearest

ARCHITECTURE_FILE = "architecture.json"


class SupernetRecord(NamedTuple):
    """What makes a super-network anew: the arguments of `create_supernet`."""

    name: str | None  # None: not one that is registered
    options: Mapping[str, Any]
    num_classes: int
    image_shape: tuple[int, ...]

    def create(self) -> SuperNetwork:
        """Returns the super-network.

        Raises:
          ValueError: if it has no name, or none that is registered.
        """
        if self.name is None:
            raise ValueError("the super-network was not created by name: pass model=")
        return create_supernet(
            self.name,
            num_classes=self.num_classes,
            image_shape=tuple(self.image_shape),
            **self.options,
        )


def describe_choice(net: SuperNetwork, choice: Int[ArrayLike, "A"]) -> dict[str, int]:
    """Returns the option taken of each decision by name, without those of no effect.

    Example:
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> describe_choice(net, net.smallest)
      {'layers': 1, 'layer0/heads': 1, 'layer0/mlp': 192}
    """
    choice = net.check_choice(choice)
    (active,) = net.active(choice[None])
    return {
        decision.name: decision.options[option]
        for decision, option, on in zip(net.decisions, choice, active, strict=True)
        if on
    }


def choice_of(net: SuperNetwork, taken: Mapping[str, int]) -> Int[np.ndarray, "A"]:
    """Returns the choice that takes these options, the inverse of `describe_choice`.

    Decisions without effect may be missing; they get their first option.

    Raises:
      ValueError: naming a decision that is unknown or missing, or an option that a
        decision does not have.
    """
    names = [decision.name for decision in net.decisions]
    for name in taken:
        if name not in names:
            raise ValueError(
                f"architecture: {name!r} is no decision of this super-network; nearest:"
                f" {nearest(name, names)}"
            )
    choice = net.smallest
    for number, decision in enumerate(net.decisions):
        if decision.name not in taken:
            continue
        if taken[decision.name] not in decision.options:
            raise ValueError(
                f"architecture: {decision.name!r} is {taken[decision.name]!r}, but its"
                f" options are {', '.join(map(str, decision.options))}"
            )
        choice[number] = decision.options.index(taken[decision.name])
    (active,) = net.active(choice[None])
    for name, on in zip(names, active, strict=True):
        if on and name not in taken:
            raise ValueError(f"architecture: no option is given for {name!r}")
    return choice


def architecture_record(
    net: SuperNetwork, made_by: SupernetRecord, choice: Int[ArrayLike, "A"]
) -> dict[str, Any]:
    """Returns what the file of an architecture holds, for `json`."""
    return {
        "supernet": made_by.name,
        "supernet_options": dict(made_by.options),
        "num_classes": made_by.num_classes,
        "image_shape": list(made_by.image_shape),
        "architecture": describe_choice(net, choice),
    }


def model_of_record(record: Mapping[str, Any], source: str | os.PathLike) -> nn.Module:
    """Returns the small network that such a record tells of.

    Args:
      record: as `architecture_record` makes it.
      source: where it was found, for messages.

    Raises:
      ValueError: if the record is another thing, or its super-network is unknown.
    """
    keys = ("supernet", "supernet_options", "num_classes", "image_shape")
    absent = [key for key in (*keys, "architecture") if key not in record]
    if absent:
        raise ValueError(f"{source} holds no architecture: {absent[0]!r} is missing")
    net = SupernetRecord(*(record[key] for key in keys)).create()
    return net.subnetwork(choice_of(net, record["architecture"]))
