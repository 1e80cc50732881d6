"""The noise that every format adds to a site's weights and input: mean squared errors.

What a search multiplies with a sensitivity. Compiled, per device; nothing here decides.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from fliqs_jax.formats import as_unsigned, stack_formats
from fliqs_jax.quantized_model import Observations, QuantizedModel, riding
from fliqs_jax.quantized_model.weights import quantize_weights, site_sums
from fliqs_jax.quantizers.scales import scale_of_bound, squared_error
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import Calibration


def quantization_noise(
    params: PyTree,
    seen: Observations,
    calibration: Calibration,
    space: SearchSpace,
    quantized: QuantizedModel,
) -> Float[Array, "2 S F"]:
    r"""Returns mean squared errors of weights and inputs at every format's best clip.

    .. math:: \epsilon^2_{sf} = \frac{1}{n_s} \sum_i (Q_f(v_{si}; c_{sf}) - v_{si})^2

    Args:
      params: parameters of the model.
      seen: samples of the sites' inputs.
      calibration: clips of every site and format.
      space: the search space whose formats F are meant.
      quantized: the model.

    Returns:
      Errors of the weights and of the inputs of S sites in F formats, clipping
      included, in the tensors' own units squared.
    """
    formats = stack_formats(space.format_names)
    groups = riding.group_sites(space.sites)
    flat = riding.flatten_params(params)
    counts = jnp.array([max(site.weight_count, 1) for site in space.sites], jnp.float32)
    every = jnp.ones(len(space.sites), jnp.int32)

    def of_weights(index):
        rows = riding.pack_formats(
            formats[index * every], calibration.weight_clip[index * every]
        )
        on_grid = quantize_weights(
            flat, groups, rows, per_channel=quantized.per_channel, clip_gradient=True
        )
        errors = {
            path: jax.tree.map(
                lambda new, old: jnp.square(new - old), value, flat[path]
            )
            for path, value in on_grid.items()
            if value is not flat[path]
        }
        return site_sums(errors, groups) / counts

    def of_input(samples, absmax, size, nonnegative, clips):
        def error(fmt, clip):
            scale = scale_of_bound(clip, fmt)
            mean = jnp.mean(squared_error(samples, fmt, scale))
            return mean + squared_error(absmax, fmt, scale) / size

        return jax.vmap(error)(as_unsigned(formats, nonnegative), clips)

    # One format at a time: copies of all weights in all formats need not be held.
    weights = lax.map(of_weights, jnp.arange(len(space.format_names))).T
    inputs = jax.vmap(of_input)(
        seen.samples,
        seen.absmax,
        seen.size,
        calibration.nonnegative,
        calibration.activation_clip,
    )
    return jnp.stack([weights, inputs])
