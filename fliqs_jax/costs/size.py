"""Storage costs: bits of the weights, and mean widths.

Of the sites' weights only: biases, normalisation and embeddings are not quantized and
not counted.
"""

import functools
import math
from collections.abc import Sequence

from fliqs_jax.costs.policy_cost import policy_cost
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site


def site_size(
    site: Site, weight_bits: int, activation_bits: int, *, scale_bits: int = 0
) -> int:
    """Returns the storage bits of one site's weights.

    Args:
      site: the site.
      weight_bits: bits of a weight.
      activation_bits: ignored; inputs are not stored.
      scale_bits: bits of one scale. One is counted for each output channel, and none
        from 16 bits on, as fp16, bf16 and fp32 need none. 0 counts the weights alone.
    """
    scales = _channels(site) if weight_bits < 16 else 0
    return site.weight_count * weight_bits + scales * scale_bits


def _channels(site: Site) -> int:
    """Output channels: what the layer does not sum over."""
    axes = range(len(site.weight_shape))
    # A site written by hand need not name its weights: linen's channel axis is last.
    contracted = site.weights[0].contracted_axes if site.weights else axes[:-1]
    return math.prod(site.weight_shape[axis] for axis in axes if axis not in contracted)


def model_bits(sites: Sequence[Site], policy: Policy, *, scale_bits: int = 0) -> int:
    r"""Returns the storage bits of all weights, an exact int.

    .. math:: \sum_s n_s \, b_{w,s}

    Divide by 8 * 2**20 for MiB.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      scale_bits: bits of one scale per output channel; see `site_size`.

    Raises:
      ValueError: if the policy does not fit the sites or `scale_bits` is negative.

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> policy = Policy.uniform([site], "int4")
      >>> model_bits([site], policy), model_bits([site], policy, scale_bits=32)
      (32, 96)
    """
    if scale_bits < 0:
        raise ValueError(f"scale_bits must be 0 or more, got {scale_bits}")
    cost = functools.partial(site_size, scale_bits=scale_bits)
    return policy_cost(cost, sites, policy)


def average_bits(sites: Sequence[Site], policy: Policy) -> float:
    r"""Returns the mean storage bits of a weight.

    .. math:: \sum_s n_s \, b_{w,s} / \sum_s n_s

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.

    Raises:
      ValueError: if the policy does not fit the sites.
    """
    bits = model_bits(sites, policy)  # first: it refuses an empty network
    return bits / sum(site.weight_count for site in sites)


def average_activation_bits(sites: Sequence[Site], policy: Policy) -> float:
    r"""Returns the mean storage bits of an element of the sites' inputs.

    .. math:: \sum_s i_s \, b_{a,s} / \sum_s i_s

    where i is the input size: a tensor that feeds two sites counts at both.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.

    Raises:
      ValueError: if the policy does not fit the sites.
    """
    bits = policy_cost(
        lambda site, _, activation_bits: site.input_size * activation_bits,
        sites,
        policy,
    )
    return bits / sum(site.input_size for site in sites)
