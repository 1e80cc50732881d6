"""LINAS: multi-objective search with predictors inside an evolutionary loop.

For objectives that take minutes to evaluate: light predictors learn from every
evaluation so far, and NSGA-II runs on them to propose the next few. Knows nothing of
networks: candidates are integer vectors, objectives come from the caller's function.

`nsga2` and `random_search` are its rivals, called alike.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from fliqs_jax.searchers.multi_objective import evolution
from fliqs_jax.searchers.multi_objective.decisions import Active, Space
from fliqs_jax.searchers.multi_objective.pareto import (
    front,
    hypervolume,
    hypervolume_curve,
)
from fliqs_jax.searchers.multi_objective.predictors import fit_predictor, one_hot
from fliqs_jax.searchers.multi_objective.search import (
    Evaluate,
    History,
    ParetoResult,
    Run,
    run_search,
)

__all__ = [
    "ParetoResult",
    "front",
    "hypervolume",
    "hypervolume_curve",
    "nsga2",
    "random_search",
    "search",
]

Features = Callable[[np.ndarray], np.ndarray]  # int[N, D] -> float[N, F]
# Most that the predictors' own front may be of a generation. They have seen few rows at
# first, and what is bred from the real front stays near what is known.
_PREDICTED = 0.6
_LITTER = 5  # children bred for each that is evaluated: those predicted best


def search(
    space: Space,
    evaluate: Evaluate,
    objectives: Sequence[str],
    *,
    evaluations: int = 250,
    population: int = 50,
    seed: int = 0,
    active: Active | None = None,
    initial: Sequence | np.ndarray = (),
    known: tuple[Sequence | np.ndarray, Sequence | np.ndarray] = ((), ()),
    limits: Mapping[str, float] = MappingProxyType({}),
    log: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    say: Callable[[str], None] = print,
    inner_evaluations: int = 20_000,
    features: Features | None = None,
) -> ParetoResult:
    """Searches for the front of several objectives with few evaluations.

    The first generation is random. Then, each time, every objective gets a predictor
    fitted to all evaluations so far. The next generation are the best new vectors that
    NSGA-II finds on the predictors, and children of the real front, of several bred
    those that are predicted best; these make progress where predictors mislead. With N
    evaluations so far and P a generation, the first part is 0.6 (1 - P / N) of it: none
    of the second generation, more as the predictors have more to go by. No vector is
    evaluated twice.

    Args:
      space: options per decision: a sequence of counts, a mapping from name to count,
        or a `SearchSpace`.
      evaluate: maps int64 vectors [N, D], an option index a decision, to objective
        values [N, M], all finite and minimised (negate an accuracy).
      objectives: M names.
      evaluations: how many at most, those read from the log included.
      population: evaluations a generation, 2 or more; 50 suits large spaces, 20 small.
      seed: 0 or more; the same seed proposes the same, also after a resume, if a
        vector's values do not depend on its batch.
      active: from vectors [N, D] to bool[N, D], False where a decision has no effect.
        Such decisions are set to 0, so equivalent vectors are recognised.
      initial: vectors to evaluate first.
      known: vectors and values evaluated before; they come first in the result and do
        not count as evaluations.
      limits: by name of an objective the largest value that is wanted. The search keeps
        to candidates within them once it knows any; random search draws as ever. The
        result holds all the same.
      log: CSV file for every evaluation (columns: see `search_log`). If it exists, the
        search resumes from it; it may have been written with another seed or method.
      batch_size: vectors handed to `evaluate` at once, after which the log is written;
        None is a generation.
      say: receives a line on resuming and on ending early.
      inner_evaluations: of the predictors, a generation.
      features: from vectors [N, D] to further columns [N, F] for the predictors.

    Returns:
      The evaluated vectors and values in order, and their front.

    Raises:
      ValueError: if an argument makes no sense, the log is of another space or other
        objectives, or `evaluate` gives another shape or a value that is not finite.
        What was evaluated before is in the log.

    Reference:
      Cummings et al., LINAS, 2022, https://arxiv.org/abs/2205.10358

    Example:
      >>> def evaluate(vectors):  # ones are good, but cost
      ...     return np.stack([-vectors.sum(axis=1), vectors @ [1, 2, 3]], axis=1)
      >>> result = search([2, 2, 2], evaluate, ["loss", "cost"], evaluations=8,
      ...     population=4)
      >>> sorted(result.values[result.front].astype(int).tolist())
      [[-3, 6], [-2, 3], [-1, 1], [0, 0]]
    """
    return run_search(
        functools.partial(
            _by_predictors, inner_evaluations=inner_evaluations, features=features
        ),
        Run(
            space=space,
            evaluate=evaluate,
            objectives=objectives,
            evaluations=evaluations,
            population=population,
            seed=seed,
            active=active,
            initial=initial,
            known=known,
            limits=limits,
            log=log,
            batch_size=batch_size,
            say=say,
        ),
    )


def _by_predictors(
    history: History, *, inner_evaluations: int, features: Features | None
) -> np.ndarray:
    decisions, population = history.decisions, history.population
    if len(history.vectors) < population:
        return history.vectors[:0]

    def describe(vectors):
        columns = one_hot(vectors, decisions.counts, decisions.active(vectors))
        return np.c_[columns, features(vectors)] if features else columns

    described = describe(history.vectors)
    predictors = [fit_predictor(described, _capped(y)) for y in history.values.T]

    def predict(vectors):
        described = describe(vectors)
        values = np.stack([p(described) for p in predictors], axis=1)
        return history.ranked(values)

    values = history.ranked(history.values)
    best = evolution.survive(values, population)
    parents, seen = history.vectors[best], history.seen()
    share = _PREDICTED * (1.0 - population / len(history.vectors))
    predicted = evolution.evolve(
        decisions,
        predict,
        parents,
        evaluations=inner_evaluations,
        count=round(share * population),
        seen=seen,
        random=history.random,
    )
    lacking = population - len(predicted)
    children = evolution.mate(
        decisions,
        parents,
        values[best],
        count=_LITTER * lacking,
        seen=seen | set(map(tuple, predicted.tolist())),
        random=history.random,
    )
    if len(children):
        children = children[evolution.survive(predict(children), lacking)]
    return np.concatenate([predicted, children])


def _capped(values: np.ndarray) -> np.ndarray:
    """Cuts off values further above the median than the best one is below it.

    A few failures (a collapsed network's 10 % accuracy) would else be most of what a
    squared error sees, though nobody wants to know how bad the bad ones are. Nothing is
    cut where half of the values are the best: there the others are all there is.
    """
    middle, least = np.median(values), values.min()
    return values if middle == least else np.minimum(values, 2.0 * middle - least)


def nsga2(
    space: Space, evaluate: Evaluate, objectives: Sequence[str], **settings: Any
) -> ParetoResult:
    """Searches by NSGA-II on the real objectives.

    Arguments are those of `search`, by keyword from `evaluations` to `say`.
    """
    run = Run(space=space, evaluate=evaluate, objectives=objectives, **settings)
    return run_search(_by_nsga2, run)


def _by_nsga2(history: History) -> np.ndarray:
    population = history.population
    if len(history.vectors) < population:
        return history.vectors[:0]
    # Replayed from the record, generation by generation, so a resumed search has the
    # parents that the uninterrupted one has.
    values = history.ranked(history.values)
    first = max(history.num_known, population)
    parents = evolution.survive(values[:first], population)
    for begin in range(first, len(history.vectors), population):
        rows = np.arange(begin, min(begin + population, len(history.vectors)))
        rows = np.concatenate([parents, rows])
        parents = rows[evolution.survive(values[rows], population)]
    return evolution.mate(
        history.decisions,
        history.vectors[parents],
        values[parents],
        count=population,
        seen=history.seen(),
        random=history.random,
    )


def random_search(
    space: Space, evaluate: Evaluate, objectives: Sequence[str], **settings: Any
) -> ParetoResult:
    """Evaluates different vectors drawn uniformly.

    Arguments are those of `search`, by keyword from `evaluations` to `say`.
    """
    run = Run(space=space, evaluate=evaluate, objectives=objectives, **settings)
    return run_search(lambda history: history.vectors[:0], run)
