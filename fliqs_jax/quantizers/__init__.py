"""Quantizers: tensors onto format grids, scales, learned steps and blocks."""

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
    "fake_quantize",
    "init_ema",
    "mse_optimal",
    "percentile",
    "scale_of_bound",
    "update_ema",
]
