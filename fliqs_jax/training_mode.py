"""How a Flax model is told that it is training: by one of a few argument names."""

import inspect
from collections.abc import Callable
from typing import Any

# Names under which models take "this is training", with the value that says so.
_TRAINING_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def training_keywords(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """Returns the keyword arguments that switch a call to training or evaluation.

    Example:
      >>> def call(x, deterministic=True): ...
      >>> training_keywords(call, train=True)
      {'deterministic': False}
    """
    accepted = inspect.signature(call).parameters
    return {
        name: when_training if train else not when_training
        for name, when_training in _TRAINING_ARGUMENTS.items()
        if name in accepted
    }
