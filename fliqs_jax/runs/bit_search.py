"""A QBitOpt run from plain objects to a finished workdir.

Puts its pieces together: network, space, cost, update steps, optimizers. What happens
in a step is in `qbitopt`, what every search does with a searcher in `search_run`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from flax import nnx

from fliqs_jax.checks import check_positive, check_within
from fliqs_jax.costs import SiteCost, check_target, cost_table, site_bops
from fliqs_jax.data import Dataset
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs import run_folder
from fliqs_jax.runs.results import SearchResult
from fliqs_jax.runs.search_run import OptimizerSettings, run_search
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.qbitopt import QBitOpt, UpdateSteps
from fliqs_jax.train.classifier import Augment, Classifier
from fliqs_jax.train.job import JobSettings
from fliqs_jax.train.optimizers import cosine_schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class QBitOptSettings:
    """How bits are re-allocated and step sizes learned."""

    update_every: int | None = None  # steps; None: 250, less in short runs
    frozen_fraction: float = 0.25  # of the steps, the last ones, at fixed bits
    trace_decay: float = 0.99  # of the sensitivities' moving average, a step
    least_gain: float = 0.01  # of the objective, for bits to change
    clip_learning_rate: float = 1e-3  # Adam's, on the logarithm of a clip bound
    rescale_range: bool = False  # on a change of bits, by the ratio of best clips
    damping: float = 0.0  # of weights that oscillate between two values: last weight
    per_channel: bool = True  # one weight scale an output channel, bits for all
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("clip_learning_rate", "damping", "least_gain"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        check_within("[0, 1)", label_smoothing=self.label_smoothing)


def damping_schedule(
    weight: float, *, steps: int, delay_fraction: float = 0.25
) -> Callable:
    r"""Returns the weight of the oscillation penalty by step: none, then half a cosine.

    .. math:: \lambda(t) = \lambda \cdot \tfrac12 (1 - \cos \pi \tau), \quad
        \tau = \mathrm{clip}((t / T - d) / (1 - d), 0, 1)

    Args:
      weight: lambda, at the end.
      steps: T.
      delay_fraction: d.

    Reference:
      Nagel et al., Overcoming Oscillations in QAT, 2022, section 4.1
    """

    def at(step):
        progress = (step / steps - delay_fraction) / (1.0 - delay_fraction)
        cosine = jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))
        return weight * 0.5 * (1.0 - cosine)

    return at


def search_bits(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    space: SearchSpace,
    *,
    workdir: str,
    cost_target: float,
    job: JobSettings,
    cost: SiteCost = site_bops,
    cost_reference: str = "int8",
    qbitopt: QBitOptSettings = QBitOptSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
    augment: Augment | None = None,
    policy: Policy | None = None,
    variables: Mapping[str, Any] | None = None,
    skip_variables: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> SearchResult:
    """Trains a network while its bits are re-allocated within a hard budget.

    Run again with the same workdir and arguments, it continues where it stopped, or
    returns the finished result.

    Args:
      model: as for `search_formats`, and so are all arguments not named here.
      dataset: from `load_dataset` or `make_dataset`.
      space: what may be chosen; `separate=True` gives weights and inputs bits of their
        own, as published.
      workdir: a new folder, or that of the same run.
      cost_target: budget as a fraction of the reference's cost; never exceeded.
      job: steps, batch size, seed, and how to run.
      cost: price of one site, from `fliqs_jax.costs`: `site_bops`, `site_mean_bits`,
        `site_activation_size`, `make_site_storage()`, `make_site_latency(device)`,
        `make_table_latency(LatencyTable.load(file))`; or your own.
      cost_reference: format of the uniform policy that costs 1.
      qbitopt: settings of the method.
      optimizer: of the weights.
      augment: `(key, images) -> images` for training batches, on device.
      policy: train at this policy, with learned step sizes, and re-allocate nothing.
      variables: trained variables to start from.
      skip_variables: patterns of leaves that start fresh even so.
      config: what else identifies the run, for its `config.json`.
      say: receives what a person wants to read.

    Raises:
      ValueError: before any compilation, if an argument is out of range, the budget out
        of reach, the variables another model's, or the workdir another run's.
      TrainingDiverged: if the loss or a sensitivity became NaN or infinite.
    """
    check_positive(cost_target=cost_target)
    costs = cost_table(space, cost)
    if policy is None:
        check_target(costs, cost_target, cost_reference)
    classifier = Classifier.of(
        QuantizedModel(
            model,
            sites=space.sites,
            per_channel=qbitopt.per_channel,
            learned_clips=True,
        ),
        dataset,
        augment,
    )
    updates = UpdateSteps.of(
        job.steps, every=qbitopt.update_every, frozen_fraction=qbitopt.frozen_fraction
    )
    damping = None
    if qbitopt.damping:
        damping = damping_schedule(qbitopt.damping, steps=job.steps)
    searcher = QBitOpt(
        classifier=classifier,
        space=space,
        costs=costs,
        target=cost_target * costs.reference(cost_reference),
        updates=updates,
        optimizer=optimizer.make(job.steps),
        clip_optimizer=optax.adam(
            cosine_schedule(qbitopt.clip_learning_rate, steps=job.steps)
        ),
        trace_decay=qbitopt.trace_decay,
        least_gain=qbitopt.least_gain,
        rescale_range=qbitopt.rescale_range,
        damping=damping,
        label_smoothing=qbitopt.label_smoothing,
        policy=policy,
        variables=variables,
        skip_variables=tuple(skip_variables),
    )
    return run_search(
        searcher,
        dataset,
        job,
        workdir=workdir,
        method="qbitopt",
        cost_target=cost_target,
        cost_reference=cost_reference,
        identity={
            "updates": None if policy else dataclasses.asdict(updates),
            "settings": run_folder.describe_settings(qbitopt),
            "optimizer": run_folder.describe_settings(optimizer),
            "augment": run_folder.describe_settings(augment),
            "fixed_policy": run_folder.describe_policy(policy),
        },
        config=config,
        say=say,
    )
