"""What a joint search found: its front, reductions at no loss, the point to take.

Points are judged twice. The validation split, which the search saw, decides which point
is taken; the test split says what that is worth. Not here: how points are evaluated
(`subnetwork_evaluation`), and drawing them (`report`).
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from fliqs_jax.costs import SiteCost, site_price
from fliqs_jax.files import replace_text
from fliqs_jax.models.supernets import subnetwork_sites
from fliqs_jax.searchers.joint.space import JointSpace

# Of each price: the name in a user's unit, and how much of the price that unit is.
UNITS = {
    "size_bits": ("size_mb", 8e6),
    "bops": ("bops", 1.0),
    "activation_bits": ("activation_mb", 8e6),
    "latency_s": ("latency_ms", 1e-3),
}
_SHOWN = {"size_mb": "MB", "bops": "BOPs", "activation_mb": "MB", "latency_ms": "ms"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A sub-network at its formats, evaluated after post-training quantization."""

    vector: Int[np.ndarray, "D"]
    validation_accuracy: float  # in [0, 1]
    test_accuracy: float
    prices: Mapping[str, float]  # by name, in the unit of the name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which point of a front to take.

    With an accuracy limit, or none at all, the cheapest point in the first price; with
    limits on prices alone, the most accurate one. Accuracies are those of validation.
    """

    point: int | None = None  # of the front, instead of limits
    accuracy_loss: float | None = None  # percentage points, most
    reference: str = "int8"  # uniform policy of the full network that loses nothing
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of prices

    def __post_init__(self):
        if self.point is not None and (self.accuracy_loss is not None or self.limits):
            raise ValueError(
                f"point={self.point} names the point itself: leave out the limits, or"
                " the point"
            )
        if self.point is not None and self.point < 0:
            raise ValueError(f"point must be 0 or more, got {self.point}")
        for name, bound in self.limits.items():
            if not bound > 0:
                raise ValueError(
                    f"{_limit_name(name)} must be positive, got {_text(name, bound)}"
                )


def accuracy_loss(point: Point, reference: Point) -> float:
    """Returns how much validation accuracy a point loses, in percentage points."""
    return 100.0 * (reference.validation_accuracy - point.validation_accuracy)


def select_point(
    points: Sequence[Point], selection: Selection, reference: Point, *, cost: str
) -> int:
    """Returns the index of the point that a selection singles out.

    Where there are no limits at all, it is the cheapest point that loses nothing
    against the reference; if all lose something, the most accurate one.

    Args:
      points: of the front, one or more.
      selection: what is wanted.
      reference: the full network at the selection's reference.
      cost: the first price.

    Raises:
      ValueError: if no point is within the limits, with what can be reached, or the
        index is none of the front's.

    Example:
      >>> def point(accuracy, bits):
      ...     return Point(vector=np.zeros(1, int), validation_accuracy=accuracy,
      ...         test_accuracy=accuracy, prices={"size_bits": bits})
      >>> points = [point(0.8, 8e6), point(0.9, 16e6)]
      >>> select_point(points, Selection(accuracy_loss=5.0), point(0.92, 32e6),
      ...     cost="size_bits")
      1
    """
    if selection.point is not None:
        if selection.point >= len(points):
            raise ValueError(
                f"point={selection.point} is none of the front's {len(points)} points:"
                f" give 0 to {len(points) - 1}, as in front.csv"
            )
        return selection.point
    losses = {"accuracy_loss": [accuracy_loss(p, reference) for p in points]}
    values = losses | {
        name: [p.prices[name] for p in points]
        for name in UNITS
        if name in points[0].prices
    }
    bounds = dict(selection.limits)
    if selection.accuracy_loss is not None:
        bounds["accuracy_loss"] = selection.accuracy_loss
    within = {
        name: np.asarray(values[name]) <= bound + 1e-9 * abs(bound)
        for name, bound in bounds.items()
    }
    fitting = np.flatnonzero(np.all([np.ones(len(points)), *within.values()], axis=0))
    if not len(fitting):
        raise ValueError(_nothing_fits(values, bounds, within, selection.reference))
    if not bounds:
        lossless = np.flatnonzero(np.asarray(losses["accuracy_loss"]) <= 1e-9)
        fitting = lossless if len(lossless) else fitting
    cheapest = "accuracy_loss" in bounds or (not bounds and len(lossless))
    order = (cost, "accuracy_loss") if cheapest else ("accuracy_loss", cost)
    return int(min(fitting, key=lambda n: [values[name][n] for name in order]))


def _nothing_fits(values, bounds, within, reference: str) -> str:
    """Says what each limit could be if the others stay."""
    asked = " and ".join(f"{_limit_name(n)}={_text(n, b)}" for n, b in bounds.items())
    lines = []
    for name in bounds:
        others = [mask for other, mask in within.items() if other != name]
        left = np.all([np.ones(len(values[name])), *others], axis=0).astype(bool)
        kept = " with the other limits" if others else ""
        if left.any():
            best = np.asarray(values[name])[left].min()
            lines.append(
                f"{_limit_name(name)} can be {_text(name, best)} at least{kept}"
            )
    if not lines:
        lines = [
            f"alone {_limit_name(n)} can be {_text(n, min(values[n]))} at least"
            for n in bounds
        ]
    against = (
        f" (points of validation accuracy against uniform {reference})"
        if "accuracy_loss" in bounds
        else ""
    )
    return (
        f"no point of the front is within {asked}{against}: {'; '.join(lines)}. Raise a"
        " limit, or search longer (--evaluations)"
    )


def _limit_name(name: str) -> str:
    return {"size_bits": "size_limit", "latency_s": "latency_limit"}.get(
        name, f"{name}_limit"
    )


def _text(name: str, value: float) -> str:
    if name == "accuracy_loss":
        return f"{value:.4g} points"
    unit, scale = UNITS[name]
    return f"{value / scale:.4g} {_SHOWN[unit]}"


def check_reachable(
    space: JointSpace, prices: Mapping[str, SiteCost], limits: Mapping[str, float]
) -> None:
    """Refuses limits below the smallest sub-network's price at its cheapest formats.

    Also prices the full network at every format: what cannot be priced shows here.

    Raises:
      ValueError: if a limit is below that, or a price refuses a site.
    """
    for name, cost in prices.items():
        for option in range(space.space.num_options):
            policy = space.space.policy(np.full(space.space.num_decisions, option))
            for site in space.net.sites:
                site_price(cost, site, *policy[site.path])
        least = _least_price(space, cost)
        if name in limits and limits[name] < least:
            raise ValueError(
                f"{_limit_name(name)}={_text(name, limits[name])} is out of reach: the"
                " smallest sub-network at its cheapest formats has"
                f" {_text(name, least)}"
            )


def _least_price(space: JointSpace, cost: SiteCost) -> float:
    formats, rows = space.space, {s.path: n for n, s in enumerate(space.net.sites)}
    total = 0.0
    for site in subnetwork_sites(space.net, space.net.smallest):
        row = rows[site.path]
        decided = formats.weight_decision[row], formats.activation_decision[row]
        fixed = formats.weight_fixed[row], formats.activation_fixed[row]
        sides = [
            formats.option_names if decision >= 0 else [formats.format_names[name]]
            for decision, name in zip(decided, fixed, strict=True)
        ]
        pairs = [(w, a) for w in sides[0] for a in sides[1]]
        if decided[0] == decided[1] and decided[0] >= 0:
            pairs = [(name, name) for name in sides[0]]
        total += min(site_price(cost, site, *pair) for pair in pairs)
    return total


def fold_reductions(
    points: Sequence[Point], reference: Point, accuracy: Callable[[Point], float]
) -> dict[str, dict[str, Any] | None]:
    """Returns by how much each price falls at no loss of accuracy.

    Args:
      points: of the front.
      reference: the full network at one format everywhere.
      accuracy: which accuracy must not fall.

    Returns:
      For each price its `factor` (reference over point), the `point` (an index) and its
      accuracies less the reference's, in percentage points; None where every point
      loses.
    """
    kept = [n for n, p in enumerate(points) if accuracy(p) >= accuracy(reference)]
    found = {}
    for name, whole in reference.prices.items():
        found[name] = None
        if kept:
            best = min(kept, key=lambda n: points[n].prices[name])
            point = points[best]
            found[name] = {
                "factor": whole / point.prices[name],
                "point": best,
                "validation_gain": _points(
                    point.validation_accuracy - reference.validation_accuracy
                ),
                "test_gain": _points(point.test_accuracy - reference.test_accuracy),
            }
    return found


def _points(fraction: float) -> float:
    return round(100 * fraction, 9) + 0.0  # never minus zero


def count_dominated(
    points: Sequence[Point], rivals: Sequence[Point], prices: Sequence[str]
) -> int:
    """Returns how many rivals some point beats on the test split.

    A point beats a rival if it is nowhere worse, in test accuracy and in prices, and
    somewhere better.
    """

    def values(point):
        return np.array([-point.test_accuracy, *(point.prices[n] for n in prices)])

    return sum(
        any(
            (values(point) <= values(rival)).all()
            and (values(point) < values(rival)).any()
            for point in points
        )
        for rival in rivals
    )


def describe_point(point: Point) -> dict[str, Any]:
    """Returns accuracies and prices of a point in users' units."""
    units = {
        UNITS[name][0]: value / UNITS[name][1] for name, value in point.prices.items()
    }
    return {
        "validation_accuracy": point.validation_accuracy,
        "test_accuracy": point.test_accuracy,
        **units,
    }


