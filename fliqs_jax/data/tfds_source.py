"""TFDS image classification sets, read at random without TensorFlow.

Preparing a set (downloading it, writing its records) is TFDS's own business and may
need TensorFlow once; reading never imports it.
"""

import dataclasses
import difflib
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fliqs_jax.data.decoding import decode_image


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared set: its records by split, and how to decode one."""

    builder: Any  # tfds.core.DatasetBuilder
    image_key: str
    label_key: str
    image_size: int | None  # None: the images have one size, which is kept
    image_shape: tuple[int, int, int]  # after decoding
    num_classes: int

    @property
    def name(self) -> str:
        return self.builder.name

    @property
    def full_name(self) -> str:
        return self.builder.info.full_name

    @property
    def split_sizes(self) -> dict[str, int]:
        splits = self.builder.info.splits
        return {name: int(info.num_examples) for name, info in splits.items()}

    def labelled(self, split: str) -> bool:
        """Returns whether a split has labels: published test splits may have none."""
        return self.records(split)[0][self.label_key] >= 0

    def records(self, split: str) -> Any:
        """Returns random access to a split's records, images still encoded."""
        import tensorflow_datasets as tfds

        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        try:
            return self.builder.as_data_source(split=split, decoders=decoders)
        except NotImplementedError as error:
            raise ValueError(
                f"data set {self.builder.name!r} in {self.builder.data_path} is not "
                "stored as array_record, which reading without TensorFlow needs: "
                "prepare it with file_format=array_record"
            ) from error

    def decode(self, record: dict) -> tuple[UInt8[np.ndarray, "H W C"], int]:
        """Returns a record's image and label."""
        image = decode_image(
            record[self.image_key],
            channels=self.image_shape[-1],
            image_size=self.image_size,
        )
        return image, int(record[self.label_key])

    def fingerprint(self, split: str) -> dict:
        """Returns what tells this split's content from another's, as JSON values."""
        info = self.builder.info.splits[split]
        return {
            "set": self.builder.info.full_name,
            "split": split,
            "bytes": int(info.num_bytes),
            "shards": [int(length) for length in info.shard_lengths],
            "image_shape": list(self.image_shape),
        }


def open_source(
    name: str,
    *,
    data_dir: str | os.PathLike | None,
    image_size: int | None,
    download: bool,
) -> TfdsSource:
    """Finds a prepared set by name and checks that it can be used.

    Args:
      name: TFDS name, or that of a prepared folder in `data_dir`.
      data_dir: folder of prepared sets; None is TFDS's default.
      image_size: side in pixels to bring every image to; None keeps their size.
      download: whether to download and prepare a set that is not there.

    Returns:
      The set, of which nothing has been read yet.

    Raises:
      ValueError: unknown name; no image classification set; sizes vary and no
        `image_size`.
      FileNotFoundError: known, but not in the folder.
      RuntimeError: preparing it needs TensorFlow, which is not installed.
    """
    builder = _find_builder(name, data_dir)
    if not builder.is_prepared():
        if not download:
            raise FileNotFoundError(
                f"data set {name!r} is not in {builder.data_path}: pass data_dir "
                "(--data_dir), the folder that holds it, or download=True (--download)"
            )
        _prepare(builder)
    image_key, label_key = _keys(builder)
    shape = builder.info.features[image_key].shape
    channels = shape[-1] or 3
    if image_size is None and None in shape[:2]:
        raise ValueError(
            f"the images of {name!r} vary in size: pass image_size (--image_size), the "
            "side in pixels to bring them to"
        )
    if channels not in (1, 3, 4):
        raise ValueError(f"images of {name!r} have {channels} channels, not 1, 3 or 4")
    side = shape[:2] if image_size is None else (image_size, image_size)
    return TfdsSource(
        builder=builder,
        image_key=image_key,
        label_key=label_key,
        image_size=image_size,
        image_shape=(*side, channels),
        num_classes=int(builder.info.features[label_key].num_classes),
    )


def is_published(name: str) -> bool:
    """Returns whether TFDS knows a set of this name."""
    import tensorflow_datasets as tfds

    return name in tfds.list_builders(with_community_datasets=False)


def _find_builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        nearest = ", ".join(difflib.get_close_matches(name, known, 5, cutoff=0.0))
        raise ValueError(
            f"data set {name!r} is unknown: the nearest names are {nearest}; images of "
            "your own are an .npz file with x_train and y_train, a folder with "
            "train/CLASS/IMAGE files, or what TFDS has prepared with "
            "file_format=array_record, in data_dir (--data_dir)"
        ) from error


def _prepare(builder: Any) -> None:
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(
            f"preparing {builder.name!r} needs a package that is missing ({error}); "
            "TFDS needs TensorFlow to write some sets, never to read them: prepare it "
            f"once where TensorFlow is installed, by `tfds build {builder.name} "
            "--file_format=array_record --data_dir=DIR`, and pass that data_dir"
        ) from error


def _keys(builder: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    if not (isinstance(keys, tuple) and len(keys) == 2):
        keys = ("image", "label")
    image, label = (dict(features.items()).get(key) for key in keys)
    if (
        not isinstance(image, tfds.features.Image)
        or image.np_dtype != np.uint8
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise ValueError(
            f"data set {builder.name!r} is not an image classification set with 8-bit "
            f"images: its features are {', '.join(features)}"
        )
    return keys
