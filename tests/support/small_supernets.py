"""A small super-network of every family, and variables in which a leak would show."""

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.models.supernets import Decision, SuperNetwork, create_supernet


class Layer(nn.Module):
    mlp: int

    @nn.compact
    def __call__(self, x, _):
        y = nn.gelu(nn.Dense(self.mlp)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y), None


class Stack(nn.Module):
    """A user's own network: layers under nn.scan."""

    length: int = 3
    mlp: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        scanned = nn.scan(
            Layer, {"params": 0}, split_rngs={"params": True}, length=self.length
        )
        x, _ = scanned(self.mlp, name="layers")(x, None)
        return nn.Dense(3)(x)


def stack_supernet(**overrides):
    settings = {
        "model": Stack(),
        "decisions": (
            Decision(name="length", options=(1, 2, 3)),
            Decision(name="mlp", options=(2, 5, 8)),
        ),
        "sizes": lambda o: {"length": o["length"], "mlp": o["mlp"]},
        "axes": {
            "layers/LayerNorm_0/.*": ("length", None),
            "layers/Dense_0/kernel": ("length", None, "mlp"),
            "layers/Dense_0/bias": ("length", "mlp"),
            "layers/Dense_1/kernel": ("length", "mlp", None),
            "layers/Dense_1/bias": ("length", None),
        },
        "build": lambda s: Stack(s["length"], s["mlp"]),
        "image_shape": (4, 4, 1),
    }
    return SuperNetwork(**{**settings, **overrides})


SMALL = {
    "resnet_cifar": dict(
        image_shape=(8, 8, 3),
        depths=((1, 2), (1, 2), (1,)),
        widths=((4, 8), (8, 12, 16), (8, 16)),
        expansions=(50, 100),
        divisor=2,
    ),
    "resnet_imagenet": dict(
        image_shape=(32, 32, 3),
        depths=((1, 2), (1,), (1,), (1, 2)),
        stem=(8, 16),
        widths=((16, 32), (16, 32), (16, 24, 32), (16, 32)),
        expansions=(25, 50),
        divisor=4,
    ),
    "mobilenet_v2_cifar": dict(
        image_shape=(7, 8, 3),
        # The third stage could have the channels of the second: no residual even so.
        stages=((8, 2, 1), (16, 1, 2), (16, 1, 1)),
        stem=8,
        head=16,
        multipliers=(1, 1.5, 2),
        kernels=(3, 5),
    ),
    "vit_cifar": dict(
        image_shape=(8, 8, 3),
        num_layers=3,
        layers=(1, 2, 3),
        dim=12,
        head_dim=4,
        mlp_dims=(4, 8, 16),
    ),
}


# Of every family one, a user's own included; those that compile longest run by --slow.
FAMILIES = [*SMALL, "own"]
QUICK_FAMILIES = [
    pytest.param(
        name,
        marks=pytest.mark.slow
        if name in ("resnet_imagenet", "mobilenet_v2_cifar")
        else (),
    )
    for name in FAMILIES
]


def small_supernet(name: str, **overrides) -> SuperNetwork:
    if name == "own":
        return stack_supernet(**overrides)
    return create_supernet(name, num_classes=3, **SMALL[name], **overrides)


def random_variables(net: SuperNetwork, seed: int = 0):
    """Random numbers everywhere, none of them 0 or 1; variances are positive."""
    rng = np.random.default_rng(seed)
    flat = flax.traverse_util.flatten_dict(net.abstract_variables(net.model))
    values = {
        path: jnp.asarray(rng.uniform(0.5, 2.0, leaf.shape), jnp.float32)
        if path[-1] == "var"
        else jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)
        for path, leaf in flat.items()
    }
    return flax.traverse_util.unflatten_dict(values)


def random_images(net: SuperNetwork, count: int = 4, seed: int = 1):
    shape = (count, *net.image_shape)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_choice(net: SuperNetwork, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, net.full + 1).astype(np.int32)


class Perceptron(nn.Module):
    """Two hidden layers with batch norm: quick to compile."""

    hidden: tuple[int, ...] = (16, 12)

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.Dense(width, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


def perceptron(num_classes, image_shape):
    """The factory of a user's own super-network, as a launcher calls it."""
    assert num_classes == 10
    return perceptron_supernet(image_shape)


def perceptron_supernet(image_shape=(8, 8, 1)):
    return SuperNetwork(
        model=Perceptron(),
        decisions=(
            Decision(name="first", options=(4, 8, 16)),
            Decision(name="second", options=(6, 12)),
        ),
        sizes=dict,
        axes={
            "Dense_0/kernel": (None, "first"),
            "BatchNorm_0/.*": ("first",),
            "Dense_1/kernel": ("first", "second"),
            "BatchNorm_1/.*": ("second",),
            "Dense_2/kernel": ("second", None),
        },
        build=lambda sizes: Perceptron((sizes["first"], sizes["second"])),
        image_shape=image_shape,
    )


def digits_supernet(*, num_classes, image_shape):
    """As a user's own factory, for launchers."""
    assert num_classes == 10
    return perceptron_supernet(tuple(image_shape))
