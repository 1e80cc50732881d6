"""MobileNetV2 for ImageNet, at any width.

Not the published training recipe: no dropout before the classifier.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.convolution import convolve
from fliqs_jax.models.inverted_residual import InvertedResidual, make_divisible

_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_STEM, _HEAD = 32, 1280
# Expansion, channels at width 1, blocks, stride of the first.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Classifies images with inverted residual blocks (MobileNetV2).

    With 1000 classes it has 3,504,872 parameters at width 1. Strided convolutions pad
    as "SAME" does; torchvision's pad both sides alike and have as many outputs.

    Args:
      num_classes: length of the logits.
      width: multiplies all channels, which are then made divisible by 8; those before
        the classifier (1280) only if it is above 1.
      dtype: of the computation; parameters and batch statistics stay float32.

    Reference:
      Sandler et al., MobileNetV2, 2018, https://arxiv.org/abs/1801.04381

    Example:
      >>> model = MobileNetV2(num_classes=10, width=0.25)
      >>> images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    num_classes: int = 1000
    width: int | float = 1.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if not self.width > 0:
            raise ValueError(f"width must be positive, got {self.width}")
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
        stem = conv(make_divisible(self.width * _STEM), (3, 3), 2, name="stem")
        x = nn.relu6(norm()(stem(jnp.asarray(images))))
        for expansion, channels, blocks, first_stride in _STAGES:
            for block in range(blocks):
                x = InvertedResidual(
                    features=make_divisible(self.width * channels),
                    expansion=expansion,
                    kernel_size=3,
                    stride=first_stride if block == 0 else 1,
                    activation=nn.relu6,
                    norm=norm,
                    dtype=self.dtype,
                )(x)
        head = conv(make_divisible(max(1.0, self.width) * _HEAD), (1, 1), name="head")
        x = nn.relu6(norm()(head(x)))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return logits.astype(jnp.float32)
