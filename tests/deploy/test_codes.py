"""Codes against the bit patterns of ml_dtypes and NumPy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fliqs_jax.deploy.codes import decode, encode
from fliqs_jax.formats import parse_format

STORED = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m4": ml_dtypes.float8_e3m4,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int2": ml_dtypes.int2,
    "int8": np.int8,
}
WIDE = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


@pytest.mark.parametrize("name", STORED)
def test_codes_are_the_bits_of_the_independent_type(name):
    values = parse_format(name).values()
    bits = values.astype(STORED[name]).view(np.uint8) & (
        2 ** int(parse_format(name).storage_bits) - 1
    )
    np.testing.assert_array_equal(encode(values, name), bits)


@pytest.mark.parametrize("name", WIDE)
def test_codes_of_wide_floats_are_their_bits(name):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=1000) * 2.0 ** rng.integers(-30, 15, size=1000)
    values = np.append(drawn, [0.0, 65504.0 if name == "fp16" else 3e38])
    stored = values.astype(WIDE[name])
    stored = stored + stored.dtype.type(0)  # no minus zero
    expected = stored.view(np.uint32 if name == "fp32" else np.uint16)
    found = encode(stored.astype(np.float32), name)
    kept = np.abs(stored.astype(np.float32)) > 0
    np.testing.assert_array_equal(found[kept], expected[kept])


@pytest.mark.parametrize(
    "name", [f"e{x}m{y}" for x in range(1, 8) for y in range(8 - x)]
)
def test_every_float_of_at_most_8_bits_has_codes_of_its_own(name):
    values = parse_format(name).values()
    codes = encode(values, name)
    assert len(np.unique(codes)) == len(values)
    np.testing.assert_array_equal(decode(codes, name), values)


@given(st.integers(2, 16), st.booleans(), st.data())
def test_integers_come_back(bits, signed, data):
    name = f"{'' if signed else 'u'}int{bits}"
    fmt = parse_format(name)
    number = st.integers(int(fmt.min_value), int(fmt.max_value))
    values = np.array(data.draw(st.lists(number, max_size=20)), np.float32)
    np.testing.assert_array_equal(decode(encode(values, name), name), values)


@pytest.mark.parametrize(
    ("value", "name"),
    [(0.5, "int4"), (8.0, "int4"), (-1.0, "uint4"), (7.0, "e2m1"), (np.nan, "int4")],
)
def test_values_off_the_grid_are_refused(value, name):
    with pytest.raises(ValueError, match=name):
        encode(np.array([value]), name)
