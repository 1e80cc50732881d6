"""What a Learning-Compression run remembers of its L steps: numbers and histograms.

Row 0 is the reference network, directly compressed; row j the end of L step j. Arrays
in the training state, so a resumed run has what an uninterrupted one has.
"""

import typing
from collections.abc import Mapping, Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fliqs_jax.quantizers.codebook import Codebook

MEASURES = ("train_loss", "train_error", "validation_loss", "validation_error")
_BINS = 80


@typing.no_type_check  # eval_shape and others put other leaves in the fields
@flax.struct.dataclass
class Best:
    """The compressed network of least training loss."""

    params: PyTree  # at Delta(Theta)
    codebooks: tuple[Codebook, ...]
    loss: Float[ArrayLike, ""]
    l_step: Int[ArrayLike, ""]  # after which; 0 is direct compression


@typing.no_type_check  # eval_shape and others put other leaves in the fields
@flax.struct.dataclass
class History:
    """By L step; NaN where the run has not got to, or nothing was measured."""

    residual: Float[Array, "J"]  # |w - Delta| / |w|
    mu: Float[Array, "J"]  # of the L step
    measured: Float[Array, "J M"]  # of Delta(Theta), in the order of MEASURES
    values: tuple[Float[Array, "J _"], ...]  # of each scope's codebook
    span: Float[Array, "S 2"]  # of each scope's histograms
    counts: Int[Array, "J S B"]  # of the weights w; outliers in the outermost bins


def init_history(codebooks: Sequence[Codebook], num_l_steps: int) -> History:
    """Returns a history without rows yet.

    Args:
      codebooks: one a scope; only the number of their values counts.
      num_l_steps: of the run.
    """
    rows, scopes = num_l_steps + 1, len(codebooks)
    return History(
        residual=jnp.full(rows, jnp.nan),
        mu=jnp.full(rows, jnp.nan),
        measured=jnp.full((rows, len(MEASURES)), jnp.nan),
        values=tuple(jnp.full((rows, len(c.values)), jnp.nan) for c in codebooks),
        span=jnp.full((scopes, 2), jnp.nan),
        counts=jnp.zeros((rows, scopes, _BINS), jnp.int32),
    )


def record(
    history: History,
    row: int,
    *,
    weights: Sequence[Float[ArrayLike, "..."]],
    codebooks: Sequence[Codebook],
    residual: Float[ArrayLike, ""],
    mu: Float[ArrayLike, ""],
    measured: Mapping[str, float],
) -> History:
    """Returns a history with a row more (host, NumPy arrays).

    The histograms' span is set by row 0: four standard deviations around the mean of
    the reference's weights, and the codebook.
    """
    known = {name: np.array(getattr(history, name)) for name in _ARRAYS}
    known["residual"][row], known["mu"][row] = residual, mu
    known["measured"][row] = [measured.get(name, np.nan) for name in MEASURES]
    values = tuple(np.array(array) for array in history.values)
    for scope, (w, codebook) in enumerate(zip(weights, codebooks, strict=True)):
        w, levels = np.asarray(w), np.asarray(codebook.values)
        values[scope][row] = levels
        if row == 0:
            known["span"][scope] = _span(w, levels)
        low, high = known["span"][scope]
        bins = np.floor((w - low) / (high - low) * _BINS)
        bins = np.clip(bins, 0, _BINS - 1).astype(np.int64)
        known["counts"][row, scope] = np.bincount(bins, minlength=_BINS)
    return history.replace(values=values, **known)


_ARRAYS = ("residual", "mu", "measured", "span", "counts")


def _span(w: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    reach = 4.0 * w.std()
    low = min(w.mean() - reach, levels.min())
    high = max(w.mean() + reach, levels.max())
    margin = 0.05 * (high - low) or 1.0  # weights that are all alike have a span, too
    return float(low - margin), float(high + margin)
