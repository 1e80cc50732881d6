"""The space of a multi-objective search: how many options each decision has.

Vectors are integers [N, D], one option index a decision. Dead decisions (those without
effect in this vector, such as the formats of a layer that is left out) are set to 0, so
that vectors which mean the same are the same.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from fliqs_jax.search_space import SearchSpace

Space = Sequence[int] | Mapping[str, int] | np.ndarray | SearchSpace
# int[N, D] -> bool[N, D], False where a decision has no effect in this vector
Active = Callable[[np.ndarray], np.ndarray]

_ENUMERABLE = 65_536  # vectors; no larger spaces are listed
_DRAWS, _ROUNDS = 1024, 64  # at a time; rounds without anything new before giving up


class Decisions:
    """The decisions of a search, their options, and which of them matter when.

    Args:
      space: options per decision, as a sequence of counts, a mapping from name to
        count, or a `SearchSpace`.
      active: tells which decisions of each vector have an effect; None is all. It may
        only depend on decisions that have one.

    Attributes:
      counts: int[D], the number of options of each decision.
      names: of the decisions; "decision_0", ... where the space has none.

    Raises:
      ValueError: if there is no decision, or one without options.

    Example:
      >>> space = Decisions([2, 3], active=lambda v: np.c_[v[:, 0] >= 0, v[:, 0] > 0])
      >>> space.canonical([[1, 2], [0, 2]]).tolist()
      [[1, 2], [0, 0]]
      >>> space.unseen(9, seen=set(), random=np.random.default_rng(0)).shape
      (4, 2)
    """

    def __init__(self, space: Space, active: Active | None = None):
        if isinstance(space, SearchSpace):
            names = space.decision_names
            counts = [space.num_options] * space.num_decisions
        elif isinstance(space, Mapping):
            names, counts = tuple(space), list(space.values())
        else:
            counts = list(space)
            names = tuple(f"decision_{number}" for number in range(len(counts)))
        if not counts or any(int(count) != count or count < 1 for count in counts):
            raise ValueError(
                "space must be a sequence of option counts, each a whole number from"
                f" 1 up, got {counts!r}"
            )
        self.names = names
        self.counts = np.asarray(counts, np.int64)
        self._active = active
        self._everything = None  # listed once asked for

    def check(self, vectors, *, role: str) -> Int[np.ndarray, "N D"]:
        """Returns vectors as an int64 array if all are of this space.

        Raises:
          ValueError: if the shape is not [N, D], or an option is no integer or outside
            [0, K); `role` says whose vectors these are.
        """
        vectors = np.asarray(vectors)
        if vectors.size == 0:
            return np.empty((0, len(self.counts)), np.int64)
        if vectors.ndim != 2 or vectors.shape[1] != len(self.counts):
            raise ValueError(
                f"{role} must have shape [N, {len(self.counts)}], one row a candidate"
                f" and one option a decision, got {list(vectors.shape)}"
            )
        if not np.issubdtype(vectors.dtype, np.integer):
            raise ValueError(f"{role} must be integers, got {vectors.dtype}")
        outside = np.argwhere((vectors < 0) | (vectors >= self.counts))
        if len(outside):
            row, column = outside[0]
            raise ValueError(
                f"{role}, row {row}: option {vectors[row, column]} of"
                f" {self.names[column]!r} is outside 0...{self.counts[column] - 1}"
            )
        return vectors.astype(np.int64)

    def active(self, vectors: Int[np.ndarray, "N D"]) -> Bool[np.ndarray, "N D"]:
        """Returns where decisions have an effect.

        Raises:
          ValueError: if the caller's function gives another shape.
        """
        if self._active is None:
            return np.ones(vectors.shape, bool)
        found = np.asarray(self._active(vectors.copy()))
        if found.shape != vectors.shape:
            raise ValueError(
                f"active must return bool{list(vectors.shape)}, one value a decision of"
                f" each vector, got shape {list(found.shape)}"
            )
        return found.astype(bool)

    def canonical(self, vectors) -> Int[np.ndarray, "N D"]:
        """Returns the vectors with dead decisions at 0.

        Raises:
          ValueError: if that changes which decisions are dead.
        """
        vectors = np.asarray(vectors, np.int64)
        found = self.active(vectors)
        canonical = np.where(found, vectors, 0)
        if self._active is not None:
            moved = np.argwhere(self.active(canonical) != found)
            if len(moved):
                row, column = moved[0]
                raise ValueError(
                    f"active: whether {self.names[column]!r} has an effect in"
                    f" {vectors[row].tolist()} changes when the dead decisions are set"
                    " to 0; it may depend on live decisions only"
                )
        return canonical

    def everything(self) -> Int[np.ndarray, "N D"] | None:
        """Returns all canonical vectors, or None if the space is too large to list."""
        if np.prod(self.counts.astype(float)) > _ENUMERABLE:
            return None
        if self._everything is None:
            grid = np.indices(self.counts).reshape(len(self.counts), -1).T
            self._everything = np.unique(self.canonical(grid), axis=0)
        return self._everything

    def unseen(
        self, count: int, *, seen: set[tuple[int, ...]], random: np.random.Generator
    ) -> Int[np.ndarray, "M D"]:
        """Draws up to `count` different canonical vectors that are not in `seen`.

        Fewer come back only if the space has no more. (A space too large to list counts
        as exhausted when 65,536 draws in a row bring nothing new.)

        Args:
          count: how many are wanted.
          seen: canonical vectors as tuples.
          random: a generator; the result depends on its state alone.
        """
        taken = set(seen)
        everything = self.everything()
        if everything is not None:
            return select_new(random.permutation(everything), taken, count)
        found, barren = np.empty((0, len(self.counts)), np.int64), 0
        while len(found) < count and barren < _ROUNDS:
            drawn = random.integers(self.counts, size=(_DRAWS, len(self.counts)))
            new = select_new(self.canonical(drawn), taken, count - len(found))
            taken.update(map(tuple, new.tolist()))
            found = np.concatenate([found, new])
            barren = 0 if len(new) else barren + 1
        return found


def select_new(
    vectors: Int[np.ndarray, "N D"], taken: set[tuple[int, ...]], count: int
) -> Int[np.ndarray, "M D"]:
    """Returns the first `count` rows that are neither in `taken` nor earlier rows.

    Example:
      >>> select_new(np.array([[1, 0], [0, 1], [1, 0], [1, 1]]), {(0, 1)}, 2).tolist()
      [[1, 0], [1, 1]]
    """
    return vectors[new_rows(vectors, taken, count)]


def new_rows(
    vectors: Int[np.ndarray, "N D"], taken: set[tuple[int, ...]], count: int
) -> list[int]:
    """Returns the numbers of the rows that `select_new` takes."""
    rows: dict[tuple[int, ...], int] = {}
    for number, vector in enumerate(map(tuple, vectors.tolist())):
        if len(rows) == count:
            break
        if vector not in taken:
            rows.setdefault(vector, number)
    return list(rows.values())


def batched(
    vectors: Int[np.ndarray, "N D"], size: int | None
) -> list[Int[np.ndarray, "B D"]]:
    """Returns the vectors in batches of a size, the last one smaller; None is all."""
    size = size or max(1, len(vectors))
    return [vectors[start : start + size] for start in range(0, len(vectors), size)]
