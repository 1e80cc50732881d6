"""What every quantizer promises; a new one is a new row of QUANTIZERS."""

import functools

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.quantizers import fake_quantize, fake_quantize_blocks, lsq, pact

SCALE = 0.5
# name -> quantize(x, fmt); all have the grid SCALE * values on the inputs used here.
QUANTIZERS = {
    "fake_quantize": lambda x, fmt: fake_quantize(x, fmt, scale=SCALE),
    "maskless": lambda x, fmt: fake_quantize(x, fmt, scale=SCALE, clip_gradient=False),
    "per_channel": lambda x, fmt: fake_quantize(
        x, fmt, scale=jnp.full(x.shape[-1:], SCALE)
    ),
    "lsq": lambda x, fmt: lsq(x, SCALE, fmt),
    "pact": lambda x, fmt: pact(x, jnp.asarray(fmt.max_value) * SCALE, fmt),
}
STOCHASTIC = {
    "stochastic": lambda x, fmt: fake_quantize(
        x, fmt, scale=SCALE, key=jax.random.key(7)
    ),
}
DYNAMIC = {  # the scale follows the tensor
    "absmax": fake_quantize,
    "blocks": fake_quantize_blocks,
}
FORMATS = ("int2", "int4", "int8", "uint4", "e2m1", "e4m3", "e5m2", "e3m0")
FORTY_FORMATS = (
    *(f"int{bits}" for bits in range(2, 17)),
    *(f"uint{bits}" for bits in range(2, 9)),
    *(f"e{x}m{y}" for x in range(1, 6) for y in range(1, 4)),
    *("bf16", "fp16", "fp32"),
)

rows = functools.partial(pytest.mark.parametrize, "quantize")
FIXED = rows(QUANTIZERS.values(), ids=QUANTIZERS)
FIXED_AND_STOCHASTIC = rows(
    (QUANTIZERS | STOCHASTIC).values(), ids=QUANTIZERS | STOCHASTIC
)
EVERY = QUANTIZERS | STOCHASTIC | DYNAMIC
EVERY_ROW = rows(EVERY.values(), ids=EVERY)
ARRAYS = hypothesis.extra.numpy.arrays(
    np.float32, 16, elements=st.floats(-300, 300, width=32, allow_subnormal=False)
)


@functools.cache
def jitted(quantize):
    return jax.jit(quantize)


@functools.cache
def jitted_gradient(quantize):
    return jax.jit(jax.value_and_grad(lambda x, fmt: quantize(x, fmt).sum()))


def some_values(shape=(8, 32), seed=0):
    return 3.0 * jax.random.normal(jax.random.key(seed), shape)


@EVERY_ROW
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shape_and_type_are_kept(quantize, dtype):
    x = some_values().astype(dtype)
    for y in (
        jax.eval_shape(quantize, x, parse_format("int4")),
        jitted(quantize)(x, parse_format("int4")),
    ):
        assert (y.shape, y.dtype) == (x.shape, dtype)


