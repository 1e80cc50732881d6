"""Residual networks for ImageNet: ResNet-18 and ResNet-50, at any width.

Not the CIFAR family (`cifar_resnet`). Convolutions and the max-pooling pad both sides
alike, as torchvision does, not "SAME".
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.checks import check_at_least
from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.convolution import convolve
from fliqs_jax.models.resnet_sizes import ResNetSizes

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_STAGES = (64, 128, 256, 512)  # channels at width 1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected if asked for."""

    features: int  # of the result
    stride: int
    project: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    hidden: int | None = None  # channels in between; None is as many as `features`

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"]
    ) -> Float[jax.Array, "B h w features"]:
        between = self.hidden or self.features
        x = self.conv(between, (3, 3), self.stride, padding=1)(images)
        x = nn.relu(self.norm()(x))
        x = self.norm()(self.conv(self.features, (3, 3), padding=1)(x))
        return nn.relu(x + _shortcut(self, images))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions, and a shortcut."""

    features: int  # of the result
    stride: int
    project: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    hidden: int | None = None  # channels in between; None is a quarter of `features`

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"]
    ) -> Float[jax.Array, "B h w features"]:
        between = self.hidden or self.features // 4
        x = nn.relu(self.norm()(self.conv(between, (1, 1))(images)))
        x = self.conv(between, (3, 3), self.stride, padding=1)(x)
        x = nn.relu(self.norm()(x))
        x = self.norm()(self.conv(self.features, (1, 1))(x))
        return nn.relu(x + _shortcut(self, images))


def _shortcut(block: BasicBlock | BottleneckBlock, images: jax.Array) -> jax.Array:
    if not block.project:
        return images
    conv = block.conv(block.features, (1, 1), block.stride, name="shortcut")
    return block.norm()(conv(images))


class ImageNetResNet(nn.Module):
    """Classifies images with four stages of residual blocks (ResNet-18, ResNet-50).

    Images of 224 pixels shrink to 112 (7x7 convolution), 56 (max-pooling), 28, 14
    and 7. The 3x3 convolution of a bottleneck has the stride ("v1.5"). At width 1 and
    with 1000 classes ResNet-50 has 25,557,032 parameters and ResNet-18 11,693,736:
    11,689,512, which torchvision has too, with `project_first_stage=False`.

    Args:
      num_classes: length of the logits.
      num_blocks: blocks in each of the four stages.
      bottleneck: blocks of three convolutions with four times the channels outside.
      width: multiplies all channels, rounding down.
      sizes: channels and blocks one by one, in place of `num_blocks` and `width`.
      project_first_stage: a projection in the first shortcut of stage one too, as the
        FLIQS cost tables count; the shape asks for one only in the bottleneck network.
      dtype: of the computation; parameters and batch statistics stay float32.

    Reference:
      He et al., Deep residual learning, 2016, https://arxiv.org/abs/1512.03385

    Example:
      >>> model = ImageNetResNet(num_classes=10, width=0.125)
      >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    num_classes: int = 1000
    num_blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int | float = 1.0
    sizes: ResNetSizes | None = None
    project_first_stage: bool = True
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes)
        if len(self.num_blocks) != len(_STAGES) or min(self.num_blocks) < 1:
            raise ValueError(
                "num_blocks must be four numbers, each at least 1, got "
                f"{self.num_blocks}"
            )
        if int(self.width * _STAGES[0]) < 1:
            raise ValueError(
                f"width must be at least 1/{_STAGES[0]}, so that every layer has a "
                f"channel, got {self.width}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics."""
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_HE_NORMAL,
            conv_general_dilated=convolve,
        )
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        channels = tuple(int(self.width * count) for count in _STAGES)
        outside = 4 if self.bottleneck else 1
        sizes = self.sizes or ResNetSizes.of(
            stem=channels[0],
            channels=tuple(count * outside for count in channels),
            num_blocks=self.num_blocks,
        )
        stem = conv(sizes.stem, (7, 7), 2, padding=3, name="stem")
        x = nn.relu(norm()(stem(jnp.asarray(images))))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        block = BottleneckBlock if self.bottleneck else BasicBlock
        forced = self.project_first_stage or self.bottleneck
        for stage, (features, blocks) in enumerate(sizes.stages):
            for index, (number, hidden) in enumerate(blocks):
                project = index == 0 and (stage > 0 or forced)
                stride = 2 if index == 0 and stage > 0 else 1
                name = f"{block.__name__}_{number}"
                x = block(features, stride, project, conv, norm, hidden, name=name)(x)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return logits.astype(jnp.float32)
