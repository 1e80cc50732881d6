"""load_dataset: from a name to three splits that share no example.

Decides which split of a TFDS set plays which part; reading is in tfds_source.py.
"""

import os
import pathlib

import numpy as np

from fliqs_jax.checks import check_within
from fliqs_jax.data.cache import cached_arrays, default_cache_dir
from fliqs_jax.data.dataset import Dataset, Examples, Split
from fliqs_jax.data.decoding import decode_all, resize_image
from fliqs_jax.data.image_folder import ImageFolder, is_image_folder, open_folder
from fliqs_jax.data.own_arrays import read_arrays
from fliqs_jax.data.splitting import assemble
from fliqs_jax.data.streaming import StreamedSplit
from fliqs_jax.data.tfds_source import TfdsSource, is_published, open_source


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_fraction: float = 0.1,
    cache_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    download: bool = False,
    memory_limit_bytes: int = 4 * 2**30,
) -> Dataset:
    """Loads an image classification set as train, validation and test splits.

    `digits` (1,797 images of 8x8x1 from scikit-learn) is built in. A name that ends in
    .npz is a file of arrays (see `read_arrays`); a folder with a `train` folder in it
    holds image files, a folder a class (see `open_folder`); both are looked up in
    `data_dir`. Any other name is a TFDS set, read without TensorFlow.

    The set's own `test` and `validation` splits are used where they are labelled; a
    single one of them is the test split. What is missing is held out of `train`, class
    by class, always the same examples: a fifth for the test split, then
    `validation_fraction` for validation.

    Args:
      name: `digits`, an .npz file, a folder of images, a TFDS name, or a prepared TFDS
        folder's name in `data_dir`.
      data_dir: folder of prepared TFDS sets, or of your own; None is TFDS's default,
        and the present folder for your own.
      validation_fraction: share of `train` held out where the set has no validation
        split of its own, in [0, 1); 0 leaves validation empty.
      cache_dir: where decoded images are kept; None is the user's cache folder.
      image_size: scales the shorter side to it and crops the centre; needed where the
        images of a set vary in size.
      download: whether TFDS may download and prepare a set that is not there.
      memory_limit_bytes: sets that would take more when decoded are decoded as they
        are read, in every epoch; their held-out parts are not balanced over classes.

    Returns:
      The set, with the channel mean and standard deviation of its training split.

    Raises:
      ValueError: an unknown name (with the nearest ones) or an unusable argument.
      FileNotFoundError: a known set that is not in `data_dir`.

    Example:
      >>> digits = load_dataset("digits")
      >>> len(digits.train), len(digits.validation), len(digits.test)
      (1294, 144, 359)
      >>> digits.train.images.shape, digits.num_classes
      ((1294, 8, 8, 1), 10)
    """
    check_within("[0, 1)", validation_fraction=validation_fraction)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    own, fingerprint = pathlib.Path(data_dir or "", name), ""
    if own.suffix == ".npz":
        return read_arrays(
            own,
            name=name,
            validation_fraction=validation_fraction,
            image_size=image_size,
        )
    if name == "digits":
        parts, num_classes = {"train": _digits(image_size)}, 10
    else:
        if is_image_folder(own):
            if data_dir is None and is_published(name):
                raise ValueError(
                    f"{name!r} is a folder here, and a published set: write ./{name}"
                    " for the folder, or pass the data_dir (--data_dir) of the set"
                )
            source = open_folder(own, image_size=image_size)
            fingerprint = source.identity()
        elif name.startswith(".") or pathlib.Path(name).is_absolute():
            raise FileNotFoundError(
                f"{own} is no folder with train/CLASS/IMAGE files, which images of your"
                " own are; or give an .npz file with x_train and y_train"
            )
        else:
            source = open_source(
                name, data_dir=data_dir, image_size=image_size, download=download
            )
        folder = pathlib.Path(cache_dir) if cache_dir else default_cache_dir()
        parts = _read_parts(source, folder, memory_limit_bytes)
        num_classes = source.num_classes
    return assemble(
        name,
        parts,
        num_classes=num_classes,
        validation_fraction=validation_fraction,
        fingerprint=fingerprint,
    )


def _digits(image_size: int | None) -> Split:
    from sklearn.datasets import load_digits  # 0.5 s, for this set only

    digits = load_digits()
    # 16 grey levels above zero: 255 / 16 is no whole number, hence the rounding.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    if image_size is not None:
        images = np.stack([resize_image(image, image_size) for image in images])
    return Split(images, digits.target.astype(np.int32))


def _read_parts(
    source: TfdsSource | ImageFolder, cache_dir: pathlib.Path, memory_limit_bytes: int
) -> dict[str, Examples]:
    roles = _roles(source)
    examples = sum(source.split_sizes[split] for split in roles.values())
    streamed = examples * int(np.prod(source.image_shape)) > memory_limit_bytes
    parts = {}
    for role, split in roles.items():
        if streamed:
            parts[role] = StreamedSplit(
                records=source.records(split),
                decode=source.decode,
                image_shape=source.image_shape,
                indices=np.arange(source.split_sizes[split]),
            )
        else:
            parts[role] = _decoded_split(source, split, cache_dir)
    return parts


def _roles(source: TfdsSource | ImageFolder) -> dict[str, str]:
    """Which of the set's splits is the train, validation and test one, if any."""
    splits = source.split_sizes
    if "train" not in splits:
        raise ValueError(
            f"data set {source.name!r} has no train split, only {', '.join(splits)}"
        )
    # Some published test splits (ImageNet's) come without labels, as -1.
    labelled = [
        split
        for split in ("test", "validation")
        if splits.get(split) and source.labelled(split)
    ]
    roles = dict(zip(("test", "validation"), labelled, strict=False))
    return {"train": "train", **roles}


def _decoded_split(
    source: TfdsSource | ImageFolder, split: str, cache_dir: pathlib.Path
) -> Split:
    full_name = source.full_name  # such as cifar10/3.0.2
    size = "" if source.image_size is None else f"-{source.image_size}px"

    def build():
        return decode_all(
            source.records(split),
            source.decode,
            image_shape=source.image_shape,
            title=f"decoding {full_name} {split}",
        )

    images, labels = cached_arrays(
        cache_dir / full_name, f"{split}{size}", source.fingerprint(split), build
    )
    outside = (labels < 0) | (labels >= source.num_classes)
    if outside.any():
        raise ValueError(
            f"split {split!r} of {full_name} has labels outside 0 ... "
            f"{source.num_classes - 1}, such as {labels[outside][0]}"
        )
    return Split(images, labels)
