"""Small TFDS sets, prepared in a temporary folder without TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def prepare_tfds(tmp_path_factory):
    """Returns a function that prepares a set and returns its data_dir."""
    tfds = pytest.importorskip("tensorflow_datasets")
    tfds.disable_progress_bar()

    def prepare(name, splits, *, shape=(None, None, 3), features=None):
        """`splits` maps a split's name to a list of (uint8 image, label)."""
        features = features or {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=3),
        }

        def info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def examples(pairs):
            for index, (image, label) in enumerate(pairs):
                yield index, dict(zip(features, (_png(image), label), strict=True))

        attributes = {
            "VERSION": tfds.core.Version("1.0.0"),
            "name": name,
            "_info": info,
            "_split_generators": lambda self, downloads: {
                split: examples(pairs) for split, pairs in splits.items()
            },
            "_generate_examples": lambda self: None,
        }
        with tfds.core.registered.skip_registration():
            base = tfds.core.GeneratorBasedBuilder
            builder_class = type(name, (base,), attributes)
        data_dir = tmp_path_factory.mktemp("tfds")
        builder = builder_class(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        return data_dir

    return prepare


def _png(image):
    # A file object passes TFDS's encoder untouched; an array would need TensorFlow.
    file = io.BytesIO()
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(squeezed).save(file, "png")
    file.seek(0)
    return file


@pytest.fixture(scope="session")
def varied_images():
    """Sixty images of three classes, of many sizes, each filled with its number."""
    return [
        (np.full((12 + i % 5, 10 + i % 7, 3), i, np.uint8), i % 3) for i in range(60)
    ]


@pytest.fixture(scope="session")
def varied_set(prepare_tfds, varied_images):
    """Folder of the set `varied`: 60 training, 6 validation and no test images."""
    validation = [(image + 100, label) for image, label in varied_images[:6]]
    splits = {"train": varied_images, "validation": validation}
    return prepare_tfds("varied", splits)
