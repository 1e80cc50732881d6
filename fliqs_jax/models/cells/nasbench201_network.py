"""The network that NAS-Bench-201 makes of a cell: three stages of five such cells."""

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
from fliqs_jax.models.cells.nasbench201 import (
    NASBENCH201_EDGES,
    NASBENCH201_WIDTHS,
    nasbench201_operations,
)
from fliqs_jax.models.cells.operations import Norm, convolution, make_operation

# The residual network among the cells: two 3x3 convolutions and a shortcut.
RESNET_CELL = (
    "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
)


class NasBench201Cell(nn.Module):
    """Four nodes, each the sum of an operation of every node before it.

    An operation's path is its name, source and target: "nor_conv_3x3_0_1".
    """

    operations: tuple[str, ...]  # in the order of NASBENCH201_EDGES
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"]
    ) -> Float[jax.Array, "B H W C"]:
        nodes = [[images]]  # each a list of what it sums
        edges = zip(NASBENCH201_EDGES, self.operations, strict=True)
        for (source, target), operation in edges:
            if target == len(nodes):
                nodes[-1] = functools.reduce(operator.add, nodes[-1])
                nodes.append([])
            module = make_operation(
                operation,
                norm=self.norm,
                dtype=self.dtype,
                name=f"{operation}_{source}_{target}",
            )
            nodes[-1].append(module(nodes[source]))
        return functools.reduce(operator.add, nodes[-1])


class ReductionBlock(nn.Module):
    """Doubles the channels and halves the image: a residual block between stages."""

    features: int
    norm: Norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"]
    ) -> Float[jax.Array, "B h w features"]:
        conv = functools.partial(convolution, self.features, dtype=self.dtype)
        x = self.norm()(conv(3, 2)(nn.relu(images)))
        x = self.norm()(conv(3)(nn.relu(x)))
        # "SAME" so that an odd image halves as it does in the convolution.
        shortcut = nn.avg_pool(
            images, (2, 2), (2, 2), padding="SAME", count_include_pad=False
        )
        return x + conv(1, name="shortcut")(shortcut)


class NasBench201Network(nn.Module):
    """Classifies small images with a cell of NAS-Bench-201, 15 times over.

    A 3x3 convolution, then cells at 16, 32 and 64 channels, with a residual block that
    halves the image between the stages. Cells are "cell_0" to "cell_14". Parameters and
    MACs are those of `nasbench201_counts`.

    Args:
      num_classes: length of the logits.
      cell: index, string or operations of a cell; the residual network if left out.
      width: channels of the first stage; the others have two and four times as many.
      num_cells: cells in each of the three stages.
      dtype: of the computation; parameters and batch statistics stay float32.

    Raises:
      ValueError: if `cell` is no cell of the space; names the nearest one.

    Reference:
      Dong and Yang, NAS-Bench-201, 2020, https://arxiv.org/abs/2001.00326

    Example:
      >>> model = NasBench201Network(cell=6111, width=4, num_cells=1)
      >>> images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
      (2, 10)
    """

    num_classes: int = 10
    cell: int | str | tuple[str, ...] = RESNET_CELL
    width: int = 16
    num_cells: int = 5
    dtype: Any = jnp.float32

    def __post_init__(self):
        check_at_least(
            1, num_classes=self.num_classes, width=self.width, num_cells=self.num_cells
        )
        nasbench201_operations(self.cell)  # raises for what is no cell
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Returns float32 logits; `train` takes and updates the batch's statistics."""
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        operations = nasbench201_operations(self.cell)
        stem = convolution(self.width, 3, dtype=self.dtype, name="stem")
        x = norm()(stem(jnp.asarray(images)))
        for stage, multiple in enumerate(NASBENCH201_WIDTHS):
            if stage:
                x = ReductionBlock(
                    multiple * self.width, norm, self.dtype, name=f"reduce_{stage}"
                )(x)
            for number in range(stage * self.num_cells, (stage + 1) * self.num_cells):
                x = NasBench201Cell(
                    operations, norm, self.dtype, name=f"cell_{number}"
                )(x)
        features = nn.relu(norm()(x)).mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(features)
        return logits.astype(jnp.float32)
