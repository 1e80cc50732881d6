"""A search space's prices as arrays: the cost of options, and its exact expectation.

One site cost function in, one pytree out. Traced results are float32; what decides
about budgets (`exact_cost`, `minimum`, ...) is float64 on the host.
"""

import dataclasses
import itertools
import math
import typing

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fliqs_jax.costs.policy_cost import (
    SiteCost,
    policy_cost,
    site_price,
    storage_bits,
)
from fliqs_jax.policy import Policy
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: static under jit
class JointChoice:
    """Decisions whose costs do not add up among themselves, and their joint options.

    One decision alone, or the two of a site (or group) with separate formats. The total
    cost is a sum over joint choices, each decision being part of exactly one.
    """

    decisions: tuple[int, ...]
    options: np.ndarray  # int32[n, len(decisions)], in lexicographic order
    costs: np.ndarray  # float64[n]


@typing.no_type_check  # a pytree: tracing puts objects other than arrays in its fields
@flax.struct.dataclass
class CostTable:
    """The cost of every option of a search space; made by `cost_table`.

    A pytree of float32 arrays: pass it to a compiled function, or close over it. L is
    the number of decisions, K that of options, P that of pairs of decisions that set
    the weights and the input of one site apart (0 unless the space is `separate`).
    """

    constant: Float[Array, ""]  # of the pinned sites
    table: Float[Array, "L K"]  # of decisions that are in no pair; all, without pairs
    pairs: Float[Array, "P K K"]  # by weight option and activation option
    pair_decisions: Int[Array, "P 2"]  # which decisions they are
    space: SearchSpace = flax.struct.field(pytree_node=False)
    site_cost: SiteCost = flax.struct.field(pytree_node=False)
    joint_choices: tuple[JointChoice, ...] = flax.struct.field(pytree_node=False)
    exact_constant: float = flax.struct.field(pytree_node=False)

    @property
    def option_bits(self) -> Int[np.ndarray, "K"]:
        """Storage bits of each option."""
        return np.array([storage_bits(name) for name in self.space.option_names])

    @property
    def present(self) -> Bool[np.ndarray, "L K"]:
        """Which options each decision has: all."""
        return np.ones(self.table.shape, bool)

    def of(self, options: Int[ArrayLike, "L"]) -> Float[Array, ""]:
        """Returns the cost of options, which may be traced; `jax.vmap` for [N, L].

        Float32: within about 1e-6 of `exact_cost`, relatively.
        """
        options = jnp.asarray(options)
        table, pairs = jnp.asarray(self.table), jnp.asarray(self.pairs)
        alone = table[jnp.arange(len(table)), options]
        first, second = options[self.pair_decisions.T]
        paired = pairs[jnp.arange(len(pairs)), first, second]
        return self.constant + alone.sum() + paired.sum()

    def expected(self, probabilities: Float[ArrayLike, "L K"]) -> Float[Array, ""]:
        r"""Returns the expected cost of independent decisions, exactly.

        .. math:: E[C] = c_0 + \sum_{lk} p_{lk} t_{lk}
            + \sum_{(v,a)} \sum_{jk} p_{vj} \, p_{ak} \, q_{(v,a)jk}

        The second sum is there only for separate decisions. Differentiable.

        Args:
          probabilities: p, of each option of each decision. Shape [L, K], rows sum
            to 1.
        """
        probabilities = jnp.asarray(probabilities)
        # Products and sums, not einsum: a matrix unit would round to bfloat16.
        alone = (probabilities * self.table).sum()
        first, second = jnp.moveaxis(probabilities[self.pair_decisions], 1, 0)
        paired = self.pairs * first[:, :, None] * second[:, None, :]
        return self.constant + alone + paired.sum()

    def marginal_effects(
        self, probabilities: Float[Array, "L K"], effects: Float[Array, "L K"]
    ) -> Float[Array, "L K"]:
        """Returns the effects as they are: every decision always has its own."""
        del probabilities
        return effects

    def exact_cost(self, options: Int[ArrayLike, "L"]) -> float:
        """Returns the cost of concrete options in float64, whole numbers exactly.

        Raises:
          ValueError: if the options are not of this space.
        """
        options, base = self.space.check_options(options), self.space.num_options
        terms = [self.exact_constant]
        for choice in self.joint_choices:
            row = 0
            for decision in choice.decisions:
                row = row * base + int(options[decision])
            terms.append(choice.costs[row])
        return math.fsum(terms)

    def minimum(self) -> float:
        """Returns the least cost that any options of the space reach."""
        least = (choice.costs.min() for choice in self.joint_choices)
        return math.fsum([self.exact_constant, *least])

    def maximum(self) -> float:
        """Returns the greatest cost that any options of the space reach."""
        most = (choice.costs.max() for choice in self.joint_choices)
        return math.fsum([self.exact_constant, *most])

    def reference(self, name: str) -> float:
        """Returns the cost of one format for the weights and inputs of all sites.

        Pins and fixed inputs are left out of account, and the format need not be an
        option: the value is the same for every search on these sites.

        Raises:
          ValueError: if the name is unknown.
        """
        sites = self.space.sites
        return float(policy_cost(self.site_cost, sites, Policy.uniform(sites, name)))


