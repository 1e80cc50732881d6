"""NSGA-II over integer vectors, by pymoo: one real generation, or many on predictors.

Not here: evaluating, and what is remembered between generations (`multi_objective`).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from fliqs_jax.searchers.decisions import Decisions, select_new
from fliqs_jax.searchers.pareto import front

_TRIES = 20  # matings in search of offspring that are new
OPS = "ux"


def survive(
    values: Float[np.ndarray, "N M"], count: int
) -> Int[np.ndarray, "S"]:
    """Returns the indices of the `count` best points by front, then by crowding.

    Args:
      values: objectives, all minimised.
      count: how many survive; all if there are no more.

    Reference:
      Deb et al., NSGA-II, 2002, https://doi.org/10.1109/4235.996017
    """
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    points = Population.new("X", np.arange(len(values))[:, None], "F", values)
    survivors = RankAndCrowding().do(
        Problem(n_var=1, n_obj=values.shape[1]), points, n_survive=min(count, len(values)), random_state=np.random.default_rng(0)
    )
    return survivors.get("X")[:, 0].astype(np.int64)


def mate(
    decisions: Decisions,
    parents: Int[np.ndarray, "P D"],
    values: Float[np.ndarray, "P M"],
    *,
    count: int,
    seen: set[tuple[int, ...]],
    random: np.random.Generator,
) -> Int[np.ndarray, "N D"]:
    """Returns up to `count` children of the parents that were not seen before.

    Args:
      decisions: the space.
      parents: the population that survived.
      values: the parents' objectives.
      count: how many children.
      seen: canonical vectors that are no longer wanted.
      random: of tournaments, crossover and mutation.
    """
    from pymoo.core.population import Population

    algorithm = _nsga2(decisions, Population.new("X", parents, "F", values))
    algorithm.setup(
        _problem(decisions, values.shape[1]), seed=int(random.integers(2**31))
    )
    algorithm.tell(infills=algorithm.ask())
    children = np.empty((0, parents.shape[1]), np.int64)
    for _ in range(_TRIES):
        if len(children) == count:
            break
        children = np.concatenate([children, algorithm.ask().get("X").astype(np.int64)])
        children = select_new(children, seen, count)
    return children


def evolve(
    decisions: Decisions,
    predict: Callable[[np.ndarray], np.ndarray],
    start: Int[np.ndarray, "P D"],
    *,
    evaluations: int,
    count: int,
    seen: set[tuple[int, ...]],
    random: np.random.Generator,
) -> Int[np.ndarray, "N D"]:
    """Returns the best unseen candidates by predicted objectives.

    NSGA-II runs on the predictions; of all that it met and that are new, the first
    fronts are taken, the last of them by crowding.

    Args:
      decisions: the space.
      predict: from vectors [N, D] to predicted objectives [N, M].
      start: the first population.
      evaluations: of the predictors, in populations of the size of `start`.
      count: how many candidates.
      seen: canonical vectors that are no longer wanted.
      random: of everything that chance decides.
    """
    from pymoo.core.population import Population
    from pymoo.optimize import minimize

    met: list[tuple[np.ndarray, np.ndarray]] = []

    def record(vectors):
        values = predict(vectors)
        met.append((vectors, values))
        return values

    num_objectives = predict(start[:1]).shape[1]
    minimize(
        _problem(decisions, num_objectives, record),
        _nsga2(decisions, Population.new("X", start)),
        ("n_gen", max(1, evaluations // len(start))),
        seed=int(random.integers(2**31)),
    )
    vectors, values = (np.concatenate(part) for part in zip(*met, strict=True))
    vectors, first = np.unique(vectors.astype(np.int64), axis=0, return_index=True)
    values = values[first]
    new = [tuple(vector) not in seen for vector in vectors.tolist()]
    return _first_fronts(vectors[new], values[new], count)


def _first_fronts(vectors, values, count) -> np.ndarray:
    chosen = np.empty((0, vectors.shape[1]), np.int64)
    while len(vectors) and len(chosen) < count:
        best = front(values)
        kept = best[survive(values[best], count - len(chosen))]
        chosen = np.concatenate([chosen, vectors[kept]])
        vectors, values = (np.delete(part, best, axis=0) for part in (vectors, values))
    return chosen


def _problem(decisions: Decisions, num_objectives: int, evaluate=None):
    from pymoo.core.problem import Problem

    class Vectors(Problem):
        def _evaluate(self, x, out, *args, **kwargs):
            out["F"] = evaluate(x)

    return Vectors(
        n_var=len(decisions.counts),
        n_obj=num_objectives,
        xl=0,
        xu=decisions.counts - 1,
        vtype=int,
    )


def _nsga2(decisions: Decisions, population):
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.mutation import Mutation
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.crossover.ux import UX
    from pymoo.operators.mutation.pm import PM

    class Canonical(Repair):
        def _do(self, problem, vectors, **kwargs):
            vectors = np.clip(np.around(vectors), 0, decisions.counts - 1)
            return decisions.canonical(vectors)

    class Reset(Mutation):
        def _do(self, problem, X, *args, random_state=None, **kwargs):
            change = random_state.random(X.shape) < max(RATE or 0, 1 / X.shape[1])
            steps = random_state.integers(1, np.maximum(decisions.counts, 2), X.shape)
            return np.where(change, (X + steps) % decisions.counts, X)

    rate = max(0.02, 1 / len(decisions.counts))
    ops = (
        dict(crossover=UX(prob=0.9), mutation=Reset())
        if OPS == "ux"
        else dict(
            crossover=SBX(prob=0.9, eta=15, repair=Canonical()),
            mutation=PM(prob=1.0, prob_var=rate, eta=20),
        )
    )
    return NSGA2(
        pop_size=len(population), sampling=population, repair=Canonical(), **ops
    )


RATE = 0.0
