"""Clip bounds for every site and format, refreshed from the model's own inputs.

These are the switchable clip thresholds of FLIQS: one bound a site and format, chosen
by squared error. A search keeps them in its state, so quantizing an input costs no pass
over it for a maximum. Not here: how a bound becomes a scale (`quantized_model`).
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fliqs_jax.formats import as_unsigned, stack_formats, unsigned_name
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import Observations
from fliqs_jax.quantizers import best_clips, gaussian_clip_factors
from fliqs_jax.search_space import SearchSpace


@flax.struct.dataclass
class Calibration:
    """Clip bounds by site and format, and which inputs never go below zero.

    L runs over sites, F over the formats of the search space.
    """

    weight_clip: Float[Array, "F"]  # in units of an output channel's root mean square
    activation_clip: Float[Array, "L F"]  # bound of the input's magnitude
    nonnegative: Bool[Array, "L"]  # such inputs get the unsigned integer grid
    updates: Int[Array, ""]


def init_calibration(space: SearchSpace) -> Calibration:
    """Returns a calibration that has seen no data; it needs one update before use."""
    formats = stack_formats(space.format_names)
    num_sites = len(space.sites)
    return Calibration(
        weight_clip=gaussian_clip_factors(formats),
        activation_clip=jnp.ones((num_sites, len(space.format_names)), jnp.float32),
        nonnegative=jnp.zeros(num_sites, bool),
        updates=jnp.zeros((), jnp.int32),
    )


def update_calibration(
    state: Calibration, space: SearchSpace, seen: Observations, *, decay: float = 0.7
) -> Calibration:
    r"""Moves the bounds towards the best ones for the inputs just seen.

    .. math:: c_{lf} \leftarrow d \, c_{lf}
        + (1 - d) \arg\min_c \| Q_f(x_l; c) - x_l \|^2

    The squared error is that of `best_clips`: of samples, and of the largest value. The
    first update takes the new bounds as they are.

    Args:
      state: bounds so far.
      space: the search space whose formats F are meant.
      seen: samples and extremes of each site's input, over all devices.
      decay: d in [0, 1).

    Returns:
      The next state.

    Reference:
      FLIQS, section on switchable clipping (rebuilt: bounds by squared error).
    """
    formats = stack_formats(space.format_names)
    nonnegative = seen.minimum >= 0

    def one_site(site):
        samples, absmax, size, nonnegative = site
        own = as_unsigned(formats, nonnegative)
        return best_clips(samples, own, absmax=absmax, size=size)

    # One site at a time: candidates x formats x samples of all sites need not be held.
    fresh = jax.lax.map(one_site, (seen.samples, seen.absmax, seen.size, nonnegative))
    keep = jnp.where(state.updates == 0, 0.0, decay)
    return state.replace(
        activation_clip=keep * state.activation_clip + (1.0 - keep) * fresh,
        nonnegative=nonnegative,
        updates=state.updates + 1,
    )


def check_observed(
    unseen: Bool[np.ndarray, "L"],
    space: SearchSpace,
    allowed: Bool[np.ndarray, "D K"],
) -> None:
    """Refuses a site whose input needs a clip bound, and of which nothing is known.

    Args:
      unseen: of each site whether nothing is known of its input.
      space: with the sites.
      allowed: which options each decision may take: an input that stays in fp32 needs
        no bound.

    Raises:
      ValueError: naming some of them.
    """
    names, bounded = np.array(space.format_names), np.zeros(len(space.sites), bool)
    for option in range(space.num_options):
        taken = np.where(allowed[:, option], option, allowed.argmax(axis=1))
        _, inputs = space.format_indices(taken)
        bounded |= names[np.asarray(inputs)] != "fp32"
    lost = [space.sites[index].path for index in np.flatnonzero(unseen & bounded)]
    if lost:
        rest = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ValueError(
            f"the inputs of {', '.join(map(repr, lost[:3]))}{rest} cannot be observed,"
            " so they have no clip bounds: the model's output does not depend on these"
            " layers through differentiable operations (as behind stop_gradient), or"
            " they are not finite. Pin them to fp32, leave out stop_gradient, or search"
            " by FLIQS with the largest value of each tensor (dynamic_scales=True,"
            " --scales=absmax)"
        )


def calibrated_formats(
    state: Calibration, space: SearchSpace, options: Int[Array, "D"]
) -> SiteFormats:
    """Returns the formats of `options` with their clip bounds: gathers only."""
    formats = space.formats(options)
    weight_index, activation_index = space.format_indices(options)
    site = jnp.arange(len(space.sites))
    return formats.replace(
        activation=as_unsigned(formats.activation, state.nonnegative),
        weight_clip=state.weight_clip[weight_index],
        activation_clip=state.activation_clip[site, activation_index],
    )


def unsigned_inputs(policy: Policy, nonnegative: Bool[np.ndarray, "L"]) -> Policy:
    """Returns the policy with unsigned names where a site's input is never negative."""
    return Policy(
        {
            path: (weights, unsigned_name(activations) if flag else activations)
            for (path, (weights, activations)), flag in zip(
                policy.items(), nonnegative, strict=True
            )
        }
    )
