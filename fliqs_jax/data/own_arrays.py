"""Data sets from arrays of one's own, in memory or in an .npz file.

Not image files (image_folder.py) nor published sets (tfds_source.py).
"""

import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import ArrayLike

from fliqs_jax.checks import check_within
from fliqs_jax.data.dataset import Dataset, Split
from fliqs_jax.data.decoding import resize_image
from fliqs_jax.data.splitting import SPELLINGS, assemble

Arrays = tuple[ArrayLike, ArrayLike]  # images and labels

_CHANNELS = (1, 3, 4)


def make_dataset(
    train: Arrays,
    test: Arrays | None = None,
    validation: Arrays | None = None,
    *,
    name: str = "own images",
    num_classes: int | None = None,
    validation_fraction: float = 0.1,
) -> Dataset:
    """Returns arrays of images and labels as a data set for every search.

    What is missing is held out of `train`, class by class, always the same examples: a
    fifth for the test split, then `validation_fraction` for validation.

    Args:
      train: images, uint8 [N, H, W, C], or [N, H, W] if grey, with 0 as black; and
        labels, integers [N] from 0.
      test: the same for the test split.
      validation: the same for the validation split.
      name: for the report.
      num_classes: None counts up to the largest label.
      validation_fraction: share of `train` held out where `validation` is None, in
        [0, 1); 0 leaves validation empty.

    Returns:
      The set, with the channel mean and standard deviation of its training split, and
      a fingerprint, so that a run is not continued on other images.

    Raises:
      ValueError: if an array is not as above.

    Example:
      >>> images, labels = np.zeros((50, 8, 8), np.uint8), np.arange(50) % 5
      >>> own = make_dataset((images, labels))
      >>> len(own.train), len(own.validation), len(own.test), own.num_classes
      (36, 4, 10, 5)
    """
    check_within("[0, 1)", validation_fraction=validation_fraction)
    given = {"train": train, "test": test, "validation": validation}
    parts = {part: _split(part, *pair) for part, pair in given.items() if pair}
    for part, split in parts.items():
        if split.image_shape != parts["train"].image_shape:
            raise ValueError(
                f"{part} images are {split.image_shape}, those of train"
                f" {parts['train'].image_shape}: bring them to one shape"
            )
    most = max(int(split.labels.max(initial=0)) for split in parts.values())
    if num_classes is None:
        num_classes = most + 1
    elif most >= num_classes:
        raise ValueError(
            f"num_classes is {num_classes}, but there is a label {most}: labels are 0"
            " to num_classes - 1"
        )
    return assemble(
        name,
        parts,
        num_classes=num_classes,
        validation_fraction=validation_fraction,
        fingerprint=_fingerprint(parts),
    )


def read_arrays(
    file: pathlib.Path,
    *,
    name: str,
    validation_fraction: float,
    image_size: int | None = None,
) -> Dataset:
    """Reads a data set from an .npz file.

    Args:
      file: with `x_train` and `y_train`, or `train_images` and `train_labels`, and the
        same for `test` and `validation` (or `val`) where it has these.
      name: for the report.
      validation_fraction: as in `make_dataset`.
      image_size: scales the shorter side to it and crops the centre.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the arrays are named otherwise, or not as in `make_dataset`.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"there is no file {file}: --dataset is looked up in --data_dir if that is"
            " given, else in the folder that the command runs in"
        )
    with np.load(file, allow_pickle=False) as stored:
        parts = {part: _find(stored, part) for part in SPELLINGS}
        if parts["train"] is None:
            raise ValueError(
                f"{file} holds {', '.join(stored) or 'nothing'}: it needs x_train and"
                " y_train (or train_images and train_labels), uint8 images and integer"
                " labels"
            )
    if image_size is not None:
        for part, arrays in parts.items():
            if arrays is not None:
                parts[part] = _resized(arrays[0], image_size), arrays[1]
    if parts["test"] is None:  # a single further split is the test split
        parts["test"], parts["validation"] = parts["validation"], None
    return make_dataset(**parts, name=name, validation_fraction=validation_fraction)


def _find(stored: Mapping[str, np.ndarray], part: str) -> Arrays | None:
    for word in SPELLINGS[part]:
        for names in ((f"x_{word}", f"y_{word}"), (f"{word}_images", f"{word}_labels")):
            if all(name in stored for name in names):
                return stored[names[0]], stored[names[1]]
    return None


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    images = images[..., None] if images.ndim == 3 else images
    return np.stack([resize_image(image, size) for image in images])


def _split(part: str, images: ArrayLike, labels: ArrayLike) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not images.size:
        raise ValueError(
            f"{part} images must be [N, H, W, C], or [N, H, W] if grey, got the shape"
            f" {images.shape}"
        )
    if images.shape[1] in _CHANNELS and images.shape[-1] not in _CHANNELS:
        raise ValueError(
            f"{part} images must be [N, H, W, C], got the shape {images.shape}, whose"
            " channels seem to come first: np.moveaxis(images, 1, -1)"
        )
    if images.dtype != np.uint8:
        raise ValueError(
            f"{part} images must be uint8, 0 black and 255 the brightest value, got"
            f" {images.dtype} from {images.min():g} to {images.max():g}: from values"
            " between 0 and 1 it is np.round(255 * images).astype(np.uint8)"
        )
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        one_hot = labels.ndim == 2 and len(labels) == len(images)
        cure = ": labels.argmax(axis=1), if they are one-hot" if one_hot else ""
        raise ValueError(
            f"{part} labels must be one integer an image, of shape ({len(images)},),"
            f" got {labels.shape}{cure}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(
            f"{part} labels must be integers from 0, got {labels.dtype}"
            + (f" with {labels.min()}" if labels.dtype.kind == "i" else "")
            + ": np.unique(labels, return_inverse=True)[1] numbers them"
        )
    return Split(images, labels.astype(np.int32))


def _fingerprint(parts: Mapping[str, Split]) -> str:
    checksum = 0
    for split in parts.values():
        for array in (split.images, split.labels):
            checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
    return f"{checksum:08x}"
