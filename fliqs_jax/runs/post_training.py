"""From a trained float network to formats within a budget, with no search.

Measures sensitivities, allocates the budget, applies the policy found as it is: fresh
batch statistics, no training. The finished workdir is like a search's. How values are
measured is in `meter` and `fisher`, how a budget is spent in `costs.allocation`.
"""

import csv
import dataclasses
import io
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from fliqs_jax.checks import check_at_least, check_one_of
from fliqs_jax.costs import (
    CostTable,
    SiteCost,
    allocate_exact,
    allocate_greedy,
    check_target,
    cost_table,
    monotone_values,
    site_bops,
    storage_bits,
    total_value,
)
from fliqs_jax.data import Dataset, batches
from fliqs_jax.files import replace_text
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.report import sensitivity_table, write_sensitivity_plot
from fliqs_jax.runs import results, run_folder
from fliqs_jax.runs.network import save_network
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import (
    Calibration,
    calibrated_formats,
    unsigned_inputs,
)
from fliqs_jax.searchers.sensitivities.fisher import check_estimable
from fliqs_jax.searchers.sensitivities.meter import (
    TrainedState,
    calibrate_inputs,
    isolated_formats,
)
from fliqs_jax.searchers.sensitivities.table import MEASURES, make_meter, measured_table
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.evaluation import Evaluator

ALLOCATIONS = {"milp": allocate_exact, "greedy": allocate_greedy}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationSettings:
    """How formats are chosen from sensitivities."""

    measure: str = "loss"
    allocation: str = "milp"
    batches: int = 4  # of training images, to calibrate and to measure on
    monotone: bool = True  # a wider format counts as no worse than a narrower one
    trade_off: int = 6  # further budgets, from cheap to dear, to find formats for

    def __post_init__(self):
        check_one_of(MEASURES, measure=self.measure)
        check_one_of(ALLOCATIONS, allocation=self.allocation)
        check_at_least(1, batches=self.batches)
        check_at_least(0, trade_off=self.trade_off)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _CalibratedNetwork:
    """A float network that runs at any formats of its space."""

    state: TrainedState
    space: SearchSpace
    calibration: Calibration
    evaluator: Evaluator

    def at(self, options: Int[np.ndarray, "L"]) -> tuple[TrainedState, SiteFormats]:
        """Returns the state, with batch statistics for the formats, and the formats."""
        formats = calibrated_formats(self.calibration, self.space, jnp.asarray(options))
        return self.evaluator.recalibrated(self.state, formats), formats

    def accuracy(self, options: Int[np.ndarray, "L"]) -> float:
        """Returns the accuracy on the test split."""
        return self.evaluator.test(*self.at(options))["accuracy"]

    def policy(self, options: Int[np.ndarray, "L"]) -> Policy:
        """Returns the policy as run: inputs that are never negative are unsigned."""
        nonnegative = np.asarray(self.calibration.nonnegative)
        return unsigned_inputs(self.space.policy(options), nonnegative)


