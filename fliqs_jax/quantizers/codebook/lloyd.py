"""k-means of weights by Lloyd's iteration: compiled, warm-started, a local optimum."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Num

from fliqs_jax.checks import check_at_least
from fliqs_jax.quantizers.codebook.value import (
    Codebook,
    as_weights,
    midpoints,
    nearest,
    normalized,
    running_sums,
    without_minus_zero,
)


def check_size(k: int) -> None:
    """Refuses codebooks of no values."""
    if k < 1:
        raise ValueError(f"k must be at least 1 (values of the codebook), got {k}")


def kmeans(
    w: Num[ArrayLike, "*S"],
    k: int,
    init: Num[ArrayLike, "K"] | Sequence[float | int] | None = None,
    *,
    num_starts: int = 10,
    seed: int = 0,
    max_iterations: int = 300,
) -> Codebook:
    r"""Finds K free values for weights: k-means in one dimension.

    .. math:: \min_{c, z} \sum_i (w_i - c_{z_i})^2, \quad
        z_i = \arg\min_k |w_i - c_k|, \quad
        c_k = \mathrm{mean} \{ w_i : z_i = k \}

    The two are alternated until the assignment repeats: a local optimum. A value that
    no weight chooses stays. Without `init` it is the best of several starts, one at
    quantiles and the others by k-means++; the error is then zero if the weights have
    at most K distinct values. With `init` it never ends worse than it started. The
    order of the weights does not matter.

    Weights are sorted once; an iteration costs K searches in them, and so next to
    nothing.

    Args:
      w: the weights, any floating type, finite. Shape [*S].
      k: K, at least 1; static.
      init: values to start from, in any order, finite, such as `.values` of the C step
        before (a warm start). Shape [K].
      num_starts: starts without `init`, at least 1; static.
      seed: of k-means++; the result is a function of the arguments.
      max_iterations: an end where assignments keep changing.

    Returns:
      The Codebook of K values, ascending; zeros for no weights and no `init`.

    Raises:
      TypeError: if w is not of a floating type.
      ValueError: if k or num_starts is below 1, init has not k values, or w or init is
        not finite (outside `jit`).

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319;
      Arthur and Vassilvitskii, k-means++, SODA 2007

    Example:
      >>> w = jnp.array([0.0, 1.0, 10.0, 12.0])
      >>> kmeans(w, 2).decode()
      Array([ 0.5,  0.5, 11. , 11. ], dtype=float32)
      >>> kmeans(w, 2, init=[-5.0, 9.0]).indices
      Array([0, 0, 1, 1], dtype=int32)
    """
    check_size(k)
    check_at_least(1, num_starts=num_starts)
    w = as_weights(w)
    if init is not None:
        init = jnp.asarray(init, jnp.float32)
        if init.shape != (k,):
            raise ValueError(f"init must have k = {k} values, got shape {init.shape}")
        if not isinstance(init, jax.core.Tracer) and not np.isfinite(init).all():
            raise ValueError(f"init must be finite, got {init.tolist()}")
    ordered = None
    if jax.default_backend() == "cpu" and not isinstance(w, jax.core.Tracer):
        # 3 ms for a million weights, where XLA's sort takes 300 on CPU.
        ordered = np.sort(np.asarray(w), axis=None)
    return _kmeans(w, ordered, init, seed, max_iterations, k=k, num_starts=num_starts)


@functools.partial(jax.jit, static_argnames=("k", "num_starts"))
def _kmeans(w, ordered, init, seed, max_iterations, *, k, num_starts):
    if not w.size:
        values = jnp.zeros(k) if init is None else jnp.sort(init)
        return Codebook(values, jnp.zeros(w.shape, jnp.int32), num_fitted=k)
    units, unit = normalized(w)
    if ordered is None:
        points = jnp.sort(units, axis=None)
    else:
        points, _ = normalized(ordered)
    descend = functools.partial(_descend, points, _prefix_sums(points))
    if init is not None:
        values = descend(jnp.sort(init) / unit, max_iterations)
    else:
        # The middles of K equal parts; for the other starts see _spread.
        middles = ((np.arange(k) + 0.5) / k * w.size).astype(np.int32)
        # One draw for all starts: random bits are most of what compiles.
        uniforms = jax.random.uniform(jax.random.key(seed), (num_starts - 1, k))
        spread = lax.map(functools.partial(_spread, points), uniforms)
        starts = jnp.concatenate([points[middles][None], spread])

        def solve(start):
            values = descend(start, max_iterations)
            decoded = values[nearest(points, values)]
            return values, jnp.sum((points - decoded) ** 2)

        solutions, errors = lax.map(solve, starts)
        values = solutions[jnp.argmin(errors)]
    values = without_minus_zero(values * unit)
    return Codebook(values, nearest(w, values), num_fitted=k)


def _spread(
    points: Float[Array, "P"], uniforms: Float[Array, "K"]
) -> Float[Array, "K"]:
    """Draws start values by uniform numbers in [0, 1), as k-means++ does.

    Each value is drawn with probability in proportion to its squared distance from
    those before it; none twice while there are others.
    """

    def draw(distance, uniform):
        cumulative = running_sums(distance * distance)
        eligible = (cumulative > uniform * cumulative[-1]) & (distance > 0)
        # None is where squares underflow: the farthest, then.
        index = jnp.where(eligible.any(), jnp.argmax(eligible), jnp.argmax(distance))
        value = points[index]
        return jnp.minimum(distance, jnp.abs(points - value)), value

    first = points[(uniforms[0] * len(points)).astype(jnp.int32)]
    _, others = lax.scan(draw, jnp.abs(points - first), uniforms[1:])
    return jnp.sort(jnp.append(first, others))


def _prefix_sums(points: Float[Array, "P"]) -> Float[Array, "2 Q"]:
    """Returns the sums of the first 0...P points, and what rounding lost in each.

    A cluster's sum is a difference of two prefix sums that may be far larger than it:
    in float32 the loss would move the values of small clusters.
    """
    sums = running_sums(jnp.concatenate([jnp.zeros(1), points]))
    lost = running_sums(points - jnp.diff(sums))
    return jnp.stack([sums, jnp.concatenate([jnp.zeros(1), lost])])


def _descend(
    points: Float[Array, "P"],
    prefix: Float[Array, "2 Q"],
    values: Float[Array, "K"],
    max_iterations: Int[ArrayLike, ""],
) -> Float[Array, "K"]:
    """Lloyd's iteration on sorted points, from sorted values until nothing changes."""
    ends = jnp.array([0, len(points)])

    def edges_of(values):  # cluster k is points[edges[k] : edges[k + 1]]
        inner = jnp.searchsorted(points, midpoints(values), side="right")
        return jnp.concatenate([ends[:1], inner, ends[1:]])

    def step(state):
        values, edges, _, iteration = state
        first, last = edges[:-1], edges[1:]
        sums = (prefix[:, last] - prefix[:, first]).sum(0)
        means = sums / jnp.maximum(last - first, 1)
        # Rounding must not move a mean out of its cluster: equal points stay as such.
        means = jnp.clip(means, points[first], points[last - 1])
        values = jnp.where(last > first, means, values)
        new_edges = edges_of(values)
        return values, new_edges, (new_edges != edges).any(), iteration + 1

    state = (values, edges_of(values), True, 0)
    return lax.while_loop(lambda s: s[2] & (s[3] < max_iterations), step, state)[0]
