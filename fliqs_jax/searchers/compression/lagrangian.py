r"""The equations of Learning-Compression, for any parameters, loss and optimizer.

Pure functions of a pytree of parameters and of what pulls them: Theta (codebooks and
indices), the multipliers lambda, and mu. The method that takes these steps in turns is
`learning_compression`, which has the source.
"""

import typing
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

from fliqs_jax.quantizers.codebook import Codebook
from fliqs_jax.quantizers.codebook.value import nearest
from fliqs_jax.searchers.compression.rules import Scope, scope_weights, with_weights


@typing.no_type_check  # eval_shape and others put other leaves in the fields
@flax.struct.dataclass
class Compression:
    """Theta, lambda and mu: what pulls the weights, a vector for each scope."""

    codebooks: tuple[Codebook, ...]  # Theta; the indices as a vector
    decoded: tuple[Float[Array, "..."], ...]  # Delta(Theta)
    multipliers: tuple[Float[Array, "..."], ...]  # lambda
    mu: Float[ArrayLike, ""]


def compress(params: PyTree, scopes: Sequence[Scope]) -> Compression:
    r"""Projects weights on their codebooks: direct compression.

    .. math:: \Theta = \Pi(w), \quad \lambda = 0, \quad \mu = 0

    Args:
      params: any pytree of arrays.
      scopes: from `find_scopes`.

    Example:
      >>> from fliqs_jax.searchers.compression.rules import (
      ...     CompressionRule, find_scopes, kmeans_step)
      >>> params = {"kernel": jnp.array([[0.0, 1.0, 5.0]]), "bias": jnp.ones(3)}
      >>> rule = CompressionRule(pattern="kernel", c_step=kmeans_step(2))
      >>> scopes = find_scopes(params, [rule])
      >>> decode(params, compress(params, scopes), scopes)["kernel"].tolist()
      [[0.5, 0.5, 5.0]]
    """
    weights = scope_weights(params, scopes)
    codebooks = tuple(
        scope.c_step.project(w, None) for scope, w in zip(scopes, weights, strict=True)
    )
    return Compression(
        codebooks=codebooks,
        decoded=tuple(codebook.decode() for codebook in codebooks),
        multipliers=tuple(jnp.zeros_like(w) for w in weights),
        mu=jnp.zeros(()),
    )


def penalty(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> Float[Array, ""]:
    r"""Returns what the augmented Lagrangian adds to the loss.

    .. math:: -\lambda^T (w - \Delta) + \tfrac{\mu}{2} \|w - \Delta\|^2
    """
    total = jnp.zeros(())
    for w, decoded, multiplier in _vectors(params, compression, scopes):
        gap = w - decoded
        total += -multiplier @ gap + 0.5 * compression.mu * (gap @ gap)
    return total


def penalty_gradient(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> PyTree:
    r"""Returns the gradient of `penalty`: add it to the loss's in an L step.

    .. math:: \mu \, (w - \Delta) - \lambda

    A tree like `params`, zero where nothing is compressed.
    """
    pulls = [
        compression.mu * (w - decoded) - multiplier
        for w, decoded, multiplier in _vectors(params, compression, scopes)
    ]
    return with_weights(jax.tree.map(jnp.zeros_like, params), scopes, pulls)


def c_step(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> Compression:
    r"""Projects the weights on their codebooks again, from the values they had.

    .. math:: \Theta \leftarrow \Pi(w - \lambda / \mu)

    For mu = 0 (no penalty) of w itself. An adaptive codebook starts from its values.
    """
    mu = compression.mu
    codebooks = tuple(
        scope.c_step.project(
            w - jnp.where(mu > 0, multiplier / jnp.where(mu > 0, mu, 1.0), 0.0),
            before.values,
        )
        for scope, before, (w, _, multiplier) in zip(
            scopes,
            compression.codebooks,
            _vectors(params, compression, scopes),
            strict=True,
        )
    )
    return _with_codebooks(compression, codebooks)


def assign(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> Compression:
    r"""Gives every weight the nearest of the values there are: a C step of z alone.

    .. math:: z_i \leftarrow \arg\min_k |w_i - c_k|
    """
    codebooks = tuple(
        before.replace(indices=nearest(w, before.values))
        for before, w in zip(
            compression.codebooks, scope_weights(params, scopes), strict=True
        )
    )
    return _with_codebooks(compression, codebooks)


def _with_codebooks(
    compression: Compression, codebooks: tuple[Codebook, ...]
) -> Compression:
    decoded = tuple(codebook.decode() for codebook in codebooks)
    return compression.replace(codebooks=codebooks, decoded=decoded)


def multiplier_step(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> Compression:
    r"""Moves the multipliers towards where the weights would meet the codebook.

    .. math:: \lambda \leftarrow \lambda - \mu \, (w - \Delta(\Theta))

    Without it (the quadratic-penalty method) w meets Delta only as mu goes to infinity.
    """
    return compression.replace(
        multipliers=tuple(
            multiplier - compression.mu * (w - decoded)
            for w, decoded, multiplier in _vectors(params, compression, scopes)
        )
    )


def decode(params: PyTree, compression: Compression, scopes: Sequence[Scope]) -> PyTree:
    """Returns params with the compressed weights in place: w := Delta(Theta)."""
    return with_weights(params, scopes, compression.decoded)


def straight_through(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> PyTree:
    r"""Returns params at the codebook, with the gradient of the weights themselves.

    .. math:: w \mapsto \Delta(\Theta), \qquad
        \frac{\partial \Delta(\Theta)}{\partial w} := 1

    What quantization-aware training does, the rival of L steps.

    Reference: Courbariaux, Bengio and David, BinaryConnect, 2015,
    https://arxiv.org/abs/1511.00363, algorithm 1
    """
    # Summed in this order, values are exactly those of the codebook.
    vectors = [
        lax.stop_gradient(decoded) + (w - lax.stop_gradient(w))
        for w, decoded, _ in _vectors(params, compression, scopes)
    ]
    return with_weights(params, scopes, vectors)


def residual(
    params: PyTree, compression: Compression, scopes: Sequence[Scope]
) -> Float[Array, ""]:
    r"""Returns how far the weights are from their codebooks, relatively.

    .. math:: \|w - \Delta(\Theta)\| / \|w\|
    """
    gap, size = jnp.zeros(()), jnp.zeros(())
    for w, decoded, _ in _vectors(params, compression, scopes):
        gap += jnp.sum((w - decoded) ** 2)
        size += jnp.sum(w**2)
    return jnp.sqrt(gap) / jnp.maximum(jnp.sqrt(size), jnp.finfo(jnp.float32).tiny)


def clipped_learning_rate(
    learning_rate: Float[ArrayLike, ""], mu: Float[ArrayLike, ""]
) -> Float[Array, ""]:
    r"""Returns a learning rate at which the penalty alone cannot diverge.

    .. math:: \eta' = \min(\eta, 1 / \mu)

    A gradient step of the penalty multiplies w - Delta by 1 - eta mu.

    Example:
      >>> [float(clipped_learning_rate(0.5, mu)) for mu in (0.0, 1.0, 8.0)]
      [0.5, 0.5, 0.125]
    """
    return jnp.minimum(learning_rate, 1.0 / jnp.maximum(mu, 1e-30))


def _vectors(params, compression, scopes):
    """Yields (w, Delta, lambda) of each scope."""
    weights = scope_weights(params, scopes)
    yield from zip(weights, compression.decoded, compression.multipliers, strict=True)
