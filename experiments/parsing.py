"""Text of flags as Python values: pairs, seeds, settings, a user's own factory.

Which flags there are, `experiments.common` and the launchers say.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterable
from typing import Any, TypeVar

import flax.linen as nn
from absl import flags
from flax import nnx

FLAGS = flags.FLAGS
_Settings = TypeVar("_Settings")

_WORDS = {"True": True, "False": False, "None": None}


def parse_options(flag: str) -> dict[str, Any]:
    """Returns a flag's name=value pairs as Python values; other text stays text."""
    return parse_pairs(flag, FLAGS[flag].value)


def parse_pairs(flag: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Returns name=value pairs, which a flag has, as Python values.

    Example:
      >>> parse_pairs("model_options", ["width=32", "share=False", "pool=max"])
      {'width': 32, 'share': False, 'pool': 'max'}
    """
    parsed = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--{flag}: expected name=value, got {pair!r}")
        parsed[name] = _parsed(text)
    return parsed


def _parsed(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


def seed_of(flag: str, text: str) -> int:
    """Returns the number in random:NUMBER, as a flag says it."""
    try:
        return int(text.removeprefix("random:"))
    except ValueError:
        raise ValueError(
            f"--{flag}={text}: a seed is a whole number, such as random:0"
        ) from None


def settings_of(kind: type[_Settings], **own: Any) -> _Settings:
    """Returns settings, each as the flag of its name says if that is given.

    Args:
      kind: a dataclass; a flag that is None leaves a field its default.
      **own: fields that have no flag of their name.
    """
    names = {field.name for field in dataclasses.fields(kind)} & set(FLAGS)
    given = {name: FLAGS[name].value for name in names}
    return kind(**{**{n: x for n, x in given.items() if x is not None}, **own})


def user_model(name: str, **arguments: Any) -> nn.Module | nnx.Module:
    """Returns `factory(**arguments)` of a name like `package.module:factory`."""
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model {name!r}: {error}; name it package.module:factory, importable from "
            "the folder that you start in"
        ) from error
    try:
        return factory(**arguments)
    except TypeError as error:
        given = ", ".join(f"{argument}=..." for argument in arguments)
        raise ValueError(
            f"model {name!r}: {error}; it is called as {factory_name}({given})"
        ) from error
