"""The real NAS-Bench-201 table as a search problem, and the real OFA-ResNet50 log."""

import ast
import csv
import re

import numpy as np

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
COUNTS = (5,) * 6  # an operation an edge


def read_cells(folder):
    """Returns a function from vectors to (-validation accuracy in %, parameters).

    The accuracy is that after 12 epochs, all that a search may look at.
    """
    values = np.full((*COUNTS, 2), np.nan)
    path = folder / "nasbench201" / "nasbench201_cifar10.csv"
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = re.findall(r"(\w+)~\d", row["architecture"])
            cell = tuple(OPERATIONS.index(name) for name in names)
            accuracy = float(row["cifar10_valid_accuracy_12_epochs"])
            values[cell] = -accuracy, float(row["parameters"])
    assert np.isfinite(values).all()  # every cell, once
    return lambda vectors: values[tuple(vectors.T)]


def read_log(folder):
    """Returns counts [151], vectors [500, 151], top-1 in % and latency, [500] each."""
    path = folder / "linas" / "ofa_resnet50_int8_policy_500_evaluations.csv"
    vectors, accuracy, latency = [], [], []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            network = ast.literal_eval(row["Sub-network"])
            ratios = [(0.2, 0.25, 0.35).index(ratio) for ratio in network["e"]]
            bits = [(8, 32).index(width) for width in network["q_bits"]]
            modes = [
                ("symmetric", "asymmetric").index(mode)
                for mode in network["q_weights_mode"]
            ]
            vectors.append([*network["d"], *ratios, *network["w"], *bits, *modes])
            accuracy.append(float(row["Top-1 Acc (%)"]))
            latency.append(float(row["Latency (ms)"]))
    counts = np.array([3] * 29 + [2] * 122)
    return counts, np.array(vectors), np.array(accuracy), np.array(latency)
