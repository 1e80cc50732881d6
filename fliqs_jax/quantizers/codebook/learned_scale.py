"""Codebooks of fixed values times one learned scale, a >= 0; the optimum, exactly."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Num

from fliqs_jax.quantizers.codebook.value import (
    Codebook,
    as_values,
    as_weights,
    nearest,
    normalized,
    running_sums,
    without_minus_zero,
)


def binary_scaled(w: Num[ArrayLike, "*S"]) -> Codebook:
    r"""Rounds weights to -a and +a, with the best a.

    .. math:: a = \frac{1}{P} \sum_i |w_i|, \quad q_i = a \, \mathrm{sgn}(w_i), \quad
        \mathrm{sgn}(0) = +1

    The squared error left is the sum of w^2 less (sum of |w|)^2 / P.

    Args:
      w: the weights, any floating type, finite. Shape [*S]; P of them.

    Returns:
      The Codebook of values -a and a; a is 0 for no weights.

    Raises:
      TypeError: if w is not of a floating type.
      ValueError: if w is not finite (outside `jit`).

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> binary_scaled(jnp.array([1.0, 0.0, -2.0])).decode()
      Array([ 1.,  1., -1.], dtype=float32)
    """
    w = as_weights(w)
    units, unit = normalized(w)
    scale = unit * jnp.abs(units).sum() / max(w.size, 1)
    values = jnp.stack([0.0 - scale, scale])  # 0.0 - 0.0 is no minus zero
    return Codebook(values, (w >= 0).astype(jnp.int32), num_fitted=1)


def ternary_scaled(w: Num[ArrayLike, "*S"]) -> Codebook:
    r"""Rounds weights to -a, 0 and +a, with the best a.

    .. math:: j^* = \arg\max_j \frac{1}{\sqrt j} \sum_{i \le j} |w_{(i)}|, \quad
        a = \frac{1}{j^*} \sum_{i \le j^*} |w_{(i)}|, \quad
        q_i = a \, \mathrm{sgn}(w_i) \, [\, |w_i| \ge a / 2 \,]

    where |w_(1)| >= |w_(2)| >= ... are the magnitudes in descending order.

    Args:
      w: the weights, any floating type, finite. Shape [*S].

    Returns:
      The Codebook of values -a, 0 and a; a is 0 for no weights.

    Raises:
      TypeError: if w is not of a floating type.
      ValueError: if w is not finite (outside `jit`).

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> ternary_scaled(jnp.array([3.0, 0.5, -5.0])).decode()
      Array([ 4.,  0., -4.], dtype=float32)
    """
    return _ternary_scaled(as_weights(w))


@jax.jit
def _ternary_scaled(w: Float[Array, "*S"]) -> Codebook:
    units, unit = normalized(w)
    scale = jnp.zeros(())
    if w.size:
        counts = jnp.arange(1, w.size + 1, dtype=jnp.float32)
        sums = running_sums(jnp.sort(jnp.abs(units), axis=None, descending=True))
        best = jnp.argmax(sums / jnp.sqrt(counts))
        levels = np.array([-1, 0, 1], np.float32)
        scale = _refine(units.reshape(-1), levels, sums[best] / counts[best])
    rank = ((jnp.abs(units) >= 0.5 * scale) & (units != 0)).astype(jnp.int32)
    values = jnp.stack([0.0 - unit * scale, jnp.zeros(()), unit * scale])
    return Codebook(values, 1 + jnp.where(units < 0, -rank, rank), num_fitted=1)


def scaled(
    w: Num[ArrayLike, "*S"], codebook: Num[ArrayLike, "K"] | Sequence[float | int]
) -> Codebook:
    r"""Gives each weight the nearest of given values times the best common scale.

    .. math:: \min_{a \ge 0, \, q_i \in C} \sum_i (w_i - a q_i)^2

    The global optimum. As the scale falls from infinity, w_i / a moves away from zero
    and crosses the border m_k between two values at a = w_i / m_k, on its own side of
    zero only. Each crossing raises A = sum w_i q_i and B = sum q_i^2; for given values
    q the best scale is A / B and leaves sum w_i^2 - A^2 / B. So one sort of all
    crossings and running sums find the best of all assignments that some scale makes
    nearest, for codebooks without symmetry too.

    Memory and the sort are those of P times the borders on the richer side of zero:
    266,200 weights and 16 values take a few seconds on a CPU. The sums are float32, so
    scales whose errors differ by less than about 1e-7 of sum w_i^2 count as equal.

    Args:
      w: the weights, any floating type, finite. Shape [*S]; P of them.
      codebook: the K values in any order, finite, known before tracing; for a number
        format `parse_format(...).values()`.

    Returns:
      The Codebook, ascending; its scale is 0 if no positive one beats all zeros.

    Raises:
      TypeError: if w is not of a floating type or the codebook is traced.
      ValueError: if w (outside `jit`) or the codebook is not finite, or the codebook is
        not a vector of at least one value.

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319
      (alternating form); Idelbayev et al., Optimal quantization using scaled codebook,
      CVPR 2021 (an exact one)

    Example:
      >>> scaled(jnp.array([6.0, 0.5, -4.0]), [-2.0, 0.0, 1.0, 3.0]).decode()
      Array([ 6.,  0., -4.], dtype=float32)
    """
    return _scaled(as_weights(w), tuple(as_values(codebook).tolist()))


@functools.partial(jax.jit, static_argnames="codebook")
def _scaled(w: Float[Array, "*S"], codebook: tuple[float, ...]) -> Codebook:
    # Codebooks in units of their largest value: squares stay in range.
    largest = max(map(abs, codebook)) or 1.0
    values = np.asarray(codebook, np.float32) / np.float32(largest)
    units, unit = normalized(w)
    flat = units.reshape(-1)
    scale = _refine(flat, values, _sweep(flat, values))
    values = without_minus_zero(unit * (scale / largest) * jnp.array(codebook))
    return Codebook(values, nearest(w, values), num_fitted=1)


def _sweep(w: Float[Array, "P"], values: np.ndarray) -> Float[Array, ""]:
    """Returns the best scale over all crossings."""
    values = values.astype(np.float64)
    borders, gaps = 0.5 * (values[:-1] + values[1:]), np.diff(values)
    sides = (borders > 0, borders < 0)
    # Row 0 for positive weights, row 1 for negative ones; no weight crosses infinity.
    most = max(side.sum() for side in sides)
    border, gap, step = np.full((3, 2, most), [[[np.inf]], [[0.0]], [[0.0]]])
    for row, side in enumerate(sides):
        border[row, : side.sum()] = np.abs(borders[side])
        gap[row, : side.sum()] = gaps[side]
        step[row, : side.sum()] = np.abs(np.diff(values**2))[side]
    start = values[[(borders <= 0).sum(), (borders < 0).sum()]]  # nearest to +0 and -0

    negative = (w < 0).astype(jnp.int32)
    magnitude = jnp.abs(w)[:, None]

    def by_side(table):
        return jnp.asarray(table, jnp.float32)[negative]

    crossing = magnitude / by_side(border)
    _, product, square = lax.sort(
        (-crossing.ravel(), (magnitude * by_side(gap)).ravel(), by_side(step).ravel()),
        num_keys=1,
    )
    first = by_side(start)
    product = running_sums(jnp.concatenate([jnp.sum(w * first)[None], product]))
    square = running_sums(jnp.concatenate([jnp.sum(first * first)[None], square]))
    usable = (product > 0) & (square > 0)
    scales = jnp.where(usable, product / jnp.where(usable, square, 1.0), 0.0)
    return scales[jnp.argmax(scales * product)]


def _refine(
    w: Float[Array, "P"], values: np.ndarray, scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Alternates assignment and scale until the assignment repeats.

    From the optimum this only removes what the long running sums lost to rounding.
    """
    values = jnp.asarray(values)

    def assign(scale):
        return nearest(w, scale * values)

    def step(state):
        scale, indices, _, rounds = state
        chosen = values[indices]
        square = jnp.sum(chosen * chosen)
        change = jnp.sum((w - scale * chosen) * chosen)  # small: so little is rounded
        scale = scale + change / jnp.where(square > 0, square, 1.0)
        scale = jnp.maximum(scale, 0.0)
        repeats = (assign(scale) == indices).all()
        return scale, assign(scale), ~repeats, rounds + 1

    # A scale of zero is final: all values are equal then, so no assignment is better.
    state = (scale, assign(scale), scale > 0, 0)
    return lax.while_loop(lambda s: s[2] & (s[3] < 20), step, state)[0]
