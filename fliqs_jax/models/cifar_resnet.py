"""Residual networks for small images: the CIFAR family of depth 6n + 2.

Not the ImageNet networks (`imagenet_resnet`): no 7x7 stem, no max-pooling, three
stages, basic blocks only.
"""

import functools
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


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    features: int
    stride: int
    dtype: Any = jnp.float32
    hidden: int | None = None  # channels in between; None is as many as `features`

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], train: bool
    ) -> Float[jax.Array, "B h w features"]:
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
        residual = conv(self.hidden or self.features, (3, 3), self.stride)(images)
        residual = nn.relu(norm()(residual))
        residual = norm()(conv(self.features, (3, 3))(residual))
        shortcut = images
        if shortcut.shape != residual.shape:
            shortcut = norm()(conv(self.features, (1, 1), self.stride)(shortcut))
        return nn.relu(residual + shortcut)


class CifarResNet(nn.Module):
    r"""Classifies small images with three stages of residual blocks.

    .. math:: x_{i+1} = \mathrm{relu}(x_i' + F(x_i))

    A stage doubles the channels and halves the image at its first block; there x' is a
    1x1 convolution with batch normalisation of x (option B of the paper, the shortcut
    that the FLIQS cost tables count), elsewhere x itself. The paper's own CIFAR runs
    pad with zeros instead (option A): 2,752 parameters less at width 16, so ResNet-20
    has 272,474 here and 269,722 there.

    Args:
      num_classes: length of the logits.
      num_blocks: n, blocks in each of the three stages; depth is 6 n + 2.
      width: channels of the first stage; the others have two and four times as many.
      sizes: channels and blocks one by one, in place of `num_blocks` and `width`.
      dtype: of the computation; parameters and batch statistics stay float32.

    Reference:
      He et al., Deep residual learning, 2016, section 4.2,
      https://arxiv.org/abs/1512.03385

    Example:
      >>> model = CifarResNet(num_classes=10, num_blocks=1)
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> variables = model.init(jax.random.key(0), images)
      >>> model.apply(variables, images, train=False).shape
      (2, 10)
    """

    num_classes: int = 10
    num_blocks: int = 3
    width: int = 16
    sizes: ResNetSizes | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes, num_blocks=self.num_blocks)
        check_at_least(1, width=self.width)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics."""
        sizes = self.sizes or ResNetSizes.of(
            channels=tuple(self.width * 2**stage for stage in range(3)),
            num_blocks=(self.num_blocks,) * 3,
        )
        x = nn.Conv(
            sizes.stem,
            (3, 3),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_HE_NORMAL,
            conv_general_dilated=convolve,
        )(jnp.asarray(images))
        x = BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        x = nn.relu(x)
        for stage, (channels, blocks) in enumerate(sizes.stages):
            for index, (number, hidden) in enumerate(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                block = Block(
                    channels, stride, self.dtype, hidden, name=f"Block_{number}"
                )
                x = block(x, train)
        features = x.mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(features)
        return logits.astype(jnp.float32)
