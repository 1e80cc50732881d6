"""A table of NAS-Bench-201's cells: what training, or a device, made of each.

A CSV file, a row each cell, in any order and not necessarily all of them. Its columns:

    index           of the cell, in the benchmark's order   } one of the two,
    architecture    the cell as the benchmark writes it     } or both alike
    parameters, macs    of the network
    latency_ms_DEVICE, energy_mj_DEVICE    measured, an example at a time
    *valid*accuracy*    in percent, on validation data: what a search may look at
    anything else       numbers to judge by, test accuracies above all

A field that is empty has no value; nor has a latency or energy of -1, as tables write
where a network did not compile.

A search reads by `search_values`, which knows parameters, MACs, latencies, energies and
validation accuracies, and refuses every other column. What has been found is judged by
`judged_values`, which reads all of them.
"""

import csv
import dataclasses
import difflib
import math
import os
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float64

from fliqs_jax.models.cells.nasbench201 import (
    NASBENCH201_SIZE,
    nasbench201_index,
    nasbench201_string,
)

_NAMES = ("index", "architecture")
_COUNTS = ("parameters", "macs")
_MEASURED = ("latency_ms_", "energy_mj_")


@dataclasses.dataclass(frozen=True, eq=False)
class ArchitectureTable:
    """Columns of numbers over the 15,625 cells, by index; NaN where there is none.

    Example:
      >>> table = ArchitectureTable(
      ...     {"macs": np.arange(15_625.0), "test_accuracy": np.full(15_625, 10.0)})
      >>> table.search_values("macs")[:3].tolist()
      [0.0, 1.0, 2.0]
      >>> table.judged_value(9, "test_accuracy")
      10.0
    """

    _columns: dict[str, Float64[np.ndarray, "N"]]
    source: str = "table"  # for messages: the file it was read from

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, without those that name the cell."""
        return tuple(self._columns)

    @property
    def search_columns(self) -> tuple[str, ...]:
        """Names of the columns that a search may read."""
        return tuple(name for name in self._columns if _may_be_searched(name))

    def search_values(self, column: str) -> Float64[np.ndarray, "N"]:
        """Returns a column that a search may read, by index; NaN where it is empty.

        Raises:
          ValueError: if there is no such column, or it is one to judge by.
        """
        values = self._column(column)
        if not _may_be_searched(column):
            allowed = ", ".join(self.search_columns) or "none of this table"
            raise ValueError(
                f"column {column!r} of {self.source} is for judging what was found, not"
                f" for searching: a search may read {allowed}. judged_values reads it"
            )
        return values

    def search_value(self, cell: SupportsIndex | str, column: str) -> float:
        """Returns what a column that a search may read says of one cell.

        Args:
          cell: index or string.
          column: one of `search_columns`.

        Raises:
          ValueError: if there is no such column or cell, if the column is one to judge
            by, or is empty for the cell.
        """
        return self._value(cell, column, self.search_values(column))

    def judged_values(self, column: str) -> Float64[np.ndarray, "N"]:
        """Returns any column, by index: to judge what was found, and for an oracle.

        Raises:
          ValueError: if there is no such column.
        """
        return self._column(column)

    def judged_value(self, cell: SupportsIndex | str, column: str) -> float:
        """Returns what any column says of one cell, found already.

        Raises:
          ValueError: if there is no such column or cell, or the column is empty for it.
        """
        return self._value(cell, column, self.judged_values(column))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ArchitectureTable":
        """Reads a table; its columns are described above.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: naming the file, the line, what is wrong and what would be right.
        """
        file = os.fspath(path)
        with open(file, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, restkey="", strict=True)
            header = tuple(reader.fieldnames or ())
            names = tuple(name for name in header if name not in _NAMES)
            if len(names) == len(header) or not names:
                raise ValueError(
                    f"architecture table {file}: its first line must name index or"
                    f" architecture, and a column of numbers, got {', '.join(header)!r}"
                )
            columns = {name: np.full(NASBENCH201_SIZE, np.nan) for name in names}
            lines: dict[int, int] = {}
            try:
                for fields in reader:
                    index = _index(fields)
                    first = lines.setdefault(index, reader.line_num)
                    if first != reader.line_num:
                        raise ValueError(f"cell {index} is in line {first}: keep one")
                    for name in names:
                        columns[name][index] = _number(fields, name)
            except (ValueError, csv.Error) as error:
                where = f"architecture table {file}, line {reader.line_num}"
                raise ValueError(f"{where}: {error}") from None
        if not lines:
            raise ValueError(f"architecture table {file} has no row below its header")
        for values in columns.values():
            values.flags.writeable = False
        return cls(columns, file)

    def _column(self, name: str) -> Float64[np.ndarray, "N"]:
        if name not in self._columns:
            ranked = sorted(self._columns, key=lambda other: -_likeness(name, other))
            raise ValueError(
                f"{self.source} has no column {name!r}: its columns are"
                f" {', '.join(ranked)}"
            )
        return self._columns[name]

    def _value(self, cell, column, values) -> float:
        index = nasbench201_index(cell)
        value = float(values[index])
        if math.isnan(value):
            known = int(np.isfinite(values).sum())
            raise ValueError(
                f"{self.source} has no {column} of cell {index},"
                f" {nasbench201_string(index)}: {known:,} of {NASBENCH201_SIZE:,} cells"
                " have one"
            )
        return value


def _may_be_searched(column: str) -> bool:
    # What is not known to be harmless is refused: "top1" may well be of the test set.
    validated = "valid" in column and "accuracy" in column and "test" not in column
    return validated or column in _COUNTS or column.startswith(_MEASURED)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _index(fields: dict[str, str]) -> int:
    if "" in fields or None in fields.values():
        count = sum(value is not None for key, value in fields.items() if key)
        count += len(fields.get("", ()))
        expected = len(fields) - ("" in fields)
        raise ValueError(f"{count} fields, where the first line names {expected}")
    text = fields.get("index")
    if text is not None:
        if not text.isdecimal():
            raise ValueError(f"index must be a whole number from 0, got {text!r}")
        index = nasbench201_index(int(text))
        named = fields.get("architecture")
        if named is None or nasbench201_index(named) == index:
            return index
        raise ValueError(
            f"index {index} is {nasbench201_string(index)} in the benchmark's order,"
            f" but the row's architecture is {named}, {nasbench201_index(named)}"
        )
    return nasbench201_index(fields["architecture"])


def _number(fields: dict[str, str], name: str) -> float:
    text = fields[name]
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a number or empty, got {text!r}")
    return math.nan if value == -1 and name.startswith(_MEASURED) else value
