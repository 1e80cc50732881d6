"""Codebooks whose values are known beforehand: only the assignment is free.

Where a weight is midway between two values, `fixed` takes the lower one; the closed
forms round as published (0 to +1, and +-1/2 outwards). The error is the same.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import ArrayLike, Num

from fliqs_jax.quantizers.codebook.value import (
    Codebook,
    as_values,
    as_weights,
    nearest,
)


def fixed(
    w: Num[ArrayLike, "*S"], codebook: Num[ArrayLike, "K"] | Sequence[float | int]
) -> Codebook:
    r"""Gives each weight the nearest of given values.

    .. math:: q_i = \arg\min_{c \in C} |w_i - c|

    Any number format of at most 8 bits is such a codebook: `parse_format(...).values()`
    (the format itself, with no scale).

    Args:
      w: the weights, any floating type, finite. Shape [*S].
      codebook: the K values in any order, finite, known before tracing.

    Returns:
      The Codebook; its values are the given ones, ascending.

    Raises:
      TypeError: if w is not of a floating type or the codebook is traced.
      ValueError: if w (outside `jit`) or the codebook is not finite, or the codebook is
        not a vector of at least one value.

    Reference:
      Carreira-Perpinan and Idelbayev, Model compression as constrained optimization,
      part II: quantization, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> fixed(jnp.array([0.2, 0.5, 7.0]), [1.0, 0.0]).decode()
      Array([0., 0., 1.], dtype=float32)
    """
    w, values = as_weights(w), jnp.asarray(as_values(codebook))
    return Codebook(values, nearest(w, values))


def binary(w: Num[ArrayLike, "*S"]) -> Codebook:
    r"""Rounds weights to -1 and +1 by their sign.

    .. math:: q_i = \mathrm{sgn}(w_i), \quad \mathrm{sgn}(0) = +1

    Args:
      w: the weights, any floating type, finite. Shape [*S].

    Returns:
      The Codebook of values -1 and 1.

    Raises:
      TypeError: if w is not of a floating type.
      ValueError: if w is not finite (outside `jit`).

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> binary(jnp.array([0.2, 0.0, -7.0])).decode()
      Array([ 1.,  1., -1.], dtype=float32)
    """
    w = as_weights(w)
    return Codebook(jnp.array([-1.0, 1.0]), (w >= 0).astype(jnp.int32))


def ternary(w: Num[ArrayLike, "*S"]) -> Codebook:
    r"""Rounds weights to -1, 0 and +1.

    .. math:: q_i = \mathrm{sgn}(w_i) \, [\, |w_i| \ge 1/2 \,]

    Args:
      w: the weights, any floating type, finite. Shape [*S].

    Returns:
      The Codebook of values -1, 0 and 1.

    Raises:
      TypeError: if w is not of a floating type.
      ValueError: if w is not finite (outside `jit`).

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> ternary(jnp.array([0.2, 0.5, -7.0])).decode()
      Array([ 0.,  1., -1.], dtype=float32)
    """
    return powers_of_two(w, 0)


def powers_of_two(w: Num[ArrayLike, "*S"], c: int) -> Codebook:
    r"""Rounds weights to zero and the powers of two from 1 down to 2**-c, signed.

    .. math:: |q_i| = \begin{cases}
        0 & f_i > c + 1 \\
        2^{-c} & c < f_i \le c + 1 \\
        2^{-\lfloor f_i + \log_2 3/2 \rfloor} & 0 < f_i \le c \\
        1 & f_i \le 0
        \end{cases}, \quad f_i = -\log_2 |w_i|

    Multiplying by such a weight is a shift.

    Args:
      w: the weights, any floating type, finite. Shape [*S].
      c: how many times 1 is halved, 0...100; static. 0 is `ternary`.

    Returns:
      The Codebook of 2c + 3 values.

    Raises:
      TypeError: if w is not of a floating type.
      ValueError: if c is out of range, or w is not finite (outside `jit`).

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> powers_of_two(jnp.array([0.2, 0.375, -7.0]), 2).decode()
      Array([ 0.25,  0.25, -1.  ], dtype=float32)
    """
    if not 0 <= c <= 100:
        raise ValueError(f"c must be in 0...100 (the smallest power is 2**-c), got {c}")
    w = as_weights(w)
    powers = [2.0**-k for k in range(c, -1, -1)]
    values = jnp.array([-p for p in reversed(powers)] + [0.0] + powers)
    # The closed form by its borders, which are floats: a logarithm would miss them.
    magnitude = jnp.abs(w)
    borders = jnp.array([1.5 * p for p in powers[:-1]])
    rank = (magnitude >= 0.5 * powers[0]).astype(jnp.int32)
    rank += jnp.searchsorted(borders, magnitude, side="left")
    return Codebook(values, c + 1 + jnp.where(w < 0, -rank, rank))
