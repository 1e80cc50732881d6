"""NSGA-II over integer vectors, by pymoo: one real generation, or many on predictors.

pymoo is imported where it is used: it takes over a second, and only these searches
need it. Not here: evaluating, and what is remembered between generations
(`search`).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from fliqs_jax.searchers.multi_objective.decisions import Decisions, select_new
from fliqs_jax.searchers.multi_objective.pareto import front

_TRIES = 5  # matings in search of children that are new
_POPULATION = 100  # least size on predictors, where larger populations cost nothing


def survive(values: Float[np.ndarray, "N M"], count: int) -> Int[np.ndarray, "S"]:
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
        Problem(n_var=1, n_obj=values.shape[1]),
        points,
        n_survive=min(count, len(values)),
        random_state=np.random.default_rng(0),
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
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM

    # As published; a rate of 0.02 changes nothing in most vectors of few decisions.
    rate = max(0.02, 1 / len(decisions.counts))
    algorithm = _nsga2(
        decisions,
        Population.new("X", parents, "F", values),
        crossover=SBX(prob=0.9, eta=15),
        mutation=PM(prob=1.0, prob_var=rate, eta=20),
    )
    algorithm.mating.n_max_iterations = 10  # of 100: near exhaustion nothing is new
    problem = Problem(**_bounds(decisions, values.shape[1]))
    algorithm.setup(problem, seed=int(random.integers(2**31)))
    algorithm.tell(infills=algorithm.ask())
    children = np.empty((0, parents.shape[1]), np.int64)
    for _ in range(_TRIES):
        if len(children) == count:
            break
        asked = algorithm.ask()
        if asked is None:  # mating found none that differs from the parents
            break
        children = np.concatenate([children, asked.get("X").astype(np.int64)])
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

    NSGA-II runs on the predictions; of all that it met and that is new, the first
    fronts are taken, the last of them by crowding. A space small enough to be listed is
    predicted whole instead, which is what NSGA-II can reach at best.

    Args:
      decisions: the space.
      predict: from vectors [N, D] to predicted objectives [N, M].
      start: in the first population; the rest of that is random.
      evaluations: of the predictors.
      count: how many candidates.
      seen: canonical vectors that are no longer wanted.
      random: of everything that chance decides.
    """
    if not count:
        return start[:0]
    vectors = decisions.everything()
    if vectors is None:
        size = max(_POPULATION, len(start))
        taken = set(map(tuple, start.tolist()))
        drawn = decisions.unseen(size - len(start), seen=taken, random=random)
        vectors, values = _meet(
            decisions,
            predict,
            np.concatenate([start, drawn]),
            generations=max(1, evaluations // size),
            seed=int(random.integers(2**31)),
        )
    else:
        values = predict(vectors)
    new = [tuple(vector) not in seen for vector in vectors.tolist()]
    return _first_fronts(vectors[new], values[new], count)


def _meet(decisions, predict, start, *, generations, seed):
    """Returns the different vectors that NSGA-II meets, and their predictions."""
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UX
    from pymoo.optimize import minimize

    met = []

    class Predicted(Problem):
        def _evaluate(self, vectors, out, *args, **kwargs):
            out["F"] = predict(vectors)
            met.append((vectors, out["F"]))

    # Options have no order here, and 2 of them none to speak of: polynomial mutation
    # would hardly ever leave the nearest integer, so decisions are drawn anew.
    algorithm = _nsga2(
        decisions,
        Population.new("X", start),
        crossover=UX(prob=0.9),
        mutation=_redraw(decisions),
    )
    problem = Predicted(**_bounds(decisions, predict(start[:1]).shape[1]))
    minimize(problem, algorithm, ("n_gen", generations), seed=seed)
    vectors, values = (np.concatenate(part) for part in zip(*met, strict=True))
    vectors, first = np.unique(vectors.astype(np.int64), axis=0, return_index=True)
    return vectors, values[first]


def _first_fronts(vectors, values, count) -> np.ndarray:
    chosen = vectors[:0]
    while len(vectors) and len(chosen) < count:
        best = front(values)
        kept = best[survive(values[best], count - len(chosen))]
        chosen = np.concatenate([chosen, vectors[kept]])
        vectors, values = (np.delete(part, best, axis=0) for part in (vectors, values))
    return chosen


def _bounds(decisions: Decisions, num_objectives: int) -> dict:
    return {
        "n_var": len(decisions.counts),
        "n_obj": num_objectives,
        "xl": 0,
        "xu": decisions.counts - 1,
        "vtype": int,
    }


def _nsga2(decisions: Decisions, population, *, crossover, mutation):
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.repair import Repair

    class Canonical(Repair):
        def _do(self, problem, vectors, **kwargs):
            vectors = np.clip(np.around(vectors), 0, decisions.counts - 1)
            return decisions.canonical(vectors)

    return NSGA2(
        pop_size=len(population),
        sampling=population,
        crossover=crossover,
        mutation=mutation,
        repair=Canonical(),
    )


def _redraw(decisions: Decisions):
    """A mutation that gives one decision in D another option."""
    from pymoo.core.mutation import Mutation

    class Redraw(Mutation):
        def _do(self, problem, vectors, *args, random_state=None, **kwargs):
            change = random_state.random(vectors.shape) < 1 / vectors.shape[1]
            steps = random_state.integers(
                1, np.maximum(decisions.counts, 2), vectors.shape
            )
            return np.where(change, (vectors + steps) % decisions.counts, vectors)

    return Redraw()
