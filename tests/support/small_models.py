"""Small models with one lifted transform or layer type each, and their sites."""

import flax.linen as nn
from unmodified import Case, floats


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(x)
        x = nn.Conv(8, (3, 3), strides=2, feature_group_count=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (3, 3), kernel_dilation=2)(x)
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((2, 3), axis=(-2, -1))(x)
        x = nn.Einsum((2, 3, 5), "...hd,hdf->...hf")(nn.gelu(x))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(2, qkv_features=8)(nn.LayerNorm()(x))
        return nn.Dense(3)((x + y).mean(1))


class Layer(nn.Module):
    """One layer of the stacks below, in the form that nn.scan wants."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4)(y)
        return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(x))), None


class Stack(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2)(x.mean(1))


class Unrolled(nn.Module):
    """Stack without scan: layer i is called layers_i."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x, _ = Layer(name=f"layers_{i}")(x, None)
        return nn.Dense(2)(x.mean(1))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4)
        return nn.Dense(2)(nn.relu(dense(nn.relu(dense(x)))))


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(2)(x)


# Sites of one layer of the stacks on [B, 6, 4]: path -> MACs per example.
_LAYER = {
    "MultiHeadDotProductAttention_0/query": 6 * 4 * 4,
    "MultiHeadDotProductAttention_0/key": 6 * 4 * 4,
    "MultiHeadDotProductAttention_0/value": 6 * 4 * 4,
    "MultiHeadDotProductAttention_0/out": 6 * 4 * 4,
    "Dense_1": 6 * 4 * 8,  # made second, called first
    "Dense_0": 6 * 8 * 4,
}


def stack_macs(layer):
    macs = {f"layers/{path}[{i}]": layer[path] for path in layer for i in range(3)}
    return macs | {"Dense_0": 8}


def with_products(macs, layer, product):
    """The same MACs with those of an attention layer's products, before its "out"."""
    counted = {}
    for path, number in macs.items():
        if path == f"{layer}/out":
            counted |= {f"{layer}/scores": product, f"{layer}/values": product}
        counted[path] = number
    return counted


_ATTENTION = {
    f"MultiHeadDotProductAttention_0/{name}": 6 * 4 * 8
    for name in ("query", "key", "value", "out")
} | {"Dense_0": 12}
_LAYER_WITH_PRODUCTS = with_products(
    _LAYER,
    "MultiHeadDotProductAttention_0",
    2 * 6 * 6 * 2,  # heads, queries, keys, head size
)


SMALL = {
    "cnn": Case(
        Cnn(),
        floats(8, 8, 4),
        {
            "Conv_0": 64 * 8 * 9 * 4,
            "Conv_1": 64 * 8 * 9,
            "Conv_2": 16 * 8 * 9 * 4,
            "Conv_3": 16 * 6 * 9 * 8,
            "ConvTranspose_0": 16 * 6 * 4 * 4,
            "Dense_0": 4 * 3,
        },
    ),
    "mlp": Case(
        Mlp(),
        floats(6, 4, 5),
        {
            "DenseGeneral_0": 6 * 20 * 6,
            "Einsum_0": 6 * 2 * 3 * 5,
            "Dense_0": 6 * 2 * 5 * 2,
        },
    ),
    "attention": Case(Attention(), floats(6, 4), _ATTENTION),
    "attention with its products": Case(
        Attention(),
        floats(6, 4),
        with_products(
            _ATTENTION, "MultiHeadDotProductAttention_0", product=2 * 6 * 6 * 4
        ),
        attention_products=True,
    ),
    "scan of remat": Case(
        Stack(),
        floats(6, 4),
        stack_macs(_LAYER),
        unrolled=Unrolled(),
        stacks={"layers": 0},
    ),
    "scan, axis 1": Case(
        Stack(axis=1),
        floats(6, 4),
        stack_macs(_LAYER),
        unrolled=Unrolled(),
        stacks={"layers": 1},
    ),
    "scan with its products": Case(
        Stack(axis=1),
        floats(6, 4),
        stack_macs(_LAYER_WITH_PRODUCTS),
        unrolled=Unrolled(),
        stacks={"layers": 1},
        attention_products=True,
    ),
    "shared": Case(Shared(), floats(4), {"Dense_0": 2 * 16, "Dense_1": 8}),
    "dropout": Case(
        Dropout(), floats(4), {"Dense_0": 32, "Dense_1": 16}, {"train": True}
    ),
}
