"""Small search spaces of every kind, each priced by three costs: for budget tests."""

import numpy as np

from fliqs_jax.costs import (
    DEVICES,
    cost_table,
    make_site_latency,
    site_bops,
    site_size,
)
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site

OPTIONS = ("int2", "int3", "int4", "e4m3")


def make_sites(count, seed=0):
    random = np.random.default_rng(seed)
    return tuple(
        Site(
            path=f"Dense_{n}",
            op="dense",
            weight_shape=(4, 2),
            macs=int(np.exp(random.normal(12, 1))),
            weight_count=int(np.exp(random.normal(8, 2))),
            input_size=1000,
            output_size=1000,
        )
        for n in range(count)
    )


SITES = make_sites(4)
SPACES = {
    "tied": SearchSpace(SITES, OPTIONS),
    "pinned": SearchSpace(SITES, OPTIONS, pins={"Dense_1": "int8"}),
    "grouped": SearchSpace(SITES, OPTIONS, groups=["Dense_[12]"]),
    "weights only": SearchSpace(SITES, OPTIONS, weights_only=True),
    "separate": SearchSpace(SITES[:2], OPTIONS, separate=True),
}
TABLES = {
    f"{cost.__name__}, {name}": cost_table(space, cost)
    for cost in (site_bops, site_size, make_site_latency(DEVICES["a100"]))
    for name, space in SPACES.items()
}
BOPS = TABLES["site_bops, tied"]
