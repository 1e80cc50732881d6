"""The look-up graph: from a limit on the derived network to one on the search network.

The two networks differ in width, depth and mixing, so their costs are different
numbers. Searches held to several bounds K' tell what derives from each; the limit that
a search is given is read off backwards, on the safe side. Not a guarantee (that is
`repair`), but what keeps the repair small.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from fliqs_jax.models.cells import FORMATS, CellCost, CellSpace, StagedCost
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.cells.repair import derived_formats
from fliqs_jax.searchers.cells.stage_formats import StageFormats

LEAST_BOUNDS, LEAST_SEEDS = 6, 2


@dataclasses.dataclass(frozen=True, eq=False)
class LookUpGraph:
    """Bounds K' of the search network and what derives from them, both ascending."""

    bounds: Float[np.ndarray, "N"]
    derived: Float[np.ndarray, "N"]  # the upper band: mean plus one deviation

    def search_bound(self, limit: float) -> float:
        """Returns the largest K' whose upper band is within a limit, interpolated.

        Raises:
          ValueError: if the limit is outside of what was measured; names the range.

        Example:
          >>> graph = LookUpGraph(np.array([1.0, 2.0]), np.array([10.0, 30.0]))
          >>> graph.search_bound(20.0)
          1.5
        """
        low, high = self.derived[0], self.derived[-1]
        if not low <= limit <= high:
            raise ValueError(
                f"limit {limit:.6g} is outside of the look-up graph, which knows"
                f" derived costs of {low:.6g} to {high:.6g}: measure more bounds"
            )
        # Of a flat stretch, the largest bound: the upper band there is the same.
        last = np.r_[np.diff(self.derived) > 0, True]
        return float(np.interp(limit, self.derived[last], self.bounds[last]))


def fit_look_up_graph(
    bounds: Float[np.ndarray, "N"], derived: Float[np.ndarray, "N"]
) -> LookUpGraph:
    r"""Fits the graph to searches: isotonic regression of the upper band.

    .. math:: u(K') = \mathrm{isotonic}(\mathrm{mean}_s \, K(K', s) +
        \mathrm{sd}_s \, K(K', s))

    Args:
      bounds: K', of each search; every bound several times (seeds).
      derived: cost of the network derived by each search, before any repair.

    Raises:
      ValueError: with fewer than 6 bounds, or 2 seeds at one of them.
    """
    levels, number = np.unique(bounds, return_inverse=True)
    seeds = np.bincount(number)
    if len(levels) < LEAST_BOUNDS or seeds.min() < LEAST_SEEDS:
        raise ValueError(
            f"a look-up graph needs at least {LEAST_BOUNDS} bounds with {LEAST_SEEDS}"
            f" seeds each, got {len(levels)} bounds, {seeds.min(initial=9)} seeds at"
            " one of them"
        )
    from sklearn.isotonic import IsotonicRegression  # a second, and only here

    of_level = [derived[number == index] for index in range(len(levels))]
    upper = np.array([values.mean() + values.std(ddof=1) for values in of_level])
    fitted = IsotonicRegression().fit_transform(levels, upper)
    return LookUpGraph(levels, fitted)


def load_look_up_graph(path: str | os.PathLike[str]) -> LookUpGraph:
    """Reads a CSV file with a header and the columns bound, derived: a row a search.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is none, or holds too few searches.
    """
    rows = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)
    if rows.dtype.names is None or not {"bound", "derived"} <= set(rows.dtype.names):
        raise ValueError(f"{os.fspath(path)}: its first line must be bound,derived")
    return fit_look_up_graph(rows["bound"], rows["derived"])


def random_look_up_graph(
    space: CellSpace,
    search: CellCost | StagedCost,
    derived: CellCost | StagedCost,
    stages: StageFormats | None = None,
    *,
    num_bounds: int = 12,
    num_seeds: int = 32,
    steps: int = 300,
    seed: int = 0,
) -> LookUpGraph:
    """Measures the graph on random architecture weights, in seconds and untrained.

    Weights of standard deviation 1 are moved by gradient descent until the search
    network's expected cost is K', and derived. A graph of real searches
    (`fit_look_up_graph`) knows what training prefers, and is to be preferred.

    Args:
      space: the space.
      search: k_s.
      derived: cost of the derived network.
      stages: whose formats are searched as well, if they are.
      num_bounds: K' between the costs of all mass on the cheapest and on the dearest
        operations, both ends left out.
      num_seeds: random weights at each.
      steps: of descent.
      seed: of the weights.
    """
    low, high = search.span()
    levels = np.linspace(low, high, num_bounds + 2)[1:-1]
    bounds = np.repeat(levels, num_seeds)
    optimizer = optax.adam(0.05)

    @jax.jit
    @jax.vmap
    def pulled(key, bound):
        def miss(alphas):
            return (search.scaled(1 / high).of_alphas(alphas) - bound / high) ** 2

        def step(carry, _):
            alphas, state = carry
            updates, state = optimizer.update(jax.grad(miss)(alphas), state)
            return (optax.apply_updates(alphas, updates), state), None

        alphas = space.init_alphas(key, scale=1.0)
        if stages is not None:
            key = jax.random.fold_in(key, 1)
            alphas[FORMATS] = stages.init_logits(key, scale=1.0)
        start = (alphas, optimizer.init(alphas))
        return jax.lax.scan(step, start, length=steps)[0][0]

    alphas = pulled(
        jax.random.split(jax.random.key(seed), len(bounds)), jnp.array(bounds)
    )
    alphas = jax.device_get(alphas)
    costs = []
    for index in range(len(bounds)):
        one = {kind: a[index] for kind, a in alphas.items()}
        cost = derived.at(derived_formats(one))
        costs.append(cost.of(space, space.derive(one)))
    return fit_look_up_graph(bounds, np.array(costs))


def through(limit: Limit, graph: LookUpGraph) -> Limit:
    """Returns the limit with the bound of the search network from a graph."""
    return dataclasses.replace(limit, search_bound=graph.search_bound(limit.bound))
