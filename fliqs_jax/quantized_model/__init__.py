"""An unmodified model with quantized weights and inputs, and its statistics."""

from fliqs_jax.quantized_model.model import QuantizedModel
from fliqs_jax.quantized_model.observations import Observations

__all__ = ["Observations", "QuantizedModel"]
