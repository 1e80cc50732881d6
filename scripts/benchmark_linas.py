"""Compares LINAS, NSGA-II and random search on four problems.

  python scripts/benchmark_linas.py --table=nasbench201_cifar10.csv \\
      --log=ofa_resnet50_int8_policy_500_evaluations.csv [--seeds=10]

Prints the hypervolume after so many evaluations, its mean and standard deviation over
seeds, and each method's own seconds a search; with --limits what a limit on the first
objective saves LINAS instead. All objectives are minimised:

  cells      validation accuracy after 12 epochs (negated) and parameters of the
             15,625 cells of NAS-Bench-201
  joint      accuracy in fp32 or after int8 quantization (negated), megabytes and
             latency on a Raspberry Pi 4; 31,250 pairs of cell and precision
  synthetic  90 decisions whose gains add up, with weak interactions of pairs: quality
             (negated) and cost
  ofa        accuracy (negated) and latency of sub-networks of OFA-ResNet50 with a bit
             width a layer, 151 decisions: a Gaussian process fitted to 500 of them

Hypervolumes of the first two are fractions of the exact front's, of the others of the
best that any method found. Test accuracy after 200 epochs is not read. (The accuracies
of `joint` are of networks trained to the end by another project; what is compared is
the searching.)
"""

import argparse
import ast
import csv
import dataclasses
import re
import time
from collections.abc import Callable

import numpy as np

from fliqs_jax.searchers import linas
from fliqs_jax.searchers.multi_objective.predictors import one_hot

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
COLUMNS = (
    "cifar10_valid_accuracy_12_epochs",
    "parameters",
    "cifar10_accuracy_fp32",
    "cifar10_accuracy_ptq8",
    "latency_ms_raspi4",
)
METHODS = {
    "LINAS": linas.search,
    "NSGA-II": linas.nsga2,
    "random": linas.random_search,
}


def read_table(path):
    """Returns the columns by cell, [5, 5, 5, 5, 5, 5, columns]."""
    table = np.full((*(5,) * 6, len(COLUMNS)), np.nan)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = re.findall(r"(\w+)~\d", row["architecture"])
            cell = tuple(OPERATIONS.index(name) for name in names)
            table[cell] = [float(row[column]) for column in COLUMNS]
    return table


@dataclasses.dataclass(frozen=True)
class Problem:
    space: list[int]
    evaluate: Callable[[np.ndarray], np.ndarray]
    objectives: list[str]
    reference: list[float]
    evaluations: int
    population: int
    listed: bool = False  # small enough for the exact front


def cells(options) -> Problem:
    table = read_table(options.table)

    def evaluate(vectors):
        row = table[tuple(vectors.T)]
        return np.stack([-row[:, 0], row[:, 1]], axis=1)

    names = ["-accuracy", "parameters"]
    return Problem([5] * 6, evaluate, names, [-70.0, 1.6e6], 200, 20, True)


def joint(options) -> Problem:
    table = read_table(options.table)

    def evaluate(vectors):
        row, int8 = table[tuple(vectors[:, :6].T)], vectors[:, 6] == 1
        accuracy = np.where(int8, row[:, 3], row[:, 2])
        megabytes = row[:, 1] * np.where(int8, 1, 4) / 1e6
        return np.stack([-accuracy, megabytes, row[:, 4]], axis=1)

    names = ["-accuracy", "megabytes", "latency_ms"]
    space, reference = [5] * 6 + [2], [-80.0, 4.5, 100.0]
    return Problem(space, evaluate, names, reference, 200, 20, True)


def synthetic(options) -> Problem:
    """Sorted exponential gains and costs; a tenth of the pairs interact."""
    random = np.random.default_rng(0)
    space = [3] * 29 + [2] * 61

    def ascending(count):
        return np.concatenate([[0.0], np.sort(random.exponential(size=count - 1))])

    gains = np.zeros((90, 3))
    costs = np.zeros((90, 3))
    for row, count in enumerate(space):
        gains[row, :count] = ascending(count)
        costs[row, :count] = ascending(count)
    first, second = np.triu_indices(90, k=1)
    chosen = random.random(len(first)) < 0.1
    first, second = first[chosen], second[chosen]
    # By pair and by option of each; nothing where either takes its first option.
    pairs = 0.15 * random.normal(size=(len(first), 3, 3))
    pairs[:, 0, :] = pairs[:, :, 0] = 0.0
    rows, terms = np.arange(90), np.arange(len(first))

    def evaluate(vectors):
        total = gains[rows, vectors].sum(axis=1)
        total += pairs[terms, vectors[:, first], vectors[:, second]].sum(axis=1)
        quality = 100.0 * (1.0 - np.exp(-total / 40.0))
        return np.stack([-quality, costs[rows, vectors].sum(axis=1)], axis=1)

    reference = [0.0, float(costs.max(axis=1).sum())]
    return Problem(space, evaluate, ["-quality", "cost"], reference, 500, 50)


