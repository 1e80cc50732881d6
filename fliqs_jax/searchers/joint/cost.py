r"""What a sub-network in its formats costs: exactly, traced, and in expectation.

The price of a site depends on a few decisions: those about its sizes and those about
its two formats. So the cost of a joint vector is a sum of small tables,

.. math:: C(a) = c_0 + \sum_s T_s[a_{d_1(s)}, \dots, a_{d_m(s)}]

and with independent decisions so is its expectation, exactly: each table is contracted
with the probabilities of its own decisions. Nothing is sampled or relaxed, although the
cost of a network is no sum over decisions (channels in times channels out times bits
times bits). Whatever prices a site does: bit operations, storage, a latency.

Not here: the best vector within a budget (`budget`).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fliqs_jax.costs import (
    CostTable,
    FormatCost,
    SiteCost,
    cost_table,
    policy_cost,
    site_price,
    storage_bits,
)
from fliqs_jax.models import supernets
from fliqs_jax.policy import Policy
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.sites import Site

_MOST_LISTED = 10_000  # combinations of options in which a decision may be dead


class Factor(NamedTuple):
    """A function of a few decisions, as a table with an axis for each of them."""

    decisions: tuple[int, ...]
    values: np.ndarray  # float64


class JointCost:
    """Prices over a joint space of L decisions, padded to W options each.

    Args:
      space: architecture and formats, without weight modes.
      site_cost: price of one site, for example `costs.site_bops`.

    Attributes:
      counts: int[L], number of options of each decision; W is the largest.
      factors: tables whose sum is the cost, `constant` aside.
      constant: cost of what no decision is about.
      effects: of decisions that may be without effect, as their layer is left out: by
        number the table, over decisions about the architecture, of 1 and 0.

    Raises:
      ValueError: if the space has weight modes, or too many decisions meet at a site.

    Example:
      >>> from fliqs_jax.costs import site_bops
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> from fliqs_jax.search_space import SearchSpace
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> space = JointSpace(net, SearchSpace(net.sites, ["int4", "int8"]))
      >>> costs = JointCost(space, site_bops)
      >>> costs.exact_cost(costs.counts - 1) == costs.reference("int8")  # all largest
      True
      >>> shallow = costs.marked(jnp.zeros(len(costs.counts), jnp.int32))
      >>> [name for name, option in zip(space.counts, shallow) if option < 0][:2]
      ['layer1/heads', 'layer1/mlp']
    """

    def __init__(self, space: JointSpace, site_cost: SiteCost):
        known = len(space.net.counts) + space.space.num_decisions
        if len(space.counts) != known:
            raise ValueError("space must be without weight modes: they have no price")
        self.space, self.site_cost = space, site_cost
        self.counts = np.asarray(list(space.counts.values()), np.int32)
        self.constant, self.factors = _factors(space, site_cost)
        self.effects = _effects(space)
        by_shape: dict[tuple[int, ...], list[Factor]] = {}
        for factor in self.factors:
            by_shape.setdefault(factor.values.shape, []).append(factor)
        self._groups = [
            (
                np.array([factor.decisions for factor in group], np.int32),
                np.stack([factor.values for factor in group]).astype(np.float32),
            )
            for group in by_shape.values()
        ]

    @property
    def present(self) -> Bool[np.ndarray, "L W"]:
        """Which options each decision has; the others only fill the table up."""
        return np.arange(self.counts.max())[None] < self.counts[:, None]

    @property
    def option_bits(self) -> Int[np.ndarray, "L W"]:
        """Width of each option of a format; options of the architecture are all 0."""
        bits = np.zeros(self.present.shape, np.int32)
        formats = self.space.space
        widths = [storage_bits(name) for name in formats.option_names]
        bits[len(self.space.net.counts) :, : len(widths)] = widths
        return bits

    def of(self, options: Int[ArrayLike, "L"]) -> Float[Array, ""]:
        """Returns the cost of a joint vector, which may be traced; `jax.vmap` for more.

        Float32: within about 1e-6 of `exact_cost`, relatively.
        """
        options, total = jnp.asarray(options), self.constant
        for decisions, tables in self._groups:
            taken = options[decisions]  # [G, M]
            at = (jnp.arange(len(tables)), *jnp.moveaxis(taken, 1, 0))
            total = total + jnp.asarray(tables)[at].sum()
        return total

    def expected(self, probabilities: Float[ArrayLike, "L W"]) -> Float[ArrayLike, ""]:
        """Returns the expected cost of independent decisions, exactly; differentiable.

        Args:
          probabilities: of each option of each decision; rows sum to 1, absent options
            have 0. NumPy for a NumPy array.
        """
        total = self.constant
        for decisions, tables in self._groups:
            # Products and sums, not einsum: a matrix unit would round to bfloat16.
            for axis in reversed(range(decisions.shape[1])):
                chances = probabilities[decisions[:, axis], : tables.shape[axis + 1]]
                shape = (len(chances), *[1] * axis, chances.shape[1])
                tables = (tables * chances.reshape(shape)).sum(axis=-1)
            total = total + tables.sum()
        return total

    def marked(self, options: Int[Array, "L"]) -> Int[Array, "L"]:
        """Returns a vector with -1 for decisions that have no effect in it; traced."""
        for number, (decisions, live) in self.effects.items():
            taken = jnp.asarray(live)[tuple(options[d] for d in decisions)]
            options = options.at[number].set(jnp.where(taken > 0, options[number], -1))
        return options

    def marginal_effects(
        self, probabilities: Float[Array, "L W"], effects: Float[Array, "L W"]
    ) -> Float[Array, "L W"]:
        r"""Returns effects with what depends on an option counted to it; traced.

        .. math:: m_{lk} + \frac{\partial}{\partial \pi_{lk}} \sum_{d}
            P_\pi(d \text{ has an effect}) \, E_\pi[m_d]

        A deeper stage brings the formats of its last layer, which may have moved to
        good ones. (Without that, depth counts what it brings at their mean.)

        Args:
          probabilities: of each option of each decision.
          effects: m, of each option on the loss; the mean of a decision's is 0.
        """
        own = jax.lax.stop_gradient((probabilities * effects).sum(axis=1))

        def brought(probabilities):
            total = jnp.float32(0.0)
            for number, (decisions, live) in self.effects.items():
                chance = jnp.asarray(live, jnp.float32)
                for axis in reversed(range(len(decisions))):
                    chances = probabilities[decisions[axis], : live.shape[axis]]
                    shape = (*[1] * axis, live.shape[axis])
                    chance = (chance * chances.reshape(shape)).sum(axis=-1)
                total = total + chance * own[number]
            return total

        return effects + jax.grad(brought)(probabilities)

    def exact_cost(self, options: Int[ArrayLike, "L"]) -> float:
        """Returns the cost of a concrete vector from the small network's own sites.

        Raises:
          ValueError: if the options are not of this space.
        """
        costs = {"cost": self.site_cost}
        return self.space.prices(self._checked(options), costs)["cost"]

    def formats_table(self, choice: Int[np.ndarray, "A"]) -> CostTable:
        """Returns the prices of formats once the architecture is chosen.

        Of the full network's sites and decisions; those left out cost nothing.
        """
        small = {s.path: s for s in supernets.subnetwork_sites(self.space.net, choice)}

        def price(site: Site, weights: str, activations: str) -> int | float:
            if site.path not in small:
                return 0
            return site_price(self.site_cost, small[site.path], weights, activations)

        return cost_table(self.space.space, FormatCost(price))

    def reference(self, name: str) -> float:
        """Returns the cost of the full network with one format everywhere."""
        sites = self.space.net.sites
        return float(policy_cost(self.site_cost, sites, Policy.uniform(sites, name)))

    def _checked(self, options) -> Int[np.ndarray, "L"]:
        vector = np.asarray(options)
        fits = vector.shape == self.counts.shape
        if not fits or ((vector < 0) | (vector >= self.counts)).any():
            raise ValueError(
                f"options must be {len(self.counts)} indices, each below its entry of"
                f" {self.counts.tolist()}, got {vector.tolist()}"
            )
        return vector.astype(np.int64)


def _factors(space: JointSpace, site_cost: SiteCost) -> tuple[float, list[Factor]]:
    net, formats = space.net, space.space
    first, constant, factors = len(net.counts), 0.0, []
    for number, sizes in enumerate(supernets.site_decisions(net)):
        pair = (formats.weight_decision[number], formats.activation_decision[number])
        decided = tuple(dict.fromkeys(int(d) for d in pair if d >= 0))
        variants = supernets.site_variants(net, number, sizes)
        prices = np.array(
            [
                [
                    _price(site_cost, variant, _names(space, number, decided, options))
                    for options in itertools.product(
                        range(formats.num_options), repeat=len(decided)
                    )
                ]
                for variant in variants
            ],
            np.float64,
        )
        decisions = (*sizes, *(first + d for d in decided))
        if not decisions:
            constant += float(prices.item())
            continue
        values = prices.reshape(_counts(space, decisions))
        factors.append(Factor(decisions, values))
    return constant, factors


def _effects(space: JointSpace) -> dict[int, Factor]:
    """Returns the decisions that may be dead, and in which architectures they are."""
    net, formats, found = space.net, space.space, {}
    first, by_site = len(net.counts), supernets.site_decisions(net)
    deciding: list[set[int]] = [set(own) for own in supernets.effect_decisions(net)]
    for decision in range(formats.num_decisions):
        uses = (formats.weight_decision == decision) | (
            formats.activation_decision == decision
        )
        sites = (by_site[number] for number in np.flatnonzero(uses))
        deciding.append(set().union(*sites))
    for number, own in enumerate(map(sorted, deciding)):
        counts = _counts(space, own)
        if math.prod(counts) > _MOST_LISTED:
            continue  # of many layers: taken to have an effect always
        rows = np.array(list(itertools.product(*map(range, counts))), np.int64)
        vectors = np.zeros((len(rows), len(space.counts)), np.int64)
        vectors[:, :first] = net.full
        vectors[:, own] = rows.reshape(len(rows), len(own))
        live = space.active(vectors)[:, number].reshape(counts)
        for axis in reversed(range(len(own))):
            if (live == live.take([0], axis=axis)).all():  # does not depend on it
                live, own = live.take(0, axis=axis), own[:axis] + own[axis + 1 :]
        if not live.all():
            found[number] = Factor(tuple(own), live.astype(np.float64))
    return found


def _counts(space: JointSpace, decisions: Sequence[int]) -> list[int]:
    counts = list(space.counts.values())
    return [counts[decision] for decision in decisions]


def _names(
    space: JointSpace, number: int, decided: tuple[int, ...], options: tuple[int, ...]
) -> tuple[str, str]:
    """Names of a site's two formats."""
    formats, chosen = space.space, dict(zip(decided, options, strict=True))
    sides = (
        (formats.weight_decision, formats.weight_fixed),
        (formats.activation_decision, formats.activation_fixed),
    )
    weights, activations = (
        formats.format_names[chosen.get(int(decision[number]), int(fixed[number]))]
        for decision, fixed in sides
    )
    return weights, activations


def _price(site_cost: SiteCost, site: Site | None, names: tuple[str, str]) -> float:
    if site is None:
        return 0.0
    price = float(site_price(site_cost, site, *names))
    if not (math.isfinite(price) and price >= 0):
        raise ValueError(
            f"site_cost must be finite and not negative, got {price} for site"
            f" {site.path!r} of shape {site.weight_shape} in {names}"
        )
    return price
