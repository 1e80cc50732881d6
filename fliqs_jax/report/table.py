"""The result as plain text for a terminal: formats by site, uniform policies beside.

Fits 80 to 100 columns; a model with many sites is folded, never cut off in silence.
"""

import math
import re
from collections.abc import Mapping, Sequence

from fliqs_jax.checks import check_at_least
from fliqs_jax.report.records import Run, SiteRecord
from fliqs_jax.report.words import (
    SHARED_COSTS,
    budget_verdict,
    cost_fraction,
    cost_share,
    count,
    percent,
    shorten,
    uniform_name,
)
from fliqs_jax.sites import Site

_HEADER = ("site", "op", "weights", "MACs", "format w / in")
_SMALLEST_WIDTH = 60  # below it nothing would be left of the paths


def sites_table(
    sites: Sequence[Site | SiteRecord],
    policy: Mapping[str, tuple[str, str]],
    *,
    cost: str = "bops",
    width: int = 96,
    max_rows: int = 40,
) -> str:
    """Returns the table of sites with their formats and shares of the cost.

    With more than `max_rows` sites, those alike in all but the numbers of their path
    (same operation, weight shape and formats) become one row that says how many they
    are; if there are still too many, the cheapest are summed up in the last row.

    Args:
      sites: Site or SiteRecord values, in the order to print.
      policy: site path -> (weight format, input format).
      cost: as --cost names it: what the last column is a share of. Of one that only
        its own function knows, bit operations stand in, and the column says so.
      width: columns at most, at least 60.
      max_rows: rows at most, at least 2.

    Returns:
      Lines without trailing blanks, none longer than `width`.

    Raises:
      ValueError: if `width` is under 60 or `max_rows` under 2.

    Example:
      >>> site = SiteRecord(path="Conv_0", op="conv", weight_shape=(3, 3, 3, 16),
      ...     macs=442_368, weight_count=432)
      >>> print(sites_table([site], {"Conv_0": ("int4", "uint4")}))
      site    op    weights    MACs  format w / in     cost
      ------  ----  --------  -----  -------------  -------
      Conv_0  conv  3×3×3×16  442 k  int4 / uint4   100.0 %
      ------  ----  --------  -----  -------------  -------
      1 site        432       442 k                 100.0 %
    """
    if width < _SMALLEST_WIDTH:
        raise ValueError(
            f"width must be at least {_SMALLEST_WIDTH} columns, got {width}"
        )
    check_at_least(2, max_rows=max_rows)
    shares = cost_share(sites, policy, cost)
    groups = [[site] for site in sites]
    if len(groups) > max_rows:
        groups = _alike(sites, policy)
    rest = []
    if len(groups) > max_rows:
        dearest = sorted(groups, key=lambda g: -_group_share(g, shares))[: max_rows - 1]
        kept = {id(group) for group in dearest}
        rest = [group for group in groups if id(group) not in kept]
        groups = [group for group in groups if id(group) in kept]
    rows = [_row(group, policy, shares) for group in groups]
    if rest:
        merged = [site for group in rest for site in group]
        rows.append((f"… {len(merged)} cheaper sites", *_sums(merged, shares)))
    noun = "site" if len(sites) == 1 else "sites"
    total = (f"{len(sites)} {noun}", *_sums(sites, shares))
    header = (*_HEADER, "cost" if cost in SHARED_COSTS else "bit operations")
    return _layout(header, rows, total, width)


def comparison_table(run: Run) -> str:
    """Returns accuracy and cost of the run's policy among the uniform ones.

    Args:
      run: with a summary; without one the table is empty text.

    Returns:
      Lines of at most 80 columns, dearest first; an arrow marks the run's policy.
    """
    if run.summary is None:
        return ""
    own = run.summary
    rows = [
        (r.cost_ratio, f"  {uniform_name(run, r.format)}", r.accuracy)
        for r in own.uniform
    ]
    rows += [(r.cost_ratio, f"  {r.policy}", r.accuracy) for r in own.trade_off]
    rows.append((own.cost_ratio, "> this run's policy", own.accuracy))
    lines = [f"{'formats':<26}{'accuracy':>10}{'cost':>9}  against the target"]
    for ratio, label, accuracy in sorted(rows, key=lambda row: -_or_zero(row[0])):
        fraction = cost_fraction(run, ratio)
        cost = "-" if math.isnan(fraction) else f"{fraction:.3f}"
        shown = "-" if math.isnan(accuracy) else percent(accuracy)
        lines.append(f"{label:<26}{shown:>10}{cost:>9}  {budget_verdict(ratio)}")
    lines.append(f"cost: 1 is uniform {run.config.cost_reference}")
    if own.uniform:
        lines.append("uniform: the same final weights with one format everywhere")
    if own.trade_off:
        lines.append("trade_off: the same weights at the best formats of other budgets")
    return "\n".join(lines)


def shape_text(shape: Sequence[int]) -> str:
    """Returns (3, 3, 16, 32) as "3×3×16×32"."""
    return "×".join(str(size) for size in shape)


def _alike(sites, policy) -> list[list[SiteRecord]]:
    groups: dict[tuple, list[SiteRecord]] = {}
    for site in sites:
        pattern = re.sub(r"\d+", "#", site.path)
        key = (pattern, site.op, tuple(site.weight_shape), policy.get(site.path))
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _group_share(group, shares) -> float:
    return sum(shares.get(site.path, 0.0) for site in group)


def _row(group, policy, shares) -> tuple[str, ...]:
    first = group[0]
    more = f" +{len(group) - 1} alike" if len(group) > 1 else ""
    formats = " / ".join(policy.get(first.path, ("-", "-")))
    macs = count(sum(site.macs for site in group))
    share = percent(_group_share(group, shares))
    shape = shape_text(first.weight_shape)
    return (first.path + more, first.op, shape, macs, formats, share)


def _sums(sites, shares) -> tuple[str, ...]:
    weights = count(sum(site.weight_count for site in sites))
    macs = count(sum(site.macs for site in sites))
    return ("", weights, macs, "", percent(_group_share(sites, shares)))


def _layout(header, rows, total, width: int) -> str:
    columns = list(zip(header, *rows, total, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    gaps = 2 * (len(widths) - 1)
    # The path gives way first, then the operation's name.
    for column, least in ((0, 12), (1, 4)):
        surplus = max(0, sum(widths) + gaps - width)
        widths[column] = max(min(least, widths[column]), widths[column] - surplus)
    right = (False, False, False, True, False, True)
    rule = tuple("-" * size for size in widths)
    lines = []
    for cells in (header, rule, *rows, rule, total):
        fitted = [shorten(cell, size) for cell, size in zip(cells, widths, strict=True)]
        padded = [
            cell.rjust(size) if side else cell.ljust(size)
            for cell, size, side in zip(fitted, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip()[:width])
    return "\n".join(lines)


def _or_zero(number: float) -> float:
    return 0.0 if math.isnan(number) else number
