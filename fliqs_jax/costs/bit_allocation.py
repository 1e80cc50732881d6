"""QBitOpt's allocation: the bits of every quantizer under a limit on their average.

A convex problem over fractional bits, and the same over whole ones. Host code in
float64 that knows no network: sensitivities and sizes in, bits out. How sensitivities
are measured, and when bits are allocated anew, is the searchers' business; options of
any kind under any cost are allocated by `costs.allocation`.
"""

import dataclasses
import heapq
import math
import operator
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from fliqs_jax.costs.bit_knapsack import best_steps

_MOST_BITS = 64
# The knapsack's whole numbers stay below this, so that their sums fit an int64.
_LARGEST_SUM = 2**61
_METHODS = ("exact", "greedy")


@dataclasses.dataclass(frozen=True, eq=False)
class RelaxedBits:
    """The optimum over fractional bits, and the price of a bit there."""

    bits: Float[np.ndarray, "L"]  # float64, within the box
    # The objective falls by this for each bit of budget more; 0 if it does not bind.
    multiplier: float
    objective: float  # no whole bits within the budget have less


def noise_objective(
    bits: Real[ArrayLike, "L"] | Sequence, sensitivity: Real[ArrayLike, "L"] | Sequence
) -> float:
    r"""Returns the quantization noise that an allocation minimises.

    .. math:: \sum_i a_i f(b_i), \quad f(b) = (2^{b} - 1)^{-2}

    Args:
      bits: b, positive, whole or fractional.
      sensitivity: a, not negative.

    Example:
      >>> round(noise_objective([2, 3], [9.0, 49.0]), 12)
      2.0
    """
    return float(np.asarray(sensitivity, np.float64) @ _noise(np.asarray(bits)))


def relax(
    sensitivity: Real[ArrayLike, "L"] | Sequence,
    sizes: Real[ArrayLike, "L"] | Sequence,
    average_bits: int | float,
    *,
    min_bits: int = 2,
    max_bits: int = 8,
) -> RelaxedBits:
    r"""Returns the fractional bits of least noise whose average is within the limit.

    .. math:: \min_b \sum_i \frac{a_i}{(2^{b_i} - 1)^2} \quad \text{s.t.} \quad
        \sum_i n_i b_i \le \bar b \sum_i n_i, \quad b_{min} \le b_i \le b_{max}

    Convex, so the conditions of Karush, Kuhn and Tucker decide: between the bounds,

    .. math:: 2 \ln 2 \; a_i \frac{2^{b_i}}{(2^{b_i} - 1)^3} = \lambda n_i

    which is a cubic in 2^b - 1, solved in closed form for all quantizers at once, and
    lambda, on which the bits depend monotonically, is bisected. Where the budget leaves
    lambda a choice (all quantizers at bounds) it is the least.

    Args:
      sensitivity: a, finite and not negative; any unit. A quantizer of sensitivity 0
        stays at `min_bits`, whatever the budget.
      sizes: n, positive: weights, elements, or 1 for the plain mean. Of as many.
      average_bits: the limit of the average that `sizes` weighs. From `max_bits` on it
        does nothing: all live quantizers have `max_bits`, and lambda is 0.
      min_bits: least bits of a quantizer, at least 1.
      max_bits: most bits, at most 64.

    Returns:
      Bits, lambda and objective; the budget is met to 1e-12 of itself.

    Raises:
      ValueError: if the budget is below `min_bits`, which the message names, or an
        argument is not as said above.

    Reference:
      Peters et al., QBitOpt, 2023 (rebuilt), https://arxiv.org/abs/2307.04535

    Example:
      >>> relax([4.0, 4.0, 0.0], [1, 1, 2], 3.5, min_bits=2).bits.tolist()
      [5.0, 5.0, 2.0]
    """
    task = _Task.checked(sensitivity, sizes, average_bits, min_bits, max_bits)
    live, weights = task.sensitivity > 0, task.sizes / task.sizes.sum()
    widest = np.where(live, task.max_bits, task.min_bits)
    if task.spent(widest) <= task.capacity():
        return RelaxedBits(
            bits=widest.astype(np.float64),
            multiplier=0.0,
            objective=noise_objective(widest, task.sensitivity),
        )

    # With v = 2^b - 1, v^3 / (v + 1) is 2 ln 2 a / (lambda n): known up to lambda.
    levels = 2.0 ** np.array([task.min_bits, task.max_bits]) - 1.0
    least, most = np.log(levels**3 / (levels + 1.0))
    logs = np.log(2.0 * math.log(2.0)) + np.log(task.sensitivity[live])
    logs -= np.log(task.sizes[live])

    def bits_at(log_multiplier: float) -> np.ndarray:
        wanted = logs - log_multiplier
        inside = np.log2(1.0 + _level(np.exp(np.clip(wanted, least, most))))
        bits = np.full(len(weights), float(task.min_bits))
        bits[live] = np.where(wanted >= most, task.max_bits, inside)
        bits[live] = np.where(wanted <= least, task.min_bits, bits[live])
        return bits

    low, high = logs.min() - most, logs.max() - least
    extra = task.average_bits - task.min_bits
    while high - low > 1e-15 * max(1.0, abs(high)):
        middle = 0.5 * (low + high)
        fits = weights @ (bits_at(middle) - task.min_bits) <= extra
        low, high = (low, middle) if fits else (middle, high)
    bits = bits_at(high)
    return RelaxedBits(
        bits=bits,
        multiplier=float(np.exp(high)),
        objective=noise_objective(bits, task.sensitivity),
    )


