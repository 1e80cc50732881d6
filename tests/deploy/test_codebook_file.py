"""The file of compressed parameters: exact round trips, sizes, damaged files."""

import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fliqs_jax.deploy import load_codebooks, save_codebooks
from fliqs_jax.quantizers.codebook import Codebook, binary, kmeans_exact


def make_codebook(shape, num_values, seed=0):
    rng = np.random.default_rng(seed)
    values = np.sort(rng.normal(size=num_values)).astype(np.float32)
    indices = rng.integers(0, num_values, shape).astype(np.int32)
    return Codebook(values, indices, num_fitted=num_values)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        left = np.asarray(left)
        assert left.dtype == right.dtype and left.shape == right.shape
        assert left.tobytes() == right.tobytes()  # NaN and minus zero too


@given(
    num_values=st.sampled_from([1, 2, 3, 4, 17, 256, 300]),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
)
@settings(max_examples=40)
def test_round_trip_is_exact_and_its_size_is_the_formulas(
    tmp_path_factory, num_values, shapes
):
    params, formula = {}, 0
    for number, shape in enumerate(shapes):
        kernel = make_codebook(shape, num_values, seed=number)
        bias = np.full(shape[-1:], number, np.float32)
        params[f"layer {number}"] = {"kernel": kernel, "bias": bias}
        width = int(np.ceil(np.log2(num_values)))
        formula += -(-kernel.indices.size * width // 8) + 4 * num_values + bias.nbytes
    file = tmp_path_factory.mktemp("codebooks") / "net.fqcb"
    save_codebooks(file, params)
    assert_same(load_codebooks(file), params)
    header = struct.unpack("<4sIII", file.read_bytes()[:16])[3]
    assert file.stat().st_size == 16 + header + formula
    assert header < 40 + 60 * 2 * len(shapes)


def test_other_leaves_keep_type_and_bits(tmp_path):
    params = {
        "half": jnp.array([1.5, jnp.nan], jnp.bfloat16),
        "step": np.int32(7),
        "flags": np.array([True, False]),
        "empty": {},
        "f8": jnp.ones((2, 2), jnp.float8_e4m3fn),
        "wide": np.array([1.0, -0.0, np.inf]),
        "rows": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "a/b": {"é": np.zeros((0, 3), np.float32)},
    }
    save_codebooks(tmp_path / "a", params)
    loaded = load_codebooks(tmp_path / "a")
    assert_same(loaded, params)
    loaded["rows"][0, 0] = 5.0  # its own memory


def test_shared_codebooks_are_stored_once(tmp_path):
    first, second = make_codebook((8, 4), 16), make_codebook((8, 4), 16)
    third = make_codebook((8, 4), 16, seed=1)
    save_codebooks(tmp_path / "a", {"a": first, "b": second})
    save_codebooks(tmp_path / "b", {"a": first, "b": third})
    difference = (tmp_path / "b").stat().st_size - (tmp_path / "a").stat().st_size
    assert difference == 4 * 16 + len(",[16,16]")
    assert_same(load_codebooks(tmp_path / "a"), {"a": first, "b": second})


def test_c_steps_survive_with_what_they_fitted(tmp_path):
    w = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
    params = {"a": kmeans_exact(w, 3), "b": binary(w)}
    save_codebooks(tmp_path / "a", params)
    loaded = load_codebooks(tmp_path / "a")
    assert loaded["a"].num_fitted == 3 and loaded["b"].num_fitted == 0
    np.testing.assert_array_equal(loaded["a"].decode(), params["a"].decode())


def test_layout_by_hand(tmp_path):
    kernel = Codebook(np.array([-0.5, 2.0], np.float32), np.array([0, 1, 1]))
    save_codebooks(tmp_path / "a", {"w": kernel, "b": np.array([3], np.int16)})
    header = b'{"codebooks":[[2,0]],"leaves":[[["w"],[3],0],[["b"],[1],"int16"]]}'
    rest = struct.pack("<I", len(header)) + header
    rest += struct.pack("<ff", -0.5, 2.0) + bytes([0b110]) + b"\x03\x00"
    start = struct.pack("<4sII", b"FQCB", 1, zlib.crc32(rest))
    assert (tmp_path / "a").read_bytes() == start + rest


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    file = tmp_path / "net.fqcb"
    save_codebooks(file, {"w": make_codebook((5, 5), 4)})
    content = file.read_bytes()
    for length in (4, 10, 11):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"net.fqcb is cut short.* {length} bytes"):
            load_codebooks(file)
    for damaged in (
        content[:12],
        content[:16],
        content[:40],
        content[:-1],
        content + b"\0",
        content[:-3] + b"\xff" + content[-2:],
        content[:10] + b"\xff" + content[11:],  # the checksum
        content[:13] + b"\xff" + content[14:],  # the length of the header
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="net.fqcb is cut short or damaged"):
            load_codebooks(file)
    for foreign in (b"", b"PK\x03\x04 zip", b"{}"):
        file.write_bytes(foreign)
        with pytest.raises(ValueError, match="net.fqcb is no file of codebooks"):
            load_codebooks(file)
    file.write_bytes(content[:4] + b"\x02" + content[5:])
    with pytest.raises(ValueError, match="has version 2; this release reads 1"):
        load_codebooks(file)


def test_a_refused_save_leaves_the_old_file(tmp_path):
    file = tmp_path / "net.fqcb"
    save_codebooks(file, {"w": np.ones(2, np.float32)})
    before = file.read_bytes()
    bad_index = Codebook(np.zeros(2, np.float32), np.array([2]))
    stacked = Codebook(np.zeros((2, 2), np.float32), np.zeros((2, 3), np.int32))
    for params, error, message in [
        ({"w": bad_index}, ValueError, r"indices must be in 0...1, got 2 to 2"),
        ({"w": stacked}, ValueError, "Codebook values must have one axis"),
        ({"a": {"w": "text"}}, TypeError, "leaf 'a/w' must be a Codebook or an array"),
        ({"a": {3: np.ones(1)}}, TypeError, r"string keys, got 3 in \('a',\)"),
    ]:
        with pytest.raises(error, match=message):
            save_codebooks(file, params)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.fqcb"]
