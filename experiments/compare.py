"""Runs searches and their rivals over seeds and budgets, and puts them side by side.

  python -m experiments.compare --workdir=runs/compare_digits \
      --flagfile=experiments/presets/compare_digits.flags

Every run is a launcher in a folder of its own under the workdir: the search, uniform
policies, random policies of the same cost, and the search's policy trained from
scratch; on request the published form of the search, QBitOpt with its own uniform
baselines, and policies allocated by sensitivity, as they are and trained from scratch,
and codebooks by Learning-Compression and its rivals (--compression), these all from one
float network a seed; FLIQNAS on a super-network with formats alone and an architecture
found before its formats (--fliqnas). --nosearch leaves the search out. With
--from_float every method fine-tunes the float network, which has steps of its own
(--reference_steps).

Flags of the launchers (--dataset, --model, --steps, --policy_every, ...) are handed on
to every run; a launcher ignores those that only another one knows.

Finished runs are skipped, interrupted ones resumed: run the same command again. Writes
comparison.csv, comparison.md and comparison.png; of codebooks compression.md and
compression.png, too.
"""

import dataclasses
import functools
import pathlib

from absl import flags

from experiments import (
    common,
    fliqnas,
    fliqs,
    learning_compression,
    program,
    qbitopt,
    sensitivity,
)
from experiments.comparison.codebooks import write_codebook_results
from experiments.comparison.execution import execute
from experiments.comparison.planning import Method, Run, plan_runs
from experiments.comparison.results import write_results
from fliqs_jax.checks import check_at_least
from fliqs_jax.searchers.compression.schedule import VARIANTS
from fliqs_jax.train.workdir import open_workdir, read_json

FLAGS = flags.FLAGS

# Imported, so their flags are defined by now.
LAUNCHERS = (fliqs, qbitopt, sensitivity, learning_compression, fliqnas)
_FROM_FLOAT = "--init_from={float}"
# Direct compression, as published, is of the float network itself: a step of no length.
_UNTRAINED = ("--steps=1", "--lc_steps=1", "--learning_rate=1e-9")
# Those of the float network that others start from.
_REFERENCE = {"reference_steps": "steps", "reference_learning_rate": "learning_rate"}
_HANDED_ON = frozenset(FLAGS) - {"workdir", *_REFERENCE}  # those given go to every run
# What tells the runs of a comparison apart.
_OURS = {
    "seed": "use --seeds",
    "policy": "use --uniform, --random_policies, --retrain",
    "measure": "use --sensitivity",
    "trade_off": "use --cost_targets",
    "method": "use --compression",
    "codebook_size": "use --codebook_sizes",
    "architecture": "use --fliqnas",
}

