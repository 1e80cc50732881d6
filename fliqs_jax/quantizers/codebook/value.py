"""What a codebook is, and the rule that gives every weight its nearest value."""

import typing
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Num

from fliqs_jax.quantizers.rounding import floor_log2, power_of_two


@typing.no_type_check  # in_axes trees and eval_shape put other leaves in the fields
@flax.struct.dataclass
class Codebook:
    """A tensor of at most K distinct values: weight = values[index].

    `values` ascend (equal ones may repeat) and every index is in 0...K - 1. A pytree;
    `num_fitted` is static.

    Example:
      >>> Codebook(jnp.array([-1.0, 1.0]), jnp.array([[0, 1]])).decode()
      Array([[-1.,  1.]], dtype=float32)
    """

    values: Float[Array, "K"]
    indices: Int[Array, "*S"]  # int32, in the tensor's shape
    # Numbers that were fitted to the weights, so have to be stored: 0 for values known
    # beforehand, 1 for a scale, K for free values.
    num_fitted: int = flax.struct.field(pytree_node=False, default=0)

    def decode(self) -> Float[Array, "*S"]:
        """Returns the tensor, in the type of `values` (float32 from every C step)."""
        return jnp.asarray(self.values)[jnp.asarray(self.indices)]


def decode_params(params: Any) -> Any:
    """Returns a pytree with every Codebook in it decoded; other leaves stay."""

    def is_codebook(leaf):
        return isinstance(leaf, Codebook)

    return jax.tree.map(
        lambda leaf: leaf.decode() if is_codebook(leaf) else leaf,
        params,
        is_leaf=is_codebook,
    )


def as_weights(w: Num[ArrayLike, "*S"]) -> Float[Array, "*S"]:
    """Returns w in float32 after checking it; its values only outside `jit`."""
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(
            f"w must be a floating-point array, got {w.dtype}: "
            "convert it first, w.astype(jnp.float32)"
        )
    w = w.astype(jnp.float32)
    if not isinstance(w, jax.core.Tracer):
        finite = np.isfinite(w)
        if not finite.all():
            raise ValueError(
                f"w must be finite, got {finite.size - finite.sum()} NaN or infinite "
                f"of {finite.size} weights: training diverged, lower its learning rate"
            )
    return w


def as_values(codebook: Num[ArrayLike, "K"] | Sequence[float | int]) -> np.ndarray:
    """Returns the values of a fixed codebook ascending, NumPy float32, checked."""
    if isinstance(codebook, jax.core.Tracer):
        raise TypeError(
            f"codebook must be known before tracing, got {codebook}: close over it"
        )
    values = np.asarray(codebook, np.float32)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"codebook must be one axis of at least one value, got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"codebook must be finite, got {values.tolist()}")
    return np.sort(values) + np.float32(0)  # never minus zero


def midpoints(values: Float[Array, "K"]) -> Float[Array, "J"]:
    """Returns the K - 1 borders between neighbours; a weight on one goes below it."""
    lower, upper = values[:-1], values[1:]
    middle = 0.5 * lower + 0.5 * upper  # the sum of two large values would overflow
    # Between adjacent floats the middle may round up to `upper`, which would then not
    # be its own nearest value.
    return jnp.where(middle >= upper, lower, middle)


def nearest(w: Float[Array, "*S"], values: Float[Array, "K"]) -> Int[Array, "*S"]:
    """Returns the index of the value nearest to each weight, int32.

    A weight midway between two values goes to the lower one.
    """
    # Comparing with all borders beats a binary search while they are few.
    method = "compare_all" if len(values) <= 16 else "scan"
    return jnp.searchsorted(midpoints(values), w, side="left", method=method)


def normalized(
    w: Float[Array, "*S"],
) -> tuple[Float[Array, "*S"], Float[Array, ""]]:
    """Returns w / s and s, the power of two at or below its largest magnitude.

    So squares of very small or large weights stay in range, and scaling the weights by
    a power of two changes no bit of an assignment.
    """
    largest = jnp.max(jnp.abs(w), initial=0.0)
    exponent = jnp.clip(floor_log2(largest), -100, 126)  # both powers are normal
    return w * power_of_two(-exponent), power_of_two(exponent)


def without_minus_zero(values: Float[Array, "K"]) -> Float[Array, "K"]:
    """Returns the values with 0 for -0 (adding 0 is what XLA leaves out)."""
    return jnp.where(values == 0, 0.0, values)


def running_sums(x: Float[Array, "P"]) -> Float[Array, "P"]:
    """Returns the sums of the first 1...P numbers.

    By products with a triangle of ones, block by block: compiles several times faster
    than jnp.cumsum, which unrolls a tree of slices on CPU.
    """
    width = min(len(x), 128)
    triangle = np.triu(np.ones((width, width), np.float32))
    blocks = jnp.pad(x, (0, -len(x) % max(width, 1))).reshape(-1, width)
    sums = jnp.matmul(blocks, triangle, precision="highest")
    if len(blocks) > 1:
        before = running_sums(sums[:-1, -1])
        sums += jnp.pad(before, (1, 0))[:, None]
    return sums.reshape(-1)[: len(x)]