def allocate(
    sensitivity: Real[ArrayLike, "L"] | Sequence,
    sizes: Real[ArrayLike, "L"] | Sequence,
    average_bits: int | float,
    *,
    min_bits: int = 2,
    max_bits: int = 8,
    method: str = "exact",
) -> Int[np.ndarray, "L"]:
    r"""Returns whole bits of least noise whose average never exceeds the limit.

    The problem of `relax` over integers. The average is decided in exact arithmetic:
    the true quotient of the weighted bits and the sum of sizes, rounded once to float64
    as `bits.mean()` is, is at most `average_bits`; so 2.3 admits 23 bits in ten equal
    quantizers, although the float64 is a little below 23/10.

    "greedy" gives, from `min_bits` everywhere, one bit after another to the quantizer
    whose noise falls most for its size, among those that still fit. For equal sizes
    that is the optimum. "exact" is the optimum for all sizes (`bit_knapsack` says to
    what precision), at least as good as greedy, and fills up as greedy does.

    Among equally good bits, greedy and with equal sizes exact prefer the quantizer
    that comes first; for unequal sizes the choice is the same in each call. Sensitivity
    0 means `min_bits`, whatever the budget.

    Args:
      sensitivity: a, finite and not negative; any unit.
      sizes: n, positive, whole or not; of as many.
      average_bits: the limit of the average that `sizes` weighs. From `max_bits` on it
        does nothing.
      min_bits: least bits of a quantizer, at least 1.
      max_bits: most bits, at most 64.
      method: "exact" or "greedy".

    Returns:
      Bits, int64 of shape [L].

    Raises:
      ValueError: if the budget is below `min_bits`, which the message names, or an
        argument is not as said above.

    Reference:
      Peters et al., QBitOpt, 2023 (rebuilt), https://arxiv.org/abs/2307.04535

    Example:
      >>> allocate([9.0, 1.0, 0.0], [10, 10, 20], 3.1).tolist()
      [5, 3, 2]
    """
    if method not in _METHODS:
        raise ValueError(f"method must be 'exact' or 'greedy', got {method!r}")
    task = _Task.checked(sensitivity, sizes, average_bits, min_bits, max_bits)
    bits = np.full(len(task.sizes), task.min_bits)
    live = np.flatnonzero(task.sensitivity > 0)
    steps = task.max_bits - task.min_bits
    if not len(live) or not steps:
        return bits

    units = [task.units[index] for index in live]
    capacity = task.capacity() - task.min_bits * sum(task.units)
    noise = _noise(np.arange(task.min_bits, task.max_bits + 1.0))
    gains = _scaled(task.sensitivity[live])[:, None] * (noise[:-1] - noise[1:])
    per_size = gains / _scaled(task.sizes[live])[:, None]
    taken = _fill(per_size, units, capacity, np.zeros(len(live), int))
    if method == "exact" and len(set(units)) > 1:
        taken = _improve(gains, units, capacity, taken)
        taken = _fill(per_size, units, capacity, taken)
    bits[live] += taken
    return bits


