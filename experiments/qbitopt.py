"""Re-allocates every layer's bits during one training run, within a hard budget.

  python -m experiments.qbitopt --workdir=runs/digits_qbitopt \
      --flagfile=experiments/presets/digits_qbitopt.flags

Run again with the same workdir to resume. With --policy it trains at that policy with
the same learned step sizes; with --init_from the weights start from a checkpoint.
Writes policy.json, summary.json, metrics.jsonl, report.html and checkpoints/.
"""

from absl import flags

from experiments import common, parsing, program, search_flags
from fliqs_jax.runs.bit_search import QBitOptSettings, search_bits

FLAGS = flags.FLAGS

# What a run at a fixed policy (--policy) has no use for.
SEARCH_FLAGS = (
    "update_every", "frozen_fraction", "trace_decay", "least_gain", "rescale_range",
)  # fmt: skip

common.define_common_flags()
common.define_start_flags()
search_flags.define_space_flags()
common.define(
    "integer",
    "update_every",
    None,
    "Steps between re-allocations (default: 250, less in short runs).",
)
common.define("float", "frozen_fraction", None, "Of the steps, at the last bits.")
common.define("float", "trace_decay", None, "Of the sensitivities' average, a step.")
common.define("float", "least_gain", None, "Of the objective, for bits to change.")
common.define("float", "clip_learning_rate", None, "Adam's, on log clip bounds.")
common.define(
    "bool",
    "rescale_range",
    None,
    "Scale the clips with a change of bits, or keep them.",
)
common.define("float", "damping", None, "Of oscillating weights, at the end (0: none).")
common.define("bool", "per_channel", None, "One weight scale an output channel.")


def run() -> None:
    """Turns the flags into objects and searches."""
    common.job_settings()  # a mistake there shows before data is read
    settings = parsing.settings_of(QBitOptSettings)
    idle = idle_flags()
    program.say_idle(idle)
    dataset = common.dataset()
    model = common.model(dataset.num_classes)
    space, policy = search_flags.space_and_policy(
        model, dataset, settings, separate=True
    )
    arguments = search_flags.search_arguments(dataset, settings, idle=idle)
    search_bits(model, dataset, space, qbitopt=settings, policy=policy, **arguments)


def idle_flags() -> dict[str, str]:
    """Returns the flags that change nothing in this run, and why."""
    if FLAGS.policy is None:
        return {}
    return dict.fromkeys(SEARCH_FLAGS, "--policy leaves nothing to re-allocate")


if __name__ == "__main__":
    program.start(run, distributed=True)
