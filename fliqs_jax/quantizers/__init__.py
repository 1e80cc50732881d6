"""Quantizers: tensors onto format grids; scales, learned steps, blocks and clips.

Codebooks, whose values need no grid, are in `fliqs_jax.quantizers.codebook`.
"""

from fliqs_jax.quantizers.blocks import fake_quantize_blocks, mx_scale
from fliqs_jax.quantizers.clips import best_clips, gaussian_clip_factors
from fliqs_jax.quantizers.learned import init_lsq_step, learned_scale, lsq, pact
from fliqs_jax.quantizers.scales import (
    EmaState,
    absmax,
    absmax_bound,
    init_ema,
    mse_optimal,
    percentile,
    scale_of_bound,
    update_ema,
)
from fliqs_jax.quantizers.straight_through import fake_quantize

__all__ = [
    "EmaState",
    "absmax",
    "absmax_bound",
    "best_clips",
    "fake_quantize",
    "fake_quantize_blocks",
    "gaussian_clip_factors",
    "init_ema",
    "init_lsq_step",
    "learned_scale",
    "lsq",
    "mse_optimal",
    "mx_scale",
    "pact",
    "percentile",
    "scale_of_bound",
    "update_ema",
]
