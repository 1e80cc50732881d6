"""What is known of a run, as frozen values: its task, its course and its result.

Values only: `reading` fills them from a workdir's files, the plots and pages show them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Formats = Mapping[str, tuple[str, str]]  # site path -> (weight format, input format)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """A site as config.json lists it; the fields mean what they mean in Site."""

    path: str
    op: str
    weight_shape: tuple[int, ...]
    macs: int  # per example
    weight_count: int
    input_size: int = 0  # numbers an example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
    """Where a run's three phases end, in training steps."""

    warmup_end: int  # the weights train, the controller does not
    search_end: int  # from here on the policy is fixed
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the run was asked to do. Unknown parts are empty, never guessed."""

    method: str
    launcher: str  # the module that ran
    model: str
    dataset: str
    flags: Mapping[str, Any]
    sites: tuple[SiteRecord, ...]
    decisions: tuple[str, ...]
    options: tuple[str, ...]
    cost: str  # as --cost names it: "bops", "size", ...
    cost_reference: str  # the uniform policy whose cost is 1
    cost_target: float | None  # as a fraction of the reference's cost
    phases: Phases | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformResult:
    """The run's final weights, measured again with one format everywhere."""

    format: str
    accuracy: float  # 0 to 1
    cost_ratio: float  # cost / target


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """What the same method found for another budget, from the same weights."""

    policy: str  # its file in the workdir
    accuracy: float  # 0 to 1
    cost_ratio: float  # cost / target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivities:
    """What each option of each decision costs in quality, alone, as it was measured."""

    values: Float[np.ndarray, "L K"]
    chosen: Int[np.ndarray, "L"]  # option indices
    unit: str  # in words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """How the run ended. NaN or None stands for what was not recorded."""

    accuracy: float  # test set, final discrete policy, 0 to 1
    cost_ratio: float  # cost / target
    steps: int
    seconds: float
    compile_count: int | None
    entropy: float  # mean over decisions, nats
    seed: int | None
    versions: Mapping[str, str]
    uniform: tuple[UniformResult, ...]
    trade_off: tuple[BudgetResult, ...] = ()
    sensitivities: Sensitivities | None = None  # by which the formats were chosen


@dataclasses.dataclass(frozen=True)
class Series:
    """One quantity over the training steps, in ascending order of steps."""

    steps: Int[np.ndarray, "T"]
    values: Float[np.ndarray, "T"]


@dataclasses.dataclass(frozen=True)
class ProbabilityTrace:
    """The controller's probabilities; NaN where a decision has fewer options."""

    steps: Int[np.ndarray, "T"]
    values: Float[np.ndarray, "T L K"]
    certain: bool = False  # each is 0 or 1: options were set, not drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the report knows about a run."""

    config: RunConfig
    summary: Summary | None
    policy: Formats | None
    train: Mapping[str, Series]  # by quantity: "loss", "accuracy", "reward", ...
    evaluation: Mapping[tuple[str, str], Series]  # by (split, quantity)
    probabilities: ProbabilityTrace | None
    damaged_rows: int  # lines of metrics.jsonl that a kill cut short
