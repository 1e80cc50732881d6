"""When a search inside one training run warms up, searches, and trains its choice."""

import dataclasses

from fliqs_jax.checks import check_within


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
    """Step numbers at which the run changes: uniform warm-up, search, fixed policy."""

    warmup_end: int  # first step at which the controller learns
    search_end: int  # first step at the fixed policy
    steps: int

    def __post_init__(self):
        if not 0 <= self.warmup_end <= self.search_end <= self.steps or not self.steps:
            raise ValueError(
                "phases must satisfy 0 <= warmup_end <= search_end <= steps, got "
                f"{self.warmup_end}, {self.search_end}, {self.steps}"
            )

    @classmethod
    def of(
        cls, steps: int, *, warmup_fraction: float = 0.25, final_fraction: float = 0.2
    ) -> "Phases":
        """Returns phases as fractions of the run."""
        check_within("[0, 1]", warmup_fraction=warmup_fraction)
        check_within("[0, 1]", final_fraction=final_fraction)
        if warmup_fraction + final_fraction > 1 + 1e-9:
            raise ValueError(
                "warmup_fraction and final_fraction must add up to at most 1, got"
                f" {warmup_fraction} and {final_fraction}: lower one"
            )
        return cls(
            warmup_end=round(warmup_fraction * steps),
            search_end=round((1.0 - final_fraction) * steps),
            steps=steps,
        )
