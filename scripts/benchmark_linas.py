"""Compares LINAS, NSGA-II and random search on the NAS-Bench-201 table.

  python scripts/benchmark_linas.py --table=nasbench201_cifar10.csv [--seeds=10]

Prints the hypervolume after so many evaluations, its mean and standard deviation over
seeds, and each method's own seconds a search. Two problems, both minimised:

  cells  validation accuracy after 12 epochs (negated) and parameters; 15,625 cells
  joint  accuracy in fp32 or after int8 quantization (negated), megabytes and latency on
         a Raspberry Pi 4; 31,250 pairs of cell and precision

Test accuracy after 200 epochs is not read. (The accuracies of `joint` are of networks
trained to the end by another project; what is compared is the searching.)
"""

import argparse
import csv
import re
import time

import numpy as np

from fliqs_jax.searchers import linas

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


def make_problems(table):
    """Returns name -> (space, evaluate, objectives, reference)."""

    def cells(vectors):
        row = table[tuple(vectors.T)]
        return np.stack([-row[:, 0], row[:, 1]], axis=1)

    def joint(vectors):
        row, int8 = table[tuple(vectors[:, :6].T)], vectors[:, 6] == 1
        accuracy = np.where(int8, row[:, 3], row[:, 2])
        megabytes = row[:, 1] * np.where(int8, 1, 4) / 1e6
        return np.stack([-accuracy, megabytes, row[:, 4]], axis=1)

    return {
        "cells": ([5] * 6, cells, ["-accuracy", "parameters"], [-70.0, 1.6e6]),
        "joint": (
            [5] * 6 + [2],
            joint,
            ["-accuracy", "megabytes", "latency_ms"],
            [-80.0, 4.5, 100.0],
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, help="CSV of NAS-Bench-201.")
    parser.add_argument("--problem", choices=["cells", "joint"], action="append")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--population", type=int, default=20)
    arguments = parser.parse_args()
    at = np.arange(arguments.population, arguments.evaluations + 1, 20)
    problems = make_problems(read_table(arguments.table))
    for problem in arguments.problem or problems:
        space, evaluate, objectives, reference = problems[problem]
        everything = np.indices(space).reshape(len(space), -1).T
        best = linas.hypervolume(evaluate(everything), reference)
        print(f"{problem}: hypervolume as a fraction of the exact front's")
        print("evaluations     " + "".join(f"{count:>14}" for count in at))
        for name, method in METHODS.items():
            curves, started = [], time.process_time()
            for seed in range(arguments.seeds):
                result = method(
                    space,
                    evaluate,
                    objectives,
                    evaluations=arguments.evaluations,
                    population=arguments.population,
                    seed=seed,
                )
                curves.append(linas.hypervolume_curve(result.values, reference)[at - 1])
            seconds = (time.process_time() - started) / arguments.seeds
            curves = np.array(curves) / best
            cells = [
                f"{mean:.4f}±{deviation:.4f}"
                for mean, deviation in zip(curves.mean(0), curves.std(0), strict=True)
            ]
            print(f"{name:8}{seconds:6.1f} s" + "".join(f"{c:>14}" for c in cells))


if __name__ == "__main__":
    main()
