"""Data sets as uint8 arrays, batches by step number, augmentation on the device."""

from fliqs_jax.data.augmentation import (
    AugmentConfig,
    augment,
    default_augmentation,
    normalise,
)
from fliqs_jax.data.batches import BatchSource, batches, evaluation_batches
from fliqs_jax.data.dataset import Dataset, Split
from fliqs_jax.data.loading import load_dataset
from fliqs_jax.data.own_arrays import make_dataset
from fliqs_jax.data.streaming import StreamedSplit

__all__ = [
    "AugmentConfig",
    "BatchSource",
    "Dataset",
    "Split",
    "StreamedSplit",
    "augment",
    "batches",
    "default_augmentation",
    "evaluation_batches",
    "load_dataset",
    "make_dataset",
    "normalise",
]
