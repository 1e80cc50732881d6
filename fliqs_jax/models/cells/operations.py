"""The operations of a cell: by name a linen module, and by name what it costs.

Not the search's mixture of them: `make_operation` builds one operation, wherever it is
used. Both spaces are served; names that they share mean the same in both.
"""

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from fliqs_jax.models.convolution import convolve

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# A filter of a depthwise convolution sees one channel: its fan-in is its window.
_HE_NORMAL_DEPTHWISE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

Norm = Callable[..., nn.Module]
Images = Float[jax.Array, "B H W C"]


class Counts(NamedTuple):
    """What a network or a part of it costs; additive."""

    parameters: int
    macs: int  # of one example


def convolution(
    features: int,
    window: int,
    stride: int = 1,
    *,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> nn.Conv:
    """Returns a convolution without bias that pads both sides alike."""
    return nn.Conv(
        features,
        (window, window),
        stride,
        padding=window // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_HE_NORMAL,
        conv_general_dilated=convolve,
        name=name,
    )


def _depthwise(
    features: int, window: int, stride: int, dilation: int, dtype: Any
) -> nn.Conv:
    return nn.Conv(
        features,
        (window, window),
        stride,
        padding=dilation * (window // 2),
        kernel_dilation=dilation,
        feature_group_count=features,
        use_bias=False,
        dtype=dtype,
        kernel_init=_HE_NORMAL_DEPTHWISE,
        conv_general_dilated=convolve,
    )


class Zero(nn.Module):
    """Gives zeros, of the size that the stride leaves."""

    stride: int
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w C"]:
        return jnp.zeros_like(images[:, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Halves the image: 1x1 convolutions of its even and of its odd pixels, joined."""

    features: int
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w features"]:
        x = nn.relu(images)
        conv = functools.partial(
            convolution, self.features // 2, 1, 2, dtype=self.dtype
        )
        # Odd images get a row of zeros, so that both halves have as many pixels.
        height, width = x.shape[1:3]
        odd = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))[:, 1:, 1:]
        return self.norm()(jnp.concatenate([conv()(x), conv()(odd)], -1))


class Skip(nn.Module):
    """Passes its input on; at stride 2 through `FactorizedReduce`."""

    stride: int
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w C"]:
        if self.stride == 1:
            return images
        return FactorizedReduce(images.shape[-1], self.norm, self.dtype)(images)


class Pool(nn.Module):
    """Pools 3x3 pixels; means leave the padding out."""

    stride: int
    norm: Norm
    dtype: Any = jnp.float32
    largest: bool = False  # instead of the mean

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w C"]:
        how = {"strides": (self.stride, self.stride), "padding": ((1, 1), (1, 1))}
        if self.largest:
            return nn.max_pool(images, (3, 3), **how)
        return nn.avg_pool(images, (3, 3), **how, count_include_pad=False)


class ReluConvNorm(nn.Module):
    """ReLU, convolution, batch normalisation; `features` None keeps the channels."""

    stride: int
    norm: Norm
    dtype: Any = jnp.float32
    window: int = 1
    features: int | None = None

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w features"]:
        features = self.features or images.shape[-1]
        conv = convolution(features, self.window, self.stride, dtype=self.dtype)
        return self.norm()(conv(nn.relu(images)))


class SeparableConv(nn.Module):
    """ReLU, depthwise and 1x1 convolution, batch normalisation; `repeats` times.

    The first of the repeats has the stride.
    """

    stride: int
    norm: Norm
    dtype: Any = jnp.float32
    window: int = 3
    dilation: int = 1
    repeats: int = 2

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B h w C"]:
        x, channels = images, images.shape[-1]
        for repeat in range(self.repeats):
            stride = self.stride if repeat == 0 else 1
            x = _depthwise(channels, self.window, stride, self.dilation, self.dtype)(
                nn.relu(x)
            )
            x = self.norm()(convolution(channels, 1, dtype=self.dtype)(x))
        return x


_dilated = functools.partial(SeparableConv, dilation=2, repeats=1)
_MODULES: dict[str, Callable[..., nn.Module]] = {
    "none": Zero,
    "skip_connect": Skip,
    "nor_conv_1x1": ReluConvNorm,
    "nor_conv_3x3": functools.partial(ReluConvNorm, window=3),
    "max_pool_3x3": functools.partial(Pool, largest=True),
    "avg_pool_3x3": Pool,
    "sep_conv_3x3": SeparableConv,
    "sep_conv_5x5": functools.partial(SeparableConv, window=5),
    "dil_conv_3x3": _dilated,
    "dil_conv_5x5": functools.partial(_dilated, window=5),
}


def make_operation(
    operation: str,
    *,
    norm: Norm,
    stride: int = 1,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> nn.Module:
    """Returns the linen module of an operation: images [B, H, W, C] to [B, h, w, C].

    The one place where an operation's name becomes a layer. Sizes shrink as with
    padding on both sides, h = ceil(H / stride); channels stay.

    Args:
      operation: a name in `NASBENCH201_OPERATIONS` or `DARTS_OPERATIONS`.
      norm: makes a batch normalisation, `norm()`; whether it trains and has scale and
        bias is the caller's choice.
      stride: 1, or 2 in a reduction cell.
      dtype: of the computation.
      name: of the module in its parent.

    Raises:
      ValueError: if the name is unknown, naming those there are, nearest first.

    Example:
      >>> module = make_operation("sep_conv_5x5", norm=nn.BatchNorm, stride=2)
      >>> module.window, module.repeats
      (5, 2)
    """
    check_operation(operation, _MODULES)
    return _MODULES[operation](stride=stride, norm=norm, dtype=dtype, name=name)


@functools.cache  # searches price thousands of cells made of the same few operations
def operation_counts(
    operation: str,
    channels: int,
    *,
    stride: int = 1,
    pixels: int = 1,
    affine: bool = True,
) -> Counts:
    r"""Returns the parameters and MACs of an operation that `make_operation` builds.

    .. math:: P = W + 2 C N, \qquad M = W \cdot \text{pixels}

    W weights of convolutions and N batch normalisations: of a plain convolution k^2 C^2
    and 1; of a separable one 2 (k^2 C + C^2) and 2; of a dilated one k^2 C + C^2 and 1;
    of a skip at stride 2 C^2 and 1; of all others 0 and 0.

    Args:
      operation: as for `make_operation`.
      channels: C, of input and output alike.
      stride: 1 or 2.
      pixels: h w of the output, one example.
      affine: batch normalisations have scale and bias (a search network's do not).

    Raises:
      ValueError: if the name is unknown.

    Example:
      >>> operation_counts("sep_conv_3x3", 16, pixels=1024)
      Counts(parameters=864, macs=819200)
    """
    check_operation(operation, _MODULES)
    weights, norms = 0, 0
    kind, _, window = operation.rpartition("_")
    area = channels * int(window[0]) ** 2 if window[0].isdigit() else 0
    if kind == "nor_conv":
        weights, norms = area * channels, 1
    elif kind == "sep_conv":
        weights, norms = 2 * (area + channels**2), 2
    elif kind == "dil_conv":
        weights, norms = area + channels**2, 1
    elif operation == "skip_connect" and stride > 1:
        weights, norms = channels**2, 1
    return Counts(weights + 2 * channels * norms * affine, weights * pixels)


def check_operation(operation: str, known: Iterable[str], where: str = "") -> None:
    """Raises a ValueError that lists the known operations, nearest first."""
    known = tuple(known)
    if operation not in known:
        names = ", ".join(_nearest_first(operation, known))
        raise ValueError(
            f"operation {operation!r}{where} is unknown: use one of {names}"
        )


def nearest_operation(word: str, known: Iterable[str]) -> str:
    """Returns the known operation whose name is most like a word."""
    return _nearest_first(word, known)[0]


def _nearest_first(word: str, choices: Iterable[str]) -> list[str]:
    def distance(choice: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, word, choice).ratio(), choice

    return sorted(choices, key=distance)
