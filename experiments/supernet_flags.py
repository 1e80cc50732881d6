"""Flags that name a super-network, and one of its sub-networks.

Beside `common`, whose flags every launcher has.
"""

import ast
import pathlib
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int

from experiments import common
from fliqs_jax.data import Dataset
from fliqs_jax.models import supernets
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS


def define_supernet_flags(*, default: str) -> None:
    """Defines which super-network there is."""
    common.define(
        "string",
        "supernet",
        default,
        "Name of a super-network, or package.module:factory.",
    )
    common.define(
        "string",
        "supernet_options",
        "",
        "Arguments of its factory: 'stem=8, kernels=(3, 5), multipliers=(0.5, 1)'.",
    )


def parse_arguments(text: str) -> dict[str, Any]:
    """Returns keyword arguments that are written as in a call of literals.

    Raises:
      ValueError: if the text is anything else.

    Example:
      >>> parse_arguments("stem=8, kernels=(3, 5)")
      {'stem': 8, 'kernels': (3, 5)}
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("arguments need names")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("arguments need names")
        return {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"--supernet_options={text!r}: write it as name=value, name=(1, 2) with"
            f" plain numbers ({error})"
        ) from None


def supernet_options() -> dict[str, Any]:
    """Returns the arguments of the super-network's factory that the flags set."""
    options = parse_arguments(FLAGS.supernet_options)
    if FLAGS.dtype != "float32":
        options["dtype"] = FLAGS.dtype
    return options


def supernet(
    dataset: Dataset,
) -> tuple[supernets.SuperNetwork, supernets.SupernetRecord]:
    """Returns the super-network of the flags for a data set, and how it was made."""
    record = supernets.SupernetRecord(
        name=None if ":" in FLAGS.supernet else FLAGS.supernet,
        options=supernet_options(),
        num_classes=dataset.num_classes,
        image_shape=tuple(dataset.train.image_shape),
    )
    try:
        if record.name is not None:
            return record.create(), record
        net = common.user_model(
            FLAGS.supernet,
            num_classes=record.num_classes,
            image_shape=record.image_shape,
            **record.options,
        )
    except TypeError as error:  # an argument that the factory does not have
        raise ValueError(f"--supernet_options: {error}") from None
    if not isinstance(net, supernets.SuperNetwork):
        raise ValueError(
            f"--supernet={FLAGS.supernet} must make a SuperNetwork, got"
            f" {type(net).__name__}"
        )
    return net, record


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
        random = np.random.default_rng(int(text.removeprefix("random:")))
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
