"""Weights for codebooks, and the least errors there are, by brute force."""

import itertools

import hypothesis.extra.numpy
import numpy as np
from hypothesis import strategies as st


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def error(w, codebook):
    decoded = np.asarray(codebook.decode(), np.float64)
    return ((np.asarray(w, np.float64) - decoded) ** 2).sum()


def few_weights(size):
    """Quarters, so that ties and equal weights are frequent, and any floats."""
    quarters = st.integers(-12, 12).map(lambda n: n / 4)
    floats = st.floats(-3, 3, width=32, allow_subnormal=False)
    return hypothesis.extra.numpy.arrays(np.float32, size, elements=quarters | floats)


def least_error_of_fixed(w, values):
    return sum(min((float(t) - float(v)) ** 2 for v in values) for t in w)


def least_error_of_scaled(w, values):
    """The best scale of every assignment there is."""
    chosen = np.array(list(itertools.product(values, repeat=len(w))), np.float64)
    product, square = chosen @ w.astype(np.float64), (chosen**2).sum(1)
    scale = np.maximum(product, 0.0) / np.where(square > 0, square, 1.0)
    return ((w - scale[:, None] * chosen) ** 2).sum(1).min()


def least_error_of_kmeans(w, k):
    """The best means of every assignment there is."""
    labels = np.array(list(itertools.product(range(k), repeat=len(w))))
    errors = np.zeros(len(labels))
    for label in range(k):
        members = labels == label
        means = members @ w.astype(np.float64) / np.maximum(members.sum(1), 1)
        errors += (members * (w - means[:, None]) ** 2).sum(1)
    return errors.min()
