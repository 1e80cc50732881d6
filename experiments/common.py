"""Flags that every launcher shares, and the objects that they stand for.

What surrounds a launcher's work is in `experiments.program`, text as Python values in
`experiments.parsing`.
"""

import os
import sys
from collections.abc import Collection
from typing import Any

import flax.linen as nn
from absl import flags
from flax import nnx

import fliqs_jax as fq
from experiments import cost_flags, parsing, program
from fliqs_jax import costs
from fliqs_jax.data import Dataset, load_dataset
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.job import JobSettings
from fliqs_jax.train.pretrained import load_variables
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS

# What may differ when a run is continued in its workdir: how, not what, it computes.
# Weights from elsewhere identify it themselves, wherever they lie by then.
SESSION = (
    "workdir", "data_dir", "download", "log_every", "keep", "checkpoint_every",
    "evaluate_every", "steps_per_call", "profile", "distributed",
    "coordinator_address", "num_processes", "process_id", "heartbeat_timeout",
    "init_from", "supernet_from",
)  # fmt: skip

_OURS: list[str] = []  # names of the flags defined here and by launchers


def define(
    kind: str, name: str, default: Any, text: str, values: Collection[str] = ()
) -> None:
    """Defines an absl flag that belongs to a run's identity (unless volatile).

    A process may import several launchers: the first to define a flag is enough.

    Args:
      kind: as absl names it: "string", "enum".
      name: without dashes.
      default: None is not given.
      text: for --help.
      values: of an enum.
    """
    if name in FLAGS:
        known = FLAGS[name].default
        assert known == default, f"--{name}: defaults {known} and {default}"
        return
    keywords = {"enum_values": [*values]} if values else {}
    getattr(flags, f"DEFINE_{kind}")(name, default, help=text, **keywords)
    _OURS.append(name)


def define_workdir_flags() -> None:
    """Defines what every launcher takes, those that train nothing included."""
    define("string", "workdir", None, "Folder of the run; run again to resume.")
    define("string", "data_dir", None, "Folder of the data (default: TFDS's own).")
    define("integer", "batch_size", 128, "Examples a step, over all devices.")


def define_common_flags() -> None:
    """Defines the flags of every launcher that trains."""
    define_workdir_flags()
    define(
        "string",
        "dataset",
        "digits",
        "digits, a TFDS image set, an .npz file or a folder of images (docs/data.md).",
    )
    define("bool", "download", False, "Download and prepare the data set if absent.")
    define("integer", "image_size", None, "Resize images to this side, in pixels.")
    define("string", "model", "resnet8", "Name of a model, or package.module:factory.")
    define("list", "model_options", [], "Fields of the model: width=32,dtype=bfloat16.")
    define("list", "formats", ["int2", "int3", "int4", "int8"], "The options.")
    _define_cost_flags()
    _define_training_flags()
    define_process_flags()


def _define_cost_flags() -> None:
    define(
        "enum",
        "cost",
        "bops",
        "What the budget counts.",
        values=["bops", "size", "activation_size", "mean_bits", "latency"],
    )
    define(
        "string",
        "device",
        None,
        f"For --cost=latency, by data sheet: {', '.join(costs.DEVICES)} "
        f"(default: {cost_flags.DEVICE}).",
    )
    define(
        "string",
        "latency_table",
        None,
        "For --cost=latency, as measured: a CSV file of scripts/measure_latency.py.",
    )
    define(
        "integer",
        "latency_batch_size",
        None,
        "Examples whose latency counts (default: 1, or the table's).",
    )
    define("float", "cost_target", 0.14, "Budget, a fraction of the reference's cost.")
    define(
        "string", "cost_reference", "int8", "Format of the uniform reference policy."
    )


def _define_training_flags() -> None:
    define("integer", "steps", 5000, "Training steps.")
    define("integer", "seed", 0, "Seed of everything random.")
    define("enum", "optimizer", "sgd", "Of the weights.", values=["sgd", "adamw"])
    define("float", "learning_rate", 0.1, "Largest; cosine to zero after a warm-up.")
    define("float", "weight_decay", 5e-4, "On matrices and kernels, not on vectors.")
    define("float", "label_smoothing", 0.0, "In [0, 1).")
    define(
        "integer",
        "crop_padding",
        None,
        "Most pixels that training images are shifted by (default: as is usual for the "
        "data set; 0 for images of your own).",
    )
    define(
        "bool",
        "flip",
        None,
        "Mirror training images at random (default: as is usual for the data set; not "
        "images of your own).",
    )
    define("float", "validation_fraction", 0.1, "Share of training images held out.")
    define(
        "enum", "dtype", "float32", "Of computation.", values=["float32", "bfloat16"]
    )
    define(
        "enum", "mapping", "shard_map", "Over devices.", values=["shard_map", "pmap"]
    )
    define(
        "integer",
        "steps_per_call",
        None,
        "Steps in one compiled call (default: 1 on CPU).",
    )
    define("integer", "log_every", 50, "Steps between two lines of metrics.")
    define("integer", "evaluate_every", 1000, "Steps between validations; 0 is never.")
    define("integer", "checkpoint_every", 500, "Steps between checkpoints.")
    define("integer", "keep", 3, "Checkpoints kept.")
    define("bool", "profile", False, "Trace some steps into WORKDIR/profile.")


