"""Compute costs: bit operations, and a linear model of hardware with few widths.

Per example and forward pass; only what `find_sites` lists is counted: contractions with
weights and, on request, the products inside attention layers. Where weights and inputs
are spoken of, read key and query there, or value and probabilities.
"""

from collections.abc import Sequence

from fliqs_jax.costs.policy_cost import SiteFilter, policy_cost
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site

# Widths that multipliers are built for; a format runs on the next wider one.
_WIDTHS = (4, 8, 16, 32)


def site_bops(site: Site, weight_bits: int, activation_bits: int) -> int:
    """Returns MACs x weight bits x activation bits: bit operations for one example."""
    return site.macs * weight_bits * activation_bits


def site_linear_ops(site: Site, weight_bits: int, activation_bits: int) -> int:
    """Returns MACs x the wider operand's bits, rounded up to 4, 8, 16 or 32."""
    bits = max(weight_bits, activation_bits)
    return site.macs * next(width for width in _WIDTHS if bits <= width)


def bops(
    sites: Sequence[Site], policy: Policy, *, where: SiteFilter | None = None
) -> int:
    r"""Returns the bit operations of one example, an exact int.

    .. math:: \sum_s \mathrm{MACs}_s \, b_{w,s} \, b_{a,s}

    b is the storage width of a format: BF16, E4M3 and E2M1 stand as 16 : 4 : 1.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      where: true for the sites to count, all by default. Published costs of
        EfficientNets, for one, leave their squeeze-and-excite modules out:
        `where=lambda site: "squeeze_excite" not in site.path`.

    Raises:
      ValueError: if the policy does not fit the sites, or `where` is true for none.

    Reference:
      Dotzel et al., FLIQS, 2023 (quadratic cost), https://arxiv.org/abs/2308.03290

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> bops([site], Policy.uniform([site], "int4", "int8"))
      256
    """
    return policy_cost(site_bops, sites, policy, where=where)


def linear_ops(
    sites: Sequence[Site], policy: Policy, *, where: SiteFilter | None = None
) -> int:
    r"""Returns MACs weighted by the width they run at, for one example, an exact int.

    .. math:: \sum_s \mathrm{MACs}_s \, \lceil \max(b_{w,s}, b_{a,s}) \rceil

    where the bracket rounds up to 4, 8, 16 or 32: what int5 saves over int8 in
    `bops` most hardware cannot use.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      where: true for the sites to count, as in `bops`.

    Raises:
      ValueError: if the policy does not fit the sites, or `where` is true for none.

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> linear_ops([site], Policy.uniform([site], "int4", "int5"))
      64
    """
    return policy_cost(site_linear_ops, sites, policy, where=where)
