"""Post-training quantization of inputs: ranges from training data, fixed afterwards.

What a site's input looked like on a few training batches, and the grid that an observer
makes of it for any format. Weights are `quantized_model.static_weights`'s. The ranges
that a search refreshes while it trains are in `calibration`.
"""

import dataclasses
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fliqs_jax.checks import check_at_least, check_one_of
from fliqs_jax.formats import Format, as_unsigned, parse_format
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import Observations
from fliqs_jax.quantizers.observers import OBSERVERS, ValueRange, affine_grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class PtqSettings:
    """How a trained network is quantized. Data for it are training images."""

    # By squared error: KL divergence and the full range lose points below 8 bits.
    weight_observer: str = "mse"
    input_observer: str = "mse"
    input_symmetric: bool = False  # False gives integers a zero point
    per_channel: bool = True  # of the weights; inputs have one grid a site
    batches: int = 2  # of training images, for the inputs' ranges
    num_samples: int = 2048  # values of each site's input, of every batch

    def __post_init__(self):
        check_one_of(OBSERVERS, weight_observer=self.weight_observer)
        check_one_of(OBSERVERS, input_observer=self.input_observer)
        check_at_least(1, batches=self.batches, num_samples=self.num_samples)


@typing.no_type_check  # a pytree: tracing puts objects other than arrays in its fields
@flax.struct.dataclass
class InputSamples:
    """Values of every site's input, over some batches; their extremes are among them.

    The leading axis of the batches joins that of the samples.
    """

    values: Float[Array, "L S"]
    # A sample stands for many values of its tensor, an extreme for itself.
    weights: Float[Array, "L S"]

    @classmethod
    def of(cls, seen: list[Observations]) -> "InputSamples":
        """Joins what was observed of one or more batches."""
        values, weights = zip(*map(_weighted, seen), strict=True)
        return cls(jnp.concatenate(values, axis=-1), jnp.concatenate(weights, axis=-1))


def _weighted(
    seen: Observations,
) -> tuple[Float[Array, "*N L S"], Float[Array, "*N L S"]]:
    extremes = jnp.stack([seen.minimum, seen.maximum], axis=-1)
    share = (seen.samples.shape[-1] / seen.size)[..., None]
    weights = [jnp.ones_like(seen.samples), jnp.broadcast_to(share, extremes.shape)]
    values = jnp.concatenate([seen.samples, extremes], axis=-1)
    return values, jnp.concatenate(weights, axis=-1)


def static_input_formats(
    samples: InputSamples,
    formats: Format,
    settings: PtqSettings,
    *,
    live: Float[ArrayLike, "L"] = 1.0,
) -> SiteFormats:
    """Returns the policy that quantizes inputs on fixed grids and no weights.

    Weights are to be on their grids already (`quantize_weights_by`). A symmetric grid
    of an integer format is unsigned where no value seen was negative.

    Args:
      samples: of every site's input.
      formats: of the inputs, fields of shape [L], may be traced.
      settings: which observer, and whether grids are symmetric.
      live: of each site's input, the share that is no masked channel.

    Returns:
      Formats and clip bounds for `QuantizedModel`.

    Example:
      >>> from fliqs_jax.formats import stack_formats
      >>> samples = InputSamples(jnp.array([[-1.0, 0.0, 2.0]]), jnp.ones((1, 3)))
      >>> found = static_input_formats(samples, stack_formats(["int2"]),
      ...     PtqSettings(input_observer="minmax"))
      >>> found.activation.min_value.tolist(), found.activation_clip.tolist()
      ([-1.0], [2.0])
    """
    observer, symmetric = OBSERVERS[settings.input_observer], settings.input_symmetric
    count = len(samples.values)

    def one(values, weights, fmt, live):
        nonnegative = jnp.asarray(symmetric) & (values.min() >= 0)
        fmt = as_unsigned(fmt, nonnegative)
        low, high = observer(values, fmt, symmetric, live, weights)
        # A clip bound is a positive value: an input without any spares it a step.
        steps = fmt.max_value - fmt.min_value
        high = jnp.maximum(high, -low / (steps - 1.0))
        grid, scale = affine_grid(ValueRange(low, high), fmt, symmetric)
        return grid, scale * grid.max_value

    shares = jnp.broadcast_to(jnp.asarray(live, jnp.float32), (count,))
    arrays = jax.tree.map(jnp.asarray, formats)
    grids, bounds = jax.vmap(one)(samples.values, samples.weights, arrays, shares)
    return no_quantization(count).replace(activation=grids, activation_clip=bounds)


def no_quantization(count: int) -> SiteFormats:
    """Returns formats shaped as those of `static_input_formats` that change nothing."""
    fp32 = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count,)), parse_format("fp32")
    )
    return SiteFormats(weight=fp32, activation=fp32, activation_clip=jnp.ones(count))
