"""Flags that name a super-network, and one of its sub-networks.

Beside `common`, whose flags every launcher has.
"""

import ast
import pathlib
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int

from experiments import common, parsing
from fliqs_jax.data import Dataset
from fliqs_jax.models import supernets
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS


def define_supernet_flags() -> None:
    """Defines which super-network there is."""
    names = ", ".join(supernets.supernet_names())
    common.define(
        "string",
        "supernet",
        "resnet_cifar",
        f"Name of a super-network ({names}), or package.module:factory.",
    )
    common.define(
        "string",
        "supernet_options",
        "",
        "Settings of it, as Python values: 'depths=((1,),(1,2),(1,2)); divisor=2'.",
    )


def parse_settings(text: str) -> dict[str, Any]:
    """Returns settings that are written as name=value with Python values.

    Raises:
      ValueError: if the text is anything else.

    Example:
      >>> parse_settings("stem=8; kernels=(3, 5)")
      {'stem': 8, 'kernels': (3, 5)}
    """
    settings = {}
    for pair in filter(str.strip, text.split(";")):
        name, equals, value = pair.partition("=")
        try:
            if not equals:
                raise ValueError("there is no =")
            settings[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"--supernet_options: {pair.strip()!r} is no name=value with a Python"
                f" value ({error}): write 'divisor=2; depths=((1,), (1, 2), (1, 2))'"
            ) from None
    return settings


def supernet_options() -> dict[str, Any]:
    """Returns the settings of the super-network that the flags change."""
    options = parse_settings(FLAGS.supernet_options)
    if FLAGS.dtype != "float32":
        options["dtype"] = FLAGS.dtype
    return options


def supernet(
    dataset: Dataset,
) -> tuple[supernets.SuperNetwork, supernets.SupernetRecord]:
    """Returns the super-network of the flags for a data set, and how it was made."""
    know_supernet(FLAGS.supernet)
    record = supernets.SupernetRecord(
        name=FLAGS.supernet,
        options=supernet_options(),
        num_classes=dataset.num_classes,
        image_shape=tuple(dataset.train.image_shape),
    )
    try:
        return record.create(), record
    except TypeError as error:  # of the factory's arguments
        raise ValueError(
            f"--supernet={FLAGS.supernet} with --supernet_options="
            f"{FLAGS.supernet_options!r}: {error}"
        ) from error


def know_supernet(name: str) -> None:
    """Registers a user's own super-network under package.module:factory."""

    def make(**arguments: Any) -> supernets.SuperNetwork:
        net = parsing.user_model(name, **arguments)
        if not isinstance(net, supernets.SuperNetwork):
            raise ValueError(
                f"--supernet={name} made a {type(net).__name__}, not a SuperNetwork"
                " (fliqs_jax.models.supernets)"
            )
        return net

    if ":" in name:
        supernets.register_supernet(name, make)


def architecture(
    net: supernets.SuperNetwork, text: str | None
) -> Int[np.ndarray, "A"] | None:
    """Returns the choice that a flag names.

    Args:
      net: the super-network.
      text: "full", "smallest", "random:SEED", an architecture.json (or the workdir that
        holds it), or None for no choice.

    Raises:
      ValueError: if it is none of these, or the file is about another super-network.
    """
    if text is None:
        return None
    if text in ("full", "smallest"):
        return getattr(net, text)
    if text.startswith("random:"):
        random = np.random.default_rng(parsing.seed_of("architecture", text))
        return random.integers(0, net.full + 1).astype(np.int32)
    path = pathlib.Path(text)
    file = path / supernets.ARCHITECTURE_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"--architecture={text}: use full, smallest, random:SEED, an"
            f" {supernets.ARCHITECTURE_FILE} or the workdir of a finished run"
        )
    record = read_json(file)
    if not isinstance(record, dict) or "architecture" not in record:
        raise ValueError(f"--architecture: {file} holds no architecture")
    try:
        return supernets.choice_of(net, record["architecture"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}; is --supernet another one?") from None
