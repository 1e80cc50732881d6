"""Inception V3 for ImageNet, at any width.

Not the training network of the paper: no auxiliary classifier, no dropout.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.checks import check_at_least
from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.convolution import convolve

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_SMALLEST_SIDE = 75  # a smaller image would vanish in the unpadded convolutions

# A convolution is (channels at width 1, height, width of its window); a branch is a
# chain of steps, and a step is one of them or several that run side by side.
_Convolution = tuple[int, int, int]
_Branch = tuple[_Convolution | tuple[_Convolution, ...], ...]


def _block_35() -> tuple[_Branch, ...]:
    return (
        ((64, 1, 1),),
        ((48, 1, 1), (64, 5, 5)),
        ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
    )


def _block_17(channels: int) -> tuple[_Branch, ...]:
    wide, tall = (channels, 1, 7), (channels, 7, 1)
    return (
        ((192, 1, 1),),
        ((channels, 1, 1), wide, (192, 7, 1)),
        ((channels, 1, 1), tall, wide, tall, (192, 1, 7)),
    )


def _block_8() -> tuple[_Branch, ...]:
    side_by_side = ((384, 1, 3), (384, 3, 1))
    return (
        ((320, 1, 1),),
        ((384, 1, 1), side_by_side),
        ((448, 1, 1), (384, 3, 3), side_by_side),
    )


# Branches, and channels of the branch that averages; 0 halves the image instead.
_BLOCKS: tuple[tuple[tuple[_Branch, ...], int], ...] = (
    (_block_35(), 32),
    (_block_35(), 64),
    (_block_35(), 64),
    ((((384, 3, 3),), ((64, 1, 1), (96, 3, 3), (96, 3, 3))), 0),
    (_block_17(128), 192),
    (_block_17(160), 192),
    (_block_17(160), 192),
    (_block_17(192), 192),
    (
        (
            ((192, 1, 1), (320, 3, 3)),
            ((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)),
        ),
        0,
    ),
    (_block_8(), 192),
    (_block_8(), 192),
)
# Window, channels at width 1, stride, padding; None is a max-pooling of stride 2.
_STEM = (
    (3, 32, 2, "VALID"),
    (3, 32, 1, "VALID"),
    (3, 64, 1, "SAME"),
    None,
    (1, 80, 1, "VALID"),
    (3, 192, 1, "VALID"),
    None,
)


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    features: int
    window: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], train: bool
    ) -> Float[jax.Array, "B h w features"]:
        x = nn.Conv(
            self.features,
            self.window,
            self.stride,
            padding=self.padding,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_HE_NORMAL,
            conv_general_dilated=convolve,
        )(images)
        norm = BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-3,
            dtype=self.dtype,
        )
        return nn.relu(norm(x))


class InceptionBlock(nn.Module):
    """Runs branches of convolutions and a pooling side by side.

    Without an averaging branch the last convolution of each branch has stride 2 and no
    padding, and so has a max-pooling beside them.
    """

    branches: tuple[_Branch, ...]
    pooled: int  # channels at width 1 of the averaging branch, or 0
    width: int | float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], train: bool
    ) -> Float[jax.Array, "B h w features"]:
        def convolved(x, convolution, halve=False):
            channels, *window = convolution
            how = {"stride": 2, "padding": "VALID"} if halve else {}
            features = int(self.width * channels)
            return ConvNorm(features, tuple(window), dtype=self.dtype, **how)(x, train)

        results = []
        for branch in self.branches:
            x = images
            for number, step in enumerate(branch):
                if isinstance(step[0], tuple):
                    x = jnp.concatenate([convolved(x, each) for each in step], -1)
                else:
                    halve = not self.pooled and number == len(branch) - 1
                    x = convolved(x, step, halve)
            results.append(x)
        if self.pooled:
            x = nn.avg_pool(images, (3, 3), padding="SAME")
            results.append(convolved(x, (self.pooled, 1, 1)))
        else:
            results.append(nn.max_pool(images, (3, 3), (2, 2)))
        return jnp.concatenate(results, -1)


class InceptionV3(nn.Module):
    """Classifies images with blocks of parallel convolutions (Inception V3).

    Images of 299 pixels shrink to 35, 17 and 8 in the blocks. With 1000 classes it has
    23,834,568 parameters at width 1.

    Args:
      num_classes: length of the logits.
      width: multiplies all channels, rounding down.
      dtype: of the computation; parameters and batch statistics stay float32.

    Raises:
      ValueError: where an image is smaller than 75 pixels, when applied.

    Reference:
      Szegedy et al., Rethinking the Inception architecture, 2016,
      https://arxiv.org/abs/1512.00567

    Example:
      >>> model = InceptionV3(num_classes=10, width=0.125)
      >>> images = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    num_classes: int = 1000
    width: int | float = 1.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes)
        if int(self.width * 32) < 1:
            raise ValueError(
                "width must be at least 1/32, so that every layer has a channel, got "
                f"{self.width}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics."""
        x = jnp.asarray(images)
        if min(x.shape[1:3]) < _SMALLEST_SIDE:
            raise ValueError(
                f"images of {x.shape[1]} x {x.shape[2]} are too small for Inception "
                f"V3: enlarge them to at least {_SMALLEST_SIDE} pixels (native: 299)"
            )
        for layer in _STEM:
            if layer is None:
                x = nn.max_pool(x, (3, 3), (2, 2))
                continue
            side, channels, stride, padding = layer
            features = int(self.width * channels)
            x = ConvNorm(features, (side, side), stride, padding, self.dtype)(x, train)
        for branches, pooled in _BLOCKS:
            x = InceptionBlock(branches, pooled, self.width, self.dtype)(x, train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return logits.astype(jnp.float32)
