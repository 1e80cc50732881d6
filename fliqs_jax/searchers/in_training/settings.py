"""How a search inside one training run goes: the settings of FLIQS and of FLIQNAS."""

import dataclasses

from fliqs_jax.checks import check_at_least, check_within
from fliqs_jax.controller import default, published
from fliqs_jax.searchers.in_training.controllers import Recipe, recipe
from fliqs_jax.searchers.in_training.judging import Quality, negated_loss
from fliqs_jax.searchers.in_training.phases import Phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class FliqsSettings:
    """How formats are searched. The defaults are the form for 10^3 to 10^4 steps."""

    recipe: Recipe = recipe(default)
    judge_every: int = 8  # steps between two updates of the controller
    warmup_fraction: float = 0.1  # of the steps, policies drawn uniformly
    # Of the steps, at the policy found: the choice needs fewer steps than the weights.
    final_fraction: float = 0.5
    # Whether the steps at the policy found have a learning-rate schedule of their own.
    restart_schedule: bool = False
    within_budget: bool = True  # final policy: best within budget, or argmax
    calibrate_every: int = 100  # steps between two updates of the clip bounds
    dynamic_scales: bool = False  # absmax of every tensor instead of clip bounds
    per_channel: bool = True  # one weight scale an output channel
    clip_gradient: bool = True  # no gradient to clipped values
    label_smoothing: float = 0.0
    quality: Quality = negated_loss  # by which policies are judged

    def __post_init__(self):
        check_at_least(1, judge_every=self.judge_every)
        check_at_least(1, calibrate_every=self.calibrate_every)
        check_within("[0, 1)", label_smoothing=self.label_smoothing)

    def make_phases(self, steps: int, *, searching: bool) -> Phases:
        """Returns the phases of a run, or of a training where nothing is searched."""
        if not searching:
            return Phases(warmup_end=0, search_end=0, steps=steps)
        return Phases.of(
            steps,
            warmup_fraction=self.warmup_fraction,
            final_fraction=self.final_fraction,
        )

    def restart_at(self, phases: Phases) -> int | None:
        """Returns the step at which the learning-rate schedule starts anew, if any."""
        if not self.restart_schedule or phases.search_end in (0, phases.steps):
            return None
        return phases.search_end


# The FLIQS authors' code: one sample a step, absmax scales per tensor, no mask on the
# gradient, the argmax policy at the end, no last phase.
PUBLISHED = FliqsSettings(
    recipe=recipe(published),
    judge_every=1,
    warmup_fraction=0.25,
    final_fraction=0.0,
    within_budget=False,
    dynamic_scales=True,
    per_channel=False,
    clip_gradient=False,
)

# With an architecture to find, early steps go to its largest options (TuNAS: 25 %), and
# the controller has more to learn.
FLIQNAS = FliqsSettings(warmup_fraction=0.25, final_fraction=0.4, restart_schedule=True)
