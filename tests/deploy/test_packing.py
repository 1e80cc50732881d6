"""Packed indices: the documented bit order by hand, sizes, round trips, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fliqs_jax.deploy import index_bits, pack_indices, unpack_indices


def test_bits_of_an_index_by_hand():
    bits = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 16: 4, 17: 5, 256: 8, 257: 9}
    assert {k: index_bits(k) for k in bits} == bits
    with pytest.raises(ValueError, match="num_values must be at least 1, got 0"):
        index_bits(0)


def test_bit_order_by_hand():
    # Least significant bits first: 5, 1, 6 are 101, 100, 011 in order of the stream.
    packed = pack_indices(np.array([5, 1, 6]), 8)
    assert packed.tolist() == [0b10_001_101, 0b1]
    assert pack_indices(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1]), 2).tolist() == [1, 1]
    assert pack_indices(np.array([300, 2]), 512).tolist() == [300 % 256, 1 + 2 * 2, 0]
    np.testing.assert_array_equal(pack_indices(np.arange(256), 256), np.arange(256))


@given(
    num_values=st.integers(1, 20) | st.sampled_from([255, 256, 257, 65_536, 70_000]),
    shape=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 100),
)
def test_round_trip_is_exact_and_as_small_as_it_can_be(num_values, shape, seed):
    indices = np.random.default_rng(seed).integers(0, num_values, shape)
    packed = pack_indices(indices, num_values)
    assert packed.dtype == np.uint8
    assert packed.size == -(-indices.size * int(np.ceil(np.log2(num_values))) // 8)
    unpacked = unpack_indices(packed, num_values, shape)
    assert unpacked.dtype == np.int32 and unpacked.shape == tuple(shape)
    np.testing.assert_array_equal(unpacked, indices)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"indices must be in 0...2, got 0 to 3"):
        pack_indices(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match=r"indices must be in 0...2, got -1 to 1"):
        pack_indices(np.array([-1, 1]), 3)
    packed = pack_indices(np.array([0, 1, 2]), 3)
    with pytest.raises(ValueError, match="2 bytes for 5 indices of 2 bits, got 1"):
        unpack_indices(packed, 3, (5,))
    with pytest.raises(ValueError, match="holds the index 3, but .* only 3 values"):
        unpack_indices(pack_indices(np.array([3]), 4), 3, (1,))
    with pytest.raises(ValueError, match="bits set after its last index"):
        unpack_indices(np.array([0b100], np.uint8), 2, (2,))
