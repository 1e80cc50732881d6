"""The loop that multi-objective searches share: propose, evaluate, log, resume.

A method is a function that proposes the next generation from all that is known; what it
draws at random comes from the seed and the generation's number alone, so that a resumed
search proposes what the uninterrupted one would have.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from fliqs_jax.searchers.multi_objective.decisions import (
    Active,
    Decisions,
    Space,
    batched,
    new_rows,
    select_new,
)
from fliqs_jax.searchers.multi_objective.limits import behind, limit_array
from fliqs_jax.searchers.multi_objective.log import SearchLog
from fliqs_jax.searchers.multi_objective.pareto import front

# Maps integer vectors [N, D] to objective values [N, M], all minimised.
Evaluate = Callable[[np.ndarray], ArrayLike]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParetoResult:
    """What a multi-objective search evaluated, in the order of evaluation."""

    vectors: Int[np.ndarray, "N D"]  # dead decisions are 0; no row occurs twice
    values: Float[np.ndarray, "N M"]  # all minimised
    objectives: tuple[str, ...]  # names of the columns of `values`
    num_known: int  # leading rows that were given as `known`, not evaluated here
    exhausted: bool  # the space had no further vectors, so the search ended early

    @property
    def front(self) -> Int[np.ndarray, "F"]:
        """Indices of the rows that no other row dominates, ascending."""
        return front(self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """All evaluations before a generation, in order, and the generation's chance."""

    decisions: Decisions
    vectors: Int[np.ndarray, "N D"]
    values: Float[np.ndarray, "N M"]
    limits: Float[np.ndarray, "M"]
    num_known: int  # leading rows that belong to no generation
    population: int  # rows of every generation
    random: np.random.Generator

    def ranked(self, values: Float[np.ndarray, "K M"]) -> Float[np.ndarray, "K M"]:
        """Returns values, of any candidates, as selection is to see them."""
        return behind(values, self.limits, self.values)

    def seen(self) -> set[tuple[int, ...]]:
        """Returns the vectors as tuples."""
        return set(map(tuple, self.vectors.tolist()))


