"""What decides about each site: which decisions, and all the sites it may become.

A site's size depends on a few decisions only, so that its variants can be listed where
sub-networks cannot.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from fliqs_jax.models.supernets.costs import live_numbers, small_site
from fliqs_jax.models.supernets.network import Number, SuperNetwork
from fliqs_jax.sites import Site

_MOST_VARIANTS = 100_000  # of a site


def site_decisions(net: SuperNetwork) -> tuple[tuple[int, ...], ...]:
    """Returns for each site which decisions its size may depend on, ascending.

    Read off the traced program of `sizes`, so none is ever missed. (One too many is
    possible, where an option has an effect by its place in the program alone.)

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> names = [decision.name for decision in net.decisions]
      >>> [names[number] for number in site_decisions(net)[-2]]  # the last layer's
      ['layers', 'layer1/mlp']
    """
    return _read_by(
        net, lambda sizes: [tuple(live) for live in live_numbers(net, sizes)]
    )


def effect_decisions(net: SuperNetwork) -> tuple[tuple[int, ...], ...]:
    """Returns for each decision on which others it depends whether it has an effect.

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> effect_decisions(net)[:3]  # layers; the first layer's heads and hidden units
      ((), (0,), (0,))
    """
    inside = [decision.within for decision in net.decisions]
    return _read_by(
        net, lambda sizes: [() if dim is None else (sizes[dim],) for dim in inside]
    )


def _read_by(
    net: SuperNetwork, numbers_of: Callable[[Mapping[str, Number]], list]
) -> tuple[tuple[int, ...], ...]:
    """Returns for each entry of a list of trees of numbers what decides about it."""
    names = [decision.name for decision in net.decisions]

    def numbers(*values):
        sizes = net.sizes(dict(zip(names, values, strict=True)))
        return [jax.tree.leaves(entry) for entry in numbers_of(sizes)]

    values = [jnp.int32(decision.options[-1]) for decision in net.decisions]
    closed, shapes = jax.make_jaxpr(numbers, return_shape=True)(*values)
    found = iter(_dependencies(closed.jaxpr))
    return tuple(
        tuple(sorted(frozenset().union(*(next(found) for _ in entry))))
        for entry in shapes
    )


def _dependencies(jaxpr: jax.extend.core.Jaxpr) -> list[frozenset[int]]:
    """Returns for each output the inputs that it may depend on, by number."""
    read = {var: frozenset([number]) for number, var in enumerate(jaxpr.invars)}

    def of(var):
        known = not isinstance(var, jax.extend.core.Literal)
        return read.get(var, frozenset()) if known else frozenset()

    for equation in jaxpr.eqns:
        inputs = frozenset().union(*map(of, equation.invars))
        read |= dict.fromkeys(equation.outvars, inputs)
    return [of(var) for var in jaxpr.outvars]


def site_variants(
    net: SuperNetwork, number: int, decisions: tuple[int, ...]
) -> list[Site | None]:
    """Returns the sites that a site of the full network becomes, None where left out.

    Args:
      net: the super-network.
      number: of the site.
      decisions: on which it depends, from `site_decisions`.

    Returns:
      A site for each combination of these decisions' options, the last one running
      fastest.

    Raises:
      ValueError: if there are more than 100,000.
    """
    counts = [len(net.decisions[decision].options) for decision in decisions]
    if math.prod(counts) > _MOST_VARIANTS:
        names = ", ".join(net.decisions[decision].name for decision in decisions)
        raise ValueError(
            f"sizes: site {net.sites[number].path!r} depends on {len(counts)} decisions"
            f" with {math.prod(counts)} combinations ({names}), more than can be"
            f" listed ({_MOST_VARIANTS}): let fewer decisions meet in one layer"
        )
    rows = np.array(list(itertools.product(*map(range, counts))), np.int32)
    choices = np.tile(net.full, (len(rows), 1))
    choices[:, list(decisions)] = rows.reshape(len(rows), len(decisions))
    site = net.sites[number]
    live = live_numbers(net, net.live_sizes(choices))[number]
    columns, shape = jax.tree.flatten(tuple(live))
    table = [np.broadcast_to(column, len(rows)).tolist() for column in columns]
    return [
        small_site(site, type(live)(*jax.tree.unflatten(shape, row)))
        for row in zip(*table, strict=True)
    ]