def allocate_formats(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    space: SearchSpace,
    *,
    trained: Callable[[], tuple[TrainedState, float]],
    workdir: str,
    cost_target: float,
    settings: AllocationSettings = AllocationSettings(),
    batch_size: int = 128,
    seed: int = 0,
    steps: int = 0,
    cost: SiteCost = site_bops,
    cost_reference: str = "int8",
    per_channel: bool = True,
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> results.SearchResult:
    """Finds formats within a budget for a trained float network, without training.

    Run again with the same workdir and arguments, it measures what is missing, or
    returns the finished result. The policy can then be trained at, by `search_formats`;
    so can those found for `settings.trade_off` further budgets, in `trade_off/`.

    Args:
      model: a linen or NNX image classifier, as for `search_formats`.
      dataset: training images to measure on, test images for the accuracy.
      space: what may be chosen.
      trained: returns the float network's variables, and the seconds that training
        them took as part of this run; called if they are needed.
      workdir: a new folder, or that of the same run.
      cost_target: budget as a fraction of the reference's cost, positive.
      settings: of the method.
      batch_size: of all passes.
      seed: of the choice of images.
      steps: that the float network was trained for as part of this run.
      cost: price of one site.
      cost_reference: format of the uniform policy that costs 1.
      per_channel: one weight scale an output channel.
      config: what else identifies the run, for its `config.json`.
      say: receives what a person wants to read.

    Raises:
      ValueError: before anything is measured, if an argument is out of range, the
        budget out of reach, the measure not for such a model, or the workdir another
        run's. Also if the network's outputs are not finite.
    """
    costs = cost_table(space, cost)
    check_target(costs, cost_target, cost_reference)
    if settings.measure == "fisher":
        check_estimable(QuantizedModel(model).model, space)
    reference = costs.reference(cost_reference)
    target = cost_target * reference
    identity = {
        "method": "sensitivity",
        **run_folder.describe_data(dataset),
        "sites": results.describe_sites(space.sites),
        "decisions": list(space.decision_names),
        "options": list(space.option_names),
        **run_folder.describe_cost(
            cost, reference=reference, least=costs.minimum(), most=costs.maximum()
        ),
        "cost_reference": cost_reference,
        "cost_target": cost_target,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "network": run_folder.describe_network(
            dataset, space.sites, per_channel=per_channel
        ),
    }
    with run_folder.open_run(workdir, identity, config) as (folder, finished):
        if finished:
            results.say_finished(folder, say)
            return results.finished_result(folder)
        state, training_seconds = trained()
        classifier = Classifier.of(
            QuantizedModel(model, sites=space.sites, per_channel=per_channel), dataset
        )
        source = batches(dataset.train, batch_size=batch_size, seed=seed)
        images = [source.batch(number) for number in range(settings.batches)]
        start = time.monotonic()
        calibration = calibrate_inputs(classifier, state, space, images)
        calibrating = time.monotonic() - start
        meter = make_meter(
            settings.measure, classifier, state, space, calibration, images
        )
        values, measuring = measured_table(meter, space, folder, say)
        start = time.monotonic()
        options, allocation = _allocated(values, costs, target, settings)
        _write_sensitivities(folder, values, options, space, settings.measure, say)
        seconds = calibrating + measuring + time.monotonic() - start

        network = _CalibratedNetwork(
            state=state,
            space=space,
            calibration=calibration,
            evaluator=Evaluator(classifier, dataset, batch_size=batch_size),
        )
        fresh, formats = network.at(options)
        result = network.evaluator.test(fresh, formats)
        save_network(folder, fresh, formats, classifier)
        plain = isolated_formats(calibration, space, -1, 0)
        summary = {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "accuracy_before": network.evaluator.test(state, plain)["accuracy"],
            "cost": costs.exact_cost(options),
            "cost_target": target,
            "cost_ratio": costs.exact_cost(options) / target,
            "cost_of_reference": reference,
            "steps": steps,
            "entropy": None,
            "seed": seed,
            "uniform": results.uniform_rows(space, costs, target, network.accuracy),
            "trade_off": _trade_off(folder, network, values, costs, target, settings),
            "allocation": allocation,
            "sensitivities": {
                "values": values,
                "chosen": options,
                "unit": MEASURES[settings.measure],
            },
            "seconds": training_seconds + seconds,
            "seconds_measuring": seconds,
            "compile_count": meter.compile_count,
        }
        policy = network.policy(options)
        results.write_results(folder, policy=policy, summary=summary, say=say)
        return results.finished_result(folder)


def _allocated(
    values: Float[np.ndarray, "L K"],
    costs: CostTable,
    budget: float,
    settings: AllocationSettings,
) -> tuple[Int[np.ndarray, "L"], dict[str, Any]]:
    """Returns the options, and what they add up to beside the least possible sum."""
    if settings.monotone:
        bits = [storage_bits(name) for name in costs.space.option_names]
        values = monotone_values(values, bits)
    options = ALLOCATIONS[settings.allocation](values, costs, budget)
    least = total_value(values, allocate_exact(values, costs, budget))
    total = total_value(values, options)
    return options, {"sensitivity": total, "least_sensitivity": least}


def _trade_off(
    folder: pathlib.Path,
    network: _CalibratedNetwork,
    values: Float[np.ndarray, "L K"],
    costs: CostTable,
    target: float,
    settings: AllocationSettings,
) -> list[dict[str, Any]]:
    """Returns what is found for other budgets, cheapest first, each policy saved."""
    if not settings.trade_off:
        return []
    (folder / "trade_off").mkdir(exist_ok=True)
    most = costs.maximum()
    least = max(costs.minimum(), 1e-3 * most)  # of zero there are no multiples
    found = {}  # by price, since neighbours may be the same
    for budget in np.geomspace(least, most, settings.trade_off + 2)[1:-1]:
        options, _ = _allocated(values, costs, budget, settings)
        found[costs.exact_cost(options)] = options
    rows = []
    for number, (price, options) in enumerate(found.items()):
        name = f"trade_off/{number}.json"
        network.policy(options).save(folder / name)
        row = {"policy": name, "accuracy": network.accuracy(options), "cost": price}
        rows.append({**row, "cost_ratio": price / target})
    return rows


def _write_sensitivities(
    folder: pathlib.Path,
    values: Float[np.ndarray, "L K"],
    options: Int[np.ndarray, "L"],
    space: SearchSpace,
    measure: str,
    say: Callable[[str], None],
) -> None:
    """Writes sensitivity.csv and sensitivity.png, and prints the ranking."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["decision", *space.option_names, "chosen"])
    for name, row, option in zip(space.decision_names, values, options, strict=True):
        writer.writerow([name, *row.tolist(), space.option_names[option]])
    replace_text(folder / "sensitivity.csv", text.getvalue())
    shown = (space.decision_names, space.option_names, values, options)
    write_sensitivity_plot(folder / "sensitivity.png", *shown, unit=MEASURES[measure])
    say(sensitivity_table(*shown, unit=MEASURES[measure]))
