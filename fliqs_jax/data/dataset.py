"""What a loaded data set is: three splits that share no example, in memory.

Not how sets are found or decoded (loading.py), nor how batches are drawn (batches.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

Images = UInt8[np.ndarray, "B H W C"]
Labels = Int32[np.ndarray, "B"]
Reader = Callable[[int], tuple[Images, Labels]]

# The mean of 16 M values is known to about 1e-4 of their range: no more are needed.
_STATISTICS_VALUES = 16_000_000
_SMALLEST_STD = 1 / 255  # one grey level: a channel that never changes stays finite


@runtime_checkable  # for the type checks of the tests
class Examples(Protocol):
    """Labelled images that can be read at random, in memory or not."""

    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, indices: Int[np.ndarray, "B"]) -> tuple[Images, Labels]:
        """Returns the images and labels at these positions, in this order."""

    def take(self, indices: Int[np.ndarray, "B"]) -> "Examples":
        """Returns the examples at these positions as a split of their own."""

    def strata(self) -> Int32[np.ndarray, "N"]:
        """Returns a class for each example, to be held out in proportion."""

    def reader(self, indices: Callable[[int], np.ndarray]) -> Reader:
        """Returns a function of a step that reads the examples at `indices(step)`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory: `images[i]` shows class `labels[i]`."""

    images: np.ndarray  # uint8 [N, H, W, C]; 0 is black, 255 the brightest value
    labels: np.ndarray  # int32 [N]

    def __post_init__(self):
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "images must be [N, H, W, C] and labels [N], got "
                f"{self.images.shape} and {self.labels.shape}"
            )
        if self.images.dtype != np.uint8 or self.labels.dtype != np.int32:
            raise ValueError(
                "images must be uint8 and labels int32, got "
                f"{self.images.dtype} and {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def read(self, indices: Int[np.ndarray, "B"]) -> tuple[Images, Labels]:
        """Returns copies of the images and labels at these positions."""
        return self.images[indices], self.labels[indices]

    def take(self, indices: Int[np.ndarray, "B"]) -> "Split":
        """Returns the examples at these positions as a split of their own."""
        return Split(*self.read(indices))

    def strata(self) -> Int32[np.ndarray, "N"]:
        """Returns the labels: a part held out has every class in proportion."""
        return self.labels

    def reader(self, indices: Callable[[int], np.ndarray]) -> Reader:
        """Returns a function of a step that reads the examples at `indices(step)`."""
        return lambda step: self.read(indices(step))


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A named image classification set. No example is in two of its splits."""

    name: str
    train: Examples
    validation: Examples  # may be empty
    test: Examples
    num_classes: int
    mean: Float32[np.ndarray, "C"]  # of each channel of `train`, with 255 counted as 1
    std: Float32[np.ndarray, "C"]  # positive, same unit
    fingerprint: str = ""  # of a set of one's own, which a name does not identify


def channel_statistics(
    split: Examples,
) -> tuple[Float32[np.ndarray, "C"], Float32[np.ndarray, "C"]]:
    """Returns the mean and standard deviation of each channel, with 255 counted as 1.

    At most 16 million values are looked at, from images spread evenly over the split.

    Args:
      split: at least one image.

    Returns:
      Mean and standard deviation; the latter is at least 1/255.

    Example:
      >>> images = np.full((4, 2, 2, 1), 51, np.uint8)
      >>> mean, std = channel_statistics(Split(images, np.zeros(4, np.int32)))
      >>> round(float(mean[0]), 3), round(float(std[0]), 3)
      (0.2, 0.004)
    """
    count = max(
        1, min(len(split), _STATISTICS_VALUES // int(np.prod(split.image_shape)))
    )
    images, _ = split.read(np.linspace(0, len(split) - 1, count).astype(np.int64))
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in np.moveaxis(
        images, -1, 0
    ):  # exact, with no float copy of the images
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        means.append(share @ levels)
        stds.append(np.sqrt(share @ (levels - means[-1]) ** 2))
    return np.float32(means), np.maximum(np.float32(stds), np.float32(_SMALLEST_STD))
