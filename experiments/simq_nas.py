"""Searches sub-network and formats together, from one trained super-network (SimQ-NAS).

  python -m experiments.simq_nas --workdir=runs/simq \
      --flagfile=experiments/presets/digits_simq.flags

Trains the super-network in WORKDIR/supernet (from --init_from: InstaTune; or takes it
from another run: --supernet_from), searches pairs of sub-network and formats by
--searcher on the validation split, each quantized after training, and judges the front
on the test split beside uniform policies. Then one point is taken, by limits or
--point, extracted as a small network and, with --finetune_steps, trained on at its
formats. Run again with the same workdir to resume, to search on (--evaluations) or to
take another point: nothing is evaluated twice.

Writes front.csv, front.png, policy.json, summary.json, metrics.jsonl, report.html; the
network of each point taken is a finished run of its own in WORKDIR/points.
"""

import functools
import pathlib
from typing import Any

from absl import flags

from experiments import (
    common,
    cost_flags,
    finetuning,
    parsing,
    program,
    search_flags,
    subnetwork_flags,
    supernet_flags,
)
from fliqs_jax.costs import SiteCost
from fliqs_jax.data import Dataset
from fliqs_jax.models.supernets import SuperNetwork
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.report import write_front_report
from fliqs_jax.runs.results import describe_sites, say_finished
from fliqs_jax.runs.run_folder import describe_data
from fliqs_jax.runs.simq_results import write_search
from fliqs_jax.searchers import simq_nas
from fliqs_jax.searchers.joint.front import Selection, check_reachable
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.static_calibration import PtqSettings
from fliqs_jax.searchers.sensitivities.fisher import check_estimable
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.searchers.sensitivities.table import MEASURES
from fliqs_jax.train.fitting import describe_variables
from fliqs_jax.train.workdir import open_workdir, read_json

FLAGS = flags.FLAGS

# Of --objectives: the name of the flag's value, that of the price with its unit.
PRICES = {
    "size": "size_bits",
    "bops": "bops",
    "activation_size": "activation_bits",
    "latency": "latency_s",
}
ALWAYS = ("size", "bops")  # priced, whether searched or not
# May change when a run is continued: how long is searched, and what is taken.
ADJUSTABLE = (
    "evaluations", "searched_loss", "reference_networks", "point",
    "accuracy_loss_limit", "accuracy_reference", "size_limit", "latency_limit",
    "finetune_steps", "finetune_learning_rate",
)  # fmt: skip
IDLE = {
    "model": "--supernet names the network",
    "model_options": "--supernet_options has its settings",
    "cost": "--objectives says what is searched",
    "cost_target": "limits have flags of their own",
    "cost_reference": "--accuracy_reference names the policy to compare with",
}

common.define_common_flags()
common.define_start_flags()
search_flags.define_decision_flags()
supernet_flags.define_supernet_flags()
common.define(
    "list",
    "objectives",
    ["error", "size"],
    f"What is minimised: error, and one or more of {', '.join(PRICES)}.",
)
common.define("enum", "searcher", "linas", "Of the front.", values=simq_nas.SEARCHERS)
common.define("integer", "evaluations", 250, "Candidates evaluated, at most.")
common.define("integer", "population", 50, "Candidates a generation.")
common.define(
    "bool", "weight_modes", False, "Also choose zero points for weights, site by site."
)
common.define(
    "float",
    "searched_loss",
    None,
    "Candidates are searched for up to this loss of validation accuracy, in points "
    "against the full network at --accuracy_reference (default: the whole front).",
)
common.define(
    "enum",
    "seed_by_sensitivity",
    "fisher",
    "Measure of the full network's sites by which first candidates are made, or none.",
    values=[*MEASURES, "none"],
)
common.define("float", "seeded_fraction", 0.5, "Of the first generation, made so.")
common.define(
    "bool", "sensitivity_features", True, "Tell the predictors of LINAS, too."
)
common.define("enum", "weight_observer", "mse", "Of ranges.", values=OBSERVERS)
common.define("enum", "input_observer", "mse", "Of ranges.", values=OBSERVERS)
common.define("bool", "symmetric_inputs", False, "Inputs without zero points.")
common.define(
    "integer", "calibration_batches", 2, "Training batches for a candidate's ranges."
)
common.define(
    "integer", "statistics_batches", 4, "Training batches for its batch statistics."
)
common.define(
    "integer",
    "candidates_per_device",
    None,
    "Evaluated at a time (default: 1 on CPU, 4 elsewhere).",
)
common.define(
    "integer",
    "reference_networks",
    8,
    "Sub-networks of the front that are judged at uniform formats, too.",
)
common.define("integer", "point", None, "Of front.csv, to take instead of limits.")
common.define(
    "float",
    "accuracy_loss_limit",
    None,
    "Most validation accuracy that the point may lose, in percentage points against "
    "the full network at --accuracy_reference.",
)
common.define(
    "string",
    "accuracy_reference",
    "int8",
    "Uniform format of the full network to compare with: int8, fp32, one of --formats.",
)
common.define("float", "size_limit", None, "Of the point, MB of 10^6 bytes.")
common.define("float", "latency_limit", None, "Most of it, ms.")
finetuning.define_finetuning_flags()


