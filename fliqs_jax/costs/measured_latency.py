"""Latency from a measured table: which row prices a site, and what lies between.

What a row means and how it is stored is in `latency_table`; the latency that data
sheets promise is in `latency`. Only contractions are timed: rounding inputs, scales and
everything between the sites come on top.
"""

import functools
import math
from collections.abc import Iterable

import numpy as np
import scipy.optimize

from fliqs_jax.costs.latency_table import Contraction, LatencyTable, shape_text
from fliqs_jax.costs.policy_cost import FormatCost, storage_bits
from fliqs_jax.formats import Format, parse_format
from fliqs_jax.sites import Site

_Pair = tuple[str, str]  # formats of weights and input


def make_table_latency(
    table: LatencyTable, *, batch_size: int | None = None
) -> FormatCost:
    r"""Returns the measured latency of a site as a cost function, in seconds.

    A cost of formats, not of widths: int8 and e4m3 share a width, but not a speed.

    Formats: a pair of formats runs as the narrowest measured pair of the op that holds
    its values. Integers (of either sign) run as integers of as many bits, else as
    floats of as many significant bits; floats as floats with no fewer exponent and
    mantissa bits. So int4 runs as int8, int8 weights with bf16 inputs as bf16, and int8
    itself as bf16 where the device does not execute int8. The device may be slower
    there: what was measured is what is charged.

    Sizes: a contraction in the table costs what was measured. Any other lies on a curve
    through those of the same op, formats and batch size (for convolutions also of the
    same window, one-channel filters apart):

    .. math:: \log t = f(\log \mathrm{MACs})

    f is piecewise linear through the mean of log t at each size, made non-decreasing by
    isotonic regression. Outside the sizes measured a site is refused: nothing is
    extrapolated. A site called n times costs n times its mean call.

    Args:
      table: measured on one device.
      batch_size: examples computed at once; None takes the table's only one.

    Raises:
      ValueError: if the table has not this batch size, or several and none is chosen.
        The cost function raises it for a site whose op, formats or size the table
        cannot price, naming the site, what was asked, what is there, and the cure.

    Reference:
      Barlow et al., Statistical Inference under Order Restrictions, 1972 (isotonic
      regression)

    Example:
      >>> from fliqs_jax.costs.latency_table import Measurement
      >>> rows = [Measurement(contraction=Contraction(op="dense", weight_shape=(n, n),
      ...     input_size=n, output_size=n, macs=n * n), batch_size=1, weights="int8",
      ...     activations="int8", latency_s=s) for n, s in [(10, 1.0), (1000, 4.0)]]
      >>> cost = make_table_latency(LatencyTable("chip", tuple(rows)))
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(100, 100), macs=10000,
      ...     weight_count=10000, input_size=100, output_size=100)
      >>> round(cost.function(site, "int4", "int8"), 9)  # half way in log MACs
      2.0
    """
    batch_size = _chosen_batch_size(table, batch_size)
    measured: dict[str, dict[_Pair, dict[Contraction, float]]] = {}
    refused: set[tuple[Contraction, _Pair]] = set()  # by the device
    for row in table.rows:
        what, pair = row.contraction, (row.weights, row.activations)
        if row.batch_size != batch_size:
            continue
        if row.latency_s is None:
            refused.add((what, pair))
        else:
            measured.setdefault(what.op, {}).setdefault(pair, {})[what] = row.latency_s
    where = f"latency table {table.source} ({table.device!r}, batch {batch_size})"

    @functools.cache
    def executed(asked: Contraction, weights: str, activations: str) -> _Pair | None:
        pairs = [pair for pair in measured[asked.op] if (asked, pair) not in refused]
        return _narrowest(pairs, weights, activations)

    @functools.cache
    def curve(op: str, pair: _Pair, family: tuple) -> tuple[np.ndarray, np.ndarray]:
        times = measured[op][pair]
        return _monotone({c: t for c, t in times.items() if _family(c) == family})

    def site_latency(site: Site, weights: str, activations: str) -> float:
        asked, op = Contraction.of(site), site.op
        start = f"site {site.path!r} ({asked}): {where} has no"
        if op not in measured:
            raise ValueError(
                f"{start} op {op!r}, only {', '.join(sorted(measured))}."
                f" {_cure(batch_size)}"
            )
        pair = executed(asked, weights, activations)
        if pair is None:
            raise ValueError(
                f"{start} pair of formats for {op} that holds {weights} weights and"
                f" {activations} inputs, only {_listed(measured[op])}"
                f"{_remark(what for what in refused if what[0].op == op)}. Measure a"
                " wider one, or drop the format"
            )
        latency_s = measured[op][pair].get(asked)
        if latency_s is None:
            family = _family(asked)
            sizes, times = curve(op, pair, family)
            if not (len(sizes) and sizes[0] <= asked.macs <= sizes[-1]):
                span = f"{sizes[0]} to {sizes[-1]} MACs" if len(sizes) else "none"
                raise ValueError(
                    f"{start} such size as {'/'.join(pair)}, and nothing is"
                    f" extrapolated: of its kind ({_kind(family)}) it has {span}."
                    f" {_cure(batch_size)}"
                )
            between = np.interp(math.log(asked.macs), np.log(sizes), np.log(times))
            latency_s = math.exp(between)
        return site.calls * latency_s

    return FormatCost(site_latency, "latency")