def relaxed_gap(
    bits: Int[ArrayLike, "L"] | Sequence,
    sensitivity: Real[ArrayLike, "L"] | Sequence,
    sizes: Real[ArrayLike, "L"] | Sequence,
    average_bits: int | float,
    *,
    min_bits: int = 2,
    max_bits: int = 8,
) -> float:
    r"""Returns by which part an allocation's noise exceeds the relaxed optimum's.

    .. math:: \sum_i a_i f(b_i) \Big/ \sum_i a_i f(b^*_i) - 1

    No whole bits can do better than the relaxed optimum b*, so this bounds from above
    by which part `bits` are worse than the best whole bits, without solving for those:
    a greedy allocation of gap 0.1 is within 10 %. It is not that distance itself: the
    best whole bits have a gap too, commonly 0 to 0.9 at an average of 4 bits.

    Args:
      bits: an allocation within the budget, from any method.
      sensitivity: a, as `allocate` takes it, and all others likewise.
      sizes: n.
      average_bits: the limit.
      min_bits: least bits of a quantizer.
      max_bits: most bits.

    Returns:
      The gap, not negative but for rounding; 0.0 where all sensitivities are 0.

    Raises:
      ValueError: as `allocate`, or if `bits` are not whole, out of the box or over the
        budget.

    Example:
      >>> relaxed_gap([5, 5], [1.0, 1.0], [1, 1], 5)
      0.0
      >>> round(relaxed_gap([5, 4], [1.0, 1.0], [1, 1], 4.5), 3)
      0.283
    """
    task = _Task.checked(sensitivity, sizes, average_bits, min_bits, max_bits)
    bits = np.asarray(bits)
    if bits.shape != task.sizes.shape or not np.issubdtype(bits.dtype, np.integer):
        raise ValueError(
            f"bits must be {len(task.sizes)} whole numbers, one a quantizer, got"
            f" {bits.tolist()}"
        )
    for index in np.flatnonzero((bits < task.min_bits) | (bits > task.max_bits)):
        raise ValueError(
            f"bits[{index}] must be in {task.min_bits}…{task.max_bits}, got"
            f" {bits[index]}"
        )
    if (spent := task.spent(bits)) > task.capacity():
        raise ValueError(
            f"bits have an average of {spent / sum(task.units)}, over the budget"
            f" average_bits {average_bits}"
        )
    bound = relax(
        sensitivity, sizes, average_bits, min_bits=min_bits, max_bits=max_bits
    ).objective
    return noise_objective(bits, task.sensitivity) / bound - 1.0 if bound else 0.0


