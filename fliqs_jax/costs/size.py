"""Storage costs: bits of the weights, with or without scales, and mean widths.

Of the sites' weights only: biases, normalisation and embeddings are not quantized and
not counted. The products inside attention layers store nothing and count 0.
"""

import math
from collections.abc import Sequence

from fliqs_jax.costs.policy_cost import (
    FormatCost,
    SiteFilter,
    counted_sites,
    policy_cost,
    storage_bits,
)
from fliqs_jax.formats import parse_format
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site


def site_size(site: Site, weight_bits: int, activation_bits: int) -> int:
    """Returns the storage bits of one site's weights, their scales aside."""
    return site.weight_count * weight_bits


def site_activation_size(site: Site, weight_bits: int, activation_bits: int) -> int:
    """Returns the bits of one site's input, for one example."""
    return site.input_size * activation_bits


def site_mean_bits(site: Site, weight_bits: int, activation_bits: int) -> float:
    """Returns the mean of a site's two widths: every quantizer weighs alike.

    Summed over the sites and divided by their number, the mean bits of a network's
    quantizers, as QBitOpt and others state budgets.
    """
    return (weight_bits + activation_bits) / 2


def make_site_storage(
    *, scale_bits: int = 32, per_channel: bool = True, block_size: int | None = None
) -> FormatCost:
    r"""Returns the storage bits of a site's weights with their scales, as a cost.

    .. math:: n \, b_w + k \, b_s

    The number k of scales is that of the output channels; with `per_channel=False` that
    of the weight tensors; with blocks, for each channel, that of the blocks that its
    weights fill, the last one perhaps in part. Formats that need no scale (fp16, bf16,
    fp32 and others of eight exponent bits) have none.

    Args:
      scale_bits: b_s, bits of one scale: 32 for a float32, 8 for the power of two of an
        MX block.
      per_channel: whether each output channel has a scale of its own.
      block_size: weights that share a scale along the contraction (32 in MX); None is
        no blocks.

    Raises:
      ValueError: if `scale_bits` is negative, or blocks are empty or meant to span
        channels.

    Reference:
      OCP Microscaling Formats (MX) Specification 1.0, section 5.2 (blocks of 32)

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(40, 2), macs=80,
      ...     weight_count=80, input_size=40, output_size=2, calls=1)
      >>> make_site_storage().function(site, "int4", "int8")  # 80 x 4 + 2 x 32
      384
      >>> mx = make_site_storage(scale_bits=8, block_size=32)
      >>> mx.function(site, "e2m1", "e2m1")  # 40 weights a channel: 2 blocks
      352
    """
    if scale_bits < 0:
        raise ValueError(f"scale_bits must be 0 or more, got {scale_bits}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be None or at least 1, got {block_size}")
    if block_size is not None and not per_channel:
        raise ValueError("block_size divides channels: drop it, or per_channel=False")

    def site_storage(site: Site, weights: str, activations: str) -> int:
        scales = 0
        if parse_format(weights).needs_scale:
            scales = _channels(site) if per_channel else max(len(site.weights), 1)
        if block_size is not None:
            scales *= -(-site.weight_count // (_channels(site) * block_size))
        return site.weight_count * storage_bits(weights) + scales * scale_bits

    return FormatCost(site_storage, "size")


def _channels(site: Site) -> int:
    """Output channels of all weights: what the layer does not sum over.

    Weights of one site (of a recurrent cell, say) have as many each.
    """
    if not site.weight_count:  # an attention product: its operands are not stored
        return 0
    axes = range(len(site.weight_shape))
    # A site written by hand need not name its weights: linen's channel axis is last.
    contracted = site.weights[0].contracted_axes if site.weights else axes[:-1]
    kept = (site.weight_shape[axis] for axis in axes if axis not in contracted)
    return math.prod(kept) * max(len(site.weights), 1)


def model_bits(
    sites: Sequence[Site],
    policy: Policy,
    *,
    scale_bits: int = 0,
    where: SiteFilter | None = None,
) -> int:
    r"""Returns the storage bits of all weights, an exact int.

    .. math:: \sum_s n_s \, b_{w,s}

    Divide by 8 * 2**20 for MiB.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      scale_bits: bits of one scale per output channel, 0 for the weights alone. Other
        scales are counted by `make_site_storage`.
      where: true for the sites to count, as in `bops`; None counts all.

    Raises:
      ValueError: if the policy does not fit the sites, `scale_bits` is negative, or
        `where` is true for no site.

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> policy = Policy.uniform([site], "int4")
      >>> model_bits([site], policy), model_bits([site], policy, scale_bits=32)
      (32, 96)
    """
    cost = make_site_storage(scale_bits=scale_bits)
    return policy_cost(cost, sites, policy, where=where)


def average_bits(
    sites: Sequence[Site], policy: Policy, *, where: SiteFilter | None = None
) -> float:
    r"""Returns the mean storage bits of a weight.

    .. math:: \sum_s n_s \, b_{w,s} / \sum_s n_s

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      where: true for the sites to count, as in `bops`; None counts all.

    Raises:
      ValueError: if the policy does not fit the sites, or `where` is true for none.
    """
    bits = model_bits(sites, policy, where=where)  # first: it refuses an empty network
    return bits / sum(site.weight_count for site in counted_sites(sites, where))


def average_activation_bits(
    sites: Sequence[Site], policy: Policy, *, where: SiteFilter | None = None
) -> float:
    r"""Returns the mean storage bits of an element of the sites' inputs.

    .. math:: \sum_s i_s \, b_{a,s} / \sum_s i_s

    where i is the input size: a tensor that feeds two sites counts at both.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      where: true for the sites to count, as in `bops`; None counts all.

    Raises:
      ValueError: if the policy does not fit the sites, or `where` is true for none.
    """
    bits = policy_cost(site_activation_size, sites, policy, where=where)
    return bits / sum(site.input_size for site in counted_sites(sites, where))
