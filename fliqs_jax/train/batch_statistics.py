"""Recomputes batch-norm running statistics for a policy, without touching weights.

Running averages lag behind low-bit training, and belong to whatever policies were
sampled lately; every evaluation starts with fresh ones.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# (model_state, images) -> model_state after one forward pass in training mode.
UpdateStatistics = Callable[[PyTree, PyTree], PyTree]


def read_momentum(
    update: UpdateStatistics, model_state: PyTree, batch: PyTree
) -> PyTree:
    r"""Returns the momentum m of every running average s' = m s + (1 - m) b.

    It is the module's own business, and read off two passes over a batch: m = s'(2) -
    s'(1). It depends neither on weights nor on formats.

    Args:
      update: one forward pass in training mode, jitted by the caller.
      model_state: collections that `update` changes.
      batch: what `update` takes.
    """
    ones, twos = (_filled(model_state, value) for value in (1.0, 2.0))
    return jax.tree.map(jnp.subtract, update(twos, batch), update(ones, batch))


def recalibrate(
    update: UpdateStatistics,
    model_state: PyTree,
    batches: Iterable[PyTree],
    *,
    momentum: PyTree | None = None,
) -> PyTree:
    r"""Returns the model state with statistics averaged over `batches`.

    A running average is updated as s' = m s + (1 - m) b, so that from s = 0 every batch
    gives b = s'(0) / (1 - m), with the momentum m from `read_momentum`. State that
    forgets its past but needs it (m = 0, as the vectors of `nn.SpectralNorm`) is not
    set to 0: its new values from its own are averaged.

    .. math:: s = \frac{1}{N} \sum_{n=1}^{N} \frac{s'_n(0)}{1 - m}

    Args:
      update: one forward pass in training mode, jitted by the caller.
      model_state: collections that `update` changes; floats that it leaves alone
        (m = 1) and leaves that are not floats are returned as they were.
      batches: what `update` takes, one after the other.
      momentum: of the same model; None reads it off the first batch.

    Returns:
      A tree like `model_state`.

    Raises:
      ValueError: if `batches` is empty and there is a state to recompute.

    Example:
      >>> ema = lambda s, x: {"mean": 0.9 * s["mean"] + 0.1 * x}
      >>> batches = [jnp.array(1.0), jnp.array(3.0)]
      >>> float(recalibrate(ema, {"mean": jnp.array(7.0)}, batches)["mean"].round(5))
      2.0
    """
    if not jax.tree.leaves(model_state):
        return model_state
    start, total, count = None, None, 0
    for batch in batches:
        if momentum is None:
            momentum = read_momentum(update, model_state, batch)
        if start is None:
            start = jax.tree.map(_zero_if_running, model_state, momentum)
        fresh = update(start, batch)
        total = fresh if total is None else jax.tree.map(jnp.add, total, fresh)
        count += 1
    if not count:
        raise ValueError("batches must hold at least one batch, got none")

    def average(old, total, momentum):
        if not _is_statistic(old):
            return old
        mean = total / (count * jnp.where(momentum < 1, 1 - momentum, 1))
        return jnp.where(momentum < 1, mean, old).astype(old.dtype)

    return jax.tree.map(average, model_state, total, momentum)


def _zero_if_running(leaf, momentum):
    # Rounding may leave a trace of a momentum of 0.
    running = _is_statistic(leaf) & (momentum > 1e-4) & (momentum < 1)
    return jnp.where(running, jnp.zeros_like(leaf), leaf)


def _is_statistic(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _filled(tree: PyTree, value: float) -> PyTree:
    return jax.tree.map(
        lambda leaf: jnp.full_like(leaf, value) if _is_statistic(leaf) else leaf, tree
    )
