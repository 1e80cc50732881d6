"""EfficientNet B0 to B4: one network scaled in width, depth and image size.

Not the published training recipe: no stochastic depth, no dropout.
"""

import functools
import math
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
# Expansion, channels and blocks of B0, stride of the first, window.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNet(nn.Module):
    """Classifies images with inverted residual blocks that squeeze and excite.

    The networks by name have these fields and native image sizes:

        b0    width 1      depth 1      224 pixels     5,288,548 parameters
        b1          1            1.1    240            7,794,184
        b2          1.1          1.2    260            9,109,994
        b3          1.2          1.4    300           12,233,232
        b4          1.4          1.8    380           19,341,616

    The paths of the squeeze-and-excitation sites contain "squeeze_excite"; published
    costs often leave them out (`fliqs_jax.costs.bops` has an argument `where`).

    Args:
      num_classes: length of the logits.
      width: multiplies all channels, which are then made divisible by 8.
      depth: multiplies the blocks of each stage, rounding up.
      dtype: of the computation; parameters and batch statistics stay float32.

    Reference:
      Tan and Le, EfficientNet, 2019, https://arxiv.org/abs/1905.11946

    Example:
      >>> model = EfficientNet(num_classes=10, width=0.25)
      >>> images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    num_classes: int = 1000
    width: int | float = 1.0
    depth: int | float = 1.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes)
        check_positive(width=self.width, depth=self.depth)
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
            BatchNorm,
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-3,
            dtype=self.dtype,
        )
        stem = conv(make_divisible(self.width * _STEM), (3, 3), 2, name="stem")
        x = nn.swish(norm()(stem(jnp.asarray(images))))
        for expansion, channels, blocks, first_stride, kernel_size in _STAGES:
            for block in range(math.ceil(self.depth * blocks)):
                x = InvertedResidual(
                    features=make_divisible(self.width * channels),
                    expansion=expansion,
                    kernel_size=kernel_size,
                    stride=first_stride if block == 0 else 1,
                    activation=nn.swish,
                    norm=norm,
                    squeeze_ratio=0.25,
                    dtype=self.dtype,
                )(x)
        head = conv(make_divisible(self.width * _HEAD), (1, 1), name="head")
        x = nn.swish(norm()(head(x)))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))
        return logits.astype(jnp.float32)