def run() -> None:
    """Turns the flags into objects, trains, searches, takes a point."""
    program.say_idle(idle_flags())
    settings, selection = simq_settings(), point_selection()
    prices, objectives = site_prices(), objective_names()
    # Mistakes there show before data is read.
    common.job_settings(), supernet_flags.supernet_settings()
    finetuning.check_finetuning()
    dataset = common.dataset()
    net, _ = subnetwork_flags.supernet(dataset)
    spaces = joint_spaces(net, dataset, settings, selection)
    check_reachable(spaces[0], prices, selection.limits)
    state = supernet_flags.given_supernet(net, dataset)
    shared = common.run_config(adjustable=ADJUSTABLE, idle=IDLE)
    config = {**shared, **identity(net, dataset, spaces[0], state)}
    volatile = ("session", "adjustable")
    with open_workdir(FLAGS.workdir, config, volatile=volatile) as folder:
        if finished(folder, shared["adjustable"]):
            say_finished(folder, program.say, write_page=write_front_report)
            return
        training = {"seconds": 0.0, "compile_count": 0, "steps": 0}
        if state is None:
            # Of its own launcher's flags, those of the search say nothing here.
            state, training = supernet_flags.trained_supernet(
                net, dataset, folder=f"{folder}/supernet", config=point_config()
            )
        how = {
            "folder": folder,
            "settings": settings,
            "batch_size": FLAGS.batch_size,
            "seed": FLAGS.seed,
        }
        found = simq_nas.search_front(
            spaces, state, dataset, prices=prices, objectives=objectives, **how
        )
        finetune = functools.partial(finetuning.finetune_point, dataset, point_config())
        write_search(
            found,
            state,
            dataset,
            **how,
            selection=selection,
            finetune=finetune if FLAGS.finetune_steps else None,
            training=training,
            network=supernet_flags.network_config(),
            config=point_config(),
            facts={"adjustable": shared["adjustable"], "supernet": FLAGS.supernet},
        )


def identity(
    net: SuperNetwork, dataset: Dataset, space: JointSpace, state: TrainedState | None
) -> dict[str, Any]:
    """Returns what identifies a run beside its flags, for its `config.json`.

    Args:
      net: the super-network.
      dataset: its data.
      space: that is searched.
      state: the variables of a super-network trained elsewhere.
    """
    return {
        "method": "simq_nas",
        **describe_data(dataset),
        "sites": describe_sites(net.sites),
        "decisions": space.counts,
        "options": list(space.space.option_names),
        "model": FLAGS.supernet,
        "cost": FLAGS.objectives[1],
        "network": {"name": None, **supernet_flags.network_config()},
        "supernet_variables": state and describe_variables(state.variables),
        **(initial_variables() if state is None else {}),
    }


def finished(folder: pathlib.Path, adjustable: dict[str, Any]) -> bool:
    """Returns whether all that the flags ask for is there."""
    file = folder / "summary.json"
    return file.exists() and read_json(file).get("adjustable") == adjustable


def initial_variables() -> dict[str, Any]:
    """Returns what tells the weights of --init_from, as the super-network has it."""
    variables, record = common.initial_variables(f"{FLAGS.workdir}/supernet")
    if variables is None:
        return record
    told = {**describe_variables(variables), "skip": list(FLAGS.init_skip)}
    return {"initial_variables": told}


def point_config() -> dict[str, Any]:
    """Returns what the folders of super-network and points record of the flags."""
    shared = common.run_config(idle=(*IDLE, *ADJUSTABLE))
    return {
        "flags": shared["flags"],
        "session": shared["session"],
        "model": FLAGS.supernet,
        "network": supernet_flags.network_config(),
    }


