"""Finds formats for a trained float network by sensitivity and an exact budget.

  python -m experiments.sensitivity --workdir=runs/sensitivity \
      --flagfile=experiments/presets/digits.flags --measure=fisher

The cheap baseline beside a search: measure what each format costs each layer alone,
then spend the budget where it saves most. Without --init_from it first trains the float
network, in WORKDIR/float. Run again with the same workdir to resume. Writes
sensitivity.csv, sensitivity.png, policy.json, summary.json and report.html, and in
trade_off/ the policies of other budgets, cheap to dear. The policy is applied as it is;
experiments.fliqs --policy=WORKDIR/policy.json trains at it.

Takes the flags of experiments.fliqs; those of its controller have no effect.
"""

from absl import flags

import fliqs_jax as fq
from experiments import common, cost_flags, fliqs, parsing, program, search_flags
from experiments.trained_network import float_network
from fliqs_jax.runs.post_training import (
    ALLOCATIONS,
    AllocationSettings,
    allocate_formats,
)
from fliqs_jax.searchers.sensitivities.table import MEASURES
from fliqs_jax.train.classifier import image_sites
from fliqs_jax.train.fitting import describe_variables

FLAGS = flags.FLAGS

define = common.define  # so that they are recorded
define("enum", "measure", "loss", "What a format costs a layer.", [*MEASURES])
define("enum", "allocation", "milp", "How the budget is spent.", [*ALLOCATIONS])
define("integer", "batches", 4, "Training batches to calibrate and measure on.")
define("integer", "trade_off", 6, "Further budgets to find formats for.")
define("bool", "monotone", True, "A wider format counts as no worse.")


def run() -> None:
    """Turns the flags into objects, trains if need be, measures, allocates."""
    settings = parsing.settings_of(AllocationSettings)
    method = fliqs.fliqs_settings()
    if FLAGS.policy is not None or method.dynamic_scales:
        raise ValueError(
            "experiments.sensitivity finds a policy, with calibrated clip bounds: leave"
            " out --policy, --scales=absmax and --form=published"
        )
    if FLAGS.init_skip:
        raise ValueError(
            "--init_skip leaves weights untrained, whose sensitivity says nothing: "
            "train them first, by experiments.fliqs --policy=fp32"
        )
    config = common.run_config()
    if FLAGS.init_from is not None:
        config["initial_variables"] = describe_variables(
            fq.load_variables(FLAGS.init_from)
        )
    dataset = common.dataset()
    model = common.model(dataset.num_classes)
    sites = image_sites(
        model,
        dataset.train.image_shape,
        attention_products=FLAGS.attention_products,
    )
    allocate_formats(
        model,
        dataset,
        search_flags.search_space(sites, FLAGS.formats),
        trained=float_network(model, dataset, steps=FLAGS.steps),
        workdir=FLAGS.workdir,
        cost_target=FLAGS.cost_target,
        settings=settings,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        steps=FLAGS.steps if FLAGS.init_from is None else 0,
        cost=cost_flags.site_cost(per_channel=method.per_channel),
        cost_reference=FLAGS.cost_reference,
        per_channel=method.per_channel,
        config=config,
    )


if __name__ == "__main__":
    program.start(run)
