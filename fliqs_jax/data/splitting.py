"""Three splits of what there is: a part held out is the same part in every run.

The seed of a run never reaches this file: what is held out for validation or test must
not change with it, or a search over seeds would have seen every test image.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Int32, Int64

from fliqs_jax.data.dataset import Dataset, Examples, channel_statistics

# Any constants do, but these are part of every published number: do not change them.
TEST_KEY = 20_240
VALIDATION_KEY = 20_241
# What the splits of a set of one's own may be called.
SPELLINGS = {
    "train": ("train",),
    "test": ("test",),
    "validation": ("validation", "val", "valid"),
}
_TEST_FRACTION = 0.2  # of sets that come in one piece


def assemble(
    name: str,
    parts: Mapping[str, Examples],
    *,
    num_classes: int,
    validation_fraction: float,
    fingerprint: str = "",
) -> Dataset:
    """Returns a set of three splits; what is missing is held out of `train`.

    Args:
      name: of the set.
      parts: `train`, and `test` and `validation` where there are such.
      num_classes: of the labels.
      validation_fraction: share held out for validation, in [0, 1).
      fingerprint: of what a name does not identify.
    """
    train, test = parts["train"], parts.get("test")
    validation = parts.get("validation")
    if test is None:
        train, test = hold_out(train, _TEST_FRACTION, key=TEST_KEY)
    if validation is None:
        train, validation = hold_out(train, validation_fraction, key=VALIDATION_KEY)
    mean, std = channel_statistics(train)
    return Dataset(name, train, validation, test, num_classes, mean, std, fingerprint)


def hold_out(
    split: Examples, fraction: float, *, key: int
) -> tuple[Examples, Examples]:
    """Returns what stays of a split, and the stratified share taken out of it.

    Args:
      split: what to divide.
      fraction: share of each class to take out, in [0, 1).
      key: selects the part; TEST_KEY or VALIDATION_KEY.

    Returns:
      The rest, and the part held out, each in the order of `split`.
    """
    if fraction == 0:
        return split, split.take(np.arange(0))
    kept, held = stratified_indices(split.strata(), fraction, key=key)
    return split.take(kept), split.take(held)


def stratified_indices(
    labels: Int32[np.ndarray, "N"], fraction: float, *, key: int
) -> tuple[Int64[np.ndarray, "kept"], Int64[np.ndarray, "held"]]:
    """Divides positions in two, each class in the same proportion.

    Args:
      labels: class of each example.
      fraction: share of the second part, exact in total and within one example in
        each class.
      key: the same key and labels give the same parts.

    Returns:
      Positions that stay and positions held out, both ascending; together every
      position once.

    Example:
      >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)
      >>> kept, held = stratified_indices(labels, 0.25, key=0)
      >>> labels[held].tolist(), sorted([*kept, *held]) == list(range(8))
      ([0, 1], True)
    """
    held = np.zeros(len(labels), bool)
    order = shuffled(len(labels), key, 0)
    classes, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    quotas = np.floor(shares).astype(np.int64)
    # Largest remainders make up the total, so that 10 % of 60,000 is 6,000.
    missing = round(fraction * len(labels)) - quotas.sum()
    quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    for label, quota in zip(classes, quotas, strict=True):
        held[order[labels[order] == label][:quota]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def shuffled(count: int, seed: int, stream: int) -> Int[np.ndarray, "count"]:
    """Returns 0 ... count - 1 in an order fixed by two numbers.

    NumPy promises the raw words of its Philox generator for good, unlike
    `Generator.permutation`, so the order outlives an upgrade.

    Args:
      count: how many positions.
      seed: first half of the Philox key, not negative.
      stream: second half of the Philox key, not negative, such as an epoch.

    Returns:
      A permutation.

    Example:
      >>> shuffled(5, 0, 0).tolist() == shuffled(5, 0, 1).tolist()
      False
    """
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")
