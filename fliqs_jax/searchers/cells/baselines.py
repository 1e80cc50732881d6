"""What a cell search is compared with under the same limits, on the table.

Each takes the grid of a validation accuracy and the mask of the cells within the
limits, and returns a choice. None of them sees how the cells are judged, but the
oracle, which is the judge's own optimum.
"""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fliqs_jax.models.cells import CellSpace
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.cells.repair import cost_grid

Grid = Float[np.ndarray, "*O"]
Mask = Bool[np.ndarray, "*O"]
Choice = Int[np.ndarray, "D"]


def cells_within(space: CellSpace, limits: Sequence[Limit]) -> Mask:
    """Returns which cells of a listed space are connected and within all limits."""
    allowed = space.usable.copy()
    for limit in limits:
        allowed &= cost_grid(space, limit) <= limit.bound
    return allowed


def oracle(grid: Grid, allowed: Mask) -> Choice:
    """Returns the best allowed cell: what no search can beat.

    Example:
      >>> oracle(np.array([[1.0, 5.0], [9.0, 2.0]]), np.array([[1, 1], [0, 1]], bool))
      array([0, 1])
    """
    best = np.where(allowed, grid, -np.inf).argmax()
    return np.array(np.unravel_index(best, grid.shape))


def random_search(
    grid: Grid, allowed: Mask, *, evaluations: int, random: np.random.Generator
) -> Choice:
    """Returns the best of as many different allowed cells, drawn at random."""
    cells = np.argwhere(allowed)
    drawn = cells[random.permutation(len(cells))[:evaluations]]
    return drawn[grid[tuple(drawn.T)].argmax()]


def regularised_evolution(
    grid: Grid,
    allowed: Mask,
    *,
    evaluations: int,
    random: np.random.Generator,
    population: int = 10,
    sample: int = 3,
) -> Choice:
    """Returns the best cell that aging evolution meets within the limits.

    The oldest of a population gives way to a mutant of the best of a random sample: one
    decision is drawn anew until the cell is allowed.

    Args:
      grid: accuracies.
      allowed: cells within the limits.
      evaluations: cells looked up, repetitions included.
      random: of everything that chance decides.
      population: of living cells; 10 and a sample of 3 are the benchmark's.
      sample: that compete to be the parent.

    Reference:
      Real et al., Regularized Evolution, 2019, https://arxiv.org/abs/1802.01548
    """
    cells = np.argwhere(allowed)
    first = cells[random.integers(len(cells), size=min(population, evaluations))]
    living = collections.deque(map(tuple, first.tolist()), maxlen=population)
    met = list(living)
    while len(met) < evaluations:
        rivals = random.integers(len(living), size=sample)
        parent = max((living[rival] for rival in rivals), key=lambda cell: grid[cell])
        child = _mutant(parent, allowed, random)
        living.append(child)  # and the oldest leaves
        met.append(child)
    return np.array(max(met, key=lambda cell: grid[cell]))


def _mutant(parent: tuple[int, ...], allowed: Mask, random: np.random.Generator):
    """Returns an allowed cell that differs in one decision, the parent if none does."""
    near = []
    for decision, count in enumerate(allowed.shape):
        for option in range(count):
            cell = (*parent[:decision], option, *parent[decision + 1 :])
            if option != parent[decision] and allowed[cell]:
                near.append(cell)
    return near[random.integers(len(near))] if near else parent


def judged_baselines(
    signal: Grid,
    judge: Grid,
    allowed: Mask,
    *,
    evaluations: int = 100,
    repetitions: int = 20,
) -> dict[str, float]:
    """Returns how the baselines' cells are judged, means over the repetitions.

    Args:
      signal: what a search may look at.
      judge: what tells how good a cell is.
      allowed: cells within the limits, judged ones alone.
      evaluations: cells that each search looks up.
      repetitions: seeds of the searches that draw at random.

    Returns:
      By name: `oracle`, `best_by_signal` (what a perfect search finds), `mean_cell`,
      `random_search` and `regularised_evolution`, with their `_deviation`.
    """
    found = {
        "oracle": float(judge[tuple(oracle(judge, allowed))]),
        "best_by_signal": float(judge[tuple(oracle(signal, allowed))]),
        "mean_cell": float(judge[allowed].mean()),
    }
    for search in (random_search, regularised_evolution):
        cells = [
            search(signal, allowed, evaluations=evaluations, random=random)
            for random in map(np.random.default_rng, range(repetitions))
        ]
        values = judge[tuple(np.transpose(cells))]
        found[search.__name__] = float(np.mean(values))
        found[f"{search.__name__}_deviation"] = float(np.std(values, ddof=1))
    return found
