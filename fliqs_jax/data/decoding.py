"""Encoded images to uint8 arrays, with Pillow and several threads.

Not the reading of records (tfds_source.py) nor their caching (cache.py).
"""

import io
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHUNK = 1000  # records read at a time: enough to keep the threads busy
_QUIET_SECONDS = 2.0  # decoding that takes less prints nothing


def decode_image(
    encoded: bytes, *, channels: int, image_size: int | None
) -> UInt8[np.ndarray, "H W C"]:
    """Decodes a PNG or JPEG; with a size, scales the shorter side to it and crops.

    Args:
      encoded: the file's bytes.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA); other colour spaces are converted.
      image_size: side of the square result in pixels; None keeps the image's size.

    Returns:
      uint8 [H, W, channels].
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if image_size is not None and image.format == "JPEG":
            # Lets the JPEG decoder halve large photographs, never below the target.
            image.draft(_MODES[channels], (image_size, image_size))
        return _to_array(image.convert(_MODES[channels]), image_size)


def resize_image(
    image: UInt8[np.ndarray, "H W C"], image_size: int
) -> UInt8[np.ndarray, "image_size image_size C"]:
    """Scales the shorter side to `image_size` and crops the centre (bilinear)."""
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    return _to_array(Image.fromarray(squeezed), image_size)


def _to_array(image: Image.Image, size: int | None) -> UInt8[np.ndarray, "H W C"]:
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(image.height, image.width, -1)


def decode_all(
    records: Any,
    decode: Callable[[dict], tuple[UInt8[np.ndarray, "H W C"], int]],
    *,
    image_shape: tuple[int, int, int],
    title: str,
) -> tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, "N"]]:
    """Decodes every record into one array; a progress line appears when it is long.

    Args:
      records: read in chunks through `__getitems__`.
      decode: a record's image and label.
      image_shape: of every image.
      title: of the progress line.

    Returns:
      Images and labels, in the order of `records`.
    """
    images = np.empty((len(records), *image_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    report_at, printed = time.monotonic() + _QUIET_SECONDS, False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), _CHUNK):
            stop = min(start + _CHUNK, len(records))
            chunk = records.__getitems__(list(range(start, stop)))
            for index, (image, label) in enumerate(pool.map(decode, chunk), start):
                images[index], labels[index] = image, label
            if time.monotonic() > report_at:
                print(f"\r{title}: {stop}/{len(records)}", end="", file=sys.stderr)
                report_at, printed = time.monotonic() + 1.0, True
    if printed:
        print(f"\r{title}: {len(records)}/{len(records)}", file=sys.stderr)
    return images, labels
