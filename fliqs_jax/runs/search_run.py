"""A format search from its searcher to a finished workdir, whatever the method.

Names the run, opens its folder, runs the job, evaluates what was found and writes the
results. The methods' own parts are in `format_search` (FLIQS) and `bit_search`
(QBitOpt); what happens in a step is in `fliqs` and `qbitopt`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from fliqs_jax.checks import check_not_negative, check_one_of, check_positive
from fliqs_jax.costs import CostTable, make_site_storage, policy_cost
from fliqs_jax.data import Dataset
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.runs import results, run_folder
from fliqs_jax.runs.network import save_network
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.job import JobSettings, Searcher, run_job
from fliqs_jax.train.mapping import make_mesh
from fliqs_jax.train.optimizers import (
    OPTIMIZERS,
    cosine_schedule,
    make_optimizer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the weights are trained; see `fliqs_jax.train.optimizers`."""

    name: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4

    def __post_init__(self):
        check_one_of(OPTIMIZERS, optimizer=self.name)
        check_positive(learning_rate=self.learning_rate)
        check_not_negative(weight_decay=self.weight_decay)

    def make(
        self, steps: int, *, restart_at: int | None = None
    ) -> optax.GradientTransformation:
        """Returns the optimizer of a run; see `cosine_schedule`."""
        schedule = cosine_schedule(
            self.learning_rate, steps=steps, restart_at=restart_at
        )
        return make_optimizer(self.name, schedule, weight_decay=self.weight_decay)


@runtime_checkable  # the tests check annotations while running
class FormatSearcher(Searcher, Protocol):
    """A searcher whose result is a format for every site."""

    classifier: Classifier
    space: SearchSpace
    costs: CostTable
    target: float  # in the unit of `costs`
    variables: Mapping[str, Any] | None  # to start from
    skip_variables: tuple[str, ...]  # patterns of what starts fresh even so

    def formats(self, state: PyTree, options: Int[Array, "D"]) -> SiteFormats:
        """Returns the formats and clip bounds of these options."""

    def current_options(self, state: PyTree) -> Int[np.ndarray, "D"]:
        """Returns the options that the run would end with now (host)."""

    def final_policy(self, state: PyTree) -> Policy:
        """Returns the policy as run."""

    def summary(self, state: PyTree) -> dict[str, Any]:
        """Returns what the method adds to `summary.json`."""


def run_search(
    searcher: FormatSearcher,
    dataset: Dataset,
    job: JobSettings,
    *,
    workdir: str,
    method: str,
    cost_target: float,
    cost_reference: str,
    identity: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> results.SearchResult:
    """Runs a searcher to its end, or continues it, and writes the results.

    Args:
      searcher: the method, its target feasible.
      dataset: from `load_dataset`.
      job: how to run.
      workdir: a new folder, or that of the same run.
      method: its name in `config.json`.
      cost_target: the searcher's, as a fraction of the reference's cost.
      cost_reference: format of the uniform policy that costs 1.
      identity: what of the method's settings identifies the run.
      config: what else does.
      say: receives what a person wants to read.

    Raises:
      ValueError: before any compilation, if the variables are another model's or the
        workdir another run's.
      TrainingDiverged: if the loss became NaN or infinite.
    """
    say, mesh = processes.spoken_once(say), make_mesh()
    space, quantized = searcher.space, searcher.classifier.quantized
    reference = searcher.costs.reference(cost_reference)
    identity = {
        "method": method,
        **run_folder.describe_data(dataset),
        "sites": results.describe_sites(space.sites),
        "decisions": list(space.decision_names),
        "options": list(space.option_names),
        **run_folder.describe_cost(
            searcher.costs.site_cost,
            reference=reference,
            least=searcher.costs.minimum(),
            most=searcher.costs.maximum(),
        ),
        "cost_reference": cost_reference,
        "cost_target": cost_target,
        **identity,
        **run_folder.describe_job(job, mesh),
        "network": run_folder.describe_network(
            dataset, space.sites, per_channel=quantized.per_channel
        ),
        **run_folder.describe_start(
            searcher.classifier,
            dataset,
            searcher.variables,
            searcher.skip_variables,
            say,
        ),
    }
    with run_folder.open_run(workdir, identity, config) as (folder, finished):
        if finished:
            results.say_finished(folder, say)
            return results.finished_result(folder)
        state, evaluator, facts = run_job(
            searcher, dataset, job, workdir=str(folder), mesh=mesh, say=say
        )
        policy = searcher.final_policy(state)
        formats = searcher.current_formats(state)
        price = searcher.costs.exact_cost(searcher.current_options(state))
        result = evaluator.test(state, formats)

        def uniform_accuracy(options):
            formats = searcher.formats(state, jnp.asarray(options))
            fresh = evaluator.recalibrated(state, formats)
            return evaluator.test(fresh, formats)["accuracy"]

        uniform = results.uniform_rows(
            space, searcher.costs, searcher.target, uniform_accuracy
        )
        storage = make_site_storage(per_channel=quantized.per_channel)
        save_network(folder, state, formats, searcher.classifier)
        summary = {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "cost": price,
            "cost_target": searcher.target,
            "cost_ratio": price / searcher.target,
            "cost_of_reference": reference,
            "size_bits": policy_cost(storage, space.sites, policy),
            "steps": job.steps,
            "seed": job.seed,
            "uniform": uniform,
            **searcher.summary(state),
            **facts,
        }
        processes.on_main(
            lambda: results.write_results(
                folder, policy=policy, summary=summary, say=say
            )
        )
        return results.finished_result(folder)
