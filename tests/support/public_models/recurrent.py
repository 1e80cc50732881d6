"""Recurrent patterns: nn.RNN, an own scan over a cell, both directions."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class LstmClassifier(nn.Module):
    """The last hidden state of an nn.RNN decides."""

    cell: Any = nn.OptimizedLSTMCell
    features: int = 4
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell(self.features, name="lstm"))(x)
        return nn.Dense(self.num_classes, name="head")(x[:, -1])


class SequenceTagger(nn.Module):
    """nn.LSTMCell under nn.scan over time: an output at every step."""

    features: int = 4
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            nn.LSTMCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        carry = (jnp.zeros((x.shape[0], self.features)),) * 2
        _, y = scan(self.features, name="lstm")(carry, x)
        return nn.Dense(self.num_classes, name="head")(y)


class BidirectionalTagger(nn.Module):
    """Two recurrent networks, one from each end."""

    features: int = 3
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        forward = nn.RNN(nn.GRUCell(self.features))
        backward = nn.RNN(nn.SimpleCell(self.features))
        y = nn.Bidirectional(forward, backward)(x)
        return nn.Dense(self.num_classes)(y)
