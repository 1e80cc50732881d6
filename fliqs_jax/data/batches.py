"""Training batches by step number, and evaluation batches of one fixed shape.

There is no iterator state: a batch is a function of (seed, step), so a resumed run
needs its step number and nothing else. Augmentation happens later, on the device.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from fliqs_jax.checks import check_at_least, check_not_negative
from fliqs_jax.data.dataset import Examples, Reader
from fliqs_jax.data.splitting import shuffled

ALL_ROWS = slice(None)

Batch = dict[
    str,
    UInt8[np.ndarray, "B H W C"] | Int32[np.ndarray, "B"] | Float32[np.ndarray, "B"],
]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BatchOrder:
    """Which examples make up the batch of a step: a new permutation each epoch.

    The examples left over at the end of an epoch's permutation are skipped, so that
    every batch is full; another permutation leaves out others.
    """

    num_examples: int
    batch_size: int
    seed: int  # not negative; two seeds give unrelated orders

    def __post_init__(self):
        if not 1 <= self.batch_size <= self.num_examples:
            raise ValueError(
                f"batch_size must be between 1 and the split's {self.num_examples} "
                f"examples, got {self.batch_size}"
            )
        check_not_negative(seed=self.seed)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def indices(self, step: int) -> Int[np.ndarray, "B"]:
        """Returns the positions of the step's examples in the split."""
        check_not_negative(step=step)
        epoch, within = divmod(int(step), self.steps_per_epoch)
        order = _epoch_order(self.num_examples, self.seed, epoch)
        return order[within * self.batch_size :][: self.batch_size]


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> Int[np.ndarray, "count"]:
    return shuffled(count, seed, epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSource:
    """Random access to the training batches of a split (built by `batches`)."""

    order: BatchOrder
    read: Reader  # examples of a step

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """Returns {"image": uint8 [B, H, W, C], "label": int32 [B]} of a step.

        Args:
          step: training steps before this one, over all epochs; not negative.
        """
        images, labels = self.read(step)
        return {"image": images, "label": labels}


def batches(
    split: Examples,
    *,
    batch_size: int,
    seed: int,
    rows: Int[np.ndarray, "rows"] | slice = ALL_ROWS,
) -> BatchSource:
    """Returns a split's training batches, each a pure function of (seed, step).

    Args:
      split: what to draw from.
      batch_size: examples in every batch; at most `len(split)`.
      seed: of the order, not negative.
      rows: which examples of each batch to read: one process's part of them.

    Returns:
      A source with `batch(step)` and `steps_per_epoch`; over an epoch no example comes
      twice.

    Raises:
      ValueError: if the batch is larger than the split or the seed negative.

    Example:
      >>> from fliqs_jax.data import load_dataset
      >>> source = batches(load_dataset("digits").train, batch_size=32, seed=0)
      >>> source.batch(7)["image"].shape, source.batch(7)["label"].dtype
      ((32, 8, 8, 1), dtype('int32'))
    """
    order = BatchOrder(num_examples=len(split), batch_size=batch_size, seed=seed)
    return BatchSource(order, split.reader(lambda step: order.indices(step)[rows]))


def evaluation_batches(
    split: Examples,
    batch_size: int,
    rows: Int[np.ndarray, "rows"] | slice = ALL_ROWS,
) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of one shape.

    Args:
      split: what to read.
      batch_size: examples in a batch, at least 1; may exceed `len(split)`.
      rows: which examples of each batch to read, ascending; see `batches`.

    Yields:
      {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": float32 [B]}; the last
      batch is filled up with black images of class 0 and mask 0.

    Raises:
      ValueError: if `batch_size` is below 1.
    """
    check_at_least(1, batch_size=batch_size)
    return _padded_batches(split, np.arange(batch_size)[rows], batch_size)


def _padded_batches(
    split: Examples, rows: Int[np.ndarray, "rows"], batch_size: int
) -> Iterator[Batch]:
    for start in range(0, len(split), batch_size):
        indices = start + rows
        indices = indices[indices < len(split)]
        images, labels = split.read(indices)
        missing = len(rows) - len(indices)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.pad(np.ones(len(indices), np.float32), (0, missing)),
        }
