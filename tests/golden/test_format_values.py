"""Grids and rounding against ml_dtypes' casts and a hand-derived table."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers import fake_quantize

FLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m4": ml_dtypes.float8_e3m4,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}
INTEGERS = {
    "int2": ml_dtypes.int2,
    "int4": ml_dtypes.int4,
    "int8": np.int8,
    "int16": np.int16,
    "uint2": ml_dtypes.uint2,
    "uint4": ml_dtypes.uint4,
    "uint8": np.uint8,
    "uint16": np.uint16,
}
# Largest and smallest positive value: bias 2**(X-1) - 1, every code finite.
TABLE = {
    "e1m2": (3.5, 0.5),
    "e2m1": (6.0, 0.5),
    "e3m0": (16.0, 0.25),
    "e2m2": (7.0, 0.25),
    "e3m1": (24.0, 0.125),
    "e2m3": (7.5, 0.125),
    "e3m2": (28.0, 1 / 16),
    "e4m1": (384.0, 2.0**-7),
    "e2m4": (7.75, 1 / 16),
    "e3m3": (30.0, 1 / 32),
    "e4m2": (448.0, 2.0**-8),
    "e5m1": (98304.0, 2.0**-15),
    "e2m5": (7.875, 1 / 32),
    "e6m1": (1.5 * 2.0**32, 2.0**-31),
}
SMALL_FORMATS = [
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 3, 5, 8)),
    *(f"e{x}m{y}" for x, y in itertools.product(range(1, 8), range(7)) if x + y <= 7),
]

_round = jax.jit(lambda x, fmt: fake_quantize(x, fmt, scale=1.0))


def rounded(x, name):
    return np.asarray(_round(jnp.asarray(x, jnp.float32), parse_format(name)))


def bits_of(x):
    return np.asarray(x, np.float32).view(np.uint32)


def wide_range_values(count: int) -> np.ndarray:
    """Float32 values over all normal exponents, half of them near 1."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, count, dtype=np.uint32)
    near_one = rng.integers(127 - 32, 127 + 20, count // 2, dtype=np.uint32) << 23
    bits[::2] = (bits[::2] & np.uint32(0x807FFFFF)) | near_one
    x = bits.view(np.float32)
    return x[np.isfinite(x) & (np.abs(x) >= 2.0**-126)]


@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_as_ml_dtypes_casts(name):
    x = wide_range_values(100_000)
    limit = float(parse_format(name).max_value)
    expected = np.clip(x, -limit, limit).astype(FLOATS[name]).astype(np.float32)
    np.testing.assert_array_equal(bits_of(rounded(x, name)), bits_of(expected))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_round_as_numpy_rint_and_cast(name):
    x = np.random.default_rng(0).uniform(-1.5, 1.5, 50_000).astype(np.float32)
    fmt = parse_format(name)
    x = np.concatenate([x * float(fmt.max_value), np.arange(-9, 9) / np.float32(2)])
    clipped = np.clip(np.rint(x), float(fmt.min_value), float(fmt.max_value))
    expected = clipped.astype(INTEGERS[name]).astype(np.float32)
    np.testing.assert_array_equal(rounded(x, name), expected)


@pytest.mark.parametrize("name", [n for n in FLOATS if n not in ("bf16", "fp16")])
def test_values_are_the_finite_codes_of_ml_dtypes(name):
    dtype = FLOATS[name]
    bits = int(parse_format(name).storage_bits)
    codes = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float32)
    expected = np.unique(codes[np.isfinite(codes)] + 0.0)
    np.testing.assert_array_equal(parse_format(name).values(), expected)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_every_normal_sixteen_bit_value_is_a_fixed_point(name):
    codes = np.arange(2**16, dtype=np.uint16).view(FLOATS[name]).astype(np.float32)
    x = codes[np.isfinite(codes) & (np.abs(codes) >= 2.0**-126)]
    np.testing.assert_array_equal(bits_of(rounded(x, name)), bits_of(x))


@pytest.mark.parametrize("name", TABLE)
def test_published_table_of_largest_and_smallest_values(name):
    values = parse_format(name).values()
    largest, smallest = TABLE[name]
    assert values.max() == largest == -values.min()
    assert values[values > 0].min() == smallest
    exponent_bits, mantissa_bits = int(name[1]), int(name[3])
    assert (values >= 0).sum() == 2 ** (exponent_bits + mantissa_bits)
    assert parse_format(name).storage_bits == 1 + exponent_bits + mantissa_bits


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_every_value_is_a_fixed_point(name):
    values = parse_format(name).values()
    np.testing.assert_array_equal(rounded(values, name), values)


@pytest.mark.parametrize("name", [n for n in SMALL_FORMATS if not n.endswith("m0")])
def test_midpoints_go_to_the_even_code(name):
    values = parse_format(name).values()
    positive = values[values >= 0]
    midpoints = (positive[1:] + positive[:-1]) / 2
    even = np.where(np.arange(len(midpoints)) % 2 == 0, positive[:-1], positive[1:])
    np.testing.assert_array_equal(rounded(midpoints, name), even)
    if values.min() < -1:
        np.testing.assert_array_equal(rounded(-midpoints, name), -even)


def test_midpoints_without_mantissa_go_up_above_the_subnormal_range():
    midpoints = [0.125, 0.375, 0.75, 1.5, 3.0, 6.0, 12.0]
    expected = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    np.testing.assert_array_equal(rounded(midpoints, "e3m0"), expected)


@pytest.mark.parametrize("name", SMALL_FORMATS)
def test_rounding_is_to_the_nearest_value_by_brute_force(name):
    values = parse_format(name).values().astype(np.float64)
    x = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    x = x * np.float32(values.max() * 0.6)
    nearest = np.abs(x[:, None].astype(np.float64) - values).min(axis=1)
    chosen = np.abs(x.astype(np.float64) - rounded(x, name))
    np.testing.assert_array_equal(chosen, nearest)


@pytest.mark.parametrize("mantissa_bits", [1, 2, 3])
def test_one_exponent_bit_with_absmax_is_the_symmetric_integer(mantissa_bits):
    x = jax.random.normal(jax.random.key(0), (256,))
    floats = fake_quantize(x, parse_format(f"e1m{mantissa_bits}"))
    integers = fake_quantize(x, parse_format(f"int{mantissa_bits + 2}"))
    np.testing.assert_allclose(floats, integers, rtol=3e-7)


def test_fp32_is_bit_identical_for_every_kind_of_value():
    bits = np.array(
        [0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 1, 0x80000000, 0x00012345]
        + [0x7F7FFFFF, 0x3F800001],
        np.uint32,
    )
    x = bits.view(np.float32)
    for scale in (None, 1.0, 0.3):
        y = fake_quantize(x, parse_format("fp32"), scale=scale)
        np.testing.assert_array_equal(bits_of(y), bits)
