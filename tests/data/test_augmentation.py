"""Crops and flips against NumPy, and normalisation against its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.data import AugmentConfig, augment, default_augmentation, normalise
from fliqs_jax.data.augmentation import crop_and_flip

RNG = np.random.default_rng(0)
_augment = jax.jit(augment, static_argnames=("crop_padding", "flip"))
IMAGES = RNG.integers(1, 256, (64, 6, 8, 3)).astype(np.uint8)


def _reference(image, row, column, mirror, padding):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    window = padded[row : row + image.shape[0], column : column + image.shape[1]]
    return window[:, ::-1] if mirror else window


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_equal_numpy(padding, dtype):
    offsets = RNG.integers(0, 2 * padding + 1, (64, 2)).astype(np.int32)
    mirrored = RNG.integers(0, 2, 64).astype(bool)
    images = IMAGES.astype(dtype)
    result = crop_and_flip(
        jnp.asarray(images),
        jnp.asarray(offsets),
        jnp.asarray(mirrored),
        crop_padding=padding,
    )
    expected = [
        _reference(image, row, column, mirror, padding)
        for image, (row, column), mirror in zip(images, offsets, mirrored, strict=True)
    ]
    np.testing.assert_array_equal(result, np.stack(expected))
    assert result.dtype == dtype


def _find_place(before, after, padding):
    """Every (row, column, mirror) at which the reference gives this image."""
    return [
        (row, column, mirror)
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
        for mirror in (False, True)
        if (_reference(before, row, column, mirror, padding) == after).all()
    ]


def test_every_place_is_drawn_and_examples_are_independent():
    result = _augment(jax.random.key(0), IMAGES, crop_padding=1)
    places = [
        _find_place(before, after, 1)
        for before, after in zip(IMAGES, np.asarray(result), strict=True)
    ]
    assert all(len(found) == 1 for found in places)
    # Of 18 places a given one is missed by 64 draws with probability 2.6 %.
    assert len({found[0] for found in places}) >= 14


def test_flips_are_half_of_the_images_and_can_be_off():
    many = np.tile(IMAGES, (10, 1, 1, 1))
    flipped = _augment(jax.random.key(1), many, crop_padding=0)
    share = np.mean((np.asarray(flipped) == many[:, :, ::-1]).all((1, 2, 3)))
    assert 0.44 < share < 0.56  # three standard deviations
    still = augment(jax.random.key(1), many, crop_padding=0, flip=False)
    np.testing.assert_array_equal(still, many)


def test_same_key_same_images_other_key_others():
    first, again, other = (_augment(jax.random.key(k), IMAGES) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalise_equals_its_equation(dtype):
    mean, std = np.float32([0.1, 0.5, 0.9]), np.float32([0.2, 0.3, 0.4])
    result = normalise(IMAGES.astype(dtype), mean, std)
    expected = (IMAGES.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert result.dtype == np.float32


@pytest.mark.parametrize(
    "name, config",
    [
        ("digits", AugmentConfig()),
        ("mnist", AugmentConfig()),
        ("emnist/letters", AugmentConfig()),
        ("mnist:3.0.1", AugmentConfig()),
        ("svhn_cropped", AugmentConfig(crop_padding=4)),
        ("cifar10", AugmentConfig(crop_padding=4, flip=True)),
        ("cifar100", AugmentConfig(crop_padding=4, flip=True)),
    ],
)
def test_default_augmentation(name, config):
    assert default_augmentation(name) == config


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        AugmentConfig(crop_padding=-1)
