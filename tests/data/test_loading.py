"""load_dataset: digits, small prepared sets, and the real ones where they are."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fliqs_jax.data import load_dataset
from fliqs_jax.data.tfds_source import open_source

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def test_digits_are_scikit_learns_divided_without_overlap():
    digits = load_dataset("digits")
    images = np.concatenate([split.images for split in _parts(digits)])
    labels = np.concatenate([split.labels for split in _parts(digits)])
    raw = load_digits()
    # As multisets: each image once, no more and no fewer.
    rows = np.column_stack([images.reshape(len(images), -1), labels])
    expected = np.column_stack([np.round(raw.data * 15.9375), raw.target])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected.astype(int)))
    assert images.max() == 255 and digits.num_classes == 10
    assert [len(split) for split in _parts(digits)] == [1294, 144, 359]


def test_digits_parts_are_stratified_and_the_same_each_time():
    first, second = load_dataset("digits"), load_dataset("digits")
    counts = np.bincount(load_digits().target)
    for split, again, share in zip(
        _parts(first), _parts(second), (0.72, 0.08, 0.2), strict=True
    ):
        np.testing.assert_array_equal(split.images, again.images)
        assert np.abs(np.bincount(split.labels) - share * counts).max() <= 2


def test_digits_test_split_does_not_depend_on_the_validation_fraction():
    small, large = (
        load_dataset("digits", validation_fraction=fraction) for fraction in (0.0, 0.5)
    )
    np.testing.assert_array_equal(small.test.images, large.test.images)
    assert (len(small.train), len(small.validation)) == (1438, 0)
    assert (len(large.train), len(large.validation)) == (719, 719)


def test_digits_can_be_enlarged():
    digits = load_dataset("digits", image_size=16)
    assert digits.test.image_shape == (16, 16, 1)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_bad_validation_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match=r"in \[0, 1\), got"):
        load_dataset("digits", validation_fraction=fraction)


def test_bad_image_size_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        load_dataset("digits", image_size=0)


def test_unknown_name_lists_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="'cifar11' is unknown.*are cifar10.*data_dir"):
        load_dataset("cifar11", data_dir=tmp_path)
    with pytest.raises(ValueError, match="'digit' is unknown.*names are digits"):
        load_dataset("digit", data_dir=tmp_path)


def test_known_set_that_is_not_there_names_folder_and_flags(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data_dir.*--download") as error:
        load_dataset("cifar100", data_dir=tmp_path)
    assert str(tmp_path / "cifar100") in str(error.value)


def test_sizes_that_vary_ask_for_image_size(varied_set, tmp_path):
    with pytest.raises(ValueError, match="'varied' vary in size: pass image_size"):
        load_dataset("varied", data_dir=varied_set, cache_dir=tmp_path)


def test_validation_becomes_test_where_there_is_no_test_split(varied_set, tmp_path):
    found = load_dataset(
        "varied",
        data_dir=varied_set,
        cache_dir=tmp_path,
        image_size=8,
        validation_fraction=0.2,
    )
    assert found.train.images.shape == (48, 8, 8, 3) and found.num_classes == 3
    assert sorted(found.test.images[:, 0, 0, 0]) == list(range(100, 106))
    numbers = [*found.train.images[:, 4, 4, 2], *found.validation.images[:, 4, 4, 2]]
    assert sorted(numbers) == list(range(60))
    assert np.bincount(found.validation.labels).tolist() == [4, 4, 4]
    for split in _parts(found)[:2]:
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0] % 3)


def test_second_load_reads_the_cache(varied_set, tmp_path, monkeypatch):
    arguments = dict(data_dir=varied_set, cache_dir=tmp_path, image_size=8)
    first = load_dataset("varied", **arguments)

    def fail(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr("fliqs_jax.data.loading.decode_all", fail)
    second = load_dataset("varied", **arguments)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    with pytest.raises(AssertionError, match="decoded again"):
        load_dataset("varied", **{**arguments, "image_size": 9})


def test_own_validation_and_test_splits_are_used(prepare_tfds, tmp_path):
    def images(first, count):
        return [(np.full((4, 4, 1), first + i, np.uint8), i % 3) for i in range(count)]

    splits = {"train": images(0, 9), "validation": images(50, 4), "test": images(90, 5)}
    folder = prepare_tfds("complete", splits, shape=(4, 4, 1))
    found = load_dataset("complete", data_dir=folder, cache_dir=tmp_path)
    values = [sorted(split.images[:, 0, 0, 0].tolist()) for split in _parts(found)]
    expected = [[*range(9)], [*range(50, 54)], [*range(90, 95)]]
    assert values == expected


def test_unlabelled_test_split_is_passed_over(prepare_tfds, tmp_path):
    def images(first, labels):
        return [
            (np.full((4, 4, 1), first + i, np.uint8), label)
            for i, label in enumerate(labels)
        ]

    splits = {
        "train": images(0, [0, 1, 2] * 4),
        "validation": images(50, [0, 1, 2]),
        "test": images(90, [-1, -1]),
    }
    folder = prepare_tfds("unlabelled", splits, shape=(4, 4, 1))
    found = load_dataset(
        "unlabelled", data_dir=folder, cache_dir=tmp_path, validation_fraction=0.25
    )
    assert sorted(found.test.images[:, 0, 0, 0]) == [50, 51, 52]
    assert (len(found.train), len(found.validation)) == (9, 3)


def test_set_in_one_piece_gives_a_fifth_to_the_test_split(prepare_tfds, tmp_path):
    images = [(np.full((4, 4, 1), i, np.uint8), i % 3) for i in range(60)]
    folder = prepare_tfds("single", {"train": images}, shape=(4, 4, 1))
    found = load_dataset("single", data_dir=folder, cache_dir=tmp_path)
    values = [split.images[:, 0, 0, 0].tolist() for split in _parts(found)]
    assert sorted(sum(values, [])) == list(range(60))
    assert [len(split) for split in values] == [43, 5, 12]


def test_set_without_image_labels_is_refused(prepare_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "picture": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    images = [(np.zeros((4, 4, 1), np.uint8), 0)]
    folder = prepare_tfds("pictures", {"train": images}, features=features)
    with pytest.raises(ValueError, match="its features are (picture|label), "):
        load_dataset("pictures", data_dir=folder, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "name, shape, sizes",
    [
        ("mnist", (28, 28, 1), {"train": 60_000, "test": 10_000}),
        ("cifar10", (32, 32, 3), {"train": 50_000, "test": 10_000}),
    ],
)
def test_real_sets_have_their_published_sizes(shared_data, name, shape, sizes):
    source = open_source(
        name, data_dir=shared_data / "tfds", image_size=None, download=False
    )
    assert (source.image_shape, source.num_classes) == (shape, 10)
    assert source.split_sizes == sizes
    records = source.records("train")
    chosen = np.linspace(0, sizes["train"] - 1, 300).astype(int).tolist()
    decoded = [source.decode(record) for record in records.__getitems__(chosen)]
    images = np.stack([image for image, _ in decoded])
    labels = np.bincount([label for _, label in decoded], minlength=10)
    assert images.shape == (300, *shape) and images.dtype == np.uint8
    assert labels.min() >= 10  # 30 are expected of each class
    means = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[name]
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, means, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, train, per_class, mean, std",
    [
        ("mnist", 54_000, None, [0.1307], [0.3081]),
        (
            "cifar10",
            45_000,
            [5_000] * 10,
            [0.4914, 0.4822, 0.4465],
            [0.2470, 0.2435, 0.2616],
        ),
    ],
)
def test_whole_real_set(shared_data, tmp_path, name, train, per_class, mean, std):
    found = load_dataset(name, data_dir=shared_data / "tfds", cache_dir=tmp_path)
    assert (len(found.train), len(found.test)) == (train, 10_000)
    assert len(found.validation) == train // 9
    held_in = np.bincount(found.train.labels) + np.bincount(found.validation.labels)
    if per_class is None:  # the published MNIST histogram
        per_class = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert held_in.tolist() == per_class
    # Published statistics; this copy of CIFAR-10 went through JPEG once more.
    np.testing.assert_allclose(found.mean, mean, atol=0.005)
    np.testing.assert_allclose(found.std, std, atol=0.005)


def test_tensorflow_is_never_imported(varied_set, tmp_path):
    # An importable decoy: touching it anywhere would put it into sys.modules.
    (tmp_path / "tensorflow.py").write_text("")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import numpy as np
from fliqs_jax.data import batches, load_dataset
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
load_dataset("digits")
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
for limit in (2**30, 0):
    found = load_dataset("varied", data_dir={str(varied_set)!r}, image_size=8,
                         cache_dir={str(tmp_path)!r}, memory_limit_bytes=limit)
    batches(found.train, batch_size=8, seed=0).batch(0)
assert "grain" in sys.modules
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
