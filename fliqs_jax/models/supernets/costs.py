"""What a sub-network costs: as sites of its own, exactly, or as traced numbers.

No small model is made for it: live sizes tell all. `subnetwork_sites` is for final
results and for costs of any kind (a latency table, say); `live_sites` is for searches
inside a compiled step, where the choice is traced.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fliqs_jax.models.supernets.network import Leaf, Number, SuperNetwork
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.sites import Site


@typing.no_type_check  # a pytree: tracing puts objects other than arrays in its fields
@flax.struct.dataclass
class LiveSites:
    """The sites of the full network, of each what is live; 0 where it is left out."""

    macs: Float[Array, "L"]
    weight_count: Float[Array, "L"]
    channels: Float[Array, "L"]  # output channels: a scale each
    input_fraction: Float[Array, "L"]  # of the input's channels, in [0, 1]
    fan_in_fraction: Float[Array, "L"]  # of the weights of an output channel
    weight_fraction: Float[Array, "L"]


class LiveNumbers(NamedTuple):
    """Live numbers of one site, and the whole ones beside them."""

    weight_shape: tuple[Number, ...]  # of the first weight of one layer
    weight_count: Number
    inputs: tuple[Number, int]
    outputs: tuple[Number, int]
    fan_in: tuple[Number, int]


def subnetwork_sites(
    net: SuperNetwork, choice: Int[ArrayLike, "A"]
) -> tuple[Site, ...]:
    """Returns the sites that the extracted network of a choice has, exactly.

    Sites left out are missing. Prices of any kind follow: `bops(sites, policy)`.

    Raises:
      ValueError: if the choice is none of this network's.

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> net = create_supernet("resnet_cifar")
      >>> len(net.sites), len(subnetwork_sites(net, net.smallest))
      (22, 10)
    """
    sizes = net.live_sizes(net.check_choice(choice))
    live = zip(net.sites, live_numbers(net, sizes), strict=True)
    small = (small_site(site, numbers) for site, numbers in live)
    return tuple(site for site in small if site is not None)


def subnetwork_policy(
    net: SuperNetwork, choice: Int[ArrayLike, "A"], policy: Policy
) -> Policy:
    """Returns the part of a full network's policy that is about the sub-network.

    Raises:
      ValueError: if the policy is not the full network's, or the choice none of it.
    """
    policy.check(net.sites)
    return Policy(
        {site.path: policy[site.path] for site in subnetwork_sites(net, choice)}
    )


def live_sites(net: SuperNetwork, choice: Int[ArrayLike, "A"]) -> LiveSites:
    """Returns what is live of every site of the full network; traced or not."""
    numbers = live_numbers(net, net.live_sizes(choice))
    counts = _column(live.weight_count for live in numbers)
    whole = np.array([site.weight_count for site in net.sites], np.float32)
    macs = np.array([site.macs for site in net.sites], np.float32)
    return LiveSites(
        macs=macs / whole * counts,  # MACs a weight: a whole number
        weight_count=counts,
        channels=_column(live.outputs[0] for live in numbers),
        input_fraction=_column(live.inputs[0] / live.inputs[1] for live in numbers),
        fan_in_fraction=_column(live.fan_in[0] / live.fan_in[1] for live in numbers),
        weight_fraction=counts / whole,
    )


def live_mask(
    net: SuperNetwork, choices: Int[np.ndarray, "N A"]
) -> Bool[np.ndarray, "N L"]:
    """Returns which sites of the full network each of many choices has (host)."""
    numbers = live_numbers(net, net.live_sizes(np.asarray(choices)))
    columns = [np.broadcast_to(live.weight_count > 0, len(choices)) for live in numbers]
    return np.stack(columns, axis=1)


def subnetwork_parameters(
    net: SuperNetwork, choice: Int[ArrayLike, "A"]
) -> Float[Array, ""]:
    """Returns the number of parameters, all kinds; traced or not."""
    sizes = net.live_sizes(choice)
    live = (
        _product(leaf.extents(sizes))
        for leaf in net.layout.leaves
        if leaf.collection == "params"
    )
    return jnp.asarray(sum(live), jnp.float32)


def live_formats(
    net: SuperNetwork,
    choice: Int[ArrayLike, "A"],
    formats: SiteFormats,
    *,
    per_channel: bool = True,
) -> SiteFormats:
    """Returns formats whose weight clips count in units of the live weights' RMS.

    `QuantizedModel` takes the RMS over masked weights, zeros included: too small by the
    root of the live fraction. No other scale needs a correction.

    Args:
      net: the super-network.
      choice: option indices, may be traced.
      formats: of the full network's sites.
      per_channel: as the `QuantizedModel` has it.
    """
    if formats.weight_clip is None:
        return formats
    live = live_sites(net, choice)
    fraction = live.fan_in_fraction if per_channel else live.weight_fraction
    grown = formats.weight_clip * jnp.where(fraction > 0, fraction, 1.0) ** -0.5
    return formats.replace(weight_clip=grown)


def live_numbers(net: SuperNetwork, sizes: Mapping[str, Number]) -> list[LiveNumbers]:
    """Returns the live numbers of every site of the full network, by live sizes."""
    leaves = {
        leaf.path: leaf for leaf in net.layout.leaves if leaf.collection == "params"
    }
    return [_live(net, site, leaves, sizes) for site in net.sites]


def small_site(site: Site, live: LiveNumbers) -> Site | None:
    """Returns what is left of a site, None if nothing is; whole numbers only."""
    count = int(live.weight_count)
    if not count:
        return None
    return dataclasses.replace(
        site,
        weight_shape=tuple(map(int, live.weight_shape)),
        macs=site.macs * count // site.weight_count,
        weight_count=count,
        input_size=_share(site.input_size, live.inputs),
        output_size=_share(site.output_size, live.outputs),
    )


def _live(
    net: SuperNetwork,
    site: Site,
    leaves: Mapping[tuple[str, ...], Leaf],
    sizes: Mapping[str, Number],
) -> LiveNumbers:
    shapes, total = [], 0
    for weight in site.weights:
        every = leaves[*site.module_path, *weight.path].extents(sizes)
        extents = [e for a, e in enumerate(every) if a not in weight.stack_axes]
        for axis, index in zip(weight.stack_axes, site.layer, strict=True):
            extents[0] = extents[0] * (index < every[axis])  # a layer of a stack
        shapes.append(extents)
        total = total + _product(extents)
    first, whole = shapes[0], site.weight_shape
    contracted = site.weights[0].contracted_axes
    outputs = tuple(a for a in range(len(whole)) if a not in contracted)
    windows = range(len(whole) - 2) if site.op.startswith("conv") else ()
    inputs = tuple(a for a in contracted if a not in windows)
    if site.module_path in net.layout.grouped:
        inputs = outputs  # each group reads channels of its own
    present = total > 0

    def share(axes):
        live = _product([first[axis] for axis in axes]) * present
        return live, math.prod(whole[axis] for axis in axes)

    return LiveNumbers(
        tuple(first), total, share(inputs), share(outputs), share(contracted)
    )


def _product(numbers: Any) -> Number:
    return functools.reduce(lambda a, b: a * b, numbers, 1)


def _share(size: int, part: tuple[Number, int]) -> int:
    return size * int(part[0]) // part[1]


def _column(numbers: Any) -> Float[Array, "L"]:
    numbers = list(numbers)
    if all(isinstance(number, int | float | np.generic) for number in numbers):
        return jnp.asarray(np.array(numbers, np.float32))  # one transfer, no compiling
    return jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers])
