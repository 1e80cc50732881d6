"""What a cost is: a function of one site and its two formats, summed over the sites.

Everything here is exact Python arithmetic about final policies. `cost_table` turns the
same site functions into arrays for a search.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from fliqs_jax.formats import parse_format
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site


@dataclasses.dataclass(frozen=True)
class FormatCost:
    """A site cost that has to know the formats, where widths do not tell enough.

    int8 and e4m3 share a width, but seldom a speed; int16 has scales, bf16 has none. A
    cost that widths do describe is a plain function; both kinds are a `SiteCost`.
    """

    # (site, name of the weights' format, name of the input's) -> cost, which is finite
    # and not negative.
    function: Callable[[Site, str, str], int | float]
    name: str = "cost"  # a word for reports


# Either the above or (site, storage bits of a weight, storage bits of an input element)
# -> cost, which is finite and not negative. Any of them can be searched with.
SiteCost = Callable[[Site, int, int], int | float] | FormatCost
# Which sites are priced: by their path, op, shape or size. The others cost nothing.
SiteFilter = Callable[[Site], bool]


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


def cost_name(site_cost: SiteCost) -> str:
    """Returns a word for a cost: that of a `FormatCost`, or of a function its own name.

    Example:
      >>> def site_energy(site, weight_bits, activation_bits):
      ...     return site.macs * weight_bits
      >>> cost_name(site_energy)
      'energy'
    """
    if isinstance(site_cost, FormatCost):
        return site_cost.name
    name = getattr(site_cost, "__name__", "cost")
    return name.removeprefix("site_") if name.isidentifier() else "cost"


def site_price(
    site_cost: SiteCost, site: Site, weights: str, activations: str
) -> int | float:
    """Returns the cost of one site at two named formats.

    Args:
      site_cost: of widths or of formats.
      site: the site.
      weights: format name of the weights.
      activations: format name of the site's input.

    Raises:
      ValueError: if a name is unknown, or the cost refuses the site or a format.

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> site_price(lambda site, w, a: site.macs * w * a, site, "int4", "e4m3")
      256
      >>> float_units = FormatCost(lambda site, w, a: site.macs * (w == "e4m3"))
      >>> [site_price(float_units, site, w, "int8") for w in ("e4m3", "int8")]
      [8, 0]
    """
    if isinstance(site_cost, FormatCost):
        return site_cost.function(site, weights, activations)
    return site_cost(site, storage_bits(weights), storage_bits(activations))


def site_cost_where(site_cost: SiteCost, where: SiteFilter) -> SiteCost:
    r"""Returns a site cost function that prices only some of the sites.

    .. math:: c'(s, b_w, b_a) = c(s, b_w, b_a) \, [\mathrm{where}(s)]

    For a search whose cost leaves sites out: their formats are still decided, by the
    quality alone. (To decide nothing there, pin them.)

    Args:
      site_cost: c, for example `site_bops`.
      where: true for the sites to price; the others cost 0.

    Example:
      >>> site = Site(path="Block_0/squeeze_excite/reduce", op="dense",
      ...     weight_shape=(4, 2), macs=8, weight_count=8, input_size=4, output_size=2)
      >>> def macs(site, weight_bits, activation_bits):
      ...     return site.macs
      >>> site_cost_where(macs, lambda s: "squeeze_excite" not in s.path)(site, 4, 4)
      0
    """

    if isinstance(site_cost, FormatCost):
        inner = site_cost_where(site_cost.function, where)
        return FormatCost(inner, site_cost.name)

    @functools.wraps(site_cost)  # it keeps its name
    def filtered(site: Site, weights: Any, activations: Any) -> int | float:
        return site_cost(site, weights, activations) if where(site) else 0

    return filtered


def policy_cost(
    site_cost: SiteCost,
    sites: Sequence[Site],
    policy: Policy,
    *,
    where: SiteFilter | None = None,
) -> int | float:
    r"""Returns the cost of a policy.

    .. math:: C = \sum_s c(s, f_{w,s}, f_{a,s})

    Args:
      site_cost: c, for example `site_bops`, or one of your own.
      sites: the network's sites.
      policy: formats of every site.
      where: true for the sites to count, such as all but those of squeeze-and-excite
        modules: `lambda site: "squeeze_excite" not in site.path`. None counts all. The
        policy has all sites in any case.

    Returns:
      C, an exact int where `site_cost` returns ints.

    Raises:
      ValueError: if the policy does not fit the sites, the cost refuses a site or a
        format, or `where` is true for none.
    """
    policy.check(sites)
    return sum(
        site_price(site_cost, site, *policy[site.path])
        for site in counted_sites(sites, where)
    )


def counted_sites(sites: Sequence[Site], where: SiteFilter | None) -> tuple[Site, ...]:
    """Returns the sites for which `where` is true; all of them if it is None.

    Raises:
      ValueError: if there are sites, but none is left.
    """
    counted = tuple(site for site in sites if where is None or where(site))
    if sites and not counted:
        raise ValueError(
            f"where is true for none of the {len(sites)} sites ({sites[0].path!r} to"
            f" {sites[-1].path!r}): nothing would be counted"
        )
    return counted
