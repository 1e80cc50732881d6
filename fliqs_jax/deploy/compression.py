"""Bits of compressed weights and the ratio to float32, counted and by formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from fliqs_jax.deploy.packing import index_bits
from fliqs_jax.quantizers.codebook import Codebook

FLOAT_BITS = 32  # of a weight before compression, and of a fitted number


def published_ratio(
    *, num_weights: int, num_biases: int, num_values: int, num_codebooks: int
) -> float:
    r"""Returns the compression ratio of adaptive codebooks of one size.

    .. math:: \rho(K) = \frac{(P_1 + P_0) \, b}
        {P_1 \lceil \log_2 K \rceil + (P_0 + L K) \, b}, \quad b = 32

    Args:
      num_weights: P1, weights that are stored as indices.
      num_biases: P0, numbers that stay float32.
      num_values: K, at least 1.
      num_codebooks: L; the layers, if each has its own.

    Returns:
      rho, below 32 / ceil(log2 K).

    Raises:
      ValueError: if `num_values` is below 1.

    Reference:
      Carreira-Perpinan and Idelbayev, 2017, https://arxiv.org/abs/1707.04319

    Example:
      >>> print("%.1f" % published_ratio(  # LeNet300
      ...     num_weights=266_200, num_biases=410, num_values=2, num_codebooks=3))
      30.5
    """
    floats = num_biases + num_codebooks * num_values
    bits = num_weights * index_bits(num_values) + floats * FLOAT_BITS
    return (num_weights + num_biases) * FLOAT_BITS / bits


def codebook_bits(num_weights: int, num_values: int, *, num_fitted: int) -> int:
    r"""Returns the bits of weights under one codebook.

    .. math:: P \lceil \log_2 K \rceil + 32 F

    Args:
      num_weights: P.
      num_values: K, at least 1.
      num_fitted: F, the float32 numbers that the values follow from: K for adaptive
        ones, 1 for a scale, 0 for values known beforehand.

    Example:
      >>> codebook_bits(1000, 3, num_fitted=1)  # scaled ternary
      2032
    """
    return num_weights * index_bits(num_values) + num_fitted * FLOAT_BITS


def compressed_bits(params: Any) -> int:
    """Returns the bits of a pytree whose compressed leaves are Codebooks.

    A codebook that several leaves share, as its equal values tell, counts once. Other
    leaves count in their own type. `codebook_file` stores the values in full and byte
    by byte, so for fixed and scaled codebooks its files are larger by up to 4 K bytes
    each.

    Example:
      >>> from fliqs_jax.quantizers.codebook import binary_scaled
      >>> compressed_bits({"kernel": binary_scaled(jnp.ones(100)), "bias": jnp.ones(2)})
      196
    """
    bits, seen = 0, set()
    for leaf in _leaves(params):
        if isinstance(leaf, Codebook):
            identity = codebook_identity(leaf)
            num_fitted = 0 if identity in seen else leaf.num_fitted
            seen.add(identity)
            num_weights, num_values = np.size(leaf.indices), len(leaf.values)
            bits += codebook_bits(num_weights, num_values, num_fitted=num_fitted)
        else:
            bits += _array_bits(leaf)
    return bits


def compression_ratio(params: Any) -> float:
    """Returns the bits with float32 weights over `compressed_bits`.

    Example:
      >>> from fliqs_jax.quantizers.codebook import binary
      >>> compression_ratio({"kernel": binary(jnp.ones(100))})
      32.0

    Raises:
      ValueError: if nothing is left to store, as with no weights.
    """
    before = sum(
        np.size(leaf.indices) * FLOAT_BITS
        if isinstance(leaf, Codebook)
        else _array_bits(leaf)
        for leaf in _leaves(params)
    )
    after = compressed_bits(params)
    if not after:
        raise ValueError("params take no bits once compressed: they have no ratio")
    return before / after


def codebook_identity(codebook: Codebook) -> tuple[int, bytes]:
    """Returns what codebooks have in common if one copy of the values serves both."""
    if np.ndim(codebook.values) != 1:
        raise ValueError(
            f"Codebook values must have one axis, got {np.shape(codebook.values)}: "
            "make a Codebook of each layer"
        )
    return codebook.num_fitted, np.asarray(codebook.values, np.float32).tobytes()


def _array_bits(leaf: ArrayLike) -> int:
    return np.size(leaf) * jnp.result_type(leaf).itemsize * 8


def _leaves(params: Any) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Codebook))
