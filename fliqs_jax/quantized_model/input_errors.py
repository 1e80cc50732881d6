"""What quantizing a site's input would do to the loss, to second order.

Carried out of a model as the gradient of riding zeros, as in `observations`: the
backward pass knows the gradient at each input, and the candidate formats ride in. The
model itself runs as its policy says; the candidates are not applied to it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from fliqs_jax.interception import intercept_sites
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import riding
from fliqs_jax.quantizers import fake_quantize, scale_of_bound
from fliqs_jax.sites import Site

_ZEROS, _CANDIDATES = "fliqs_jax_input_errors", "fliqs_jax_candidates"


def input_error_zeros(num_sites: int, num_options: int) -> Float[Array, "S K"]:
    """Returns what `riding_errors` takes; its gradient is the result."""
    return jnp.zeros((num_sites, num_options), jnp.float32)


def riding_errors(
    params: PyTree,
    sites: tuple[Site, ...],
    zeros: Float[Array, "S K"],
    candidates: SiteFormats,
) -> PyTree:
    r"""Returns params in which zeros and candidate formats ride.

    Applied inside `with carrying_errors(model):`, a scalar loss L of the model has with
    respect to the zeros the "gradient"

    .. math:: a_{sk} = \sum_i \left( \frac{\partial L}{\partial x_{si}} \right)^2
        \left( Q_k(x_{si}) - x_{si} \right)^2

    Sums run over the elements of the site's input x_s and over its calls.

    Args:
      params: parameters of the model, without boxes.
      sites: its S sites.
      zeros: from `input_error_zeros`.
      candidates: formats and clip bounds of the inputs at each of the K options, fields
        of shape [K, S].
    """
    groups = riding.group_sites(sites)
    pack = jax.vmap(riding.pack_formats)
    rows = jnp.moveaxis(pack(candidates.activation, candidates.activation_clip), 0, 1)
    flat = riding.flatten_params(params)
    riding.place_rows(flat, groups, _ZEROS, zeros)
    riding.place_rows(flat, groups, _CANDIDATES, rows.reshape(len(rows), -1))
    return riding.unflatten_params(flat)


def carrying_errors(model: nn.Module):
    """Returns the context in which a linen model's sites report; see `riding_errors`.

    The model itself may be run by others in it, under hooks of their own.
    """
    return intercept_sites(model, _report)


def _report(next_fun, args, kwargs, layer):
    if (zeros := layer.get(_ZEROS)) is None:
        return next_fun(*args, **kwargs)
    inputs, rejoin = layer.site_type.split_inputs(args, kwargs)
    if not all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in inputs):
        return next_fun(*args, **kwargs)
    candidates = layer.get(_CANDIDATES)
    inputs = [jnp.asarray(x) for x in inputs]
    args, kwargs = rejoin(_carry_out(inputs, zeros, candidates))
    return next_fun(*args, **kwargs)


@jax.custom_vjp
def _carry_out(inputs, zeros, candidates):
    del zeros, candidates
    return inputs


def _carry_out_forward(inputs, zeros, candidates):
    return inputs, (inputs, zeros, candidates)


def _carry_out_backward(residuals, gradients):
    inputs, zeros, candidates = residuals

    def weighted_error(row):
        fmt, bound = riding.unpack_format(row)
        total = 0.0
        for x, gradient in zip(inputs, gradients, strict=True):
            on_grid = fake_quantize(x, fmt, scale=scale_of_bound(bound, fmt))
            error = (on_grid - x).astype(jnp.float32)
            total += jnp.sum(jnp.square(gradient.astype(jnp.float32) * error))
        return total

    rows = candidates.reshape(zeros.size, -1)
    errors = jax.vmap(weighted_error)(rows)
    return gradients, errors.reshape(zeros.shape), jnp.zeros_like(candidates)


_carry_out.defvjp(_carry_out_forward, _carry_out_backward)
