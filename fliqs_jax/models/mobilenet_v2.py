"""MobileNetV2 for ImageNet, at any width.

Not the published training recipe: no dropout before the classifier.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.checks import check_at_least, check_positive
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetSizes:
    """Layers of a MobileNetV2, one by one, where a width does not say it."""

    stem: int  # channels of the first convolution
    # Of each block: channels, expansion, window, stride, and whether the input is
    # added (None: where stride and channels allow).
    blocks: tuple[tuple[int, int, int, int, bool | None], ...]
    head: int  # channels before the classifier
    stem_stride: int = 2

    def __post_init__(self):
        settings = [number for block in self.blocks for number in block[:4]]
        if min([self.stem, self.head, self.stem_stride, *settings]) < 1:
            raise ValueError(f"every size must be at least 1, got {self}")

    @classmethod
    def of_width(cls, width: int | float) -> "MobileNetSizes":
        """Returns the published sizes, all channels multiplied."""
        blocks = [
            (make_divisible(width * channels), expansion, 3, stride, None)
            for expansion, channels, count, first_stride in _STAGES
            for stride in [first_stride] + [1] * (count - 1)
        ]
        return cls(
            stem=make_divisible(width * _STEM),
            blocks=tuple(blocks),
            head=make_divisible(max(1.0, width) * _HEAD),
        )


class MobileNetV2(nn.Module):
    """Classifies images with inverted residual blocks (MobileNetV2).

    With 1000 classes it has 3,504,872 parameters at width 1. Strided convolutions pad
    as "SAME" does; torchvision's pad both sides alike and have as many outputs.

    Args:
      num_classes: length of the logits.
      width: multiplies all channels, which are then made divisible by 8; those before
        the classifier (1280) only if it is above 1.
      sizes: layers one by one, in place of `width`.
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
    sizes: MobileNetSizes | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes)
        check_positive(width=self.width)
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
        sizes = self.sizes or MobileNetSizes.of_width(self.width)
        stem = conv(sizes.stem, (3, 3), sizes.stem_stride, name="stem")
        x = nn.relu6(norm()(stem(jnp.asarray(images))))
        for features, expansion, kernel_size, stride, residual in sizes.blocks:
            x = InvertedResidual(
                features=features,
                expansion=expansion,
                kernel_size=kernel_size,
                stride=stride,
                activation=nn.relu6,
                norm=norm,
                dtype=self.dtype,
                residual=residual,
            )(x)
        head = conv(sizes.head, (1, 1), name="head")
        x = nn.relu6(norm()(head(x)))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return logits.astype(jnp.float32)
