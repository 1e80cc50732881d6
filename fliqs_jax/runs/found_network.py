"""What a network search found: the small network by itself, judged and written down.

An ordinary model with variables, formats and a policy of its own; nothing is masked any
more.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from fliqs_jax import report
from fliqs_jax.costs import make_site_storage, policy_cost
from fliqs_jax.data import Dataset
from fliqs_jax.models import supernets
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs import results
from fliqs_jax.searchers.fliqnas import Fliqnas
from fliqs_jax.searchers.in_training.one_shot import SearchState
from fliqs_jax.searchers.joint.subnetwork_classifier import extracted_formats
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.sites import Site
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.evaluation import Evaluator
from fliqs_jax.train.job import JobSettings
from fliqs_jax.train.workdir import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundNetwork:
    """The small network of a finished search, as an ordinary classifier."""

    searcher: Fliqnas
    state: SearchState
    options: Int[np.ndarray, "L"]
    sites: tuple[Site, ...]  # of the small network
    classifier: Classifier
    variables: TrainedState
    policy: Policy
    evaluator: Evaluator

    @classmethod
    def of(
        cls,
        searcher: Fliqnas,
        state: SearchState,
        dataset: Dataset,
        job: JobSettings,
        mesh: Mesh,
    ) -> "FoundNetwork":
        """Takes the network that a state would end with out of the super-network."""
        net, full = searcher.costs.space.net, searcher.classifier.classifier.quantized
        options = searcher.current_options(state)
        choice = options[: len(net.counts)]
        model, variables = supernets.extract(
            net, {"params": state.params, **state.model_state}, choice
        )
        sites = supernets.subnetwork_sites(net, choice)
        quantized = QuantizedModel(model, sites=sites, per_channel=full.per_channel)
        classifier = Classifier.of(quantized, dataset)
        return cls(
            searcher=searcher,
            state=state,
            options=options,
            sites=sites,
            classifier=classifier,
            variables=TrainedState(variables.pop("params"), variables),
            policy=supernets.subnetwork_policy(
                net, choice, searcher.final_policy(state)
            ),
            evaluator=job.make_evaluator(classifier, dataset, mesh),
        )

    @property
    def choice(self) -> Int[np.ndarray, "A"]:
        return self.options[: len(self.searcher.costs.space.net.counts)]

    @property
    def formats(self) -> SiteFormats:
        return self._formats(self.options)

    @property
    def price(self) -> float:
        return self.searcher.costs.exact_cost(self.options)

    def summary(self) -> dict[str, Any]:
        """Returns what the small network is, and what it is worth."""
        net = self.searcher.costs.space.net
        result = self.evaluator.test(self.variables, self.formats)
        storage = make_site_storage(per_channel=self.classifier.quantized.per_channel)
        chosen = self.searcher.select(self.state)
        return {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "cost": self.price,
            "architecture": supernets.describe_choice(net, self.choice),
            "parameters": int(supernets.subnetwork_parameters(net, self.choice)),
            "parameters_of_full": int(supernets.subnetwork_parameters(net, net.full)),
            "macs": sum(site.macs for site in self.sites),
            "macs_of_full": sum(site.macs for site in net.sites),
            "size_bits": policy_cost(storage, self.sites, self.policy),
            "selection_gap": chosen.bound - chosen.score,
            "uniform": self._uniform(),
        }

    def _formats(self, options: Int[np.ndarray, "L"]) -> SiteFormats:
        subnetwork = self.searcher.formats(self.state, jnp.asarray(options))
        net = self.searcher.costs.space.net
        return extracted_formats(net, self.choice, subnetwork.formats)

    def _uniform(self) -> list[dict[str, Any]]:
        """Returns accuracy and cost of this architecture with one option everywhere."""

        def accuracy(options):
            formats = self._formats(options)
            fresh = self.evaluator.recalibrated(self.variables, formats)
            return self.evaluator.test(fresh, formats)["accuracy"]

        costs, target = self.searcher.costs, self.searcher.target
        return results.uniform_rows(
            costs.space.space, costs, target, accuracy, choice=self.choice
        )


def write_network_results(
    folder: pathlib.Path,
    found: FoundNetwork,
    record: dict[str, Any],
    summary: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Writes the result files; the summary makes the run a finished one."""
    found.policy.save(folder / "policy.json")
    write_json(
        folder / supernets.ARCHITECTURE_FILE,
        {**record, "sites": results.describe_sites(found.sites)},
    )
    write_json(folder / "summary.json", {**summary, "versions": results.versions()})
    page = report.write_network_report(folder)
    words = [f"{name} {option}" for name, option in summary["architecture"].items()]
    say(f"architecture: {', '.join(words)}")
    run = report.read_run(folder)
    say(report.sites_table(found.sites, found.policy, cost=run.config.cost))
    say(report.comparison_table(run))
    say(f"report: {page}")
