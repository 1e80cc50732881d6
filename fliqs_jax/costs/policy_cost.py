"""What a cost is: a function of one site and two bit widths, summed over the sites.

Everything here is exact Python arithmetic about final policies. `cost_table` turns the
same site functions into arrays for a search.
"""

import functools
from collections.abc import Callable, Sequence

from fliqs_jax.formats import parse_format
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site

# (site, storage bits of a weight, storage bits of an input element) -> cost, which is
# finite and not negative. Any such function can be searched with.
SiteCost = Callable[[Site, int, int], int | float]


@functools.lru_cache(maxsize=1024)
def storage_bits(name: str) -> int:
    """Returns the bits that one value of the named format takes; fp32 takes 32.

    Raises:
      ValueError: if the name is unknown.

    Example:
      >>> storage_bits("int4"), storage_bits("e4m3"), storage_bits("bf16")
      (4, 8, 16)
    """
    return int(parse_format(name).storage_bits)


def policy_cost(
    site_cost: SiteCost, sites: Sequence[Site], policy: Policy
) -> int | float:
    r"""Returns the cost of a policy.

    .. math:: C = \sum_s c(s, b_{w,s}, b_{a,s})

    Args:
      site_cost: c, for example `site_bops`, or one of your own.
      sites: the network's sites.
      policy: formats of every site; only their storage bits count.

    Returns:
      C, an exact int where `site_cost` returns ints.

    Raises:
      ValueError: if the policy does not fit the sites.
    """
    policy.check(sites)
    bits = {site.path: map(storage_bits, policy[site.path]) for site in sites}
    return sum(site_cost(site, *bits[site.path]) for site in sites)
