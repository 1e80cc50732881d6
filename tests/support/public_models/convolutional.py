"""Convolutional patterns, up to U-Net and contractions of the author's own."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class PreActivationBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm(name="norm1")(x))
        residual = x
        if x.shape[-1] != self.filters or self.strides != (1, 1):
            residual = self.conv(self.filters, (1, 1), self.strides, name="proj")(y)
        y = self.conv(self.filters, (3, 3), self.strides, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        return residual + self.conv(self.filters, (3, 3), name="conv2")(y)


class PreActivationResNet(nn.Module):
    """He et al., Identity mappings in deep residual networks, 2016."""

    stage_sizes: tuple[int, ...] = (1, 1)
    num_filters: int = 4
    num_classes: int = 10
    axis_name: str | None = None
    remat: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis_name,
        )
        block = nn.remat(PreActivationBlock) if self.remat else PreActivationBlock
        x = conv(self.num_filters, (3, 3), name="stem")(x)
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = block(
                    self.num_filters * 2**i,
                    conv=conv,
                    norm=norm,
                    strides=strides,
                    name=f"stage{i}_block{j}",
                )(x)
        x = nn.relu(norm(name="final_norm")(x))
        return nn.Dense(self.num_classes, name="head")(jnp.mean(x, axis=(1, 2)))


class DoubleConv(nn.Module):
    features: int

    def setup(self):
        self.convs = [nn.Conv(self.features, (3, 3), use_bias=False) for _ in range(2)]
        self.norms = [nn.GroupNorm(num_groups=2) for _ in range(2)]

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nn.silu(norm(conv(x)))
        return x


class UNet(nn.Module):
    """Ronneberger et al., 2015: images to images, skips joined by concatenation."""

    features: tuple[int, ...] = (4, 8)
    out_channels: int = 2

    def setup(self):
        *outer, inner = self.features
        self.down = [DoubleConv(f) for f in outer]
        self.bottleneck = DoubleConv(inner)
        self.up = [nn.ConvTranspose(f, (2, 2), strides=(2, 2)) for f in outer[::-1]]
        self.merge = [DoubleConv(f) for f in outer[::-1]]
        self.out = nn.Conv(self.out_channels, (1, 1))

    def __call__(self, x):
        skips = []
        for block in self.down:
            skips.append(x := block(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = self.bottleneck(x)
        for up, block in zip(self.up, self.merge, strict=True):
            x = block(jnp.concatenate([up(x), skips.pop()], axis=-1))
        return self.out(x)


class GroupNormConvNet(nn.Module):
    """A ConvNet that normalises its activations by group and its weights by channel."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        for features in (4, 8):
            x = nn.WeightNorm(nn.Conv(features, (3, 3), strides=2))(x)
            x = nn.relu(nn.GroupNorm(num_groups=2)(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.SpectralNorm(nn.Dense(8))(x, update_stats=train))
        return nn.Dense(self.num_classes)(x)


def float32_dot_general(lhs, rhs, dimension_numbers, precision=None, **kwargs):
    del precision, kwargs
    return lax.dot_general(
        lhs,
        rhs,
        dimension_numbers,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def highest_conv(*args, **kwargs):
    kwargs["precision"] = lax.Precision.HIGHEST
    return lax.conv_general_dilated(*args, **kwargs)


class OwnDot(nn.Module):
    """A dot_general with state, as quantization libraries inject it."""

    @nn.compact
    def __call__(self, lhs, rhs, dimension_numbers, precision=None, **kwargs):
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * lax.dot_general(lhs, rhs, dimension_numbers, precision=precision)


class OwnContractions(nn.Module):
    """A classifier that brings its own dot_general and convolution."""

    num_classes: int = 10
    conv_general_dilated: Callable = highest_conv
    dot_general: Callable = float32_dot_general

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), 2, conv_general_dilated=self.conv_general_dilated)(x)
        x = nn.relu(x).reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(8, dot_general=self.dot_general)(x))
        x = nn.relu(nn.Dense(6, dot_general_cls=OwnDot)(x))
        return nn.DenseGeneral(self.num_classes, dot_general=self.dot_general)(x)


class KernelHead(nn.Module):
    """Submodules whose names are those of parameters elsewhere."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="kernel")(x))
        return nn.Dense(self.num_classes, name="bias")(x)


class Mlp(nn.Module):
    """Names of every kind, parameters in bfloat16, a method with a scope of its own."""

    num_classes: int = 10
    dtype: Any = jnp.bfloat16

    def setup(self):
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.dtype)
        self.layers = [dense(8), dense(8)]
        self.towers = {"left": dense(4), "right": dense(4)}
        self.head = KernelHead(self.num_classes)

    def __call__(self, x):
        x = x.reshape((x.shape[0], -1))
        for layer in self.layers:
            x = nn.relu(layer(x))
        x = self.towers["left"](x) * jax.nn.sigmoid(self.towers["right"](x))
        return self.head(self.mixed(x).astype(jnp.float32))

    @nn.compact_name_scope
    def mixed(self, x):
        return x + nn.Dense(x.shape[-1], dtype=self.dtype)(x)
