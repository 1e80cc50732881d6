"""`convolve` against the native operation: values, gradients, transformations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from fliqs_jax import sites
from fliqs_jax.models import convolution
from fliqs_jax.models.convolution import convolve

NHWC = ("NHWC", "HWIO", "NHWC")


def _normal(seed, shape, dtype=jnp.float32):
    # NumPy's: compiling jax.random took most of the time of these tests.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _value_and_gradients(conv, images, kernel, **options):
    conv = functools.partial(conv, **options)

    @jax.jit
    def run(images, kernel, cotangent):
        y, transpose = jax.vjp(conv, images, kernel)
        return y, *transpose(cotangent)

    y = jax.eval_shape(conv, images, kernel)
    return run(images, kernel, _normal(2, y.shape, y.dtype))


def _native(images, kernel, *, padding, **options):
    # Padded apart: where the padding exceeds the kernel, XLA's CPU gradient for the
    # images is wrong (jaxlib 0.10.2, 3x3 with 5 and 6 before: off by 8; NumPy's is
    # ours).
    if not isinstance(padding, str):
        images, padding = jnp.pad(images, ((0, 0), *padding, (0, 0))), "VALID"
    return lax.conv_general_dilated(images, kernel, padding=padding, **options)


def _assert_native(images, kernel, **options):
    """Errors are counted in the largest absolute value of each native array."""
    options = {"dimension_numbers": NHWC, **options}
    ours = _value_and_gradients(convolve, images, kernel, **options)
    native = _value_and_gradients(_native, images, kernel, **options)
    tolerance = 1e-5 if images.dtype == jnp.float32 else 2e-2
    for got, wanted in zip(ours, native, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max()
        )


def _sum_of_squares(conv, images, kernel, stride=1):
    options = {"dimension_numbers": NHWC}
    if images.shape[-1] != kernel.shape[-2]:
        options["feature_group_count"] = images.shape[-1]
    y = conv(images, kernel, (stride, stride), "SAME", **options)
    return (y**2).sum()


def _assert_close(got, wanted):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), got, wanted
    )


PADDINGS = ["SAME", "VALID", ((0, 3), (2, 0)), ((5, 4), (6, 1))]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("window", [(1, 1), (2, 5), (3, 3), (5, 5)], ids=str)
def test_float32_equals_native(window, strides, padding):
    images, kernel = _normal(0, (3, 9, 8, 3)), _normal(1, (*window, 3, 4))
    _assert_native(images, kernel, window_strides=strides, padding=padding)


def test_stem_of_a_resnet_equals_native():
    images, kernel = _normal(0, (2, 17, 16, 3)), _normal(1, (7, 7, 3, 4))
    padding = ((3, 3), (3, 3))
    _assert_native(images, kernel, window_strides=(2, 2), padding=padding)


DEPTHWISE = {"feature_group_count": 4}


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("window", [(1, 1), (2, 5), (3, 3)], ids=str)
def test_depthwise_equals_native(window, strides, padding):
    images, kernel = _normal(0, (3, 9, 8, 4)), _normal(1, (*window, 1, 4))
    options = {"window_strides": strides, "padding": padding}
    _assert_native(images, kernel, **options, **DEPTHWISE)


@pytest.mark.parametrize(
    "window, dilation, strides, padding",
    [
        ((3, 3), (2, 2), (1, 1), "SAME"),
        ((3, 3), (2, 2), (2, 2), ((2, 2), (2, 2))),
        ((2, 3), (1, 3), (2, 3), ((2, 4), (4, 1))),
        ((1, 2), (5, 4), (3, 2), "SAME"),
    ],
    ids=str,
)
def test_dilated_depthwise_equals_native(window, dilation, strides, padding):
    images, kernel = _normal(0, (3, 9, 8, 4)), _normal(1, (*window, 1, 4))
    options = {"window_strides": strides, "padding": padding}
    _assert_native(images, kernel, **options, rhs_dilation=dilation, **DEPTHWISE)


def test_dilated_depthwise_has_no_native_convolution_on_cpu():
    def run(images, kernel):
        options = {"rhs_dilation": (2, 2), "feature_group_count": 16}
        return convolve(
            images, kernel, (1, 1), "SAME", dimension_numbers=NHWC, **options
        ).sum()

    gradient = jax.jit(jax.grad(run, (0, 1)))
    images, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    program = gradient.trace(images, kernel).lower(lowering_platforms=("cpu",))
    assert "stablehlo.convolution" not in program.as_text()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inputs, options", [(4, {}), (1, DEPTHWISE)])
def test_bfloat16_equals_native(stride, inputs, options):
    images = _normal(0, (3, 9, 7, 4), jnp.bfloat16)
    kernel = _normal(1, (3, 3, inputs, 4), jnp.bfloat16)
    options = {"window_strides": (stride, stride), "padding": "SAME", **options}
    _assert_native(images, kernel, **options)


@pytest.mark.parametrize("images_in_chunk", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("stride", [1, 2])
def test_batch_need_not_be_a_multiple_of_the_chunk(
    stride, images_in_chunk, monkeypatch
):
    patch_bytes = 4 * (6 // stride) ** 2 * 3 * 3 * 2
    monkeypatch.setattr(convolution, "_CHUNK_BYTES", images_in_chunk * patch_bytes)
    images, kernel = _normal(0, (7, 6, 6, 2)), _normal(1, (3, 3, 2, 3))
    _assert_native(images, kernel, window_strides=(stride, stride), padding="SAME")


FALLBACKS = {
    "kernel dilation": ((2, 7, 7, 4), (3, 3, 4, 4), {"rhs_dilation": (2, 2)}),
    "image dilation": (
        (2, 7, 7, 4),
        (3, 3, 4, 4),
        {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))},
    ),
    "groups": ((2, 7, 7, 4), (3, 3, 2, 4), {"feature_group_count": 2}),
    "filters a channel": ((2, 7, 7, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
    "batch groups": ((2, 7, 7, 4), (3, 3, 4, 4), {"batch_group_count": 2}),
    "1-D": ((2, 7, 4), (3, 4, 4), {"dimension_numbers": ("NHC", "HIO", "NHC")}),
    "3-D": (
        (2, 5, 5, 5, 2),
        (3, 3, 3, 2, 2),
        {"dimension_numbers": ("NHWDC", "HWDIO", "NHWDC")},
    ),
    "channels first": ((2, 4, 7, 7), (4, 4, 3, 3), {"dimension_numbers": None}),
    "wide result": (
        (2, 7, 7, 4),
        (3, 3, 4, 4),
        {"preferred_element_type": jnp.float32},
    ),
    "empty batch": ((0, 7, 7, 4), (3, 3, 4, 4), {}),
}


@pytest.mark.parametrize("image, kernel, options", FALLBACKS.values(), ids=FALLBACKS)
def test_anything_else_is_native_bit_for_bit(image, kernel, options):
    options = {
        "window_strides": (1,) * (len(image) - 2),
        "padding": "SAME",
        "dimension_numbers": NHWC,
        **options,
    }
    images, kernel = _normal(0, image), _normal(1, kernel)
    ours = _value_and_gradients(convolve, images, kernel, **options)
    native = _value_and_gradients(lax.conv_general_dilated, images, kernel, **options)
    jax.tree.map(np.testing.assert_array_equal, ours, native)


def test_integers_are_native():
    images, kernel = (
        jnp.ones((1, 4, 4, 1), jnp.int32),
        jnp.ones((3, 3, 1, 1), jnp.int32),
    )
    y = convolve(images, kernel, (1, 1), "VALID", dimension_numbers=NHWC)
    assert y.dtype == jnp.int32 and (y == 9).all()


def test_negative_padding_crops():
    images, kernel = _normal(0, (2, 6, 6, 1)), _normal(1, (3, 3, 1, 2))
    crop = ((-1, 0), (0, -2))
    y = convolve(images, kernel, (1, 1), crop, dimension_numbers=NHWC)
    cropped = lax.conv_general_dilated(
        images[:, 1:, :-2], kernel, (1, 1), "VALID", dimension_numbers=NHWC
    )
    np.testing.assert_allclose(y, cropped, atol=1e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("padding", PADDINGS[:3], ids=str)
def test_gradients_for_other_platforms_are_those_of_lax(strides, padding, monkeypatch):
    """The test machine is a CPU: make the default branch the one that is taken."""
    monkeypatch.setattr(
        lax, "platform_dependent", lambda *args, cpu, default: default(*args)
    )
    images, kernel = _normal(0, (3, 9, 8, 3)), _normal(1, (3, 3, 3, 4))
    _assert_native(images, kernel, window_strides=strides, padding=padding)


@pytest.mark.parametrize("platform, loops", [("cpu", True), ("cuda", False)])
def test_only_the_cpu_program_has_the_loop(platform, loops):
    gradient = jax.jit(jax.grad(functools.partial(_sum_of_squares, convolve), 1))
    images, kernel = jnp.ones((64, 32, 32, 16)), jnp.ones((3, 3, 16, 16))
    program = gradient.trace(images, kernel).lower(lowering_platforms=(platform,))
    assert ("stablehlo.while" in program.as_text()) == loops


def test_jit_equals_eager():
    gradient = jax.grad(functools.partial(_sum_of_squares, convolve), (0, 1))
    images, kernel = _normal(0, (2, 5, 5, 2)), _normal(1, (3, 3, 2, 2))
    _assert_close(jax.jit(gradient)(images, kernel), gradient(images, kernel))


every_kind = pytest.mark.parametrize("inputs", [2, 1], ids=["plain", "depthwise"])


@every_kind
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=str)
def test_vmap_equals_native(axes, inputs):
    shapes = ((2, 3, 6, 6, 2), (2, 3, 3, inputs, 2))
    arguments = [
        _normal(i, shape if axis == 0 else shape[1:])
        for i, (shape, axis) in enumerate(zip(shapes, axes, strict=True))
    ]
    ours, native = (
        jax.vmap(jax.grad(functools.partial(_sum_of_squares, conv), (0, 1)), axes)(
            *arguments
        )
        for conv in (convolve, lax.conv_general_dilated)
    )
    _assert_close(ours, native)


@every_kind
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_shard_map_on_eight_devices_equals_one_native(stride, check_vma, inputs):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images, kernel = _normal(0, (16, 6, 6, 2)), _normal(1, (3, 3, inputs, 2))

    def gradient(images, kernel):
        kernel = lax.pcast(kernel, "data", to="varying")
        of_images, of_kernel = jax.grad(
            functools.partial(_sum_of_squares, convolve, stride=stride), (0, 1)
        )(images, kernel)
        return of_images, lax.psum(of_kernel, "data")

    mapped = jax.shard_map(
        gradient,
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P()),
        check_vma=check_vma,
    )
    native = functools.partial(_sum_of_squares, lax.conv_general_dilated, stride=stride)
    _assert_close(
        jax.jit(mapped)(images, kernel), jax.grad(native, (0, 1))(images, kernel)
    )


@every_kind
@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_the_gradient_equals_native(stride, inputs):
    """A Hessian-vector product in both arguments, reverse mode twice."""
    arguments = (_normal(0, (3, 7, 6, 2)), _normal(1, (3, 3, inputs, 2)))
    direction = (_normal(2, (3, 7, 6, 2)), _normal(3, (3, 3, inputs, 2)))

    def hessian_vector(conv):
        def slope(arguments):
            loss = functools.partial(_sum_of_squares, conv, stride=stride)
            gradients = jax.grad(loss, (0, 1))(*arguments)
            return sum(
                jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True)
            )

        return jax.jit(jax.grad(slope))(arguments)

    _assert_close(hessian_vector(convolve), hessian_vector(lax.conv_general_dilated))


def test_a_layer_with_it_is_the_same_site():
    layers = nn.Conv(4, (3, 3), conv_general_dilated=convolve), nn.Conv(4, (3, 3))
    images = jnp.zeros((2, 8, 8, 3))
    fast, plain = (sites.find_sites(layer, images) for layer in layers)
    assert fast == plain


def test_precision_reaches_depthwise_convolutions():
    images, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 1, 4))

    def run(images, kernel):
        return convolve(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4, precision=lax.Precision.HIGHEST,
        )  # fmt: skip

    assert "HIGHEST" in str(jax.make_jaxpr(run)(images, kernel))
