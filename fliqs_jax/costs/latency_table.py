"""A file of measured latencies: contractions timed on one device, a CSV row each.

    device        who was measured; one a file
    op            the site's op: conv, dense, ...
    weight_shape  of the site's weights, 3x3x16x32
    input_size, output_size, macs   of one call and one example
    batch_size    examples computed at once
    weights, activations   names of the two formats
    latency_s     seconds for the batch; empty: the device does not execute it
    repetitions, spread   of the measurement; interquartile range over median
    executed_as   operand type of the compiled contraction, if known: f32, s8, ...
    remark        anything; why it is not executed, where latency_s is empty

The last four may be left out, other columns are ignored. `scripts/measure_latency.py`
writes such a file, `make_table_latency` turns it into a cost.
"""

import csv
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterable

from fliqs_jax.files import replace_text
from fliqs_jax.formats import parse_format
from fliqs_jax.sites import Site

_REQUIRED = (
    *("device", "op", "weight_shape", "input_size", "output_size", "macs"),
    *("batch_size", "weights", "activations", "latency_s"),
)
_OPTIONAL = ("repetitions", "spread", "executed_as", "remark")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contraction:
    """What decides how long a site takes, formats aside: one call, one example."""

    op: str
    weight_shape: tuple[int, ...]
    input_size: int  # elements
    output_size: int  # elements
    macs: int

    @classmethod
    def of(cls, site: Site) -> "Contraction":
        """Returns the contraction of a site; the mean one, if its calls differ.

        Example:
          >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=24,
          ...     weight_count=8, input_size=12, output_size=6, calls=3)
          >>> print(Contraction.of(site))
          dense 4x2, 4 -> 2 elements, 8 MACs
        """
        sizes = (site.input_size, site.output_size, site.macs)
        input_size, output_size, macs = (round(size / site.calls) for size in sizes)
        return cls(
            op=site.op,
            weight_shape=site.weight_shape,
            input_size=input_size,
            output_size=output_size,
            macs=macs,
        )

    def __str__(self) -> str:
        return (
            f"{self.op} {shape_text(self.weight_shape)}, {self.input_size} ->"
            f" {self.output_size} elements, {self.macs} MACs"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row: how long a contraction took in two formats."""

    contraction: Contraction
    batch_size: int
    weights: str  # format name
    activations: str  # format name
    latency_s: float | None  # for the batch; None: the device does not execute it
    repetitions: int = 0
    spread: float = 0.0  # interquartile range / median
    executed_as: str = ""  # operand type of the compiled contraction; "" is unknown
    remark: str = ""

    @property
    def key(self) -> tuple[Contraction, int, str, str]:
        """What was measured: a table holds each once."""
        return self.contraction, self.batch_size, self.weights, self.activations


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """The measurements of one device.

    Example:
      >>> dense = Contraction(
      ...     op="dense", weight_shape=(4, 2), input_size=4, output_size=2, macs=8)
      >>> row = Measurement(contraction=dense, batch_size=1, weights="int8",
      ...     activations="int8", latency_s=2e-6)
      >>> LatencyTable("chip", (row,)).batch_sizes
      (1,)
    """

    device: str
    rows: tuple[Measurement, ...]
    source: str = "table"  # for messages: the file it was read from

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes measured, ascending."""
        return tuple(sorted({row.batch_size for row in self.rows}))

    def extended(self, rows: Iterable[Measurement]) -> "LatencyTable":
        """Returns a table with further rows, which replace those of the same key."""
        merged = {row.key: row for row in (*self.rows, *rows)}
        return dataclasses.replace(self, rows=tuple(merged.values()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as CSV; all of the file or nothing of it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_REQUIRED + _OPTIONAL)
        for row in self.rows:
            what = row.contraction
            measured = row.latency_s is not None
            writer.writerow(
                [
                    *(self.device, what.op, shape_text(what.weight_shape)),
                    *(what.input_size, what.output_size, what.macs, row.batch_size),
                    *(row.weights, row.activations),
                    f"{row.latency_s:.6g}" if measured else "",
                    *(row.repetitions, f"{row.spread:.3g}"),
                    *(row.executed_as, row.remark),
                ]
            )
        replace_text(path, text.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LatencyTable":
        """Reads a table that `save` wrote, or that was written by hand like it.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: naming the file, the line, what is wrong and what would be right.
        """
        file = os.fspath(path)
        rows: dict[tuple, tuple[int, Measurement]] = {}
        devices: dict[str, int] = {}
        with open(file, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, restkey="", strict=True)
            missing = [c for c in _REQUIRED if c not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"latency table {file} lacks the columns {', '.join(missing)}: its"
                    f" first line must name {', '.join(_REQUIRED)}"
                )
            try:
                for fields in reader:
                    row = _parse(fields)
                    first, _ = rows.setdefault(row.key, (reader.line_num, row))
                    if first != reader.line_num:
                        raise ValueError(f"measures what line {first} does: keep one")
                    devices.setdefault(fields["device"], reader.line_num)
                    if len(devices) > 1:
                        raise ValueError(
                            f"device {fields['device']!r} is another than"
                            f" {next(iter(devices))!r}: one device a file"
                        )
            except (ValueError, csv.Error) as error:
                where = f"latency table {file}, line {reader.line_num}"
                raise ValueError(f"{where}: {error}") from None
        if not any(row.latency_s for _, row in rows.values()):
            raise ValueError(f"latency table {file} has no measured row")
        measured = tuple(row for _, row in rows.values())
        return cls(device=next(iter(devices)), rows=measured, source=file)


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns "3x3x16x32" for (3, 3, 16, 32)."""
    return "x".join(map(str, shape))


def _parse(fields: dict[str, str]) -> Measurement:
    if "" in fields or None in fields.values():
        count = sum(value is not None for key, value in fields.items() if key)
        count += len(fields.get("", ()))
        expected = len(fields) - ("" in fields)
        raise ValueError(f"{count} fields, where the first line names {expected}")
    for name in ("device", "op"):
        if not fields[name]:
            raise ValueError(f"{name} is empty")
    shape = fields["weight_shape"]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(f"weight_shape must be like 3x3x16x32, got {shape!r}")
    for name in ("weights", "activations"):
        parse_format(fields[name])
    remark = fields.get("remark", "")
    latency_s = None
    if fields["latency_s"]:
        latency_s = _number(fields, "latency_s", positive=True)
    elif not remark:
        raise ValueError(
            "latency_s is empty: give the seconds, or say in remark why the device does"
            " not execute it"
        )
    return Measurement(
        contraction=Contraction(
            op=fields["op"],
            weight_shape=tuple(map(int, shape.split("x"))),
            input_size=_count(fields, "input_size"),
            output_size=_count(fields, "output_size"),
            macs=_count(fields, "macs"),
        ),
        batch_size=_count(fields, "batch_size"),
        weights=fields["weights"],
        activations=fields["activations"],
        latency_s=latency_s,
        repetitions=int(_number(fields, "repetitions")),
        spread=_number(fields, "spread"),
        executed_as=fields.get("executed_as", ""),
        remark=remark,
    )


def _count(fields: dict[str, str], name: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", fields[name]):
        raise ValueError(f"{name} must be a whole number above 0, got {fields[name]!r}")
    return int(fields[name])


def _number(fields: dict[str, str], name: str, *, positive: bool = False) -> float:
    text = fields.get(name) or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and (value or not positive)):
        least = "above 0" if positive else "of 0 or more"
        raise ValueError(f"{name} must be a number {least}, got {text!r}")
    return value
