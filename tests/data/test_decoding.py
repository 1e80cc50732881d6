"""Decoding and resizing of single images."""

import io

import numpy as np
import pytest
from PIL import Image

from fliqs_jax.data.decoding import decode_image, resize_image

RNG = np.random.default_rng(0)


def _encode(image, kind="png", mode=None):
    file = io.BytesIO()
    Image.fromarray(image, mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_returned_bit_for_bit(channels):
    image = RNG.integers(0, 256, (5, 7, channels)).astype(np.uint8)
    encoded = _encode(image[..., 0] if channels == 1 else image)
    decoded = decode_image(encoded, channels=channels, image_size=None)
    np.testing.assert_array_equal(decoded, image)


def test_grey_file_becomes_rgb_where_the_set_says_so():
    image = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
    decoded = decode_image(_encode(image), channels=3, image_size=None)
    np.testing.assert_array_equal(decoded, np.stack([image] * 3, -1))


@pytest.mark.parametrize("shape", [(20, 40, 3), (40, 20, 3), (30, 30, 3), (4, 6, 3)])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_resized_images_are_square(shape, kind):
    image = RNG.integers(0, 256, shape).astype(np.uint8)
    decoded = decode_image(_encode(image, kind), channels=3, image_size=10)
    assert decoded.shape == (10, 10, 3)


def test_wide_image_keeps_its_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200  # the centre square
    decoded = decode_image(_encode(image), channels=3, image_size=10)
    assert (decoded == 200).all()


def test_halving_averages_pixels():
    # Bilinear with antialiasing weighs 4 pixels by 1, 3, 3, 1; constant in pairs of
    # columns far from an edge, so a uniform half is exact.
    image = np.zeros((16, 16, 1), np.uint8)
    image[:8] = 100
    resized = resize_image(image, 8)
    assert (resized[:3] == 100).all() and (resized[5:] == 0).all()


def test_right_size_is_left_alone():
    image = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize_image(image, 8), image)
