"""Codebooks: weights as indices into K values, the C steps of Learning-Compression.

Every C step is a projection: it returns the `Codebook` of its kind nearest to the
weights in squared error. Fixed values (`fixed`, `binary`, `ternary`, `powers_of_two`),
fixed values times a learned scale (`scaled`, `binary_scaled`, `ternary_scaled`), or
all values learned (`kmeans`, `kmeans_exact`).

Not here: the loop around them, and packing indices into bytes (`fliqs_jax.deploy`).
"""

from fliqs_jax.quantizers.codebook.exact_kmeans import kmeans_exact
from fliqs_jax.quantizers.codebook.fixed_values import (
    binary,
    fixed,
    powers_of_two,
    ternary,
)
from fliqs_jax.quantizers.codebook.learned_scale import (
    binary_scaled,
    scaled,
    ternary_scaled,
)
from fliqs_jax.quantizers.codebook.lloyd import kmeans
from fliqs_jax.quantizers.codebook.value import Codebook, decode_params

__all__ = [
    "Codebook",
    "binary",
    "binary_scaled",
    "decode_params",
    "fixed",
    "kmeans",
    "kmeans_exact",
    "powers_of_two",
    "scaled",
    "ternary",
    "ternary_scaled",
]
