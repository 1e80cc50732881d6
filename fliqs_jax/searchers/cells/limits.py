r"""Limits on a cell's costs, and the multipliers that hold a search to them.

A limit K_d is on the derived network; its search network is held to K_s, which a
look-up graph may have read off for it. Each limit adds to the loss of the architecture
weights, with the excess g = k_s(alpha) / K_s - 1 that no unit enters:

.. math:: \lambda \, (g + 1) + \tfrac{\rho}{2} \max(0, g)^2, \qquad
    \lambda \leftarrow \max(0, \lambda + \eta \, g)

Ascent: by descent lambda would fall where the limit is exceeded. Nothing here
guarantees a limit: `repair` does.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fliqs_jax.models.cells import Alphas, CellCost, CellSpace, StagedCost, softmax


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Limit:
    """A hard bound on one cost of the derived network.

    Args:
      name: of the cost, with its unit: "parameters", "macs", "size_bits", "latency_ms".
      bound: K_d, the most that the derived network may cost.
      derived: cost of the derived network; a `StagedCost` where formats of its stages
        are searched, too.
      search: k_s, cost of the search network; the derived one's where they are one.
      search_bound: K_s, what k_s is held to; None is the bound itself.
      measured: the cost of every cell of a listed space, by choice (`grid_of_cells`),
        NaN where unknown; it decides instead of `derived`, which then is a fit of it.

    Raises:
      ValueError: if a bound is not positive.
    """

    name: str
    bound: float
    derived: CellCost | StagedCost
    search: CellCost | StagedCost | None = None
    search_bound: float | None = None
    measured: np.ndarray | None = None

    def __post_init__(self):
        for field in ("bound", "search_bound"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{field} of the {self.name} limit must be positive, got {value}"
                )

    def ratio(self, alphas: Alphas) -> Float[Array, ""]:
        """Returns k_s(alpha) / K_s."""
        cost = self.derived if self.search is None else self.search
        bound = self.bound if self.search_bound is None else self.search_bound
        return cost.scaled(1.0 / bound).of_alphas(alphas)

    def at(self, formats: Sequence[int] | None) -> "Limit":
        """Returns the limit on a network of decided stages' formats; None: it has none.

        Costs of choices are those of the limit returned.
        """
        return dataclasses.replace(self, derived=self.derived.at(formats))

    def cost(self, space: CellSpace, choice: Int[np.ndarray, "D"]) -> float:
        """Returns what the derived network of a choice costs; NaN where unknown."""
        if self.measured is not None:
            return float(self.measured[tuple(choice)])
        return float(self.derived.of(space, choice))

    def costs_along(
        self, space: CellSpace, choice: Int[np.ndarray, "D"], decision: int
    ) -> Float[np.ndarray, "N"]:
        """Returns the costs of the choices that differ in one decision."""
        if self.measured is not None:
            options = (*choice[:decision], slice(None), *choice[decision + 1 :])
            return self.measured[options]
        prices = space.decisions[decision].totals(self.derived.tables)
        return self.cost(space, choice) - prices[choice[decision]] + prices


def ratios(limits: Sequence[Limit], alphas: Alphas) -> Float[Array, "M"]:
    """Returns each limit's k_s(alpha) / K_s."""
    found = [limit.ratio(alphas) for limit in limits]
    return jnp.stack(found) if found else jnp.zeros(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiplierSettings:
    """How multipliers move and what they add to the loss.

    `hinge` lets lambda press only while the limit is exceeded, lambda max(0, g);
    `augmentation` is rho, the quadratic term of an augmented Lagrangian. `used` lets
    lambda fall below zero, which rewards cost while there is room: a limit is then what
    to use, not only what not to exceed.
    """

    rate: float = 0.05  # eta
    hinge: bool = False
    augmentation: float = 0.0  # rho
    used: bool = False

    def __post_init__(self):
        for name in ("rate", "augmentation"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.used and self.hinge:
            raise ValueError(
                "used (--use_limits) needs hinge=False (no --hinge): with it nothing"
                " rewards cost"
            )


def penalty(
    multipliers: Float[Array, "M"],
    ratios: Float[Array, "M"],
    settings: MultiplierSettings = MultiplierSettings(),
) -> Float[Array, ""]:
    r"""Returns what the limits add to the loss of the architecture weights.

    .. math:: \sum_m \lambda_m \, (g_m + 1) + \tfrac{\rho}{2} \max(0, g_m)^2

    With `hinge` the first term is lambda_m max(0, g_m), with `used` the second one
    rho / 2 g_m^2.

    Args:
      multipliers: lambda, not negative.
      ratios: g + 1 = k_s / K_s.
      settings: the form.

    Example:
      >>> float(penalty(jnp.array([2.0]), jnp.array([1.5])))
      3.0
      >>> float(penalty(jnp.array([2.0]), jnp.array([1.5]),
      ...     MultiplierSettings(hinge=True, augmentation=4.0)))
      1.5
    """
    excess = jnp.maximum(ratios - 1.0, 0.0)
    pressed = excess if settings.hinge else ratios
    missed = ratios - 1.0 if settings.used else excess
    return (multipliers * pressed + 0.5 * settings.augmentation * missed**2).sum()


def update_multipliers(
    multipliers: Float[Array, "M"],
    ratios: Float[Array, "M"],
    settings: MultiplierSettings = MultiplierSettings(),
) -> Float[Array, "M"]:
    r"""Returns the multipliers after a step of ascent, negative only with `used`.

    .. math:: \lambda \leftarrow \max(0, \lambda + \eta \, (k_s / K_s - 1))

    Example:
      >>> update_multipliers(jnp.array([0.0, 0.0]), jnp.array([2.0, 0.5])).round(3)
      Array([0.05, 0.  ], dtype=float32)
    """
    moved = multipliers + settings.rate * (ratios - 1.0)
    return moved if settings.used else jnp.maximum(0.0, moved)


def entropy(alphas: Alphas) -> Float[Array, ""]:
    """Returns the mean entropy of the edges' operations, in nats.

    Example:
      >>> round(float(entropy({"cell": jnp.zeros((2, 4))})), 4)  # log 4
      1.3863
    """
    rows = [
        -(p * jnp.log(jnp.maximum(p, 1e-12))).sum(axis=1)
        for p in softmax(alphas).values()
    ]
    return jnp.concatenate(rows).mean()
