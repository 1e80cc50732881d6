r"""The exact expected accuracy of NAS-Bench-201 under architecture weights: a signal.

With independent edges the expectation over all 15,625 cells is the contraction of a
table with six vectors of probabilities:

.. math:: J(\alpha) = \sum_o \prod_e \mathrm{softmax}(\alpha_e)_{o_e} \, a(o_1 … o_6)

No network is trained: the search takes seconds, and shows what the constraint does
without the noise of a search network. It reads what a search may read (validation
accuracy after 12 epochs); what it finds is judged by other columns.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from fliqs_jax.models.cells import (
    NASBENCH201,
    ArchitectureTable,
    CellSpace,
    fitted_cost,
    nasbench201_grid,
    softmax,
)
from fliqs_jax.searchers.cells.architecture import (
    Architecture,
    ArchitectureSettings,
    ArchitectureState,
)
from fliqs_jax.searchers.cells.limits import Limit

Grid = Float[np.ndarray, "O O O O O O"]

# Adam needs no decay here, and can be a hundred times as quick as on a network's loss.
TABLE_SETTINGS = ArchitectureSettings(learning_rate=0.05, weight_decay=0.0)


def expected_value(
    grid: Float[ArrayLike, "O O O O O O"], probabilities: Float[ArrayLike, "E O"]
) -> Float[Array, ""]:
    """Returns the mean of a grid over cells drawn edge by edge; differentiable.

    Example:
      >>> grid = nasbench201_grid(np.arange(15_625.0))
      >>> cell = NASBENCH201.one_hot(NASBENCH201.choice(9))["cell"]
      >>> float(expected_value(grid, cell))
      9.0
    """
    contract = lambda rest, p: jnp.tensordot(p, rest, axes=1)  # noqa: E731
    return functools.reduce(contract, probabilities, jnp.asarray(grid, jnp.float32))


def search_grid(values: Float[np.ndarray, "N"]) -> Grid:
    """Returns accuracies as a grid; an unknown one counts as the least known."""
    return nasbench201_grid(np.where(np.isnan(values), np.nanmin(values), values))


def search_by_table(
    grid: Grid,
    architecture: Architecture,
    *,
    key: Key[Array, ""],
    steps: int = 1500,
    unit: float = 10.0,
    scale: Float[ArrayLike, ""] = 1e-3,
) -> tuple[ArchitectureState, dict[str, Array]]:
    r"""Searches by the expected value of a grid, under limits.

    .. math:: \min_\alpha \max_{\lambda \ge 0} \; -J(\alpha) / u + \sum_m \lambda_m
        k_m(\alpha) / K_m + w(t) H(\alpha)

    Args:
      grid: what is to be large, by cell: a validation accuracy in percent.
      architecture: limits, and how alphas move.
      key: of the first alphas.
      steps: of Adam.
      unit: u, how much of `grid` is a loss of 1.
      scale: standard deviation of the first alphas.

    Returns:
      The last state, and per step [T] the loss -J / u, J as `expected_value`, what
      `Architecture.report` says, and the probabilities [T, 6, 5].
    """

    def loss(alphas):
        return -expected_value(grid, softmax(alphas)["cell"]) / unit

    def step(state, number):
        value, gradient = jax.value_and_grad(loss)(state.alphas)
        state = architecture.step(state, gradient, number / steps)
        return state, {
            "loss": value,
            "expected_value": -unit * value,
            "probabilities": softmax(state.alphas)["cell"],
            **architecture.report(state),
        }

    @jax.jit
    def run(key):
        state = architecture.init(NASBENCH201.init_alphas(key, scale=scale))
        return jax.lax.scan(step, state, jnp.arange(steps))

    return run(key)


def measured_limit(
    table: ArchitectureTable,
    column: str,
    bound: float,
    *,
    space: CellSpace = NASBENCH201,
) -> tuple[Limit, float]:
    """Returns a limit on a measured column, searched through a fit of it.

    Cells that do not connect input and output are left out of the fit: they take no
    time, and no sum over edges says so.

    Args:
      table: with the column.
      column: a latency or an energy; cells without a value are not within any bound.
      bound: in the column's unit.
      space: NAS-Bench-201.

    Returns:
      The limit, and the fit's R^2.

    Raises:
      ValueError: if the column may not be searched, or has too few values.
    """
    measured = nasbench201_grid(table.search_values(column))
    choices = np.argwhere(space.usable)
    cost, r_squared = fitted_cost(space, choices, measured[space.usable])
    limit = Limit(name=column, bound=bound, derived=cost, measured=measured)
    return limit, r_squared