def joint_spaces(
    net: SuperNetwork,
    dataset: Dataset,
    settings: simq_nas.SimqSettings,
    selection: Selection,
) -> tuple[JointSpace, JointSpace]:
    """Returns the spaces of the search and of its references, if all fits them."""
    if not len(dataset.validation):
        raise ValueError(
            f"--validation_fraction={FLAGS.validation_fraction} leaves no images to"
            " search by: give a fraction above 0, such as 0.1"
        )
    spaces = simq_nas.joint_spaces(
        net,
        functools.partial(search_flags.search_space, net.sites),
        FLAGS.formats,
        weight_modes=settings.weight_modes,
    )
    if settings.sensitivity == "fisher":
        check_estimable(QuantizedModel(net.model).model, spaces[0].space)
    known = spaces[1].space.option_names
    if selection.reference not in known:
        raise ValueError(
            f"--accuracy_reference={selection.reference} is not evaluated: use one of"
            f" {', '.join(known)}, or add it to --formats"
        )
    return spaces


def objective_names() -> list[str]:
    """Returns the objectives by the names of their prices."""
    accepted = ("error", *PRICES)
    given = FLAGS.objectives
    unknown = [name for name in given if name not in accepted]
    twice = len(set(given)) < len(given)
    if unknown or twice or len(given) < 2 or given[0] != "error":
        raise ValueError(
            f"--objectives={','.join(given)}: give error, then one or more different"
            f" ones of {', '.join(PRICES)}, such as error,size"
        )
    return [PRICES.get(name, name) for name in given]


def site_prices() -> dict[str, SiteCost]:
    """Returns what points cost: the objectives, and always size and bit operations."""
    wanted = dict.fromkeys([*FLAGS.objectives, *ALWAYS])
    if "latency" not in wanted:
        cost_flags.refuse_latency_flags(
            f"--objectives={','.join(FLAGS.objectives)}", cure="latency to them"
        )
        if FLAGS.latency_limit is not None:
            raise ValueError(
                f"--latency_limit={FLAGS.latency_limit:g} needs latency among"
                f" --objectives={','.join(FLAGS.objectives)}: add it, with --device or"
                " --latency_table"
            )
    return {PRICES[n]: cost_flags.named_cost(n) for n in wanted if n in PRICES}


def simq_settings() -> simq_nas.SimqSettings:
    """Returns the method's settings."""
    return parsing.settings_of(
        simq_nas.SimqSettings,
        reference_format=FLAGS.accuracy_reference,
        sensitivity=FLAGS.seed_by_sensitivity,
        ptq=PtqSettings(
            weight_observer=FLAGS.weight_observer,
            input_observer=FLAGS.input_observer,
            input_symmetric=FLAGS.symmetric_inputs,
            batches=FLAGS.calibration_batches,
        ),
        recalibration_batches=FLAGS.statistics_batches,
        per_device=FLAGS.candidates_per_device,
    )


def point_selection() -> Selection:
    """Returns which point is to be taken."""
    limits = {"size_bits": (FLAGS.size_limit, 8e6)}
    limits["latency_s"] = (FLAGS.latency_limit, 1e-3)
    return Selection(
        point=FLAGS.point,
        accuracy_loss=FLAGS.accuracy_loss_limit,
        reference=FLAGS.accuracy_reference,
        limits={n: x * unit for n, (x, unit) in limits.items() if x is not None},
    )


def idle_flags() -> dict[str, str]:
    """Returns the flags that change nothing in this run, and why."""
    idle = dict(IDLE)
    if FLAGS.supernet_from is not None:
        kept = ("mapping", "log_every") if FLAGS.finetune_steps else ()
        reason = "--supernet_from brings a trained super-network"
        idle |= {n: reason for n in supernet_flags.TRAINING if n not in kept}
    if FLAGS.searcher != "linas":
        idle["sensitivity_features"] = f"--searcher={FLAGS.searcher} has no predictors"
    if FLAGS.searcher == "random":
        idle["searched_loss"] = "--searcher=random draws from the whole space"
    if FLAGS.seed_by_sensitivity == "none":
        reason = "--seed_by_sensitivity=none measures nothing"
        idle |= dict.fromkeys(("seeded_fraction", "sensitivity_features"), reason)
    if not FLAGS.finetune_steps:
        idle["finetune_learning_rate"] = "--finetune_steps=0 trains nothing"
    return idle


if __name__ == "__main__":
    program.start(run, distributed=True)