def define_process_flags() -> None:
    """Defines the flags of several processes that train as one."""
    define(
        "bool",
        "distributed",
        False,
        "Train with other processes, the same command in each: found by JAX on a TPU "
        "pod, under Slurm, Open MPI or Kubernetes, else by the next three flags. The "
        "workdir must be a folder that all machines share.",
    )
    define("string", "coordinator_address", None, "HOST:PORT of process 0.")
    define("integer", "num_processes", None, "How many processes there are.")
    define("integer", "process_id", None, "Which this one is, from 0.")
    define(
        "integer",
        "heartbeat_timeout",
        60,
        "Seconds without a sign of life after which a process counts as lost.",
    )


def define_start_flags() -> None:
    """Defines the flags of `initial_variables`, for launchers that use it."""
    define(
        "string",
        "init_from",
        None,
        "Start from trained weights: a run's workdir, an orbax checkpoint's folder or "
        "a .safetensors file. Lower --learning_rate and --steps with it.",
    )
    define(
        "list",
        "init_skip",
        [],
        "Regexes of leaves that start fresh even so: Dense_0/.*",
    )


def run_config(
    *, adjustable: Collection[str] = (), idle: Collection[str] = ()
) -> dict[str, Any]:
    """Returns what the flags say: what a run computes, and how it is run.

    Args:
      adjustable: flags that change the result, and yet may change when the run is
        continued: they are under a name of their own.
      idle: flags that have no effect; they are left out.
    """
    values = {name: FLAGS[name].value for name in _OURS if name not in idle}
    module = f"experiments.{program.launcher_name()}"
    by_name = ":" not in FLAGS.model
    apart = (*SESSION, *adjustable)
    return {
        "model": FLAGS.model,
        "flags": {name: x for name, x in values.items() if name not in apart},
        **(
            {"adjustable": {name: values[name] for name in adjustable}}
            if adjustable
            else {}
        ),
        "session": {
            **{name: x for name, x in values.items() if name in SESSION},
            "command": ["python", "-m", module, *sys.argv[1:]],
        },
        "network": {
            "name": FLAGS.model if by_name else None,
            "options": model_options(),
        },
        **cost_flags.table_identity("latency_table"),
    }


def job_settings() -> JobSettings:
    """Returns how a job is run."""
    profile = f"{FLAGS.workdir}/profile" if FLAGS.profile else None
    return parsing.settings_of(JobSettings, profile_dir=profile)


def dataset() -> Dataset:
    """Returns the data set that the flags name."""
    return load_dataset(
        FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        download=FLAGS.download,
        image_size=FLAGS.image_size,
        validation_fraction=FLAGS.validation_fraction,
    )


def model_options() -> dict[str, Any]:
    """Returns the fields of the model that the flags set."""
    options = parsing.parse_options("model_options")
    if FLAGS.dtype != "float32":
        options["dtype"] = FLAGS.dtype
    return options


def model(num_classes: int) -> nn.Module | nnx.Module:
    """Returns the model that the flags name: one of ours, or a user's own factory."""
    if ":" in FLAGS.model:
        return parsing.user_model(
            FLAGS.model, num_classes=num_classes, **model_options()
        )
    return fq.create_model(FLAGS.model, num_classes=num_classes, **model_options())


def initial_variables(
    workdir: str | None = None,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Returns the variables to start from, if any, and what they add to the config.

    A run that has got somewhere does not need them any more: if --init_from is gone by
    then, the config's own record of them identifies the run.

    Args:
      workdir: of the training; None is --workdir.
    """
    workdir = workdir or FLAGS.workdir
    if FLAGS.init_from is None:
        if FLAGS.init_skip:
            raise ValueError("--init_skip needs --init_from, whose leaves it skips")
        return None, {}
    if os.path.exists(FLAGS.init_from) or not _can_resume(workdir):
        return load_variables(FLAGS.init_from), {}
    name = "initial_variables"
    return None, {name: read_json(f"{workdir}/config.json").get(name)}


def _can_resume(workdir: str) -> bool:
    try:
        restore_tree(f"{workdir}/checkpoints")
    except ValueError:
        return False
    return os.path.exists(f"{workdir}/config.json")
