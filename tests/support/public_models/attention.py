"""Token patterns: MLP-Mixer, attention classifier, encoder-decoder Transformer."""

import functools

import flax.linen as nn
import jax.numpy as jnp


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.mlp_dim)(x))
        return nn.Dense(x.shape[-1])(y)


class MixerBlock(nn.Module):
    tokens_mlp_dim: int
    channels_mlp_dim: int
    map_tokens: bool = True

    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = jnp.swapaxes(MlpBlock(self.tokens_mlp_dim, name="token_mixing")(y), 1, 2)
        x = x + y
        y = nn.LayerNorm()(x)
        channel_mlp = MlpBlock
        if self.map_tokens:  # one network for every token, mapped, not broadcast
            channel_mlp = nn.vmap(
                MlpBlock,
                in_axes=1,
                out_axes=1,
                variable_axes={"params": None},
                split_rngs={"params": False},
            )
        return x + channel_mlp(self.channels_mlp_dim, name="channel_mixing")(y)


class MlpMixer(nn.Module):
    """Tolstikhin et al., MLP-Mixer, 2021."""

    num_classes: int = 10
    num_blocks: int = 1
    patch_size: int = 4
    hidden_dim: int = 6
    tokens_mlp_dim: int = 3
    channels_mlp_dim: int = 8
    map_tokens: bool = True

    @nn.compact
    def __call__(self, inputs, *, train: bool = False):
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.hidden_dim, patch, strides=patch, name="stem")(inputs)
        x = x.reshape((x.shape[0], -1, x.shape[-1]))
        for _ in range(self.num_blocks):
            x = MixerBlock(self.tokens_mlp_dim, self.channels_mlp_dim, self.map_tokens)(
                x
            )
        x = jnp.mean(nn.LayerNorm(name="pre_head_layer_norm")(x), axis=1)
        return nn.Dense(self.num_classes, name="head")(x)


class AttentionClassifier(nn.Module):
    """Rows of an image as tokens, one attention layer, class token."""

    num_classes: int = 10
    features: int = 8
    num_heads: int = 2

    def setup(self):
        self.embed = nn.Dense(self.features)
        self.cls = self.param("cls", nn.initializers.normal(0.02), (self.features,))
        self.attention = nn.MultiHeadDotProductAttention(
            self.num_heads, dropout_rate=0.1, decode=False
        )
        self.norm = nn.LayerNorm()
        self.head = nn.Dense(self.num_classes)

    def __call__(self, images, deterministic: bool = True):
        batch, height = images.shape[:2]
        x = self.embed(images.reshape((batch, height, -1)))
        cls = jnp.broadcast_to(self.cls, (batch, 1, self.features))
        x = jnp.concatenate([cls, x], axis=1)
        y = self.norm(x)
        x = x + self.attention(y, y, deterministic=deterministic)
        return self.head(x[:, 0])


class EncoderLayer(nn.Module):
    num_heads: int

    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.num_heads, name="self_attention")(
            y, mask=mask
        )
        return x + MlpBlock(2 * x.shape[-1], name="mlp")(nn.LayerNorm()(x)), None


class DecoderLayer(nn.Module):
    num_heads: int

    @nn.compact
    def __call__(self, x, encoded, decoder_mask, cross_mask):
        attention = functools.partial(nn.MultiHeadDotProductAttention, self.num_heads)
        y = nn.LayerNorm()(x)
        x = x + attention(name="self_attention")(y, mask=decoder_mask)
        y = nn.LayerNorm()(x)
        x = x + attention(name="cross_attention")(y, encoded, mask=cross_mask)
        x = x + PartitionedMlp(2 * x.shape[-1], name="mlp")(nn.LayerNorm()(x))
        return x, None


class PartitionedMlp(nn.Module):
    """Tensor-parallel: each kernel carries the names of its mesh axes."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        column = nn.with_partitioning(init, (None, "model"))
        row = nn.with_partitioning(init, ("model", None))
        y = nn.relu(nn.Dense(self.mlp_dim, kernel_init=column, name="wi")(x))
        return nn.Dense(x.shape[-1], kernel_init=row, name="wo")(y)


class Transformer(nn.Module):
    """Vaswani et al., 2017: tokens and target tokens to logits of the next token."""

    vocabulary: int = 11
    features: int = 4
    num_heads: int = 2
    num_layers: int = 2
    scan_layers: bool = True

    @nn.compact
    def __call__(self, inputs, targets):
        embed = nn.Embed(self.vocabulary, self.features, name="shared_embedding")
        encoder_mask = nn.make_attention_mask(inputs > 0, inputs > 0)
        cross_mask = nn.make_attention_mask(targets > 0, inputs > 0)
        decoder_mask = nn.combine_masks(
            nn.make_attention_mask(targets > 0, targets > 0),
            nn.make_causal_mask(targets),
        )
        x = self.stack(EncoderLayer, "encoder", embed(inputs), encoder_mask)
        shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        y = self.stack(
            DecoderLayer, "decoder", embed(shifted), x, decoder_mask, cross_mask
        )
        y = nn.LayerNorm(name="decoder_norm")(y)
        return nn.Dense(self.vocabulary, use_bias=False, name="logits")(y)

    def stack(self, layer, name, x, *context):
        if not self.scan_layers:
            for i in range(self.num_layers):
                x, _ = layer(self.num_heads, name=f"{name}_{i}")(x, *context)
            return x
        scanned = nn.scan(
            nn.remat(layer, prevent_cse=False),
            variable_axes={"params": 1},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(self.num_heads, name=name)(x, *context)[0]
