"""Runs searches and their baselines over seeds, and puts them side by side.

  python -m experiments.compare --workdir=runs/compare_digits \
      --preset=experiments/presets/digits.flags --uniform=int3 --seeds=0,1,2

Every run is `experiments.fliqs` in a folder of its own under the workdir, with the
flags of the preset: the search, uniform policies, random policies of the same cost, and
the search's policy trained from scratch. With --sensitivity=loss,fisher also policies
allocated by sensitivity (`experiments.sensitivity`), as they are and trained from
scratch, all from one float network a seed. Finished runs are skipped, interrupted ones
resumed.
Writes comparison.csv and comparison.md.
"""

import collections
import concurrent.futures
import csv
import functools
import os
import pathlib
import queue
import statistics
import subprocess
import sys
from collections.abc import Iterator

from absl import app, flags

from experiments import common
from fliqs_jax.files import replace_text
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS

common.define_workdir_flags()
flags.DEFINE_string("preset", None, "Flagfile of experiments.fliqs.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "One run of every method each.")
flags.DEFINE_list("uniform", ["int3"], "Uniform policies to train as long.")
flags.DEFINE_integer("random_policies", 2, "Random policies of equal cost a seed.")
flags.DEFINE_bool("retrain", True, "Train the policy found from scratch as well.")
flags.DEFINE_bool("published", False, "Run the published form of the search as well.")
flags.DEFINE_list("sensitivity", [], "Measures to allocate by: loss,kl,mse,fisher.")
flags.DEFINE_list("extra", [], "Further flags for every run, without their dashes.")
flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the cores.")


def main(argv: list[str]) -> None:
    common.run_or_exit(argv, run)


def run() -> None:
    """Runs what is missing, seed by seed, then writes the comparison."""
    folder = pathlib.Path(FLAGS.workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
        runs = [run for seed in FLAGS.seeds for run in _submit(pool, folder, seed)]
        for run in concurrent.futures.as_completed(runs):
            if run.result() is None:
                _write(folder)
    failed = [run.result() for run in runs if run.result()]
    if failed:
        raise ValueError(
            f"runs failed: {', '.join(failed)}; see their .log files, then run again"
        )


def _submit(
    pool: concurrent.futures.Executor, root: pathlib.Path, seed: str
) -> Iterator[concurrent.futures.Future]:
    """Queues one seed's runs; each gives None, or its name if it failed."""
    methods = {"search": []}
    methods |= {f"uniform_{name}": [f"--policy={name}"] for name in FLAGS.uniform}
    for index in range(FLAGS.random_policies):
        policy_seed = 1000 * int(seed) + index
        methods[f"random_{index}"] = [f"--policy=random:{policy_seed}"]
    if FLAGS.retrain:
        found = root / f"search-seed{seed}" / "policy.json"
        methods["retrain"] = [f"--policy={found}"]
    if FLAGS.published:
        methods["published"] = ["--form=published"]
    # What a run waits for: queued before it, so it is never waited for in vain.
    needs, launchers = {"retrain": "search"}, {}
    if FLAGS.sensitivity:
        methods["float"] = ["--policy=fp32", "--pins="]
    for measure in FLAGS.sensitivity:
        name, found = f"sensitivity_{measure}", f"sensitivity_{measure}_untrained"
        trained = root / f"float-seed{seed}"
        methods[found] = [f"--measure={measure}", f"--init_from={trained}"]
        methods[name] = [f"--policy={root / f'{found}-seed{seed}' / 'policy.json'}"]
        needs |= {found: "float", name: found}
        launchers[found] = "experiments.sensitivity"
    futures = {}
    for name, own in methods.items():
        futures[name] = pool.submit(
            _run,
            root / f"{name}-seed{seed}",
            launchers.get(name, "experiments.fliqs"),
            [*own, f"--seed={seed}"],
            futures.get(needs.get(name)),
        )
    yield from futures.values()


def _run(
    folder: pathlib.Path,
    launcher: str,
    own: list[str],
    needed: concurrent.futures.Future | None,
) -> str | None:
    """Runs one job to its end; returns its name if it failed."""
    name = folder.name
    if (folder / "summary.json").exists():
        return None
    if needed is not None and needed.result() is not None:
        return name
    folder.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-m", launcher),
        *(f"--flagfile={FLAGS.preset}", f"--workdir={folder}"),
        *own,
        *(f"--{flag}" for flag in FLAGS.extra),
    ]
    print(f"running {name}", flush=True)
    cores = _shares().get()
    try:
        with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log:
            done = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**common.CPU_ENVIRONMENT, **os.environ},
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
    finally:
        _shares().put(cores)
    return name if done.returncode else None


@functools.cache
def _shares() -> queue.Queue:
    """Cores for each of the runs at a time, so that they do not fight for them."""
    shares, cores = queue.Queue(), sorted(os.sched_getaffinity(0))
    for number in range(FLAGS.jobs):
        shares.put(cores[number :: FLAGS.jobs] or cores)
    return shares


def _write(folder: pathlib.Path) -> None:
    """Writes and prints the runs that are finished, and their means over seeds."""
    rows = []
    for file in sorted(folder.glob("*-seed*/summary.json")):
        method, _, seed = file.parent.name.rpartition("-seed")
        summary = read_json(file)
        rows.append(
            {
                "method": method.split("_")[0] if "random" in method else method,
                "run": file.parent.name,
                "seed": int(seed),
                "accuracy": summary["accuracy"],
                "cost_of_reference": summary["cost"] / summary["cost_of_reference"],
                "seconds": summary["seconds"],
            }
        )
    with open(folder / "comparison.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = comparison_table(rows)
    replace_text(folder / "comparison.md", table + "\n")
    print(table)


def comparison_table(rows: list[dict]) -> str:
    """Returns mean and standard deviation of each method, as Markdown."""
    by_method = collections.defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    lines = [
        "| method | runs | test accuracy, % | cost | minutes |",
        "|---|---|---|---|---|",
    ]
    for method, own in sorted(by_method.items()):
        accuracy = [100 * row["accuracy"] for row in own]
        deviation = statistics.stdev(accuracy) if len(own) > 1 else float("nan")
        cost = statistics.mean(row["cost_of_reference"] for row in own)
        minutes = statistics.mean(row["seconds"] for row in own) / 60
        lines.append(
            f"| {method} | {len(own)} | {statistics.mean(accuracy):.2f} ± "
            f"{deviation:.2f} | {cost:.4f} | {minutes:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "preset"])
    app.run(main)
