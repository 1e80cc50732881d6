"""Upper limits on objectives: how a search is kept where its results are wanted.

Not a filter: whatever was evaluated stays in the result and on the front.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float


def limit_array(
    limits: Mapping[str, float], objectives: Sequence[str]
) -> Float[np.ndarray, "M"]:
    """Returns the largest wanted value of each objective, infinite without a limit.

    Raises:
      ValueError: if a limit is of no objective, NaN or minus infinity.

    Example:
      >>> limit_array({"error": 0.1}, ["error", "size"]).tolist()
      [0.1, inf]
    """
    wrong = [name for name in limits if name not in objectives]
    if wrong or not all(bound > -np.inf for bound in limits.values()):
        raise ValueError(
            f"limits must be numbers by name of an objective ({', '.join(objectives)}),"
            f" got {dict(limits)}"
        )
    return np.array([limits.get(name, np.inf) for name in objectives], np.float64)


def behind(
    values: Float[np.ndarray, "N M"],
    limits: Float[np.ndarray, "M"],
    seen: Float[np.ndarray, "K M"],
) -> Float[np.ndarray, "N M"]:
    r"""Returns values in which all that breaks a limit lies behind all that keeps them.

    .. math:: y'_m = \begin{cases} y_m & v = 0 \\ h_m + r_m (1 + v) & v > 0 \end{cases}
        \qquad v = \sum_m \frac{\max(y_m - L_m, 0)}{r_m}

    h and r are the largest value and the range of what was seen. Of two that break a
    limit the one that breaks it less dominates the other (constrained domination of
    NSGA-II).

    Args:
      values: objectives, minimised, evaluated or predicted.
      limits: L, infinite for none.
      seen: values that fix the scale, one row or more.

    Reference:
      Deb et al., NSGA-II, 2002, section VI, https://doi.org/10.1109/4235.996017

    Example:
      >>> values = np.array([[0.1, 5.0], [0.3, 1.0], [0.5, 0.0]])
      >>> behind(values, np.array([0.2, np.inf]), values).round(2).tolist()
      [[0.1, 5.0], [1.0, 11.25], [1.2, 13.75]]
    """
    high = seen.max(axis=0)
    extent = high - seen.min(axis=0)
    extent = np.where(extent > 0, extent, 1.0)
    excess = (np.maximum(values - limits, 0.0) / extent).sum(axis=1, keepdims=True)
    return np.where(excess > 0, high + extent * (1.0 + excess), values)
