"""A small vision transformer for images of 8 to 64 pixels.

Not the ImageNet ViT or DeiT: no class token (the tokens are averaged), no dropout, no
pretrained sizes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

_XAVIER = nn.initializers.xavier_uniform()
_SMALL_NORMAL = nn.initializers.truncated_normal(0.02)


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added back."""

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[jax.Array, "B T dim"]
    ) -> Float[jax.Array, "B T dim"]:
        dim = tokens.shape[-1]
        x = nn.LayerNorm(dtype=self.dtype)(tokens)
        x = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, kernel_init=_XAVIER
        )(x)
        tokens = tokens + x
        x = nn.LayerNorm(dtype=self.dtype)(tokens)
        x = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype, kernel_init=_XAVIER)(x))
        return tokens + nn.Dense(dim, dtype=self.dtype, kernel_init=_XAVIER)(x)


class ViT(nn.Module):
    """Classifies images with a transformer over their patches.

    Args:
      num_classes: length of the logits.
      patch_size: side of a patch in pixels; must divide height and width.
      dim: length of a token; must be a multiple of `num_heads`.
      num_layers: encoder layers.
      num_heads: attention heads.
      mlp_ratio: units of the perceptron's hidden layer over `dim`.
      dtype: of the computation; parameters stay float32.

    Raises:
      ValueError: where `patch_size` does not divide the image, when applied.

    Reference:
      Dosovitskiy et al., An image is worth 16x16 words, 2021,
      https://arxiv.org/abs/2010.11929; averaged tokens after Beyer et al., Better plain
      ViT baselines, 2022, https://arxiv.org/abs/2205.01580

    Example:
      >>> model = ViT(patch_size=2, num_layers=1)
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> variables = model.init(jax.random.key(0), images)
      >>> model.apply(variables, images, train=False).shape
      (2, 10)
    """

    num_classes: int = 10
    patch_size: int = 4
    dim: int = 96
    num_layers: int = 6
    num_heads: int = 3
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    def __post_init__(self):
        for field in (
            "num_classes",
            "patch_size",
            "dim",
            "num_layers",
            "num_heads",
            "mlp_ratio",
        ):
            if getattr(self, field) < 1:
                value = getattr(self, field)
                raise ValueError(f"{field} must be at least 1, got {value}")
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {self.dim} and "
                f"{self.num_heads}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` changes nothing here."""
        images, patch = jnp.asarray(images), self.patch_size
        height, width = images.shape[1:3]
        if height % patch or width % patch:
            raise ValueError(
                f"patch_size {patch} does not divide images of {height} x {width}: "
                "override patch_size with a common divisor"
            )
        x = nn.Conv(
            self.dim,
            (patch, patch),
            strides=patch,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=_XAVIER,
        )(images)
        x = x.reshape(len(x), -1, self.dim)
        positions = self.param("positions", _SMALL_NORMAL, (1, *x.shape[1:]))
        x = x + positions.astype(x.dtype)
        for _ in range(self.num_layers):
            x = EncoderLayer(self.num_heads, self.mlp_ratio * self.dim, self.dtype)(x)
        features = nn.LayerNorm(dtype=self.dtype)(x).mean(1)
        logits = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=_SMALL_NORMAL
        )(features)
        return logits.astype(jnp.float32)
