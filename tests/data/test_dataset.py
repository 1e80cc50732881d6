"""Splits check their arrays; statistics equal NumPy's."""

import numpy as np
import pytest

from fliqs_jax.data import Split
from fliqs_jax.data.dataset import channel_statistics

RNG = np.random.default_rng(0)


def test_statistics_equal_numpy():
    images = RNG.integers(0, 256, (40, 5, 6, 3)).astype(np.uint8)
    images[..., 1] //= 4
    mean, std = channel_statistics(Split(images, np.zeros(40, np.int32)))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_a_large_split_come_from_images_all_over_it():
    # 20,000 images of 1,024 values exceed the 16 million looked at; a broadcast array
    # needs no memory.
    images = np.broadcast_to(np.uint8(100), (20_000, 32, 32, 1))
    mean, _ = channel_statistics(Split(images, np.zeros(20_000, np.int32)))
    np.testing.assert_allclose(mean, [100 / 255], rtol=1e-6)


def test_constant_channel_has_a_positive_deviation():
    images = np.full((3, 2, 2, 1), 7, np.uint8)
    _, std = channel_statistics(Split(images, np.zeros(3, np.int32)))
    np.testing.assert_allclose(std, [1 / 255], rtol=1e-6)


def test_take_and_read_pick_the_same_examples():
    images = RNG.integers(0, 256, (10, 2, 2, 1)).astype(np.uint8)
    split = Split(images, np.arange(10, dtype=np.int32))
    taken = split.take(np.array([7, 3]))
    images_read, labels_read = split.read(np.array([7, 3]))
    np.testing.assert_array_equal(taken.images, images_read)
    np.testing.assert_array_equal(images_read, images[[7, 3]])
    assert taken.labels.tolist() == labels_read.tolist() == [7, 3]


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(4, np.int32), r"1\) and \(4,\)"),
        (np.zeros((3, 2, 2), np.uint8), np.zeros(3, np.int32), r"got \(3, 2, 2\) and"),
        (np.zeros((3, 2, 2, 1)), np.zeros(3, np.int32), "got float64 and int32"),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3), "got uint8 and float64"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)
