"""The LeNets of the compression literature: LeNet-300 (dense), LeNet-5 (Caffe's).

Not LeCun's 1998 network: no trained subsampling, no sparse connection table.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.models.convolution import convolve

_HE_NORMAL = nn.initializers.he_normal()
_SMALLEST_VALID_SIDE = 16  # 16 -> 12 -> 6 -> 2 -> 1; a smaller image would vanish


class LeNet300(nn.Module):
    """Classifies images with dense layers of 300 and 100 units (LeNet-300-100).

    On 28x28x1 images and ten classes it has 266,610 parameters.

    Args:
      num_classes: length of the logits.
      hidden: units of each hidden layer, followed by ReLU.
      dtype: of the computation; parameters stay float32.

    Reference:
      LeCun et al., Gradient-based learning applied to document recognition, 1998

    Example:
      >>> images = jnp.zeros((2, 28, 28, 1))
      >>> variables = LeNet300().init(jax.random.key(0), images)
      >>> LeNet300().apply(variables, images, train=False).shape
      (2, 10)
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = (300, 100)
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.num_classes < 1 or any(units < 1 for units in self.hidden):
            raise ValueError(
                "num_classes and every entry of hidden must be at least 1, got "
                f"num_classes={self.num_classes}, hidden={self.hidden}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` changes nothing here."""
        images = jnp.asarray(images)
        x = images.reshape(images.shape[0], -1)
        for units in self.hidden:
            x = nn.relu(nn.Dense(units, dtype=self.dtype, kernel_init=_HE_NORMAL)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class LeNet5(nn.Module):
    """Classifies images with two convolutions and two dense layers (Caffe's LeNet-5).

    Convolutions are 5x5 without padding, each followed by 2x2 max-pooling and ReLU; on
    28x28x1 images and ten classes there are 431,080 parameters. Images below 16 pixels,
    which the convolutions would use up, are padded to keep their size; sides must be 4
    at least, for the pools.

    Args:
      num_classes: length of the logits.
      width: channels of the first convolution (20); the second has 2.5 times as many.
      hidden: units of the dense layer before the logits.
      dtype: of the computation; parameters stay float32.

    Reference:
      BVLC Caffe, examples/mnist/lenet.prototxt (which has a ReLU after `hidden` only)

    Example:
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> variables = LeNet5().init(jax.random.key(0), images)
      >>> LeNet5().apply(variables, images, train=False).shape
      (2, 10)
    """

    num_classes: int = 10
    width: int = 20
    hidden: int = 500
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.num_classes < 1 or self.width < 1 or self.hidden < 1:
            raise ValueError(
                "num_classes, width and hidden must be at least 1, got "
                f"{self.num_classes}, {self.width}, {self.hidden}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` changes nothing here."""
        x = jnp.asarray(images)
        if min(sides := x.shape[1:3]) < 4:
            raise ValueError(f"images must have sides of 4 at least, got {sides}")
        fits = min(x.shape[1:3]) >= _SMALLEST_VALID_SIDE
        padding = "VALID" if fits else "SAME"
        for features in (self.width, self.width * 5 // 2):
            x = nn.Conv(
                features,
                (5, 5),
                padding=padding,
                dtype=self.dtype,
                kernel_init=_HE_NORMAL,
                conv_general_dilated=convolve,
            )(x)
            x = nn.relu(_max_pool(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=_HE_NORMAL)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


def _max_pool(x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B H//2 W//2 C"]:
    """2x2 max-pooling of stride 2 without padding, as `nn.max_pool`.

    Its gradient is element-wise, where XLA's select-and-scatter is slow on CPU; equal
    largest values share it.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])
