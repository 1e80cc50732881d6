"""Random policies of equal cost: the baseline that a search has to beat.

Fair by construction: every choice of options whose cost lies in the window is equally
likely, however the options' costs are spread.
"""

import numpy as np
from jaxtyping import Int

from fliqs_jax.costs.cost_table import CostTable, JointChoice

_DRAWS = 4096  # at a time
_MAX_ROUNDS = 256  # about a million draws before giving up


def random_policies_of_equal_cost(
    table: CostTable,
    target: int | float,
    *,
    count: int,
    seed: int,
    tolerance: float = 0.03,
) -> Int[np.ndarray, "N L"]:
    r"""Draws options uniformly from all whose cost is within a window about the target.

    Decisions are drawn independently with

    .. math:: p_{lk} \propto e^{-\theta c_{lk}}

    theta chosen so that the expected cost C is the point of the window nearest to that
    of theta = 0. Choices of equal cost are then equally likely, so it remains to reject
    those outside the window, and to keep those inside in proportion to
    :math:`e^{\theta C}`.

    Args:
      table: prices of the search space.
      target: the cost aimed at, in the unit of the table.
      count: N, how many to draw. Draws are independent: a small space repeats some.
      seed: of the random numbers.
      tolerance: half width of the window, as a fraction of the target.

    Returns:
      Option indices, int32 of shape [N, L].

    Raises:
      ValueError: if `count` is negative or `tolerance` or `target` not positive, the
        window holds no reachable cost, or about a million draws did not hit it often
        enough; the nearest cost drawn is named.

    Example:
      >>> from fliqs_jax.costs import cost_table, site_size
      >>> from fliqs_jax.search_space import SearchSpace
      >>> from fliqs_jax.sites import Site
      >>> sites = [Site(path=f"Dense_{n}", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2) for n in range(4)]
      >>> table = cost_table(SearchSpace(sites, ["int2", "int4"]), site_size)
      >>> drawn = random_policies_of_equal_cost(table, 96, count=5, seed=0)
      >>> drawn.sum(axis=1).tolist()  # half of the four sites at 4 bits
      [2, 2, 2, 2, 2]
    """
    if not (count >= 0 and tolerance > 0 and target > 0):
        raise ValueError(
            "count must be 0 or more, tolerance and target positive, got"
            f" count={count}, tolerance={tolerance}, target={target}"
        )
    low, high = target * (1.0 - tolerance), target * (1.0 + tolerance)
    least, most = table.minimum(), table.maximum()
    if high < least or low > most:
        raise ValueError(
            f"target {target} is out of reach within {tolerance:g}: costs of this space"
            f" run from {least:.10g} to {most:.10g}"
        )
    tilt = _tilt(table, low, high)
    random = np.random.default_rng(seed)
    found, nearest = [np.empty((0, table.space.num_decisions), np.int32)], np.inf
    for _ in range(_MAX_ROUNDS):
        if sum(map(len, found)) >= count:
            return np.concatenate(found)[:count]
        options, costs = _draw(table, tilt, random)
        if abs(costs - target).min() < abs(nearest - target):
            nearest = costs[abs(costs - target).argmin()]
        edge = high if tilt > 0 else low  # where the tilt makes choices rarest
        evened = random.random(_DRAWS) < np.exp(np.minimum(tilt * (costs - edge), 0.0))
        found.append(options[(costs >= low) & (costs <= high) & evened])
    raise ValueError(
        f"only {sum(map(len, found))} of {count} policies found within {tolerance:g} of"
        f" target {target} in {_MAX_ROUNDS * _DRAWS} draws; the nearest cost was"
        f" {nearest:.10g}. Widen the tolerance"
    )


def _probabilities(choice: JointChoice, tilt: float) -> np.ndarray:
    exponents = -tilt * choice.costs
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


def _tilt(table: CostTable, low: float, high: float) -> float:
    """Returns theta, in 1 / cost.

    It is 0 if the plain mean lies in the window, positive for a window below the mean
    and negative for one above.
    """

    def expected(tilt: float) -> float:
        means = (c.costs @ _probabilities(c, tilt) for c in table.joint_choices)
        return table.exact_constant + float(sum(means))

    aim = min(max(expected(0.0), low), high)
    spreads = [np.ptp(choice.costs) for choice in table.joint_choices]
    if aim == expected(0.0) or not any(spreads):
        return 0.0
    # At this tilt all but the extreme options have died out, in every decision.
    limit = 1e3 / min(spread for spread in spreads if spread > 0)
    low, high = -limit, limit
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if expected(middle) > aim else (low, middle)
    return 0.5 * (low + high)


def _draw(
    table: CostTable, tilt: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws options [_DRAWS, L] and returns them with their costs [_DRAWS]."""
    options = np.empty((_DRAWS, table.space.num_decisions), np.int32)
    costs = np.full(_DRAWS, table.exact_constant)
    for choice in table.joint_choices:
        rows = random.choice(
            len(choice.costs), size=_DRAWS, p=_probabilities(choice, tilt)
        )
        options[:, list(choice.decisions)] = choice.options[rows]
        costs += choice.costs[rows]
    return options, costs
