"""LINAS: multi-objective search with predictors inside an evolutionary loop.

For objectives that take minutes to evaluate: light predictors learn from every
evaluation so far, and NSGA-II runs on them to propose the next few. Knows nothing of
networks: candidates are integer vectors, objectives come from the caller's function.

`nsga2` and `random_search` are its rivals, called alike.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers import evolution
from fliqs_jax.searchers.decisions import Active, Decisions
from fliqs_jax.searchers.multi_objective import (
    Evaluate,
    History,
    ParetoResult,
    Run,
    run_search,
)
from fliqs_jax.searchers.pareto import front, hypervolume, hypervolume_curve
from fliqs_jax.searchers.predictors import fit_predictor, one_hot

__all__ = [
    "ParetoResult",
    "front",
    "hypervolume",
    "hypervolume_curve",
    "nsga2",
    "random_search",
    "search",
]

Space = Sequence[int] | Mapping[str, int] | np.ndarray | SearchSpace
Features = Callable[[np.ndarray], np.ndarray]  # int[N, D] -> float[N, F]


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
    log: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    say: Callable[[str], None] = print,
    inner_evaluations: int = 20_000,
    features: Features | None = None,
) -> ParetoResult:
    """Searches."""

    def propose(history: History) -> np.ndarray:
        if len(history.vectors) < population:
            return history.vectors[:0]

        def describe(vectors):
            columns = one_hot(vectors, decisions.counts, decisions.active(vectors))
            return np.c_[columns, features(vectors)] if features else columns

        described = describe(history.vectors)
        predictors = [fit_predictor(described, y) for y in history.values.T]

        def predict(vectors):
            described = describe(vectors)
            return np.stack([p(described) for p in predictors], axis=1)

        start = history.vectors[evolution.survive(history.values, population)]
        return evolution.evolve(
            decisions,
            predict,
            start,
            evaluations=inner_evaluations,
            count=population,
            seen=history.seen(),
            random=history.random,
        )

    decisions = Decisions(space, active)
    return run_search(
        propose,
        Run(
            decisions=decisions,
            evaluate=evaluate,
            objectives=objectives,
            evaluations=evaluations,
            population=population,
            seed=seed,
            initial=initial,
            known=known,
            log=log,
            batch_size=batch_size,
            say=say,
        ),
    )


def nsga2(
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
    log: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    say: Callable[[str], None] = print,
) -> ParetoResult:
    """Searches by NSGA-II on the real objectives; arguments as in `search`."""

    def propose(history: History) -> np.ndarray:
        if len(history.vectors) < population:
            return history.vectors[:0]
        # Replayed from the record, generation by generation, so a resumed search has
        # the parents that the uninterrupted one has.
        first = max(history.num_known, population)
        parents = evolution.survive(history.values[:first], population)
        for begin in range(first, len(history.vectors), population):
            rows = np.arange(begin, min(begin + population, len(history.vectors)))
            rows = np.concatenate([parents, rows])
            parents = rows[evolution.survive(history.values[rows], population)]
        return evolution.mate(
            history.decisions,
            history.vectors[parents],
            history.values[parents],
            count=population,
            seen=history.seen(),
            random=history.random,
        )

    return run_search(
        propose,
        Run(
            decisions=Decisions(space, active),
            evaluate=evaluate,
            objectives=objectives,
            evaluations=evaluations,
            population=population,
            seed=seed,
            initial=initial,
            known=known,
            log=log,
            batch_size=batch_size,
            say=say,
        ),
    )


def random_search(
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
    log: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    say: Callable[[str], None] = print,
) -> ParetoResult:
    """Evaluates different vectors drawn uniformly; arguments as in `search`."""
    return run_search(
        lambda history: history.vectors[:0],
        Run(
            decisions=Decisions(space, active),
            evaluate=evaluate,
            objectives=objectives,
            evaluations=evaluations,
            population=population,
            seed=seed,
            initial=initial,
            known=known,
            log=log,
            batch_size=batch_size,
            say=say,
        ),
    )