def _chosen_batch_size(table: LatencyTable, batch_size: int | None) -> int:
    known = table.batch_sizes
    if batch_size is None and len(known) == 1:
        return known[0]
    if batch_size not in known:
        raise ValueError(
            f"batch_size must be one of those in latency table {table.source},"
            f" {', '.join(map(str, known))}, got {batch_size}"
        )
    return batch_size


def _narrowest(pairs: Iterable[_Pair], weights: str, activations: str) -> _Pair | None:
    """The narrowest pair that holds both formats; of equal ones the most alike."""
    asked = (weights, activations)
    holding = [pair for pair in pairs if all(map(_holds, pair, asked))]

    def rank(pair: _Pair) -> tuple:
        bits = [storage_bits(name) for name in pair]
        both = list(zip(pair, asked, strict=True))
        kinds = sum(_is_integer(_parse(x)) != _is_integer(_parse(y)) for x, y in both)
        return max(bits), sum(bits), kinds, sum(x != y for x, y in both), pair

    return min(holding, key=rank, default=None)


_parse = functools.lru_cache(maxsize=1024)(parse_format)


def _holds(wide: str, narrow: str) -> bool:
    """Whether one format has every value of another, up to scale and zero point."""
    outer, inner = _parse(wide), _parse(narrow)
    if _is_integer(outer):
        return _is_integer(inner) and storage_bits(narrow) <= storage_bits(wide)
    if _is_integer(inner):
        return storage_bits(narrow) <= int(outer.mantissa_bits) + 1
    fits = _exponent_bits(inner) <= _exponent_bits(outer)
    return fits and int(inner.mantissa_bits) <= int(outer.mantissa_bits)


def _is_integer(fmt: Format) -> bool:
    # An integer's whole range lies in its subnormal binade.
    return bool(fmt.max_value < 2.0 ** int(fmt.min_exponent))


def _exponent_bits(fmt: Format) -> int:
    return int(fmt.storage_bits) - 1 - int(fmt.mantissa_bits)


def _family(contraction: Contraction) -> tuple:
    """What must be equal for MACs to tell which of two contractions takes longer."""
    if not contraction.op.startswith("conv"):
        return (contraction.op,)
    *window, inputs, _ = contraction.weight_shape
    return contraction.op, tuple(window), inputs == 1


def _kind(family: tuple) -> str:
    op, *rest = family
    if not rest:
        return op
    window, one_channel = rest
    return f"{op} {shape_text(window)}{', one channel a filter' * one_channel}"


def _monotone(
    times: dict[Contraction, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending MACs, and non-decreasing seconds that fit the logarithms best."""
    logs: dict[int, list[float]] = {}
    for contraction, latency_s in times.items():
        logs.setdefault(contraction.macs, []).append(math.log(latency_s))
    sizes = sorted(logs)
    if not sizes:
        return np.array([], np.int64), np.array([])
    means = [math.fsum(logs[size]) / len(logs[size]) for size in sizes]
    counts = [len(logs[size]) for size in sizes]
    fit = scipy.optimize.isotonic_regression(means, weights=counts)
    return np.array(sizes), np.exp(fit.x)


def _listed(pairs: Iterable[_Pair]) -> str:
    return ", ".join(sorted("/".join(pair) for pair in pairs))


def _remark(refused: Iterable[tuple[Contraction, _Pair]]) -> str:
    pairs = {pair for _, pair in refused}
    return f" (not executed: {_listed(pairs)})" if pairs else ""


def _cure(batch_size: int) -> str:
    return (
        "Add this network to the table: python scripts/measure_latency.py"
        f" --model=NAME --batch_size={batch_size}"
    )
