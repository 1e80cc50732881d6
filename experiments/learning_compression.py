"""Compresses a network's weights to codebooks while training (Learning-Compression).

  python -m experiments.learning_compression --workdir=runs/digits_lc \
      --dataset=digits --model=lenet300 --codebook=kmeans --codebook_size=2

Without --init_from it first trains the float reference network, in WORKDIR/float; then
it takes --steps training steps in all, in L steps with a C step after each. With
--method it runs what Learning-Compression is compared with, on the same schedule. Run
again with the same workdir to resume.

Writes codebooks.fqcb (the weights as packed indices, whose size on disk gives the
compression ratio), compression.json, summary.json, metrics.jsonl, report.html and
checkpoints/. policy.json says fp32 throughout: a codebook is no number format, and
decoded weights are plain numbers.
"""

import re

from absl import flags

from experiments import common, parsing, program, search_flags
from experiments.trained_network import float_network
from fliqs_jax.runs.compression_run import (
    CompressionSettings,
    compress_network,
    weight_paths,
)
from fliqs_jax.searchers.compression.rules import (
    CODEBOOKS,
    CompressionRule,
    parse_codebook,
)
from fliqs_jax.searchers.compression.schedule import VARIANTS
from fliqs_jax.train.classifier import image_sites
from fliqs_jax.train.fitting import describe_variables

FLAGS = flags.FLAGS

# Common flags that say nothing to a compression.
IDLE = {
    "formats": "--codebook says what a weight may be",
    "cost": "the budget counts the size of the weights",
    "cost_target": "use --size_budget",
    "evaluate_every": "the compressed network is measured after each L step",
}

common.define_common_flags()
common.define_start_flags()
common.define(
    "string",
    "codebook",
    "kmeans",
    f"Of every layer: {', '.join(CODEBOOKS)}, a format (int4) or scaled:FORMAT.",
)
common.define("integer", "codebook_size", None, "K, the values of a codebook.")
common.define("bool", "shared", False, "One codebook for all layers.")
common.define(
    "enum",
    "method",
    "lc",
    "Learning-Compression, its quadratic-penalty form, (iterated) direct compression, "
    "or quantization-aware training on the codebook (straight-through gradient).",
    values=VARIANTS,
)
common.define("integer", "lc_steps", None, "L steps; the first is twice as long.")
common.define("float", "mu", None, "Of the penalty, in the first L step.")
common.define("float", "mu_growth", None, "Of mu, from one L step to the next.")
common.define(
    "float",
    "learning_rate_decay",
    None,
    "Of the learning rate, from one L step to the next.",
)
common.define(
    "float", "tolerance", None, "End where |w - codebook| / |w| is below; 0: never."
)
common.define(
    "float",
    "size_budget",
    None,
    "Most bits of the weights, a fraction of those at --cost_reference; K is then "
    "chosen layer by layer.",
)
common.define(
    "integer",
    "reference_steps",
    None,
    "Of the float network, without --init_from (default: as many as --steps).",
)
common.define(
    "float", "reference_learning_rate", None, "Its largest (default: --learning_rate)."
)


def run() -> None:
    """Turns the flags into objects, trains the reference if need be, compresses."""
    job = common.job_settings()
    settings = parsing.settings_of(CompressionSettings)
    settings.l_steps(job.steps)  # a mistake there shows before data is read
    c_step = codebook()
    idle = idle_flags()
    program.say_idle(idle)
    config = common.run_config(idle=idle)
    if FLAGS.init_from is not None:
        variables, record = common.initial_variables()
        config |= record or {"initial_variables": describe_variables(variables)}
    dataset = common.dataset()
    model = common.model(dataset.num_classes)
    sites = image_sites(model, dataset.train.image_shape)
    pattern = "|".join(re.escape(path) for path in weight_paths(sites))
    steps = FLAGS.steps if FLAGS.reference_steps is None else FLAGS.reference_steps
    float_settings = {"steps": steps, "learning_rate": FLAGS.reference_learning_rate}
    compress_network(
        model,
        dataset,
        [CompressionRule(pattern=pattern, c_step=c_step, shared=FLAGS.shared)],
        trained=float_network(model, dataset, **float_settings),
        workdir=FLAGS.workdir,
        job=job,
        settings=settings,
        size_budget=FLAGS.size_budget,
        cost_reference=FLAGS.cost_reference,
        augment=search_flags.augmentation(dataset),
        config=config,
    )


def codebook():
    """Returns the C step of the flags."""
    if FLAGS.init_skip:
        raise ValueError(
            "--init_skip leaves weights untrained, which nobody compresses: train them"
            " first, by experiments.fliqs --policy=fp32"
        )
    if FLAGS.size_budget is None:
        return parse_codebook(FLAGS.codebook, FLAGS.codebook_size)
    if FLAGS.codebook != "kmeans" or FLAGS.codebook_size is not None or FLAGS.shared:
        raise ValueError(
            "--size_budget chooses K for the adaptive codebook of each layer: leave out"
            " --codebook, --codebook_size and --shared"
        )
    return parse_codebook("kmeans", 2)  # K is replaced


def idle_flags() -> dict[str, str]:
    """Returns the flags that change nothing in this run, and why."""
    idle = dict(IDLE)
    if FLAGS.init_from is not None:
        reason = "--init_from gives the reference"
        idle |= dict.fromkeys(("reference_steps", "reference_learning_rate"), reason)
    else:
        del idle["evaluate_every"]  # the reference is evaluated
    if not VARIANTS[FLAGS.method].penalty:
        idle |= dict.fromkeys(("mu", "mu_growth"), f"{FLAGS.method} has no penalty")
    return idle


if __name__ == "__main__":
    program.start(run, distributed=True)
