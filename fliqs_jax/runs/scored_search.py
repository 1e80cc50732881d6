r"""A cell search by training-free scores: some cells scored, the rest predicted.

Random cells within the limits are scored (`training_free`), a predictor is fitted to
their mean ranks r, and of all cells within the limits the best is taken by

.. math:: a(\text{cell}) = \tfrac23 \, \hat r + \tfrac13 \, r_{\text{parameters}}

The scores alone stop at 1x1 convolutions, which tell images apart as well as larger
ones: the third rank says that a limit is there to be used. Nothing is trained, and no
gradient descends: all cells are listed, so that the best one is exact.
"""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from fliqs_jax.models.cells import NASBENCH201, CellCost
from fliqs_jax.runs.cell_search import FoundCell
from fliqs_jax.searchers.cells.baselines import cells_within, oracle
from fliqs_jax.searchers.cells.expected_accuracy import Grid
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.cells.repair import Repair, check_limits
from fliqs_jax.searchers.cells.training_free import SCORES, mean_ranks
from fliqs_jax.searchers.multi_objective.decisions import Decisions
from fliqs_jax.searchers.multi_objective.log import SearchLog
from fliqs_jax.searchers.multi_objective.predictors import fit_predictor, one_hot
from fliqs_jax.train.journal import Timer

Scorer = Callable[[Int[np.ndarray, "N D"]], Float[np.ndarray, "N M"]]

LOG_NAME = "scores.csv"
_COUNTS = np.full(len(NASBENCH201.edges), len(NASBENCH201.operations))


def search_cell_by_scores(
    score: Scorer,
    limits: tuple[Limit, ...],
    parameters: CellCost,
    *,
    folder: pathlib.Path,
    count: int = 100,
    seed: int = 0,
    known: Sequence[pathlib.Path] = (),
    say: Callable[[str], None] = print,
) -> FoundCell:
    """Searches NAS-Bench-201 for the cell of the best predicted rank.

    Args:
      score: from choices to scores, larger is better; a `CellScorer`.
      limits: of derived networks.
      parameters: of derived networks.
      folder: of the run; scores.csv in it is appended to, and read when resumed.
      count: of cells within the limits to score.
      seed: of their draw.
      known: logs of other runs, of the same network, data and seed.
      say: receives what a person wants to read.

    Raises:
      ValueError: if fewer than 10 cells are to be scored, no cell is within the limits,
        or a log is of another space.
    """
    if count < 10:
        raise ValueError(
            "count (--scored_cells) must be 10 or more to predict others by, got"
            f" {count}"
        )
    check_limits(NASBENCH201, limits)
    timer = Timer()
    within = cells_within(NASBENCH201, limits)
    choices, scores = score_some(
        score, within, count, log=folder / LOG_NAME, known=known, seed=seed, say=say
    )
    grid = 2 / 3 * predicted_ranks(choices, scores)
    grid += 1 / 3 * ranks_within(parameters, within)
    best = oracle(grid, within)
    costs = {limit.name: limit.cost(NASBENCH201, best) for limit in limits}
    return FoundCell(
        genotype=NASBENCH201.genotype(best),
        repair=Repair(
            derived=best,
            choice=best,
            derived_costs=costs,
            costs=costs,
            violations=(),
            score_lost=0.0,
        ),
        state=None,
        facts={"seconds": timer.total(), "scored_cells": len(choices)},
    )


def score_some(
    score: Scorer,
    within: Bool[np.ndarray, "*O"],
    count: int,
    *,
    log: pathlib.Path,
    known: Sequence[pathlib.Path] = (),
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> tuple[Int[np.ndarray, "M D"], Float[np.ndarray, "M S"]]:
    """Returns scored cells: so many within limits, and all others that logs know.

    Args:
      score: of one cell at a time.
      within: which cells are within the limits.
      count: of cells within; those that a log knows are not scored again.
      log: a row is appended as soon as a cell is scored; known ones are copied to it,
        so that it alone can be known to the next run.
      known: further logs, read only.
      seed: of the draw.
      say: receives a line.

    Raises:
      FileNotFoundError: if a known log does not exist.
    """
    own, *others = (
        SearchLog(path, Decisions(_COUNTS.tolist()), SCORES) for path in (log, *known)
    )
    for path in known:
        if not path.exists():
            raise FileNotFoundError(f"known scores (--scores) {path}: no such file")
    rows = _rows(own)
    theirs = {choice: row for each in others for choice, row in _rows(each).items()}
    if copied := {choice: theirs[choice] for choice in theirs if choice not in rows}:
        own.append(np.array(list(copied)), np.array(list(copied.values())))
        rows |= copied
    allowed = np.random.default_rng(seed).permutation(np.argwhere(within))
    new = [choice for choice in allowed if tuple(choice.tolist()) not in rows]
    new = new[: max(0, count - (len(allowed) - len(new)))]
    say(f"scoring {len(new)} of the {len(allowed)} cells within the limits")
    for choice in new:
        row = score(choice[None])
        own.append(choice[None], row)
        rows[tuple(choice.tolist())] = row[0]
    return np.array(list(rows)), np.array(list(rows.values()))


def _rows(log: SearchLog) -> dict[tuple[int, ...], Float[np.ndarray, "S"]]:
    choices, scores = log.read()
    return dict(zip(map(tuple, choices.tolist()), scores, strict=True))


def predicted_ranks(
    choices: Int[np.ndarray, "N D"], scores: Float[np.ndarray, "N S"]
) -> Grid:
    """Returns the mean rank of every cell, predicted from the scores of some."""
    everything = np.transpose(np.unravel_index(range(_COUNTS.prod()), _COUNTS))
    seen, features = (
        one_hot(vectors, _COUNTS, np.ones(vectors.shape, bool))
        for vectors in (choices, everything)
    )
    return fit_predictor(seen, mean_ranks(scores))(features).reshape(_COUNTS)


def ranks_within(cost: CellCost, within: Bool[np.ndarray, "*O"]) -> Grid:
    """Returns the rank of each cell's cost among those within, in (0, 100]; 0 beyond.

    Args:
      cost: of derived networks.
      within: which cells count.
    """
    costs = cost.of(NASBENCH201, np.argwhere(within))
    ranks = np.zeros(within.shape)
    ranks[within] = 100.0 * stats.rankdata(costs) / len(costs)
    return ranks