@FIXED_AND_STOCHASTIC
@pytest.mark.parametrize("name", FORMATS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(x=ARRAYS)
def test_output_is_on_the_grid(quantize, name, x):
    fmt = parse_format(name)
    y = np.asarray(jitted(quantize)(x, fmt))
    assert np.isin(y, fmt.values() * SCALE).all()


@FIXED_AND_STOCHASTIC
@pytest.mark.parametrize("name", FORMATS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(x=ARRAYS)
def test_second_pass_changes_nothing(quantize, name, x):
    fmt = parse_format(name)
    once = jitted(quantize)(x, fmt)
    np.testing.assert_array_equal(jitted(quantize)(once, fmt), once)


@FIXED
@pytest.mark.parametrize("name", FORMATS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(x=ARRAYS)
def test_monotone(quantize, name, x):
    y = jitted(quantize)(np.sort(x), parse_format(name))
    assert (np.diff(y) >= 0).all()


@FIXED
@pytest.mark.parametrize("name", ["e2m1", "e4m3", "e5m2", "e3m0"])
@hypothesis.settings(max_examples=25)
@hypothesis.given(x=ARRAYS)
def test_floats_are_odd_symmetric(quantize, name, x):
    quantize, fmt = jitted(quantize), parse_format(name)
    np.testing.assert_array_equal(quantize(-x, fmt), -quantize(x, fmt))


@rows(DYNAMIC.values(), ids=DYNAMIC)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("power", [-20, -1, 3, 20])
def test_dynamic_scales_follow_powers_of_two(quantize, name, power):
    quantize, fmt, x = jitted(quantize), parse_format(name), some_values()
    factor = 2.0**power
    np.testing.assert_array_equal(quantize(x * factor, fmt), quantize(x, fmt) * factor)


@FIXED_AND_STOCHASTIC
@pytest.mark.parametrize("name", FORMATS)
def test_infinities_and_large_values_saturate(quantize, name):
    fmt = parse_format(name)
    x = jnp.array([jnp.inf, 1e30, -1e30, -jnp.inf])
    low = float(fmt.min_value)
    if quantize is QUANTIZERS["pact"]:
        low = max(low, -float(fmt.max_value))  # its clip is symmetric
    expected = SCALE * np.array([fmt.max_value, fmt.max_value, low, low])
    np.testing.assert_array_equal(jitted(quantize)(x, fmt), expected)


@EVERY_ROW
@pytest.mark.parametrize("name", [*FORMATS, "bf16", "fp16", "e8m3"])
def test_nan_stays_and_disturbs_nothing_else(quantize, name):
    fmt, x = parse_format(name), some_values()
    y = np.asarray(jitted(quantize)(x.at[0, 0].set(jnp.nan), fmt))
    assert np.isnan(y[0, 0]) and np.isnan(y).sum() == 1
    y_clean = np.asarray(jitted(quantize)(x.at[0, 0].set(0.0), fmt))
    np.testing.assert_array_equal(y.ravel()[1:], y_clean.ravel()[1:])


@EVERY_ROW
@pytest.mark.parametrize("name", [*FORMATS, "bf16", "fp16", "fp32", "e8m3"])
def test_zeros_stay_with_finite_gradients(quantize, name):
    fmt, x = parse_format(name), jnp.zeros((2, 32))
    y, gradient = jitted_gradient(quantize)(x, fmt)
    assert y == 0.0
    np.testing.assert_array_equal(gradient, jnp.ones((2, 32)))


@EVERY_ROW
def test_empty_stays_empty(quantize):
    for shape in [(0, 32), (4, 0)]:
        assert jitted(quantize)(jnp.zeros(shape), parse_format("int4")).shape == shape


@EVERY_ROW
@pytest.mark.parametrize("name", ["int3", "e2m1", "bf16", "fp32"])
def test_jit_equals_eager(quantize, name):
    fmt, x = parse_format(name), some_values()
    eager = quantize(x, fmt)
    np.testing.assert_array_equal(jitted(quantize)(x, fmt), eager)
    np.testing.assert_array_equal(jax.jit(lambda x: quantize(x, fmt))(x), eager)


@rows((QUANTIZERS | DYNAMIC).values(), ids=QUANTIZERS | DYNAMIC)
def test_vmap_over_formats_and_tensors_equals_a_loop(quantize):
    names = [*FORMATS, "bf16", "fp32"]
    formats, x = stack_formats(names), some_values((len(names), 8, 32))
    mapped = jax.jit(jax.vmap(quantize))(x, formats)
    shared = jax.jit(jax.vmap(quantize, in_axes=(None, 0)))(x[0], formats)
    for index, name in enumerate(names):
        fmt = parse_format(name)
        np.testing.assert_array_equal(mapped[index], jitted(quantize)(x[index], fmt))
        np.testing.assert_array_equal(shared[index], jitted(quantize)(x[0], fmt))


@EVERY_ROW
def test_one_trace_for_forty_formats(quantize):
    traces = 0

    @jax.jit
    def counted(x, fmt):
        nonlocal traces
        traces += 1
        return jax.value_and_grad(lambda x: quantize(x, fmt).sum())(x)

    formats, x = stack_formats(FORTY_FORMATS), some_values((2, 8))
    assert len(formats) == 40
    for index in range(40):
        counted(x, jax.tree.map(lambda leaf, i=index: leaf[i], formats))
    assert traces == 1


@EVERY_ROW
def test_scan_over_stacked_formats(quantize):
    formats, x = stack_formats(["int8", "e4m3", "int4"]), some_values()
    scanned, _ = jax.jit(
        lambda x: jax.lax.scan(lambda y, fmt: (quantize(y, fmt), None), x, formats)
    )(x)
    for fmt in formats:
        x = jitted(quantize)(x, fmt)
    np.testing.assert_array_equal(scanned, x)


@FIXED
def test_shard_map_equals_one_device(quantize):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec, none = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        lambda x, fmt: jax.grad(lambda x: (quantize(x, fmt) ** 2).sum())(x),
        mesh=mesh,
        in_specs=(spec, none),
        out_specs=spec,
    )
    x, fmt = some_values(), parse_format("int4")
    expected = jax.grad(lambda x: (quantize(x, fmt) ** 2).sum())(x)
    np.testing.assert_array_equal(jax.jit(mapped)(x, fmt), expected)


@EVERY_ROW
def test_strict_type_promotion(quantize):
    with jax.numpy_dtype_promotion("strict"):
        x, fmt = some_values().astype(jnp.bfloat16), parse_format("e4m3")
        jax.eval_shape(jax.grad(lambda x: quantize(x, fmt).sum()), x)


@EVERY_ROW
def test_integer_tensors_and_stacked_formats_are_refused(quantize):
    with pytest.raises(TypeError, match=r"got int32: .*astype\(jnp.float32\)"):
        quantize(jnp.arange(32).reshape(1, 32), parse_format("int4"))
    with pytest.raises(ValueError, match=r"one format, got formats of shape \(2,\)"):
        quantize(some_values(), stack_formats(["int4", "int8"]))
