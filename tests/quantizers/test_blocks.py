"""MX blocks against a plain NumPy reference with ml_dtypes element casts."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fliqs_jax.formats import parse_format
from fliqs_jax.quantizers import fake_quantize_blocks, mx_scale

# name -> element type and the exponent of its largest value (the specification's emax)
ELEMENTS = {
    "e4m3": (ml_dtypes.float8_e4m3fn, 8),
    "e5m2": (ml_dtypes.float8_e5m2, 15),
    "e2m1": (ml_dtypes.float4_e2m1fn, 2),
    "e2m3": (ml_dtypes.float6_e2m3fn, 2),
    "e3m2": (ml_dtypes.float6_e3m2fn, 4),
}


def reference(x: np.ndarray, name: str, block_size: int = 32) -> np.ndarray:
    """OCP MX 1.0, section 6.3, one block after another along the last axis."""
    dtype, largest_exponent = ELEMENTS[name]
    largest = float(ml_dtypes.finfo(dtype).max)
    y = np.zeros_like(x)
    for row, out in zip(
        x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]), strict=True
    ):
        for start in range(0, len(row), block_size):
            block = row[start : start + block_size].astype(np.float64)
            if not block.any():
                continue
            _, exponent = np.frexp(np.abs(block).max())  # significand in [0.5, 1)
            scale = 2.0 ** (int(exponent) - 1 - largest_exponent)
            codes = np.clip(block / scale, -largest, largest).astype(dtype)
            out[start : start + block_size] = codes.astype(np.float64) * scale
    return y


def spread_values(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-12, 12, shape))
    return x.astype(np.float32)


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("shape", [(3, 64), (2, 3, 45), (7,), (1, 33)])
def test_equals_the_reference_for_any_length(name, shape):
    x = spread_values(shape)
    y = jax.jit(fake_quantize_blocks)(x, parse_format(name))
    np.testing.assert_array_equal(y, reference(x, name))


@pytest.mark.parametrize("axis", [0, 1, -3])
def test_axis_chooses_the_blocks(axis):
    x = spread_values((40, 5, 3))
    y = fake_quantize_blocks(x, parse_format("e4m3"), axis=axis)
    moved = reference(np.ascontiguousarray(np.moveaxis(x, axis, -1)), "e4m3")
    np.testing.assert_array_equal(y, np.moveaxis(moved, -1, axis))


def test_block_size_is_free():
    x = spread_values((2, 50))
    y = fake_quantize_blocks(x, parse_format("e2m1"), block_size=16)
    np.testing.assert_array_equal(y, reference(x, "e2m1", block_size=16))


def test_int8_is_the_specifications_mxint8_but_for_minus_128():
    # MXINT8 codes are multiples of 2**-6 with emax 0: the grid int8 with emax 6.
    assert mx_scale(jnp.float32(1.0), parse_format("int8")) == 2.0**-6
    x = jnp.array([1.0, 0.02, -1.99])
    expected = np.array([64, 1, -127]) / 64
    np.testing.assert_array_equal(
        fake_quantize_blocks(x, parse_format("int8")), expected
    )


def test_zero_blocks_stay_zero_beside_others():
    x = jnp.concatenate([jnp.zeros(32), jnp.full(32, 3.0)])
    np.testing.assert_array_equal(fake_quantize_blocks(x, parse_format("e2m1")), x)


def test_infinity_and_nan_stay_within_their_block():
    x = np.ones(64, np.float32)
    x[0], x[1] = np.inf, np.nan
    y = fake_quantize_blocks(x, parse_format("e2m1"))
    assert y[0] == 1.5 and np.isnan(y[1])  # 1.5 = 6 * 2**(0 - 2), the block's largest
    np.testing.assert_array_equal(y[2:], x[2:])


def test_saturated_elements_have_no_gradient_unless_asked():
    x = jnp.array([7.9, 1.0])  # scale 1: 7.9 is beyond e2m1's 6

    def gradient(**options):
        return jax.grad(
            lambda x: fake_quantize_blocks(x, parse_format("e2m1"), **options).sum()
        )(x)

    np.testing.assert_array_equal(gradient(), [0.0, 1.0])
    np.testing.assert_array_equal(gradient(clip_gradient=False), [1.0, 1.0])


def test_wide_element_formats_are_casts():
    x = spread_values((2, 40))
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(
        fake_quantize_blocks(x, parse_format("bf16")), expected
    )


def test_axis_and_block_size_out_of_range_are_refused():
    x, fmt = jnp.ones((2, 3)), parse_format("e2m1")
    with pytest.raises(ValueError, match="axis 2 is out of range .* 2 axes"):
        fake_quantize_blocks(x, fmt, axis=2)
    with pytest.raises(ValueError, match="axis -1 is out of range .* 0 axes"):
        fake_quantize_blocks(jnp.float32(1.0), fmt)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        fake_quantize_blocks(x, fmt, block_size=0)