def cost_table(space: SearchSpace, site_cost: SiteCost) -> CostTable:
    """Tabulates a cost over a search space.

    Args:
      space: the choices.
      site_cost: the cost of one site, for example `site_bops`, `site_size`,
        `make_site_latency(device)` or a `FormatCost`.

    Raises:
      ValueError: if `site_cost` gives a value that is negative or not finite, or
        refuses a site or a format.

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> space = SearchSpace([site], ["int4", "int8"])
      >>> table = cost_table(space, lambda site, w, a: site.macs * w * a)
      >>> table.minimum(), table.reference("bf16"), float(table.of(jnp.array([1])))
      (128.0, 2048.0, 512.0)
      >>> float(table.expected(jnp.array([[0.75, 0.25]])))
      224.0
    """
    count = space.num_options
    names = space.format_names
    constant = 0.0
    sums: dict[tuple[int, ...], np.ndarray] = {}  # decisions -> cost, an axis each
    for number, site in enumerate(space.sites):
        weight, activation = (
            int(space.weight_decision[number]),
            int(space.activation_decision[number]),
        )
        decisions = tuple(dict.fromkeys(d for d in (weight, activation) if d >= 0))
        costs = np.empty((count,) * len(decisions))
        for options in itertools.product(range(count), repeat=len(decisions)):
            chosen = dict(zip(decisions, options, strict=True))
            w = names[chosen.get(weight, space.weight_fixed[number])]
            a = names[chosen.get(activation, space.activation_fixed[number])]
            costs[options] = _checked(site_price(site_cost, site, w, a), site, w, a)
        if decisions:
            sums[decisions] = sums.get(decisions, 0.0) + costs
        else:
            constant += float(costs)
    table = np.zeros((space.num_decisions, count), np.float32)
    pairs = {key: costs for key, costs in sums.items() if len(key) == 2}
    for key, costs in sums.items():
        if len(key) == 1:
            table[key[0]] = costs
    assert sorted(itertools.chain(*sums)) == list(range(space.num_decisions))
    return CostTable(
        constant=np.float32(constant),
        table=table,
        pairs=np.asarray(list(pairs.values()), np.float32).reshape(-1, count, count),
        pair_decisions=np.asarray(list(pairs), np.int32).reshape(-1, 2),
        space=space,
        site_cost=site_cost,
        joint_choices=tuple(
            JointChoice(
                decisions=key,
                options=np.stack(
                    [axis.ravel() for axis in np.indices(costs.shape, np.int32)], axis=1
                ),
                costs=costs.ravel(),
            )
            for key, costs in sums.items()
        ),
        exact_constant=constant,
    )


def _checked(cost: int | float, site: Site, weights: str, activations: str) -> float:
    cost = float(cost)
    if not (math.isfinite(cost) and cost >= 0):
        raise ValueError(
            f"site_cost must be finite and not negative, got {cost} for site"
            f" {site.path!r} at {storage_bits(weights)} weight and"
            f" {storage_bits(activations)} input bits ({weights}, {activations})"
        )
    return cost