flags.DEFINE_string("preset", None, "As --flagfile, which prevails.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "One run of every method each.")
flags.DEFINE_list(
    "cost_targets", [], "Budgets to run each method at (default: --cost_target)."
)
flags.DEFINE_bool("search", True, "Run the search of FLIQS.")
flags.DEFINE_list("uniform", ["int3"], "Uniform policies to train as long.")
flags.DEFINE_integer("random_policies", 2, "Random policies of equal cost a seed.")
flags.DEFINE_bool("retrain", True, "Train the policy found from scratch as well.")
flags.DEFINE_bool("published", False, "Run the published form of the search as well.")
flags.DEFINE_bool("qbitopt", False, "Run QBitOpt as well.")
flags.DEFINE_list("qbitopt_uniform", [], "Uniform policies with QBitOpt's quantizers.")
flags.DEFINE_list("sensitivity", [], "Measures to allocate by: loss,kl,mse,fisher.")
flags.DEFINE_list("compression", [], f"Codebooks by: {','.join(VARIANTS)}.")
flags.DEFINE_list("codebook_sizes", ["2", "4", "16"], "Of --compression: K, each.")
flags.DEFINE_bool("fliqnas", False, "Run FLIQNAS and its rivals on --supernet.")
flags.DEFINE_float(
    "architecture_budget",
    4.0,
    "Of the architecture that is found first, in int8: its cost target, in those of the"
    " formats then found for it.",
)
flags.DEFINE_bool("from_float", False, "Fine-tune all from one float network a seed.")
flags.DEFINE_list("extra", [], "Further flags for every run, without their dashes.")
flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the cores.")


def run() -> None:
    """Runs what is missing, seed by seed, and writes the comparison after each run."""
    shared = shared_flags()
    check_at_least(1, jobs=FLAGS.jobs)
    runs = plan(pathlib.Path(FLAGS.workdir).absolute())
    # Finished runs are not started again, so nothing else would tell that their flags
    # were others.
    config = {"method": "compare", "flags": _identity()}
    with open_workdir(FLAGS.workdir, config) as root:
        failed = execute(
            runs,
            root=root,
            shared=shared,
            at_a_time=FLAGS.jobs,
            after=functools.partial(report, root),
        )
        print(_write(root))
    if failed:
        reasons = "".join(f"\n  {name}: {why}" for name, why in failed.items())
        raise ValueError(
            f"runs failed; see their .log files in {root}, then run again:{reasons}"
        )


def _identity() -> dict[str, str]:
    """Returns the flags that every run shares and none may change, as they are typed.

    Methods, seeds and budgets may be added to a comparison: their runs have names.
    """
    names = {*_HANDED_ON, *_REFERENCE, "from_float", "architecture_budget"}
    if len(FLAGS.cost_targets) == 1:  # which no folder's name tells
        names.add("cost_targets")
    given = sorted(name for name in names - {*common.SESSION} if FLAGS[name].present)
    return {name: FLAGS[name].serialize() for name in given}


def report(root: pathlib.Path, finished: Run) -> None:
    """Writes the comparison as far as it goes, and says what has just finished."""
    _write(root)
    summary = read_json(root / finished.name / "summary.json")
    print(
        f"finished {finished.name}: {100 * summary['accuracy']:.2f} % in"
        f" {summary['seconds'] / 60:.1f} minutes",
        flush=True,
    )


def _write(root: pathlib.Path) -> str:
    table = write_results(root, cost=FLAGS.cost, reference=FLAGS.cost_reference)
    return "\n\n".join(filter(None, (table, write_codebook_results(root))))


def plan(root: pathlib.Path) -> list[Run]:
    """Returns the runs that the flags ask for."""
    return plan_runs(
        methods,
        root=root,
        seeds=_numbers("seeds", int),
        budgets=_numbers("cost_targets", float),
    )


def _numbers(flag: str, kind: type[int] | type[float]) -> list:
    try:
        return [kind(text) for text in FLAGS[flag].value]
    except ValueError as error:
        raise ValueError(f"--{flag}: numbers with commas between ({error})") from None


def methods(seed: int) -> dict[str, Method]:
    """Returns the methods that the flags ask for, in the order to run them."""
    known = {}
    if FLAGS.search:
        known["search"] = Method()
    if FLAGS.qbitopt:
        known["qbitopt"] = Method(launcher=qbitopt.__name__)
    for name in FLAGS.uniform:
        known[f"uniform_{name}"] = Method(flags=(f"--policy={name}",))
    for name in FLAGS.qbitopt_uniform:
        known[f"qbitopt_uniform_{name}"] = Method(
            launcher=qbitopt.__name__, flags=(f"--policy={name}",)
        )
    for index in range(FLAGS.random_policies):
        draw = 1000 * seed + index
        known[f"random_{index}"] = Method(flags=(f"--policy=random:{draw}",))
    if FLAGS.search and FLAGS.retrain:
        known["retrain"] = Method(flags=("--policy={search}/policy.json",))
    if FLAGS.published:
        known["published"] = Method(flags=("--form=published",))
    if FLAGS.sensitivity or FLAGS.compression or FLAGS.from_float:
        own = [
            f"--{flag}={FLAGS[name].value}"
            for name, flag in _REFERENCE.items()
            if FLAGS[name].present
        ]
        known["float"] = Method(
            flags=("--policy=fp32", "--pins=", "--first_last=", *own)
        )
    for measure in FLAGS.sensitivity:
        found = f"sensitivity_{measure}_untrained"
        known[found] = Method(
            launcher=sensitivity.__name__,
            flags=(f"--measure={measure}", "--trade_off=0", _FROM_FLOAT),
        )
        known[f"sensitivity_{measure}"] = Method(
            flags=(f"--policy={{{found}}}/policy.json",)
        )
    if FLAGS.fliqnas:
        known |= _networks()
    for name in FLAGS.compression:
        if name not in VARIANTS:
            raise ValueError(f"--compression={name}: use {', '.join(VARIANTS)}")
        own = _UNTRAINED if name == "dc" else ()
        for size in FLAGS.codebook_sizes:
            known[f"{name}_k{size}"] = Method(
                launcher=learning_compression.__name__,
                flags=(
                    f"--method={name}",
                    f"--codebook_size={size}",
                    *own,
                    _FROM_FLOAT,
                ),
            )
    return _from_float(known) if FLAGS.from_float else known


def _networks() -> dict[str, Method]:
    """Returns FLIQNAS, formats alone, and an architecture found before its formats."""
    if not FLAGS.cost_targets:
        raise ValueError(
            "--fliqnas needs --cost_targets: the architecture that is found first costs"
            f" --architecture_budget={FLAGS.architecture_budget:g} times each"
        )
    flags_of = {
        "fliqnas": (),
        "full_formats": ("--architecture=full",),
        "architecture": ("--policy=int8",),
        "architecture_formats": ("--architecture={architecture}",),
    }
    own = {
        name: Method(launcher=fliqnas.__name__, flags=given)
        for name, given in flags_of.items()
    }
    first = dataclasses.replace(
        own["architecture"], budget_factor=FLAGS.architecture_budget
    )
    return {**own, "architecture": first}


def _from_float(known: dict[str, Method]) -> dict[str, Method]:
    """Lets every method start from the float network, which is trained first."""
    started = {
        name: method
        if name == "float" or _FROM_FLOAT in method.flags
        else dataclasses.replace(method, flags=(*method.flags, _FROM_FLOAT))
        for name, method in known.items()
    }
    return {"float": started.pop("float"), **started}


def shared_flags() -> list[str]:
    """Returns the flags to hand on to every run: those given, however they were.

    Flags in --preset and --extra count as given on the command line, before and after
    the others.
    """
    preset = [] if FLAGS.preset is None else [f"--flagfile={FLAGS.preset}"]
    extra = [f"--{flag.lstrip('-')}" for flag in FLAGS.extra]
    try:
        FLAGS(["compare", *preset, *_given(frozenset(FLAGS)), *extra])
    except flags.Error as error:
        raise ValueError(f"--preset or --extra: {error}") from error
    for name, instead in _OURS.items():
        if FLAGS[name].present:
            raise ValueError(f"--{name} is set for each run: {instead}")
    return _given(_HANDED_ON)


def _given(names: frozenset[str]) -> list[str]:
    return [FLAGS[name].serialize() for name in sorted(names) if FLAGS[name].present]


if __name__ == "__main__":
    program.start(run)
