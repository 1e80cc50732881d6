"""Random crops, flips and normalisation, inside the compiled step.

Not a library of augmentations: the pad-and-crop and mirror of the CIFAR literature.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key, Num

from fliqs_jax.checks import check_not_negative

# Sets whose classes a mirror image would change or confuse (digits, letters, signs).
_NO_FLIP = ("svhn_cropped",)
_NO_AUGMENTATION = (
    "digits",
    "mnist",
    "emnist",
    "kmnist",
    "binarized_mnist",
    "mnist_corrupted",
    "binary_alpha_digits",
    "cmaterdb",
    "omniglot",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; the default is not at all."""

    crop_padding: int = 0  # black pixels added at each side before cropping back
    flip: bool = False  # mirror left-right with probability one half

    def __post_init__(self):
        check_not_negative(crop_padding=self.crop_padding)


def default_augmentation(name: str) -> AugmentConfig:
    """Returns the usual augmentation of a data set: none for digits and letters.

    Args:
      name: as given to `load_dataset`; a TFDS configuration or version is ignored.

    Example:
      >>> default_augmentation("cifar10")
      AugmentConfig(crop_padding=4, flip=True)
    """
    name = name.split("/")[0].split(":")[0]
    if name in _NO_AUGMENTATION:
        return AugmentConfig()
    return AugmentConfig(crop_padding=4, flip=name not in _NO_FLIP)


def augment(
    key: Key[jax.Array, ""],
    images: Num[ArrayLike, "B H W C"],
    *,
    crop_padding: int = 4,
    flip: bool = True,
) -> Num[jax.Array, "B H W C"]:
    """Shifts each image by a random offset and mirrors every second one.

    The image is padded with zeros and cropped back at a place drawn uniformly from the
    (2 p + 1)^2 possible ones. Each example has a key of its own.

    Args:
      key: used once.
      images: any numeric type, which is kept; zero should mean black.
      crop_padding: p in pixels, static; 0 leaves the position alone.
      flip: static; whether to mirror left-right with probability one half.

    Returns:
      Images of the same shape and type.

    Reference:
      He et al., Deep residual learning, 2016, section 4.2,
      https://arxiv.org/abs/1512.03385

    Example:
      >>> images = jnp.ones((2, 8, 8, 3), jnp.uint8)
      >>> augment(jax.random.key(0), images).shape
      (2, 8, 8, 3)
    """
    images = jnp.asarray(images)
    draw = jax.vmap(lambda key: _draw(key, crop_padding, flip))
    offsets, mirrored = draw(jax.random.split(key, len(images)))
    return crop_and_flip(images, offsets, mirrored, crop_padding=crop_padding)


def _draw(
    key: Key[jax.Array, ""], crop_padding: int, flip: bool
) -> tuple[Int[jax.Array, "2"], Bool[jax.Array, ""]]:
    crop_key, flip_key = jax.random.split(key)
    offset = jax.random.randint(crop_key, (2,), 0, 2 * crop_padding + 1)
    return offset, jax.random.bernoulli(flip_key) & flip


def crop_and_flip(
    images: Num[jax.Array, "B H W C"],
    offsets: Int[jax.Array, "B 2"],
    mirrored: Bool[jax.Array, "B"],
    *,
    crop_padding: int,
) -> Num[jax.Array, "B H W C"]:
    """Crops each zero-padded image at its offset, then mirrors the chosen ones.

    Args:
      images: before padding.
      offsets: row and column of the crop's corner in the padded image, 0 ... 2 p.
      mirrored: which images to mirror left-right.
      crop_padding: p, static.

    Returns:
      Images of the same shape and type.
    """
    side = (crop_padding, crop_padding)
    padded = jnp.pad(images, ((0, 0), side, side, (0, 0)))

    def crop(image, offset, mirror):
        corner = (offset[0], offset[1], 0)
        window = lax.dynamic_slice(image, corner, images.shape[1:])
        return jnp.where(mirror, window[:, ::-1], window)

    # One gather for the batch: 0.3 ms for 128 images of 32x32x3 on two cores, against
    # 12 ms for selecting among the shifted copies.
    return jax.vmap(crop)(padded, offsets, mirrored)


def normalise(
    images: Num[ArrayLike, "B H W C"],
    mean: Float[ArrayLike, "C"],
    std: Float[ArrayLike, "C"],
) -> Float[jax.Array, "B H W C"]:
    r"""Returns float32 images of about zero mean and unit variance.

    .. math:: y = (x / 255 - \mu) / \sigma

    Args:
      images: values on 0 ... 255 whatever their type.
      mean: of each channel, with 255 counted as 1 (`Dataset.mean`).
      std: of each channel, positive, same unit.

    Returns:
      float32, same shape.

    Example:
      >>> images = jnp.full((1, 1, 1, 1), 255, jnp.uint8)
      >>> normalise(images, jnp.array([0.5]), jnp.array([0.25])).item()
      2.0
    """
    shape = (1, 1, 1, -1)
    scale = jnp.reshape(1 / (255 * jnp.asarray(std, jnp.float32)), shape)
    shift = jnp.reshape(jnp.asarray(mean, jnp.float32) / std, shape)
    return jnp.asarray(images).astype(jnp.float32) * scale - shift
