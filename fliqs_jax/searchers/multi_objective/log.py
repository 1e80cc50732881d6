"""The log of a multi-objective search: one CSV row an evaluation, safe to resume from.

Columns: for every decision `NAME:K` (K its number of options, the cell an option index
0...K-1), then for every objective its name (the value, so written that it reads back
exactly). A row is appended when its evaluation has finished; a last line that a killed
run left unfinished is dropped. Of several processes the main one reads and writes for
all.
"""

import csv
import io
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from fliqs_jax.files import replace_text
from fliqs_jax.searchers.multi_objective.decisions import Decisions, batched, select_new
from fliqs_jax.train import processes


def evaluate_new(
    vectors: Int[np.ndarray, "N D"],
    evaluate: Callable[[np.ndarray], ArrayLike],
    known: tuple[Int[np.ndarray, "K D"], Float[np.ndarray, "K M"]],
    *,
    batch_size: int | None = None,
) -> Float[np.ndarray, "N M"]:
    """Returns the values of canonical vectors, evaluating once what is not known.

    Example:
      >>> known = np.array([[0, 1]]), np.array([[5.0]])
      >>> evaluate_new(np.array([[0, 1], [1, 1]]), lambda v: v.sum(1)[:, None], known)
      array([[5.],
             [2.]])
    """
    found = dict(zip(map(tuple, known[0].tolist()), known[1], strict=True))
    missing = select_new(vectors, set(found), len(vectors))
    for part in batched(missing, batch_size):
        values = np.asarray(evaluate(part), np.float64)
        found |= zip(map(tuple, part.tolist()), values, strict=True)
    rows = [found[tuple(vector)] for vector in vectors.tolist()]
    return np.reshape(np.asarray(rows, np.float64), (len(vectors), known[1].shape[1]))


class SearchLog:
    """Reads and appends to the log of one space and its objectives.

    Args:
      path: the CSV file; it and its folder need not exist yet.
      decisions: the space.
      objectives: their names.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     log = SearchLog(f"{folder}/log.csv", Decisions([2, 3]), ["error"])
      ...     log.append(np.array([[1, 2]]), np.array([[0.1]]))
      ...     pathlib.Path(folder, "log.csv").read_text().split()
      ['decision_0:2,decision_1:3,error', '1,2,0.1']
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        decisions: Decisions,
        objectives: Sequence[str],
    ):
        self._path = pathlib.Path(path)
        self._decisions = decisions
        self._columns = [
            f"{name}:{count}"
            for name, count in zip(decisions.names, decisions.counts, strict=True)
        ] + list(objectives)

    def read(self) -> tuple[Int[np.ndarray, "N D"], Float[np.ndarray, "N M"]]:
        """Returns the logged vectors and objective values, none if there is no file.

        Raises:
          ValueError: if the log is of another space or other objectives, or a line of
            it (other than an unfinished last one) makes no sense.
        """
        return processes.on_main(self._read)

    def append(
        self, vectors: Int[np.ndarray, "N D"], values: Float[np.ndarray, "N M"]
    ) -> None:
        """Appends evaluations in one write that has reached the disk on return."""
        processes.on_main(lambda: self._append(vectors, values))

    def _read(self):
        width = len(self._decisions.counts)
        whole, _, torn = self._text().rpartition("\n")
        if not whole and not _line(self._columns).startswith(torn):
            self._check_columns(next(csv.reader([torn])))
        rows = list(csv.reader(io.StringIO(whole)))
        if rows:
            self._check_columns(rows[0])
        vectors, values = [], []
        for line, row in enumerate(rows[1:], start=2):
            try:
                vector, point = (
                    [int(x) for x in row[:width]],
                    [*map(float, row[width:])],
                )
            except ValueError as error:
                raise ValueError(f"log {self._path}, line {line}: {error}") from error
            if len(row) != len(self._columns) or not np.isfinite(point).all():
                raise ValueError(
                    f"log {self._path}, line {line}: expected {len(self._columns)}"
                    f" finite numbers, got {row}. Remove the line to evaluate it again"
                )
            vectors.append(vector)
            values.append(point)
        shape = (-1, len(self._columns) - width)
        return (
            self._decisions.check(vectors, role=f"log {self._path}"),
            np.asarray(values, np.float64).reshape(shape),
        )

    def _append(self, vectors, values):
        text = self._text()
        whole, _, torn = text.rpartition("\n")
        if not whole:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._path, _line(self._columns))
        elif torn:
            replace_text(self._path, whole + "\n")
        lines = [
            _line([*vector, *map(repr, point)])
            for vector, point in zip(vectors.tolist(), values.tolist(), strict=True)
        ]
        with open(self._path, "ab", buffering=0) as file:
            file.write("".join(lines).encode())
            os.fsync(file.fileno())

    def evaluated(
        self,
        vectors: Int[np.ndarray, "N D"],
        evaluate: Callable[[np.ndarray], ArrayLike],
        *,
        known: tuple[np.ndarray, np.ndarray] | None = None,
        batch_size: int | None = None,
    ) -> Float[np.ndarray, "N M"]:
        """Returns the values of vectors, evaluating and logging what is new alone.

        Args:
          vectors: any of the space, also twice.
          evaluate: from vectors [N, D] to values [N, M].
          known: vectors and values that are not in the log, but need no evaluation.
          batch_size: vectors handed to `evaluate` at once, after which the log is
            written; None is all.
        """
        canonical = self._decisions.canonical

        def logged(part):
            values = np.asarray(evaluate(part), np.float64)
            self.append(part, values)
            return values

        have, had = self.read()
        if known is not None:
            have = np.concatenate([have, canonical(known[0])])
            had = np.concatenate([had, known[1]])
        return evaluate_new(
            canonical(vectors), logged, (have, had), batch_size=batch_size
        )

    def _text(self) -> str:
        return self._path.read_text("utf-8") if self._path.exists() else ""

    def _check_columns(self, columns: list[str]) -> None:
        if columns == self._columns:
            return
        pairs = zip(columns, self._columns, strict=False)
        differing = [f"{a!r} for {b!r}" for a, b in pairs if a != b]
        first = f", the first difference {differing[0]}" if differing else ""
        raise ValueError(
            f"log {self._path} is of another search: it has {len(columns)} columns,"
            f" this space and its objectives need {len(self._columns)}{first}. Choose"
            " another file, or the space and objectives that it was written for"
        )


def _line(cells: Sequence) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
