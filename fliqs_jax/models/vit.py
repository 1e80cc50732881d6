"""Vision transformers: ViT and DeiT for ImageNet, and a small one for small images.

Not the published training recipes: no dropout, no stochastic depth, no distillation
token. Without these ViT and DeiT of a size are one network.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.checks import check_at_least

_XAVIER = nn.initializers.xavier_uniform()
_SMALL_NORMAL = nn.initializers.truncated_normal(0.02)


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added back."""

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32
    head_dim: int | None = None  # length of a head; None divides the token among them

    @nn.compact
    def __call__(
        self, tokens: Float[jax.Array, "B T dim"]
    ) -> Float[jax.Array, "B T dim"]:
        dim = tokens.shape[-1]
        x = nn.LayerNorm(dtype=self.dtype)(tokens)
        x = nn.MultiHeadDotProductAttention(
            self.num_heads,
            qkv_features=self.head_dim and self.head_dim * self.num_heads,
            out_features=dim,
            dtype=self.dtype,
            kernel_init=_XAVIER,
        )(x)
        tokens = tokens + x
        x = nn.LayerNorm(dtype=self.dtype)(tokens)
        x = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype, kernel_init=_XAVIER)(x))
        return tokens + nn.Dense(dim, dtype=self.dtype, kernel_init=_XAVIER)(x)


class ViT(nn.Module):
    """Classifies images with a transformer over their patches.

    The sizes by name have patches of 16 pixels and a class token; at 224 pixels and
    with 1000 classes:

        vit_tiny, deit_tiny      dim 192     3 heads     5,717,416 parameters
        vit_small, deit_small        384     6          22,050,664
        vit_base, deit_base          768    12          86,567,656

    Args:
      num_classes: length of the logits.
      patch_size: side of a patch in pixels; must divide height and width.
      dim: length of a token; must be a multiple of `num_heads`.
      num_layers: encoder layers.
      num_heads: attention heads; None takes heads of length 64, or of 96 if 64 does not
        divide `dim`.
      mlp_ratio: units of the perceptron's hidden layer over `dim`.
      layers: heads and hidden units of each encoder layer, in place of `num_layers`,
        `num_heads` and `mlp_ratio`; needs `head_dim`.
      head_dim: length of a head where `layers` are given.
      class_token: classify by a learned token put before those of the patches; False
        averages the tokens of the patches.
      dtype: of the computation; parameters stay float32.

    Raises:
      ValueError: where `patch_size` does not divide the image, when applied.

    Reference:
      Dosovitskiy et al., An image is worth 16x16 words, 2021,
      https://arxiv.org/abs/2010.11929; Touvron et al., DeiT, 2021,
      https://arxiv.org/abs/2012.12877; averaged tokens after Beyer et al., Better plain
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
    num_heads: int | None = 3
    mlp_ratio: int = 4
    layers: tuple[tuple[int, int], ...] | None = None
    head_dim: int | None = None
    class_token: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes, patch_size=self.patch_size)
        check_at_least(1, dim=self.dim, num_layers=self.num_layers)
        check_at_least(1, mlp_ratio=self.mlp_ratio)
        if self.num_heads is not None:
            check_at_least(1, num_heads=self.num_heads)
        if self.layers is None and self.head_dim is None:
            self._check_heads()
        elif not (self.layers and self.head_dim and min(map(min, self.layers)) > 0):
            raise ValueError(
                "layers and head_dim belong together: pairs (heads, hidden units) and a"
                f" length, all at least 1, got {self.layers} and {self.head_dim}"
            )
        super().__post_init__()

    def _check_heads(self) -> None:
        if self.num_heads is None:
            if self.dim % 64 and self.dim % 96:
                raise ValueError(
                    "dim must be a multiple of 64 or 96 where num_heads is None, got "
                    f"{self.dim}: change it, or give num_heads"
                )
        elif self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {self.dim} and "
                f"{self.num_heads}"
            )

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
        x = x.reshape(x.shape[0], -1, self.dim)
        if self.class_token:
            token = self.param("class_token", _SMALL_NORMAL, (1, 1, self.dim))
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim))
            x = jnp.concatenate([token, x], 1)
        positions = self.param("positions", _SMALL_NORMAL, (1, *x.shape[1:]))
        x = x + positions.astype(x.dtype)
        num_heads = self.num_heads or self.dim // (96 if self.dim % 64 else 64)
        uniform = ((num_heads, self.mlp_ratio * self.dim),) * self.num_layers
        for heads, mlp_dim in self.layers or uniform:
            x = EncoderLayer(heads, mlp_dim, self.dtype, self.head_dim)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        logits = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=_SMALL_NORMAL
        )(x[:, 0] if self.class_token else x.mean(1))
        return logits.astype(jnp.float32)
