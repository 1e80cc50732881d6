"""Operations of cells, against scipy and hand-written sums of pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from fliqs_jax.models import cells
from fliqs_jax.models.batch_norm import BatchNorm

IMAGES = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
EVERY = sorted({*cells.NASBENCH201_OPERATIONS, *cells.DARTS_OPERATIONS})


class Same(nn.Module):
    """Stands for a normalisation that has nothing to do."""

    def __call__(self, x):
        return x


def run(operation, images, stride=1):
    """Returns output and kernels, in order of their layers."""
    module = cells.make_operation(operation, norm=Same, stride=stride)
    output, variables = module.init_with_output(jax.random.key(0), jnp.asarray(images))
    return output, jax.tree.leaves(variables)


def convolved(image, kernel, stride=1, dilation=1):
    """One channel, padded as PyTorch does: by half the window on both sides."""
    window = np.zeros([dilation * (side - 1) + 1 for side in kernel.shape])
    window[::dilation, ::dilation] = kernel
    padded = np.pad(image, window.shape[0] // 2)
    return scipy.signal.correlate2d(padded, window, "valid")[::stride, ::stride]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "operation, window", [("nor_conv_3x3", 3), ("sep_conv_5x5", 5)]
)
def test_convolutions_are_those_of_scipy(operation, window, stride):
    image = IMAGES[:1, :, :, :1]
    output, kernels = run(operation, image, stride)
    kernels = [np.asarray(kernel)[:, :, 0, 0] for kernel in kernels]
    expected, strides = image[0, :, :, 0], (stride, 1)
    assert kernels[0].shape == (window, window)
    if operation.startswith("nor"):
        expected = convolved(np.maximum(expected, 0), *kernels, stride)
    else:
        pairs = zip(kernels[::2], kernels[1::2], strides, strict=True)
        for depthwise, pointwise, step in pairs:
            expected = convolved(np.maximum(expected, 0), depthwise, step)
            expected = expected * pointwise[0, 0]
    np.testing.assert_allclose(output[0, :, :, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride, window", [(1, 5), (2, 3)])
def test_dilated_convolution_sees_every_other_pixel(stride, window):
    output, (depthwise, pointwise) = run(f"dil_conv_{window}x{window}", IMAGES, stride)
    filtered = np.stack(
        [
            convolved(
                np.maximum(IMAGES[0, :, :, channel], 0),
                np.asarray(depthwise)[:, :, 0, channel],
                stride,
                dilation=2,
            )
            for channel in range(4)
        ],
        -1,
    )
    expected = filtered @ np.asarray(pointwise)[0, 0]
    np.testing.assert_allclose(output[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_leave_the_padding_out(stride):
    image = IMAGES[0, :, :, 0]
    windows = [
        [
            image[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            for j in range(0, 5, stride)
        ]
        for i in range(0, 6, stride)
    ]
    for operation, reduce in (("avg_pool_3x3", np.mean), ("max_pool_3x3", np.max)):
        expected = [[reduce(window) for window in row] for row in windows]
        output, kernels = run(operation, IMAGES, stride)
        np.testing.assert_allclose(output[0, :, :, 0], expected, atol=1e-6)
        assert not kernels


def test_strided_skip_joins_even_and_odd_pixels():
    images = IMAGES[:, :, :4]
    output, (even, odd) = run("skip_connect", images, 2)
    x = np.maximum(images, 0)
    halves = [x[:, ::2, ::2] @ np.asarray(even)[0, 0]]
    halves += [x[:, 1::2, 1::2] @ np.asarray(odd)[0, 0]]
    expected = np.concatenate(halves, -1)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-6)


def test_skip_passes_on_and_none_stops():
    assert (run("skip_connect", IMAGES)[0] == IMAGES).all()
    output, _ = run("none", IMAGES, 2)
    assert output.shape == (2, 3, 3, 4) and not output.any()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", EVERY)
def test_counts_and_sizes_are_those_of_the_module(operation, stride):
    module = cells.make_operation(operation, norm=BatchNorm, stride=stride)
    images = jax.ShapeDtypeStruct((1, 7, 6, 4), jnp.float32)
    output, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), images
    )
    pixels = -(-7 // stride) * -(-6 // stride)
    assert output.shape == (1, -(-7 // stride), -(-6 // stride), 4)
    found = cells.operation_counts(operation, 4, stride=stride, pixels=pixels)
    leaves = jax.tree.leaves(variables.get("params", {}))
    kernels = sum(leaf.size for leaf in leaves if leaf.ndim == 4)
    assert found.parameters == sum(leaf.size for leaf in leaves)
    # Each weight meets each pixel of the output once.
    assert found.macs == kernels * pixels
    bare = cells.operation_counts(operation, 4, stride=stride, affine=False)
    assert bare.parameters == kernels


def test_unknown_operation_lists_the_nearest_first():
    for function in (
        lambda name: cells.make_operation(name, norm=BatchNorm),
        lambda name: cells.operation_counts(name, 4),
    ):
        with pytest.raises(
            ValueError, match="'sep_conv_7x7' is unknown: use one of sep"
        ):
            function("sep_conv_7x7")
