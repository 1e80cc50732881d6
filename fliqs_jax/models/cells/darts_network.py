"""The networks that DARTS trains with a genotype, for CIFAR-10 and for ImageNet."""

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from fliqs_jax.checks import check_at_least
from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.cells.darts import (
    DARTS_NODES,
    DARTS_V2,
    DartsGenotype,
    darts_genotype,
)
from fliqs_jax.models.cells.darts_counts import darts_places, darts_stride
from fliqs_jax.models.cells.operations import (
    FactorizedReduce,
    Norm,
    ReluConvNorm,
    convolution,
    make_operation,
)

Images = Float[jax.Array, "B H W C"]


class DartsCell(nn.Module):
    """Two inputs made alike, four nodes of two operations each, joined.

    An operation's path is its name, source and target: "sep_conv_3x3_0_2"; the 1x1
    convolutions of the inputs are "input_0" and "input_1".
    """

    pairs: tuple[tuple[str, int], ...]  # (operation, source), two a node
    channels: int  # of a node
    reduction: bool
    after_reduction: bool  # the first input is twice as large as the second
    norm: Norm
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        before: Images,
        last: Float[jax.Array, "B h w c"],
        train: bool,
        ramp: ArrayLike,
    ) -> Float[jax.Array, "B y x features"]:
        make = {"norm": self.norm, "dtype": self.dtype}
        conv = functools.partial(ReluConvNorm, 1, features=self.channels, **make)
        if self.after_reduction:
            first = FactorizedReduce(self.channels, **make, name="input_0")
        else:
            first = conv(name="input_0")
        nodes = [first(before), conv(name="input_1")(last)]
        for number, node in enumerate(DARTS_NODES):
            incoming = []
            for operation, source in self.pairs[2 * number : 2 * number + 2]:
                stride = darts_stride(self.reduction, source)
                module = make_operation(
                    operation,
                    stride=stride,
                    **make,
                    name=f"{operation}_{source}_{node}",
                )
                x = module(nodes[source])
                identity = operation == "skip_connect" and stride == 1
                if train and self.drop_path and not identity:
                    x = self._dropped(x, ramp)
                incoming.append(x)
            nodes.append(functools.reduce(operator.add, incoming))
        return jnp.concatenate(nodes[2:], -1)

    def _dropped(self, x: jax.Array, ramp: ArrayLike) -> jax.Array:
        """Zeroes the path in some examples, and enlarges it in the others to match."""
        kept = 1 - self.drop_path * jnp.asarray(ramp, jnp.float32)
        mask = jax.random.bernoulli(
            self.make_rng("dropout"), kept, (x.shape[0], 1, 1, 1)
        )
        return x * (mask / kept).astype(x.dtype)


class AuxiliaryHead(nn.Module):
    """A second classifier, from the output of the second reduction."""

    num_classes: int
    stride: int  # of its pooling
    last_norm: bool
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "B num_classes"]:
        if min(images.shape[1:3]) < 5 + self.stride:
            raise ValueError(
                f"images are {images.shape[1]} x {images.shape[2]} after the second"
                f" reduction, and the auxiliary head needs {5 + self.stride} pixels:"
                " enlarge them, or build the network with auxiliary=False"
            )
        x = nn.avg_pool(nn.relu(images), (5, 5), (self.stride, self.stride))
        x = nn.relu(self.norm()(convolution(128, 1, dtype=self.dtype)(x)))
        x = nn.Conv(768, (2, 2), padding="VALID", use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(self.norm()(x) if self.last_norm else x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))


class DartsNetwork(nn.Module):
    """Classifies images with the cells of a DARTS genotype.

    Cells are "cell_0" and so on; cells `layers // 3` and `2 * layers // 3` are
    reductions. Parameters and MACs are those of `darts_counts`.

    The auxiliary head exists in training only: apply with mutable=["auxiliary", ...] to
    find its logits in {"auxiliary": {"logits": (...,)}}. Drop path draws from the
    stream "dropout".

    Args:
      num_classes: length of the logits.
      genotype: or its text, or "DARTS_V1" or "DARTS_V2".
      channels: of a node in the first cell; even.
      layers: number of cells.
      imagenet_stem: three strided convolutions before the first cell, instead of one
        that keeps the image and has three times the channels.
      auxiliary: a second classifier in training, after the second reduction.
      drop_path: probability that an operation is left out of an example in training;
        skip connections at stride 1 never are. In [0, 1).
      dtype: of the computation; parameters and batch statistics stay float32.

    Raises:
      ValueError: if a field is unusable.

    Reference:
      Liu, Simonyan and Yang, DARTS, 2019, https://arxiv.org/abs/1806.09055

    Example:
      >>> model = DartsNetwork(channels=4, layers=3)
      >>> images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    num_classes: int = 10
    genotype: DartsGenotype | str = DARTS_V2
    channels: int = 36
    layers: int = 20
    imagenet_stem: bool = False
    auxiliary: bool = False
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(1, num_classes=self.num_classes)
        if not 0 <= self.drop_path < 1:
            raise ValueError(
                f"drop_path must be at least 0 and below 1, got {self.drop_path}"
            )
        darts_places(self.channels, self.layers)  # both raise for what they cannot use
        darts_genotype(self.genotype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: Float[ArrayLike, "B H W C"],
        train: bool = False,
        ramp: ArrayLike = 1.0,
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics.

        Args:
          images: floats.
          train: use the batch's statistics, drop paths, compute the auxiliary logits.
          ramp: share of `drop_path` in force, which training raises from 0 to 1.
        """
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        genotype = darts_genotype(self.genotype)
        images = jnp.asarray(images)
        before, last = self._stem(images, norm)
        places = darts_places(
            self.channels,
            self.layers,
            images.shape[1:],
            imagenet_stem=self.imagenet_stem,
        )
        for layer, place in enumerate(places):
            cell = DartsCell(
                genotype.reduce if place.reduction else genotype.normal,
                place.channels,
                place.reduction,
                place.after_reduction,
                norm,
                self.drop_path,
                self.dtype,
                name=f"cell_{layer}",
            )
            before, last = last, cell(before, last, train, ramp)
            if layer == 2 * self.layers // 3 and self.auxiliary:
                self._sow_auxiliary(last, norm, train)
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(last.mean((1, 2)))
        return logits.astype(jnp.float32)

    def _stem(self, images: jax.Array, norm: Norm) -> tuple[jax.Array, jax.Array]:
        conv = functools.partial(convolution, dtype=self.dtype)
        if not self.imagenet_stem:
            x = norm()(conv(3 * self.channels, 3, name="stem")(images))
            return x, x
        x = conv(self.channels // 2, 3, 2, name="stem_0")(images)
        x = conv(self.channels, 3, 2, name="stem_1")(nn.relu(norm()(x)))
        before = norm()(x)
        x = conv(self.channels, 3, 2, name="stem_2")(nn.relu(before))
        return before, norm()(x)

    def _sow_auxiliary(self, x: jax.Array, norm: Norm, train: bool) -> None:
        if not (train or self.is_initializing()):
            return
        head = AuxiliaryHead(
            self.num_classes,
            # Pooled to 2 x 2 from 8 x 8 on CIFAR-10, from 7 x 7 on ImageNet. The head
            # for ImageNet is published without its last batch normalisation.
            stride=2 if self.imagenet_stem else 3,
            last_norm=not self.imagenet_stem,
            norm=norm,
            dtype=self.dtype,
            name="auxiliary_head",
        )
        logits = head(x).astype(jnp.float32)
        if not self.is_initializing():  # variables hold no activations
            self.sow("auxiliary", "logits", logits)