# Returns candidates [*, D], best first. Those known already are dropped, and what then
# lacks is drawn at random.
Propose = Callable[[History], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What all methods are told alike; the fields are explained in `linas.search`."""

    space: Space
    evaluate: Evaluate
    objectives: Sequence[str]
    evaluations: int = 250
    population: int = 50
    seed: int = 0
    active: Active | None = None
    initial: Sequence | np.ndarray = ()
    known: tuple[Sequence | np.ndarray, Sequence | np.ndarray] = ((), ())
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    log: str | os.PathLike[str] | None = None
    batch_size: int | None = None
    say: Callable[[str], None] = print

    @functools.cached_property
    def decisions(self) -> Decisions:
        """The decisions of the space."""
        return Decisions(self.space, self.active)

    def __post_init__(self):
        names = list(self.objectives)
        if isinstance(self.objectives, str) or not names:
            raise ValueError(
                "objectives must be a sequence of one name or more, got"
                f" {self.objectives!r}"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"objectives must have different names, got {names}")
        least = {"evaluations": 1, "population": 2, "seed": 0, "batch_size": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")


def run_search(propose: Propose, run: Run) -> ParetoResult:
    """Runs a method until its evaluations are spent or the space is exhausted.

    Raises:
      ValueError: as `linas.search`.
    """
    decisions, population = run.decisions, run.population
    limits = limit_array(run.limits, run.objectives)
    initial = decisions.canonical(decisions.check(run.initial, role="initial"))
    log = run.log and SearchLog(run.log, decisions, run.objectives)
    vectors, values, num_known = _past(run, log)
    done = len(vectors) - num_known
    if done:
        run.say(f"{done} evaluations read from {run.log}")
    exhausted = False
    while done < run.evaluations and not exhausted:
        generation = done // population
        before = num_known + generation * population
        history = History(
            decisions=decisions,
            vectors=vectors[:before],
            values=values[:before],
            limits=limits,
            num_known=num_known,
            population=population,
            random=np.random.default_rng([run.seed, generation]),
        )
        batch = _next_generation(propose, history, initial)
        # A generation that was begun: what is missing of it.
        begun = set(map(tuple, vectors[before:].tolist()))
        lacking = population - len(begun)
        exhausted = len(batch) < population
        batch = select_new(batch, begun, min(lacking, run.evaluations - done))
        for part in batched(batch, run.batch_size):
            measured = _evaluate(run, part, log)
            vectors = np.concatenate([vectors, part])
            values = np.concatenate([values, measured])
        done = len(vectors) - num_known
    exhausted = done < run.evaluations
    if exhausted:
        run.say(
            f"the space has no further vectors: ended after {done} of"
            f" {run.evaluations} evaluations"
        )
    return ParetoResult(
        vectors=vectors,
        values=values,
        objectives=tuple(run.objectives),
        num_known=num_known,
        exhausted=exhausted,
    )


def _next_generation(propose: Propose, history: History, initial) -> np.ndarray:
    """The initial vectors still to do, the method's candidates, then random ones."""
    seen, count = history.seen(), history.population
    batch = select_new(initial, seen, count)
    if len(batch) < count:
        batch = select_new(np.concatenate([batch, propose(history)]), seen, count)
    seen |= set(map(tuple, batch.tolist()))
    rest = history.decisions.unseen(
        count - len(batch), seen=seen, random=history.random
    )
    return np.concatenate([batch, rest])


def _past(run: Run, log: SearchLog | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Known rows, then logged ones, without repetitions; and how many are known."""
    given, given_values = run.known
    given = run.decisions.check(given, role="known vectors")
    shape = (len(given), len(run.objectives))
    given_values = np.asarray(given_values, np.float64)
    if given_values.shape != shape and given_values.size + len(given):
        raise ValueError(
            f"known values must have shape {list(shape)}, got"
            f" {list(given_values.shape)}"
        )
    given_values = given_values.reshape(shape)
    _check_finite(run, given, given_values, source="known")
    logged, logged_values = log.read() if log else (given[:0], given_values[:0])
    logged, logged_values, own = _distinct(run.decisions, logged, logged_values, set())
    given, given_values, _ = _distinct(run.decisions, given, given_values, own)
    return (
        np.concatenate([given, logged]),
        np.concatenate([given_values, logged_values]),
        len(given),
    )


def _distinct(decisions: Decisions, vectors, values, taken):
    """The rows whose canonical vector is new, and all of them as tuples."""
    vectors = decisions.canonical(vectors)
    kept = new_rows(vectors, taken, len(vectors))
    return vectors[kept], values[kept], set(map(tuple, vectors[kept].tolist()))


def _evaluate(run: Run, vectors: np.ndarray, log: SearchLog | None) -> np.ndarray:
    """Evaluates and logs one batch."""
    try:
        values = run.evaluate(vectors.copy())
    except Exception as error:
        error.add_note(
            f"in evaluate, on {len(vectors)} vectors beginning with"
            f" {vectors[0].tolist()} (batch_size=1 hands them over one by one)"
        )
        raise
    values = np.asarray(values, np.float64)
    shape = (len(vectors), len(run.objectives))
    if values.shape != shape:
        raise ValueError(
            f"evaluate must return shape {list(shape)}, one row a vector and one column"
            f" for each of {list(run.objectives)}, got {list(values.shape)}"
        )
    if log:
        good = np.isfinite(values).all(axis=1)
        first_bad = len(values) if good.all() else int(good.argmin())
        log.append(vectors[:first_bad], values[:first_bad])
    _check_finite(run, vectors, values, source="evaluate")
    return values


def _check_finite(run: Run, vectors, values, *, source: str) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{source}: {run.objectives[column]!r} of {vectors[row].tolist()} is"
            f" {values[row, column]}, but must be finite: give a failed candidate the"
            " worst value that you would accept"
        )
