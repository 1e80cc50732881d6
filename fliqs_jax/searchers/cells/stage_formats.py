r"""Formats of a cell search's stages: options, their logits, and what is decided.

As the operations of an edge, the formats of a stage are a softmax over logits, and the
search network runs with the mean over formats of every weight and input in the stage:

.. math:: \bar Q_s(x) = \sum_f \mathrm{softmax}(\beta_s)_f \, Q_f(x)

so that the same gradient descends in both, under the same multipliers. Mixed formats as
in EdMIPS; joined to the operations here. Everything outside of the cells' edges (stem,
1x1 convolutions around cells, reductions between stages, classifier) keeps one format.

Reference: Cai and Vasconcelos, Rethinking Differentiable Search for Mixed-Precision
Neural Networks, 2020, https://arxiv.org/abs/2004.05795
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.models.cells import (
    CellSpace,
    NetworkCounts,
    StagedCost,
    darts_places,
    staged_cost,
)
from fliqs_jax.policy import FormatMixture, Policy, SiteFormats
from fliqs_jax.quantizers import gaussian_clip_factors
from fliqs_jax.sites import Site

OUTSIDE = "int8"  # of what belongs to no stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFormats:
    """The formats that each stage of a network may have.

    Args:
      options: format names.
      cells: the stage of every cell, in the order of the network.
      outside: format of all sites outside of the cells' edges.

    Raises:
      ValueError: if there are fewer than two options, one twice, or no such format.

    Example:
      >>> stages = StageFormats(options=("int4", "int8"), cells=(0, 1, 1))
      >>> stages.num_stages, stages.stage_of("cell_2/nor_conv_3x3_0/Conv_0")
      (2, 1)
      >>> stages.stage_of("stem") is None
      True
    """

    options: tuple[str, ...]
    cells: tuple[int, ...]
    outside: str = OUTSIDE

    def __post_init__(self):
        if len(set(self.options)) < max(2, len(self.options)):
            raise ValueError(
                "options must be two or more different formats to choose from, got"
                f" {', '.join(self.options)}"
            )
        for name in (*self.options, self.outside):
            parse_format(name)

    @property
    def num_stages(self) -> int:
        """S."""
        return max(self.cells) + 1

    def stage_of(self, path: str) -> int | None:
        """Returns the stage of a site, None outside of the cells' edges."""
        # The 1x1 convolutions of DARTS' inputs are inside of its cells, "input_0".
        found = re.match(r"cell_(\d+)/(?!input_)", path)
        return None if found is None else self.cells[int(found[1])]

    def init_logits(
        self, key: Key[Array, ""], *, scale: float = 1e-3
    ) -> Float[Array, "S F"]:
        """Returns logits of nearly equal probabilities."""
        return scale * jax.random.normal(key, (self.num_stages, len(self.options)))

    def mixture(
        self, logits: Float[Array, "S F"], sites: Sequence[Site]
    ) -> FormatMixture:
        """Returns what the sites of a network run with; differentiable in the logits.

        Weights are clipped where a normal distribution loses least.
        """
        stages = [self.stage_of(site.path) for site in sites]
        inside = np.array([stage is not None for stage in stages])
        formats = stack_formats([*self.options, self.outside])
        with jax.ensure_compile_time_eval():  # a search over grids, not for every step
            clips = gaussian_clip_factors(formats)
        options = []
        for index in range(len(self.options)):
            chosen = np.where(inside, index, len(self.options))
            here = jax.tree.map(lambda field, chosen=chosen: field[chosen], formats)
            options.append(SiteFormats(here, here, weight_clip=clips[chosen]))
        rows = jax.nn.softmax(logits)[np.array([stage or 0 for stage in stages])]
        certain = np.eye(len(self.options), dtype=np.float32)[0]
        shares = jnp.where(inside[:, None], rows, certain[None])
        return FormatMixture(tuple(options), shares)

    def policy(self, formats: Sequence[int], sites: Sequence[Site]) -> Policy:
        """Returns the policy of decided stages for the sites of a derived network."""
        stages = [self.stage_of(site.path) for site in sites]
        names = [
            self.outside if stage is None else self.options[formats[stage]]
            for stage in stages
        ]
        return Policy(
            {site.path: (name, name) for site, name in zip(sites, names, strict=True)}
        )

    def bit_operations(self, counts: NetworkCounts) -> StagedCost:
        """Returns MACs times the bits of the weights times those of the inputs."""
        bits = _bits(self.options)
        return staged_cost(
            counts, "macs", bits**2, float(_bits([self.outside])[0] ** 2)
        )

    def weight_bits(self, counts: NetworkCounts) -> StagedCost:
        """Returns the size of all weights in bits."""
        outside = float(_bits([self.outside])[0])
        return staged_cost(counts, "weights", _bits(self.options), outside)


def _bits(names: Sequence[str]) -> Float[np.ndarray, "F"]:
    return np.array([int(parse_format(name).storage_bits) for name in names], float)


def cell_stages(space: CellSpace, model) -> tuple[int, ...]:
    """Returns the stage of every cell of a network of the space.

    Args:
      space: NAS-Bench-201, whose stages are equally long, or DARTS, where a reduction
        cell opens its stage.
      model: a network with the fields of its layout.
    """
    if space.name == "nasbench201":
        return tuple(np.repeat(range(3), model.num_cells).tolist())
    places = darts_places(model.channels, model.layers)
    return tuple(np.cumsum([place.reduction for place in places]).tolist())