def _noise(bits: np.ndarray) -> np.ndarray:
    return (2.0**bits - 1.0) ** -2.0


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values of at most 1, by a power of two: it changes no digit and no tie."""
    return np.ldexp(values, -np.frexp(values.max())[1])


def _level(steepness: np.ndarray) -> np.ndarray:
    """The positive root v of v^3 = c (v + 1), by Viète where it is one of three."""
    root = 1.5 * np.sqrt(3.0 / steepness)
    factor = np.where(
        root <= 1.0,
        np.cos(np.arccos(np.minimum(root, 1.0)) / 3.0),
        np.cosh(np.arccosh(np.maximum(root, 1.0)) / 3.0),
    )
    return 2.0 * np.sqrt(steepness / 3.0) * factor


def _fill(
    per_size: np.ndarray, units: list[int], capacity: int, taken: np.ndarray
) -> np.ndarray:
    """Takes further steps greedily, in exact whole numbers, while any fits."""
    taken = taken.copy()
    capacity -= sum(map(operator.mul, units, taken.tolist()))
    steps = per_size.shape[1]
    queue = [(-per_size[i, k], i) for i, k in enumerate(taken) if k < steps]
    heapq.heapify(queue)
    while queue:
        gain, i = heapq.heappop(queue)
        if gain and units[i] <= capacity:  # what does not fit now never will
            capacity -= units[i]
            taken[i] += 1
            if taken[i] < steps:
                heapq.heappush(queue, (-per_size[i, taken[i]], i))
    return taken


def _improve(
    gains: np.ndarray, units: list[int], capacity: int, taken: np.ndarray
) -> np.ndarray:
    """Returns the best steps, or those taken already if they are as good.

    Sizes of too many digits for an int64 are cut, at 2^-60 of their sum: first down,
    and if the best choice is within the budget nevertheless, it is the best; else up.
    """
    shift = max(0, (gains.shape[1] * sum(units) // _LARGEST_SUM).bit_length())
    for up in (0, 1) if shift else (0,):
        weights = np.array([max(1, (unit >> shift) + up) for unit in units])
        room = (capacity >> shift) + (1 - up if shift else 0)
        start = taken if weights @ taken <= room else np.zeros_like(taken)
        found = best_steps(gains, weights, room, start)
        if sum(map(operator.mul, units, found.tolist())) <= capacity:
            break
    step = np.arange(gains.shape[1])
    more = (step < found[:, None]).astype(int) - (step < taken[:, None])
    return found if (gains * more).sum() > 0 else taken


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """Arguments that have been checked."""

    sensitivity: np.ndarray  # float64[L]
    sizes: np.ndarray  # float64[L]
    units: list[int]  # the sizes in their greatest common unit, exact
    average_bits: float
    min_bits: int
    max_bits: int

    @classmethod
    def checked(cls, sensitivity, sizes, average_bits, min_bits, max_bits) -> "_Task":
        a, n = np.asarray(sensitivity, np.float64), np.asarray(sizes)
        if a.ndim != 1 or not len(a):
            raise ValueError(
                "sensitivity must be a vector of at least one quantizer, got shape"
                f" {list(a.shape)}"
            )
        for index in np.flatnonzero(~np.isfinite(a) | (a < 0)):
            raise ValueError(
                f"sensitivity[{index}] must be finite and not negative, got {a[index]}"
            )
        if n.shape != a.shape:
            raise ValueError(
                f"sizes must have one entry a quantizer, {len(a)} as sensitivity has,"
                f" got shape {list(n.shape)}"
            )
        if n.dtype.kind not in "iuf":
            raise ValueError(f"sizes must be numbers, got an array of {n.dtype}")
        for index in np.flatnonzero(~(np.isfinite(n) & (n > 0))):
            raise ValueError(
                f"sizes[{index}] must be positive and finite, got {n[index]}"
            )
        low, high = operator.index(min_bits), operator.index(max_bits)
        if not 1 <= low <= high <= _MOST_BITS:
            raise ValueError(
                f"bits must satisfy 1 <= min_bits <= max_bits <= {_MOST_BITS}, got"
                f" min_bits {low} and max_bits {high}"
            )
        if not average_bits >= low:  # also refuses NaN
            raise ValueError(
                f"average_bits {average_bits} is out of reach: the least reachable"
                f" average is {low}, with every quantizer at min_bits. Raise"
                " average_bits or lower min_bits"
            )
        average = min(float(average_bits), float(high))
        return cls(a, n.astype(np.float64), _units(n), average, low, high)

    def spent(self, bits: np.ndarray) -> int:
        return sum(map(operator.mul, self.units, bits.tolist()))

    def capacity(self) -> int:
        """The most bits, in units, whose average rounds to the limit or less."""
        total, limit = sum(self.units), self.average_bits
        above = Fraction(math.nextafter(limit, math.inf))
        most = math.floor((Fraction(limit) + above) / 2 * total)
        # Halfway the rounding is to the even one. Python divides integers correctly.
        return most if most / total <= limit else most - 1


def _units(sizes: np.ndarray) -> list[int]:
    fractions = [Fraction(size) for size in sizes.tolist()]
    common = math.lcm(*(size.denominator for size in fractions))
    whole = [size.numerator * (common // size.denominator) for size in fractions]
    shared = math.gcd(*whole)
    return [size // shared for size in whole]
