"""Data of a user's own: arrays, an .npz file, a folder of images."""

import os

import numpy as np
import pytest
from PIL import Image

import fliqs_jax as fq
from fliqs_jax.data import loading
from fliqs_jax.data.dataset import channel_statistics
from fliqs_jax.data.own_arrays import make_dataset


def arrays(count, *, first=0, classes=5, shape=(6, 6, 3)):
    """Images of one colour, each another; labels in turn."""
    numbers = np.arange(first, first + count)
    images = np.broadcast_to(
        numbers.astype(np.uint8).reshape(-1, *[1] * len(shape)), (count, *shape)
    )
    return np.array(images), numbers % classes


def numbers(split):
    images, _ = split.read(np.arange(len(split)))
    return sorted(images[:, 0, 0, 0].tolist())


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def test_arrays_are_divided_without_overlap_class_by_class():
    own = make_dataset(arrays(100))
    assert [len(split) for split in parts(own)] == [72, 8, 20]
    assert sorted(sum(map(numbers, parts(own)), [])) == list(range(100))
    assert np.bincount(own.test.labels).tolist() == [4] * 5
    assert own.num_classes == 5 and own.train.labels.dtype == np.int32
    mean, std = channel_statistics(own.train)
    np.testing.assert_array_equal(own.mean, mean)
    np.testing.assert_array_equal(own.std, std)


def test_given_splits_are_used_as_they_are():
    own = make_dataset(
        arrays(20), arrays(10, first=100), arrays(5, first=200), num_classes=7
    )
    assert list(map(numbers, parts(own))) == [
        [*range(20)], [*range(200, 205)], [*range(100, 110)]
    ]  # fmt: skip
    assert own.num_classes == 7
    without = make_dataset(arrays(20), arrays(10, first=100), validation_fraction=0.0)
    assert len(without.validation) == 0 and numbers(without.train) == [*range(20)]


def test_grey_images_and_labels_in_a_column_are_understood():
    images, labels = arrays(20, shape=(6, 6))
    own = make_dataset((images, labels[:, None].astype(np.uint8)))
    assert own.train.image_shape == (6, 6, 1)
    assert own.train.labels.ndim == 1


def test_the_fingerprint_is_of_what_the_images_are():
    images, labels = arrays(20)
    first, again = make_dataset((images, labels)), make_dataset((images, labels))
    images[3, 2, 1, 0] += 1
    assert first.fingerprint == again.fingerprint != ""
    assert make_dataset((images, labels)).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x / 255, y), r"uint8.*got float64 from 0 to .*255 \* images"),
        (lambda x, y: (np.moveaxis(x, -1, 1), y), r"moveaxis\(images, 1, -1\)"),
        (lambda x, y: (x[0, 0], y), r"\[N, H, W, C\].*got the shape \(6, 3\)"),
        (lambda x, y: (x, np.eye(5)[y]), r"got \(20, 5\): labels.argmax\(axis=1\)"),
        (lambda x, y: (x, y[:-1]), r"shape \(20,\), got \(19,\)"),
        (lambda x, y: (x, y - 1), "integers from 0, got int64 with -1"),
        (lambda x, y: (x, y.astype(float)), "integers from 0, got float64: np.unique"),
        (lambda x, y: (x, np.array([*"abcd"] * 5)), "integers from 0, got <U1"),
    ],
)
def test_arrays_of_another_kind_are_refused_with_the_cure(change, message):
    with pytest.raises(ValueError, match="train " + ".*" + message):
        make_dataset(change(*arrays(20)))


def test_splits_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"test images are \(4, 4, 3\), those of"):
        make_dataset(arrays(20), arrays(5, shape=(4, 4, 3)))
    with pytest.raises(ValueError, match="num_classes is 3, but there is a label 4"):
        make_dataset(arrays(20), num_classes=3)
    with pytest.raises(ValueError, match="validation_fraction"):
        make_dataset(arrays(20), validation_fraction=1.0)


