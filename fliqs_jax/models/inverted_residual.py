"""The block of MobileNetV2 and EfficientNet: expand, filter each channel, project."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from fliqs_jax.models.convolution import convolve

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# A filter of a depthwise convolution sees one channel: its fan-in is its window.
_HE_NORMAL_DEPTHWISE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def make_divisible(channels: int | float, divisor: int = 8) -> int:
    """Rounds channels to the nearest multiple, but never down by more than a tenth.

    Args:
      channels: as a width multiplier leaves them; positive.
      divisor: of the result, which is at least this.

    Reference:
      Sandler et al., MobileNetV2, 2018 (its published code),
      https://arxiv.org/abs/1801.04381

    Example:
      >>> [make_divisible(channels) for channels in (36, 33.6, 11, 2)]
      [40, 32, 16, 8]
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class SqueezeExcite(nn.Module):
    """Scales each channel by what a small network makes of all channels' means."""

    features: int  # in between
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"]
    ) -> Float[jax.Array, "B H W C"]:
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        x = images.mean((1, 2))
        x = nn.swish(dense(self.features, name="reduce")(x))
        x = nn.sigmoid(dense(images.shape[-1], name="expand")(x))
        return images * x[:, None, None, :]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection, added back if it fits.

    Sites are "expand" (absent at expansion 1), "depthwise", "project", and those in
    "squeeze_excite" if there is one. Padding is "SAME".
    """

    features: int
    expansion: int  # channels in between over those that come in
    kernel_size: int
    stride: int
    activation: Callable[[jax.Array], jax.Array]
    norm: Callable[..., nn.Module]
    squeeze_ratio: float = 0.0  # of the channels that come in; 0: no squeeze_excite
    dtype: Any = jnp.float32
    residual: bool | None = None  # add the input; None: if stride and channels allow

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"]
    ) -> Float[jax.Array, "B h w features"]:
        channels = images.shape[-1]
        hidden = channels * self.expansion
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_HE_NORMAL,
            conv_general_dilated=convolve,
        )
        x = images
        if self.expansion > 1:
            x = conv(hidden, (1, 1), name="expand")(x)
            x = self.activation(self.norm()(x))
        x = conv(
            hidden,
            (self.kernel_size, self.kernel_size),
            self.stride,
            feature_group_count=hidden,
            kernel_init=_HE_NORMAL_DEPTHWISE,
            name="depthwise",
        )(x)
        x = self.activation(self.norm()(x))
        if self.squeeze_ratio:
            reduced = max(1, int(channels * self.squeeze_ratio))
            x = SqueezeExcite(reduced, self.dtype, name="squeeze_excite")(x)
        x = self.norm()(conv(self.features, (1, 1), name="project")(x))
        # By the fields, not the shapes: a 1 x 1 image keeps its size at stride 2 too.
        fits = self.stride == 1 and self.features == channels
        return x + images if (fits if self.residual is None else self.residual) else x