def named_decisions(
    space: JointSpace, vector: Int[np.ndarray, "D"]
) -> dict[str, int | str | None]:
    """Returns what a vector decides, by decision: sizes, formats; None where dead."""
    vector = np.asarray(vector)
    live = space.active(vector[None])[0]
    options = [d.options for d in space.net.decisions]
    options += [space.space.option_names] * space.space.num_decisions
    options += [(0, 1)] * (len(space.counts) - len(options))
    rows = zip(space.counts, options, vector, live, strict=True)
    return {name: some[index] if on else None for name, some, index, on in rows}


def write_front(file: pathlib.Path, space: JointSpace, points: Sequence[Point]) -> None:
    """Writes a front as CSV: a row a point, its numbers, then what it decides.

    Of the decisions the cells hold sizes and names of formats, none where a decision
    has no effect.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [
        {"point": n, **describe_point(p), **named_decisions(space, p.vector)}
        for n, p in enumerate(points)
    ]
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow("" if cell is None else cell for cell in row.values())
    replace_text(file, text.getvalue())


def architecture_words(
    space: JointSpace, vector: Int[np.ndarray, "D"]
) -> dict[str, str]:
    """Returns what a point keeps of the full network, part by part, in words.

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> from fliqs_jax.search_space import SearchSpace
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> space = JointSpace(net, SearchSpace(net.sites, ["int4", "int8"]))
      >>> words = architecture_words(space, np.zeros(len(space.counts), int))
      >>> words["network"], words["layer0"], words["layer1"]
      ('layers 1 of 2', 'heads 1 of 3, mlp 192 of 384', 'left out')
    """
    vector = np.asarray(vector)
    choice = space.split(vector).choice
    live = space.net.active(choice[None])[0]
    parts: dict[str, list[str]] = {}
    for decision, index, on in zip(space.net.decisions, choice, live, strict=True):
        part, _, what = decision.name.rpartition("/")
        kept = parts.setdefault(part or "network", [])
        if on:
            kept.append(f"{what} {decision.options[index]} of {decision.options[-1]}")
    return {part: ", ".join(kept) or "left out" for part, kept in parts.items()}
