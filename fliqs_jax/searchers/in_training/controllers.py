"""Controllers made for a run: a recipe's settings joined with the run's costs.

The recipes themselves are `fliqs_jax.controller.recipes`; here they get a cost over
target and the steps at which they begin and end.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from fliqs_jax.controller import Controller, default, published
from fliqs_jax.searchers.in_training.phases import Phases


@runtime_checkable  # the tests check annotations while running
class Prices(Protocol):
    """What a controller asks of the costs of a search space."""

    @property
    def option_bits(self) -> Int[np.ndarray, "*L K"]:
        """Width of each option, of every decision alike or of each."""

    def of(self, options: Int[Array, "L"]) -> Float[Array, ""]:
        """Returns the cost of options; traced."""

    def expected(self, probabilities: Float[Array, "L K"]) -> Float[Array, ""]:
        """Returns the expected cost of independent decisions; traced."""

    def marginal_effects(
        self, probabilities: Float[Array, "L K"], effects: Float[Array, "L K"]
    ) -> Float[Array, "L K"]:
        """Returns what each option brings, the others being as probable as they are."""


# (costs, target, phases) -> controller
Recipe = Callable[[Prices, float, Phases], Controller]


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A recipe of ours, its settings in the open so that a run can record them."""

    make: Callable[..., Controller]
    settings: Mapping[str, Any]

    def __call__(self, costs: Prices, target: float, phases: Phases) -> Controller:
        cost = costs.of if self.make is published else costs.expected
        own = {}
        if self.make is default:
            own = {
                "option_bits": costs.option_bits,
                "marginal_effects": costs.marginal_effects,
            }
        return self.make(
            lambda chosen: cost(chosen) / target,
            **own,
            warmup_steps=phases.warmup_end,
            end_step=max(phases.search_end, phases.warmup_end + 1),
            **self.settings,
        )


def recipe(make: Callable[..., Controller], **settings: Any) -> Recipe:
    """Returns the recipe of a controller with some of its settings changed.

    Args:
      make: `controller.default`, `leave_one_out` or `published`.
      **settings: keyword arguments of `make`.
    """
    return _Chosen(make, settings)
