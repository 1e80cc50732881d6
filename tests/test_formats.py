"""Format names, fields and representable values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import (
    Format,
    as_unsigned,
    parse_format,
    stack_formats,
    unsigned_name,
)


@pytest.mark.parametrize(
    ("name", "low", "high", "bits"),
    [
        ("int2", -2, 1, 2),
        ("int4", -8, 7, 4),
        ("int16", -32768, 32767, 16),
        ("uint2", 0, 3, 2),
        ("uint8", 0, 255, 8),
        ("uint16", 0, 65535, 16),
    ],
)
def test_integer_range_is_twos_complement(name, low, high, bits):
    fmt = parse_format(name)
    assert (fmt.min_value, fmt.max_value, fmt.storage_bits) == (low, high, bits)
    assert fmt.needs_scale


@pytest.mark.parametrize("name", ["int2", "int3", "int8", "uint2", "uint5", "uint8"])
def test_integer_values_are_every_integer_of_the_range(name):
    fmt = parse_format(name)
    expected = np.arange(int(fmt.min_value), int(fmt.max_value) + 1)
    np.testing.assert_array_equal(fmt.values(), expected)


def test_wide_formats_need_no_scale():
    needs = {n: bool(parse_format(n).needs_scale) for n in ("bf16", "fp16", "fp32")}
    assert needs == {"bf16": False, "fp16": False, "fp32": False}
    assert parse_format("e5m10").needs_scale
    assert not parse_format("e8m3").needs_scale


def test_largest_e8_value_is_a_float32():
    # The topmost binade, 2**128, is left out: 2**127 * (2 - 2**-3) remains.
    assert float(parse_format("e8m3").max_value) == 2.0**127 * 1.875


@pytest.mark.parametrize(
    "name",
    ["int1", "int17", "uint1", "int", "int04", "e0m3", "e9m1", "e4m23", "e4m03"]
    + ["E4M3", "fp8", "", " int4", "int4 ", "float32"],
)
def test_unknown_name_is_refused_with_the_text_and_the_accepted_names(name):
    with pytest.raises(ValueError, match="use int2...int16, uint2") as error:
        parse_format(name)
    assert repr(name) in str(error.value)


def test_values_refuses_wide_and_stacked_formats():
    with pytest.raises(ValueError, match="at most 8 storage bits, got 9"):
        parse_format("int9").values()
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        stack_formats(["int4", "int8"]).values()


def test_stack_indexes_iterates_and_has_a_length():
    names = ["int4", "e2m1", "bf16"]
    stacked = stack_formats(names)
    assert len(stacked) == 3
    assert [float(fmt.max_value) for fmt in stacked] == [
        float(parse_format(name).max_value) for name in names
    ]
    with pytest.raises(TypeError, match="no length"):
        len(parse_format("int4"))


def test_stack_takes_formats_beside_names_and_refuses_nothing():
    mixed = stack_formats([parse_format("int4"), "int8"])
    np.testing.assert_array_equal(mixed.storage_bits, [4, 8])
    with pytest.raises(ValueError, match="at least one"):
        stack_formats([])
    with pytest.raises(ValueError, match="sequence of names, got 'int4'"):
        stack_formats("int4")


def test_traced_index_gathers_every_field():
    stacked = stack_formats(["int4", "e2m1", "bf16"])
    picked = jax.jit(lambda index: stacked[index])(jnp.int32(1))
    expected = parse_format("e2m1")
    for name in Format.__dataclass_fields__:
        field, wanted = getattr(picked, name), getattr(expected, name)
        assert field == wanted and field.dtype == wanted.dtype, name


def test_a_list_of_indices_gathers_a_stack():
    policy = stack_formats(["int4", "int8"])[jnp.array([1, 0, 1])]
    np.testing.assert_array_equal(policy.storage_bits, [8, 4, 8])


def test_parsing_starts_no_device():
    leaves = jax.tree.leaves([parse_format("int4"), stack_formats(["e4m3", "bf16"])])
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


@pytest.mark.parametrize("bits", range(2, 17))
def test_as_unsigned_turns_signed_integers_into_the_unsigned_grid(bits):
    changed = as_unsigned(parse_format(f"int{bits}"), True)
    expected = parse_format(f"uint{bits}")
    assert all(map(np.array_equal, jax.tree.leaves(changed), jax.tree.leaves(expected)))


@pytest.mark.parametrize(
    # From e6m1 on the largest value less one is itself in float32.
    "name",
    ["uint4", "e1m1", "e1m2", "e4m3", "e6m1", "bf16", "fp32"],
)
def test_as_unsigned_leaves_floats_and_unsigned_alone(name):
    fmt = parse_format(name)
    changed = as_unsigned(fmt, True)
    assert all(map(np.array_equal, jax.tree.leaves(changed), jax.tree.leaves(fmt)))


def test_as_unsigned_follows_a_traced_mask_over_a_stack():
    formats = stack_formats(["int4", "int4", "e4m3"])
    changed = jax.jit(as_unsigned)(formats, jnp.array([True, False, True]))
    np.testing.assert_array_equal(changed.max_value, [15.0, 7.0, 448.0])
    np.testing.assert_array_equal(changed.min_value, [0.0, -8.0, -448.0])
    np.testing.assert_array_equal(changed.storage_bits, [4, 4, 8])


def test_unsigned_name_changes_signed_integers_only():
    names = ["int4", "int16", "uint4", "e4m3", "bf16"]
    expected = ["uint4", "uint16", "uint4", "e4m3", "bf16"]
    assert [unsigned_name(name) for name in names] == expected
