"""Image files of one's own, a folder for each class: train/cat/1.jpg, train/dog/2.png.

Read as published sets are: decoded once into the cache, or as they are read where they
would not fit into memory.
"""

import dataclasses
import io
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fliqs_jax.data.decoding import decode_image
from fliqs_jax.data.splitting import SPELLINGS

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_GREY = ("1", "L")  # modes of images without colour
_DEEP = ("I", "F")  # how those of modes begin that have more than 8 bits
_Files = tuple[tuple[str, int], ...]  # paths within the folder, and their classes


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of images by split and class; `TfdsSource` is its like for TFDS."""

    root: pathlib.Path
    files: Mapping[str, _Files]  # by split
    image_size: int | None  # None: the images have one size, which is kept
    image_shape: tuple[int, int, int]  # after decoding
    num_classes: int

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def full_name(self) -> str:
        return f"folders/{self.name}-{self.identity()}"

    @property
    def split_sizes(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.files.items()}

    def labelled(self, split: str) -> bool:
        """Returns True: an image's class is its folder."""
        return True

    def records(self, split: str) -> "_Records":
        """Returns random access to a split's files, still encoded."""
        return _Records(self.root, self.files[split])

    def decode(self, record: dict) -> tuple[UInt8[np.ndarray, "H W C"], int]:
        """Returns a record's image and class.

        Raises:
          ValueError: naming a file that is no image, of another size, of more than 8
            bits, or the first in colour.
        """
        path = self.root / record["path"]
        try:
            encoded = path.read_bytes()
            mode, _ = _header(path, encoded)
            if self.image_shape[-1] == 1 and mode not in _GREY:
                raise ValueError(
                    f"{path} is in colour, but the first image of every class is grey:"
                    " make all grey, or the first ones colour"
                )
            image = decode_image(
                encoded,
                channels=self.image_shape[-1],
                image_size=self.image_size,
            )
        except OSError as error:
            raise _unreadable(path, error) from error
        if image.shape != self.image_shape:
            raise ValueError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, others have"
                f" {self.image_shape[0]} x {self.image_shape[1]}: pass image_size"
                " (--image_size), the side in pixels to bring all to"
            )
        return image, record["label"]

    def fingerprint(self, split: str) -> dict:
        """Returns what tells this split's content from another's, as JSON values."""
        return {
            "files": self._checksum([split], times=True),
            "count": len(self.files[split]),
            "image_shape": list(self.image_shape),
        }

    def identity(self) -> str:
        """Returns a checksum of the files' names and sizes; a copy has the same."""
        return self._checksum(self.files, times=False)

    def _checksum(self, splits: Iterable[str], *, times: bool) -> str:
        checksum = 0
        for path, label in (file for split in splits for file in self.files[split]):
            found = (self.root / path).stat()
            facts = [path, label, found.st_size, found.st_mtime_ns if times else ""]
            checksum = zlib.crc32(repr(facts).encode(), checksum)
        return f"{checksum:08x}"


class _Records(Sequence):
    """The files of a split as `decode_all` and `StreamedSplit` read them."""

    def __init__(self, root: pathlib.Path, files: _Files):
        self._root, self._files = root, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        path, label = self._files[index]
        return {"path": path, "label": label}

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        return [self[index] for index in indices]


def is_image_folder(path: pathlib.Path) -> bool:
    """Returns whether a path is a folder as `open_folder` reads it."""
    return (path / "train").is_dir()


def open_folder(root: pathlib.Path, *, image_size: int | None) -> ImageFolder:
    """Lists a folder of images; nothing is decoded but the first image of a class.

    Classes are the folders in `train/`, numbered in the order of their names. There may
    be `test/` and `validation/` (or `val/`) with the same classes.

    Args:
      root: the folder.
      image_size: side in pixels to bring every image to; None keeps their size.

    Raises:
      ValueError: if a class has no images, or is not one of `train/`.
    """
    classes = _classes(root / "train")
    files = {}
    for split, spellings in SPELLINGS.items():
        folder = next((root / s for s in spellings if (root / s).is_dir()), None)
        if folder is None:
            continue
        unknown = sorted(set(_classes(folder)) - set(classes))
        if unknown:
            raise ValueError(
                f"{folder} has the class {unknown[0]!r}, which {root / 'train'} lacks:"
                f" its classes are {', '.join(classes[:10])}"
            )
        files[split] = tuple(
            (str(file.relative_to(root)), label)
            for label, name in enumerate(classes)
            for file in _images(folder / name)
        )
    firsts = {label: path for path, label in reversed(files["train"])}
    missing = [name for label, name in enumerate(classes) if label not in firsts]
    if missing:
        raise ValueError(
            f"{root / 'train' / missing[0]} holds no images: they end in"
            f" {', '.join(sorted(_ENDINGS))}"
        )
    headers = [_header(root / path) for path in firsts.values()]
    colour = any(mode not in _GREY for mode, _ in headers)
    width, height = headers[0][1]
    if image_size is not None:
        width = height = image_size
    return ImageFolder(
        root=root,
        files=files,
        image_size=image_size,
        image_shape=(height, width, 3 if colour else 1),
        num_classes=len(classes),
    )


def _header(
    path: pathlib.Path, encoded: bytes | None = None
) -> tuple[str, tuple[int, int]]:
    """Returns an image's colour mode, and its width and height."""
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            mode, size = image.mode, image.size
    except OSError as error:
        raise _unreadable(path, error) from error
    if mode.startswith(_DEEP):  # a conversion would cut off, not scale
        raise ValueError(
            f"{path} has more than 8 bits a channel (mode {mode}): scale such images to"
            " 0 ... 255 first, or give arrays (fq.make_dataset)"
        )
    return mode, size


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as an image: {error}")


def _classes(folder: pathlib.Path) -> list[str]:
    names = sorted(f.name for f in folder.iterdir() if f.is_dir())
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise ValueError(
            f"{folder} has no folders of images, one for each class: such as"
            f" {folder / 'cat' / '1.jpg'}"
        )
    return names


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():  # a small test split may lack a class
        return []
    found = (file for file in folder.rglob("*") if file.suffix.lower() in _ENDINGS)
    return sorted(file for file in found if not file.name.startswith("."))