def ofa(options) -> Problem:
    """A smooth stand-in for the super-network: the mean of a Gaussian process."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    space = np.array([3] * 29 + [2] * 122)
    vectors, accuracy, latency = [], [], []
    with open(options.log, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            network = ast.literal_eval(row["Sub-network"])
            ratios = [(0.2, 0.25, 0.35).index(ratio) for ratio in network["e"]]
            bits = [(8, 32).index(width) for width in network["q_bits"]]
            modes = [mode == "asymmetric" for mode in network["q_weights_mode"]]
            vectors.append([*network["d"], *ratios, *network["w"], *bits, *modes])
            accuracy.append(float(row["Top-1 Acc (%)"]))
            latency.append(float(row["Latency (ms)"]))
    live = np.ones(len(space), bool)

    def features(vectors):
        return one_hot(vectors, space, np.broadcast_to(live, vectors.shape))

    known, models = features(np.array(vectors, np.int64)), []
    for values in (np.negative(accuracy), np.array(latency)):
        kernel = RBF(10.0, (2.0, 100.0)) + WhiteKernel(0.1, (1e-4, 1.0))
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        models.append(model.fit(known, values))

    def evaluate(vectors):
        described = features(vectors)
        return np.stack([model.predict(described) for model in models], axis=1)

    names = ["-accuracy", "latency"]
    return Problem(space.tolist(), evaluate, names, [-70.0, 1.0], 500, 50)


PROBLEMS = {make.__name__: make for make in (cells, joint, synthetic, ofa)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", help="CSV of NAS-Bench-201, for cells and joint.")
    parser.add_argument("--log", help="CSV of evaluated sub-networks, for ofa.")
    parser.add_argument("--problem", choices=PROBLEMS, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--limits", action="store_true", help="LINAS with and without a limit instead."
    )
    options = parser.parse_args()
    if options.limits and options.method:
        parser.error("--limits is about LINAS alone: leave out --method")
    needs = {"cells": "table", "joint": "table", "ofa": "log"}
    for name in options.problem or PROBLEMS:
        needed = needs.get(name)
        if needed and getattr(options, needed) is None:
            parser.error(f"--problem={name} needs --{needed}")
    for name in options.problem or PROBLEMS:
        judge = compare_limits if options.limits else compare
        judge(name, PROBLEMS[name](options), options)


def compare_limits(name: str, problem: Problem, options) -> None:
    """Prints the least second objective at a limit on the first, searched for or not.

    The limits are the best and the median of 500 random vectors.
    """
    random = np.random.default_rng(0)
    drawn = [random.integers(0, problem.space) for _ in range(500)]
    quality = problem.evaluate(np.stack(drawn))[:, 0]
    first, second = problem.objectives[:2]
    for limit in (float(quality.min()), float(np.median(quality))):
        for evaluations in (120, 200):
            entries = []
            for limits in ({}, {first: limit}):
                least = []
                for seed in range(options.seeds):
                    result = linas.search(
                        problem.space,
                        problem.evaluate,
                        problem.objectives,
                        evaluations=evaluations,
                        population=40,
                        seed=seed,
                        limits=limits,
                        inner_evaluations=5000,
                    )
                    values = result.values
                    least.append(values[values[:, 0] <= limit, 1].min(initial=np.inf))
                entries.append(f"{np.mean(least):.2f} ± {np.std(least):.2f}")
            print(
                f"{name}, {evaluations} evaluations: least {second} at {first} <="
                f" {limit:.2f}: {entries[0]} over the whole front, {entries[1]} with"
                " the limit",
                flush=True,
            )


def compare(name: str, problem: Problem, options) -> None:
    """Prints a row for each method."""
    at = np.arange(problem.population, problem.evaluations + 1, problem.population)
    found = {}
    for method in options.method or METHODS:
        curves, started = [], time.process_time()
        for seed in range(options.seeds):
            result = METHODS[method](
                problem.space,
                problem.evaluate,
                problem.objectives,
                evaluations=problem.evaluations,
                population=problem.population,
                seed=seed,
            )
            curve = linas.hypervolume_curve(result.values, problem.reference)
            curves.append(curve[at - 1])
        seconds = (time.process_time() - started) / options.seeds
        found[method] = np.array(curves), seconds
    best = max(curves.max() for curves, _ in found.values())
    if problem.listed:
        everything = np.indices(problem.space).reshape(len(problem.space), -1).T
        best = linas.hypervolume(problem.evaluate(everything), problem.reference)
    print(f"{name}: hypervolume as a fraction of the best, {options.seeds} seeds")
    print("evaluations     " + "".join(f"{count:>14}" for count in at))
    for method, (curves, seconds) in found.items():
        shares = curves / best
        entries = [
            f"{mean:.4f}±{deviation:.4f}"
            for mean, deviation in zip(shares.mean(0), shares.std(0), strict=True)
        ]
        row = "".join(f"{entry:>14}" for entry in entries)
        print(f"{method:8}{seconds:6.1f} s{row}", flush=True)


if __name__ == "__main__":
    main()