@pytest.mark.parametrize("names", ["x_{}:y_{}", "{}_images:{}_labels"])
def test_npz_file_is_its_arrays(names, tmp_path):
    stored = {}
    given = {"train": arrays(20), "test": arrays(10, first=100)}
    given["val"] = arrays(5, first=200)
    for part, pair in given.items():
        keys = [name.format(part) for name in names.split(":")]
        stored |= dict(zip(keys, pair, strict=True))
    np.savez_compressed(tmp_path / "mine.npz", **stored)
    own = fq.load_dataset("mine.npz", data_dir=tmp_path)
    direct = make_dataset(*given.values())
    for split, expected in zip(parts(own), parts(direct), strict=True):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)
    assert own.name == "mine.npz" and own.fingerprint == direct.fingerprint
    small = fq.load_dataset("mine.npz", data_dir=tmp_path, image_size=3)
    assert small.test.image_shape == (3, 3, 3)


def test_a_single_further_split_of_a_file_is_the_test_split(tmp_path):
    x, y = arrays(20)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_val=x[:4], y_val=y[:4])
    own = fq.load_dataset(str(tmp_path / "a.npz"))
    assert [len(split) for split in parts(own)] == [18, 2, 4]


def test_file_that_is_missing_or_holds_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*gone.npz.*--data_dir"):
        fq.load_dataset("gone.npz", data_dir=tmp_path)
    np.savez(tmp_path / "other.npz", images=arrays(4)[0])
    with pytest.raises(ValueError, match="holds images: it needs x_train and"):
        fq.load_dataset("other.npz", data_dir=tmp_path)


@pytest.fixture
def write_folder(tmp_path):
    """Returns a function that writes images by split and class as files."""

    def write(splits, *, size=lambda number: (6, 6), mode="RGB", ending="png"):
        for split, (classes, count) in splits.items():
            for number in range(count):
                name = classes[number % len(classes)]
                folder = tmp_path / "photos" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                image = Image.new(mode, size(number), (number,) * len(mode))
                image.save(folder / f"{number:03}.{ending}")
        return tmp_path / "photos"

    return write


CLASSES = ("cat", "dog", "owl")


def test_folder_of_images_is_read_by_class(write_folder, tmp_path):
    folder = write_folder({"train": (CLASSES, 30), "val": (CLASSES, 6)})
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / ".hidden.png").write_text("no image")
    own = fq.load_dataset("photos", data_dir=folder.parent, cache_dir=tmp_path / "c")
    assert own.num_classes == 3 and own.train.image_shape == (6, 6, 3)
    # The only further split is the test split; validation is held out.
    assert [len(split) for split in parts(own)] == [27, 3, 6]
    assert sorted(numbers(own.train) + numbers(own.validation)) == [*range(30)]
    for split in parts(own):
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0] % 3)


def test_folder_is_decoded_once_and_again_when_it_changes(
    write_folder, tmp_path, monkeypatch
):
    folder, cache = write_folder({"train": (CLASSES, 12)}), tmp_path / "cache"
    first = fq.load_dataset(str(folder), cache_dir=cache)
    decode, decoded = loading.decode_all, []

    def counted(*args, **options):
        decoded.append(1)
        return decode(*args, **options)

    monkeypatch.setattr(loading, "decode_all", counted)
    again = fq.load_dataset(str(folder), cache_dir=cache)
    assert not decoded and again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(first.train.images, again.train.images)
    Image.new("RGB", (6, 6)).save(folder / "train" / "owl" / "more.png")
    more = fq.load_dataset(str(folder), cache_dir=cache)
    assert decoded and more.fingerprint != first.fingerprint


def test_file_replaced_by_another_of_its_name_and_size_is_decoded_again(
    write_folder, tmp_path
):
    folder = write_folder({"train": (CLASSES, 12)}, ending="bmp")
    options = {"cache_dir": tmp_path / "cache", "validation_fraction": 0.0}
    first = fq.load_dataset(str(folder), **options)
    file = folder / "train" / "cat" / "000.bmp"
    before = file.stat()
    Image.new("RGB", (6, 6), (200, 200, 200)).save(file)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = fq.load_dataset(str(folder), **options)
    everything = [numbers(d.train) + numbers(d.test) for d in (first, again)]
    assert 200 not in everything[0] and 200 in everything[1]


