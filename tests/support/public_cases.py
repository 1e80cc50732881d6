"""The public models as rows of the contract: tiny sizes, MACs counted by hand."""

import flax.linen as nn
import jax.numpy as jnp
from public_models.attention import AttentionClassifier, MlpMixer, Transformer
from public_models.convolutional import (
    GroupNormConvNet,
    Mlp,
    OwnContractions,
    PreActivationResNet,
    UNet,
)
from public_models.recurrent import (
    BidirectionalTagger,
    LstmClassifier,
    SequenceTagger,
)
from unmodified import Case, floats, tokens


class LoopedLstm(nn.Module):
    """LstmClassifier and SequenceTagger without a scan over the five steps."""

    cell: type
    every_step: bool = False

    @nn.compact
    def __call__(self, x):
        cell, carry, outputs = self.cell(4, name="lstm"), (jnp.zeros((2, 4)),) * 2, []
        for step in range(5):
            carry, y = cell(carry, x[:, step])
            outputs.append(y)
        y = jnp.stack(outputs, axis=1) if self.every_step else y
        return nn.Dense(3, name="head")(y)


class LoopedBidirectional(nn.Module):
    """BidirectionalTagger without a scan over the five steps."""

    @nn.compact
    def __call__(self, x):
        forward, backward = nn.GRUCell(3), nn.SimpleCell(3)
        h, g, left, right = jnp.zeros((2, 3)), jnp.zeros((2, 3)), [], []
        for step in range(5):
            h, y = forward(h, x[:, step])
            g, z = backward(g, x[:, 4 - step])
            left, right = [*left, y], [z, *right]
        both = [jnp.stack(side, axis=1) for side in (left, right)]
        return nn.Dense(3)(jnp.concatenate(both, axis=-1))


_ATTENTION = ("query", "key", "value", "out")


def _transformer_macs(source: int, target: int) -> dict[str, int]:
    """Two layers of width 4, MLPs of 8, and 11 words, on as many tokens."""
    encoder = {f"self_attention/{name}": source * 16 for name in _ATTENTION}
    encoder |= {"mlp/Dense_0": source * 32, "mlp/Dense_1": source * 32}
    decoder = {f"self_attention/{name}": target * 16 for name in _ATTENTION}
    for name in _ATTENTION:
        length = source if name in ("key", "value") else target
        decoder[f"cross_attention/{name}"] = length * 16
    decoder |= {"mlp/wi": target * 32, "mlp/wo": target * 32}
    return {
        f"{stack}/{path}[{i}]": macs
        for stack, layer in (("encoder", encoder), ("decoder", decoder))
        for path, macs in layer.items()
        for i in range(2)
    } | {"logits": target * 4 * 11}


# Five steps of four gates, each 4 -> 4 from the input and from the state.
_LSTM = {f"lstm/{side}{gate}": 5 * 4 * 4 for gate in "ifgo" for side in "ih"}

PUBLIC = {
    "pre-activation resnet": Case(
        PreActivationResNet(),
        floats(8, 8, 1),
        {
            "stem": 64 * 9 * 4,
            "stage0_block0/conv1": 64 * 9 * 4 * 4,
            "stage0_block0/conv2": 64 * 9 * 4 * 4,
            "stage1_block0/proj": 16 * 4 * 8,
            "stage1_block0/conv1": 16 * 9 * 4 * 8,
            "stage1_block0/conv2": 16 * 9 * 8 * 8,
            "head": 8 * 10,
        },
        unrolled=PreActivationResNet(remat=False),
    ),
    "u-net": Case(
        UNet(),
        floats(8, 8, 1),
        {
            "down_0/convs_0": 64 * 9 * 1 * 4,
            "down_0/convs_1": 64 * 9 * 4 * 4,
            "bottleneck/convs_0": 16 * 9 * 4 * 8,
            "bottleneck/convs_1": 16 * 9 * 8 * 8,
            "up_0": 16 * 4 * 8 * 4,
            "merge_0/convs_0": 64 * 9 * 8 * 4,
            "merge_0/convs_1": 64 * 9 * 4 * 4,
            "out": 64 * 4 * 2,
        },
    ),
    "norms of weights": Case(
        GroupNormConvNet(),
        floats(8, 8, 1),
        {
            "Conv_0": 16 * 9 * 4,
            "Conv_1": 4 * 9 * 4 * 8,
            "Dense_0": 4 * 8 * 8,
            "Dense_1": 8 * 10,
        },
    ),
    "own contractions": Case(
        OwnContractions(),
        floats(8, 8, 1),
        {
            "Conv_0": 16 * 9 * 4,
            "Dense_0": 64 * 8,
            "Dense_1": 8 * 6,
            "DenseGeneral_0": 6 * 10,
        },
    ),
    "bfloat16, setup, names": Case(
        Mlp(),
        floats(4, 4, 1),
        {
            "layers_0": 16 * 8,
            "layers_1": 8 * 8,
            "towers_left": 8 * 4,
            "towers_right": 8 * 4,
            "mixed/Dense_0": 4 * 4,
            "head/kernel": 4 * 6,
            "head/bias": 6 * 10,
        },
    ),
    "mixer": Case(
        MlpMixer(),
        floats(8, 8, 1),
        {
            "stem": 4 * 16 * 6,
            "MixerBlock_0/token_mixing/Dense_0": 6 * 4 * 3,
            "MixerBlock_0/token_mixing/Dense_1": 6 * 3 * 4,
            "MixerBlock_0/channel_mixing/Dense_0": 4 * 6 * 8,
            "MixerBlock_0/channel_mixing/Dense_1": 4 * 8 * 6,
            "head": 6 * 10,
        },
        unrolled=MlpMixer(map_tokens=False),
    ),
    "attention classifier": Case(
        AttentionClassifier(),
        floats(8, 8, 1),
        {"embed": 8 * 8 * 8}
        | {f"attention/{name}": 9 * 8 * 8 for name in _ATTENTION}
        | {"head": 8 * 10},
        {"deterministic": False},
    ),
    "encoder-decoder": Case(
        Transformer(),
        tokens(5, 4),
        _transformer_macs(5, 4),
        unrolled=Transformer(scan_layers=False),
        stacks={"encoder": 1, "decoder": 1},
        int8_error=0.1,  # of 33 sites, one after the other
    ),
    "optimized lstm": Case(
        LstmClassifier(),
        floats(5, 4),
        {"lstm": 5 * (4 + 4) * 16, "head": 4 * 3},
        unrolled=LoopedLstm(nn.OptimizedLSTMCell),
        joined=("lstm",),
    ),
    "lstm under scan": Case(
        SequenceTagger(),
        floats(5, 4),
        _LSTM | {"head": 5 * 4 * 3},
        unrolled=LoopedLstm(nn.LSTMCell, every_step=True),
    ),
    "both directions": Case(
        BidirectionalTagger(),
        floats(5, 3),
        {f"GRUCell_0/{side}{gate}": 5 * 3 * 3 for gate in "rzn" for side in "ih"}
        | {"SimpleCell_0/i": 5 * 9, "SimpleCell_0/h": 5 * 9, "Dense_0": 5 * 6 * 3},
        unrolled=LoopedBidirectional(),
    ),
}
