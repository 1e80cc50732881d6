"""When the L steps of Learning-Compression end, and what happens around its C steps.

Values only; the method, and its rivals on the same schedule, are in
`learning_compression`.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What happens around the C steps: the method, or what it is compared with."""

    penalty: bool  # in L steps
    multipliers: bool  # or only the quadratic penalty
    restart: bool  # each L step from Delta
    straight_through: bool = False  # losses are those of Delta(w), in every step


VARIANTS = {
    "lc": Variant(penalty=True, multipliers=True, restart=False),
    "qp": Variant(penalty=True, multipliers=False, restart=False),
    # Direct compression: training that knows nothing of it, then a C step.
    "dc": Variant(penalty=False, multipliers=False, restart=False),
    # Iterated direct compression: trained on from the compressed weights each time.
    "idc": Variant(penalty=False, multipliers=False, restart=True),
    # Quantization-aware training on the codebook: BinaryConnect's gradient.
    "ste": Variant(
        penalty=False, multipliers=False, restart=False, straight_through=True
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSteps:
    r"""When L steps end, and the mu of each.

    .. math:: \mu_j = \mu_0 \, a^j
    """

    ends: tuple[int, ...]  # training steps taken by then, ascending
    mu: float = 9e-5
    growth: float = 1.1  # a

    def __post_init__(self):
        if not self.ends or any(np.diff([0, *self.ends]) < 1):
            raise ValueError(
                "ends must be steps in ascending order from 1 on, one at least for each"
                f" L step, got {len(self.ends)} L steps in {max(self.ends, default=0)}"
                " steps: take fewer L steps (--lc_steps) or more steps (--steps)"
            )
        if not self.mu > 0 or not self.growth >= 1:
            raise ValueError(
                "mu must be positive and growth at least 1, got "
                f"mu={self.mu}, growth={self.growth}"
            )

    @classmethod
    def of(cls, steps: int, count: int, *, first: float = 2.0, **schedule) -> "LSteps":
        """Returns L steps of equal length, the first one `first` times as long.

        Example:
          >>> LSteps.of(50, 4).ends
          (20, 30, 40, 50)
        """
        if count < 1 or not first > 0:
            raise ValueError(
                "there must be at least one L step, the first of a positive length, "
                f"got count={count}, first={first}"
            )
        shares = (first + np.arange(count)) / (first + count - 1)
        ends = np.round(steps * shares).astype(int)
        return cls(ends=tuple(ends.tolist()), **schedule)

    def mu_of(self, number: int) -> float:
        """Returns the mu of an L step, counted from 0."""
        return self.mu * self.growth**number