def test_folder_too_large_for_memory_is_read_as_it_goes(write_folder, tmp_path):
    folder = write_folder({"train": (CLASSES, 30), "test": (CLASSES, 6)})
    options = {"cache_dir": tmp_path / "cache", "validation_fraction": 0.0}
    whole = fq.load_dataset(str(folder), **options)
    streamed = fq.load_dataset(str(folder), **options, memory_limit_bytes=100)
    images, labels = streamed.train.read(np.arange(30))
    np.testing.assert_array_equal(images, whole.train.images)
    np.testing.assert_array_equal(labels, whole.train.labels)


def test_images_of_several_sizes_ask_for_one(write_folder, tmp_path):
    folder = write_folder(
        {"train": (CLASSES, 9)}, size=lambda number: (6 + number // 3, 6)
    )
    options = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"003.png has 6 x 7 pixels.*--image_size"):
        fq.load_dataset(str(folder), **options)
    own = fq.load_dataset(str(folder), **options, image_size=4)
    assert own.train.image_shape == (4, 4, 3)


def test_grey_folder_has_one_channel_unless_a_class_is_in_colour(write_folder):
    folder = write_folder({"train": (("cat",), 3)}, mode="L")
    assert fq.load_dataset(str(folder)).train.image_shape == (6, 6, 1)
    folder = write_folder({"train": (("dog",), 3)})
    assert fq.load_dataset(str(folder)).train.image_shape == (6, 6, 3)


def test_images_of_sixteen_bits_are_refused(write_folder):
    folder = write_folder({"train": (CLASSES, 9)})
    deep = Image.fromarray(np.full((6, 6), 40_000, np.uint16))
    file = max((folder / "train" / "cat").iterdir())  # not the one that is looked at
    deep.save(file)
    with pytest.raises(ValueError, match=f"{file.name} has more than 8 bits a channel"):
        fq.load_dataset(str(folder))


def test_colour_after_grey_is_refused(write_folder):
    folder = write_folder({"train": (CLASSES, 9)}, mode="L")
    file = max((folder / "train" / "cat").iterdir())
    Image.new("RGB", (6, 6), "red").save(file)
    with pytest.raises(ValueError, match=f"{file.name} is in colour, but the first"):
        fq.load_dataset(str(folder))


def test_folders_that_make_no_sense_are_refused_by_name(write_folder, tmp_path):
    folder = write_folder({"train": (CLASSES, 9), "test": (("cow",), 2)})
    with pytest.raises(ValueError, match="the class 'cow', which .*train lacks"):
        fq.load_dataset(str(folder))
    (folder / "test" / "cow").rename(folder / "train" / "ant")
    (folder / "test").rmdir()
    (folder / "train" / "ant" / "000.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="000.png cannot be read as an image"):
        fq.load_dataset(str(folder))
    for file in (folder / "train" / "ant").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="ant holds no images: they end in .bmp"):
        fq.load_dataset(str(folder))
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="bare/train has no folders of images"):
        fq.load_dataset("bare", data_dir=tmp_path)


def test_a_folder_that_is_called_as_a_published_set_is_not_mixed_up_with_it(
    write_folder, tmp_path, monkeypatch
):
    write_folder({"train": (CLASSES, 12)}).rename(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'mnist' is a folder here.*write ./mnist"):
        fq.load_dataset("mnist")
    assert fq.load_dataset("./mnist", cache_dir=tmp_path).num_classes == 3
    assert (tmp_path / "mnist").rename(tmp_path / "photos")
    assert fq.load_dataset("photos", cache_dir=tmp_path).num_classes == 3


def test_a_path_that_holds_nothing_says_what_a_set_of_ones_own_is(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="train/CLASS/IMAGE"):
        fq.load_dataset("./nowhere", data_dir=tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match="train/CLASS/IMAGE"):
        fq.load_dataset(str(tmp_path))
