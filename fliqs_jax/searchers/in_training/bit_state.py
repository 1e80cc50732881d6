"""What QBitOpt carries from step to step, and the steps at which it re-allocates bits.

Values only; what is done with them is in `qbitopt`.
"""

import dataclasses

import flax.struct
from jaxtyping import Array, Float, Int, Key, PyTree

from fliqs_jax.checks import check_at_least, check_within
from fliqs_jax.searchers.in_training.calibration import Calibration


@flax.struct.dataclass
class Clips:
    """Logarithms of the learned clip bounds of S sites, in the units of `SiteFormats`.

    LSQ's step size in another unit: s = clip / v_max (times the weight's RMS). So the
    range stays when the bits change, and it is never negative.
    """

    weight: Float[Array, "S"]
    activation: Float[Array, "S"]


@flax.struct.dataclass
class Traces:
    """Fisher traces of S sites: E[sum of squared gradients of an example's loss]."""

    weight: Float[Array, "S"]
    activation: Float[Array, "S"]


@flax.struct.dataclass
class BitState:
    """Everything a step changes; equal on all devices, saved in every checkpoint."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    params: PyTree  # float weights
    model_state: PyTree  # batch statistics and other collections
    opt_state: PyTree
    clips: Clips
    clip_opt_state: PyTree
    traces: Traces  # moving averages that start from zero
    trace_weight: Float[Array, ""]  # of the observations in them, for the bias
    options: Int[Array, "D"]  # trained at present
    calibration: Calibration  # best clips of every format, for those not trained
    reallocations: Int[Array, ""]  # updates that changed something


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateSteps:
    """At which steps bits are re-allocated: every `every` from `first` to `last`."""

    every: int
    first: int
    last: int

    @classmethod
    def of(
        cls, steps: int, *, every: int | None = None, frozen_fraction: float = 0.25
    ) -> "UpdateSteps":
        """Returns the update steps of a run, whose last part trains at frozen bits.

        Args:
          steps: of the run.
          every: steps between two updates; None is 250, or fewer where a run would
            have less than eight updates. The first comes after two such periods.
          frozen_fraction: of the steps, the last ones.

        Example:
          >>> UpdateSteps.of(10_000)
          UpdateSteps(every=250, first=500, last=7500)
        """
        check_within("[0, 1]", frozen_fraction=frozen_fraction)
        if every is not None:
            check_at_least(1, update_every=every)
        last = round((1.0 - frozen_fraction) * steps)
        every = every or max(1, min(250, last // 9))
        return cls(every=every, first=2 * every, last=last)

    def steps(self) -> frozenset[int]:
        """Returns the numbers of the steps before which bits are re-allocated."""
        return frozenset(range(self.first, self.last + 1, self.every))
