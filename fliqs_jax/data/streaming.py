"""Splits too large for memory: decoded as they are read, some batches ahead.

Not faster than memory, and not shuffled differently: the order of examples is that of
batches.py, so a set that fits gives the same batches either way.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from fliqs_jax.data.dataset import Images, Labels, Reader

_MOST_THREADS = 16  # batches decoded ahead, each by one thread


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Labelled images that are decoded each time they are read."""

    records: Any  # random access to undecoded records
    decode: Callable[[dict], tuple[UInt8[np.ndarray, "H W C"], int]]
    image_shape: tuple[int, int, int]
    indices: Int[np.ndarray, "N"]  # positions in `records`

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Int[np.ndarray, "B"]) -> tuple[Images, Labels]:
        """Decodes the images and labels at these positions."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        if len(indices):
            chosen = self.records.__getitems__(self.indices[indices].tolist())
            for row, record in enumerate(chosen):
                images[row], labels[row] = self.decode(record)
        return images, labels

    def take(self, indices: Int[np.ndarray, "B"]) -> "StreamedSplit":
        """Returns the examples at these positions as a split of their own."""
        return dataclasses.replace(self, indices=self.indices[indices])

    def strata(self) -> Int32[np.ndarray, "N"]:
        """Returns zeros: reading every label would read the whole set from disk."""
        return np.zeros(len(self), np.int32)

    def reader(self, indices: Callable[[int], np.ndarray]) -> Reader:
        """Returns a function of a step; consecutive steps are decoded ahead."""
        return _Prefetcher(lambda step: self.read(indices(step)))


class _Prefetcher:
    """Calls a function of the step in threads, for some steps beyond the last asked.

    A step other than the next restarts the pipeline there, so the result is a function
    of the step alone.
    """

    def __init__(self, read: Reader):
        # Imported here: it takes 0.3 s, and most runs fit into memory.
        import grain

        threads = min(os.cpu_count() or 1, _MOST_THREADS)
        self._options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=threads
        )
        self._batches = grain.MapDataset.range(sys.maxsize).map(read)
        self._next_step = -1

    def __call__(self, step: int) -> tuple[Images, Labels]:
        if step != self._next_step:
            ahead = self._batches[step:].to_iter_dataset(self._options)
            self._iterator = iter(ahead)
        self._next_step = step + 1
        return next(self._iterator)
