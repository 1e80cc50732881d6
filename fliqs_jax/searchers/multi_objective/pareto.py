"""Fronts and hypervolumes of objective values that are minimised."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Int


def front(values: Float[ArrayLike, "N M"] | Sequence) -> Int[np.ndarray, "F"]:
    """Returns the indices of the points that no other point dominates, ascending.

    A point dominates another if it is nowhere larger and somewhere smaller. Equal
    points do not dominate each other.

    Args:
      values: objectives, all minimised.

    Example:
      >>> front([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]]).tolist()
      [0, 1]
    """
    values = np.asarray(values, np.float64)
    # In lexicographic order nothing is dominated by what comes later, so the first of
    # those left is on the front, and striking out what it dominates keeps that true.
    left = np.lexsort(values.T[::-1])
    found = []
    while len(left):
        first = values[left[0]]
        equal = (values[left] == first).all(axis=1)
        found.append(left[equal])
        left = left[(values[left] < first).any(axis=1)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def hypervolume(
    values: Float[ArrayLike, "N M"] | Sequence,
    reference: Float[ArrayLike, "M"] | Sequence,
) -> float:
    """Returns the volume that the points dominate, up to the reference point.

    Points that are not below the reference in every objective add nothing. The front is
    a staircase: nothing is gained between its points.

    Args:
      values: objectives, all minimised.
      reference: the worst value of each objective that is still of interest. Fix it
        before looking at results.

    Raises:
      ValueError: if the reference has not one finite value an objective.

    Reference:
      Zitzler and Thiele, Multiobjective evolutionary algorithms, 1999; by pymoo.

    Example:
      >>> hypervolume([[1.0, 3.0], [2.0, 1.0]], [4.0, 4.0])  # 2 * 3 + 1 * 1
      7.0
    """
    from pymoo.indicators.hv import HV  # over a second; only multi-objective searches

    values, reference = _checked(values, reference)
    inside = (values < reference).all(axis=1)
    return float(HV(ref_point=reference)(values[inside])) if inside.any() else 0.0


def hypervolume_curve(
    values: Float[ArrayLike, "N M"] | Sequence,
    reference: Float[ArrayLike, "M"] | Sequence,
) -> Float[np.ndarray, "N"]:
    """Returns the hypervolume after each evaluation; it never falls.

    Args:
      values: objectives in the order of evaluation, all minimised.
      reference: as in `hypervolume`.

    Raises:
      ValueError: if the reference has not one finite value an objective.

    Example:
      >>> hypervolume_curve([[1.0, 3.0], [5.0, 0.0], [2.0, 1.0]], [4.0, 4.0]).tolist()
      [3.0, 3.0, 7.0]
    """
    values, reference = _checked(values, reference)
    kept, curve = np.empty((0, values.shape[1])), []
    for point in values:
        covered = (kept <= point).all(axis=1).any()
        if (point < reference).all() and not covered:
            kept = np.concatenate([kept, point[None]])
            kept = kept[front(kept)]
            curve.append(hypervolume(kept, reference))
        else:
            curve.append(curve[-1] if curve else 0.0)
    return np.asarray(curve, np.float64)


def _checked(values, reference) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, np.float64)
    reference = np.asarray(reference, np.float64)
    if reference.shape != values.shape[1:] or not np.isfinite(reference).all():
        raise ValueError(
            f"reference must be one finite value for each of the {values.shape[1:]}"
            f" objectives, got {reference.tolist()}"
        )
    return values, reference
