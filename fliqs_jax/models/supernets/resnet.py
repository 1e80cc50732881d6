"""Residual super-networks: depth and width of every stage, expansion of every block.

As in Once-for-All's ResNet-50, whose stem is a deep one and here one convolution. The
full networks are `CifarResNet` and `ImageNetResNet`, so trained weights of these fit
where depths, widths and expansions end at theirs: of `resnet_imagenet` not by default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from fliqs_jax.models.cifar_resnet import CifarResNet
from fliqs_jax.models.imagenet_resnet import ImageNetResNet
from fliqs_jax.models.resnet_sizes import ResNetSizes
from fliqs_jax.models.supernets.network import Decision, Number, SuperNetwork

_CIFAR_BLOCK = {
    "Conv_0/kernel": (None, None, "in", "hidden"),
    "BatchNorm_0/.*": ("hidden",),
    "Conv_1/kernel": (None, None, "hidden", "out"),
    "BatchNorm_1/.*": ("out",),
}
_CIFAR_SHORTCUT = {
    "Conv_2/kernel": (None, None, "in", "out"),
    "BatchNorm_2/.*": ("out",),
}
_BOTTLENECK = {
    "Conv_0/kernel": (None, None, "in", "hidden"),
    "BatchNorm_0/.*": ("hidden",),
    "Conv_1/kernel": (None, None, "hidden", "hidden"),
    "BatchNorm_1/.*": ("hidden",),
    "Conv_2/kernel": (None, None, "hidden", "out"),
    "BatchNorm_2/.*": ("out",),
}
_BOTTLENECK_SHORTCUT = {
    "shortcut/kernel": (None, None, "in", "out"),
    "BatchNorm_3/.*": ("out",),
}


def cifar_resnet_supernet(
    *,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    depths: Sequence[Sequence[int]] = ((1, 2, 3),) * 3,
    widths: Sequence[Sequence[int]] = ((8, 12, 16), (16, 24, 32), (32, 48, 64)),
    expansions: Sequence[int] = (50, 75, 100),
    divisor: int = 4,
    dtype: Any = jnp.float32,
) -> SuperNetwork:
    """Returns sub-networks of a ResNet of the CIFAR family; ResNet-20 by default.

    The stem has the width of the first stage, as its first block has no projection.

    Args:
      num_classes: length of the logits.
      image_shape: of one image, [H, W, C].
      depths: for each of the three stages, how many blocks it may have.
      widths: for each stage, how many channels.
      expansions: channels between a block's convolutions, in percent of its width.
      divisor: of the channels in between, which are at least this.
      dtype: of the computation.

    Raises:
      ValueError: if a list of options is not ascending, of another length, or begins
        below 1.

    Example:
      >>> cifar_resnet_supernet(depths=((1,), (1, 2), (1, 2))).full.tolist()
      [0, 2, 1, 2, 1, 2, 2, 2, 2, 2, 2]
    """
    decisions = _decisions(depths, widths, expansions)

    def sizes(options: Mapping[str, Number]) -> dict[str, Number]:
        found = _block_sizes(options, depths, divisor)
        return {**found, "stem": found["stage0"]}

    def build(found: Mapping[str, int]) -> CifarResNet:
        return CifarResNet(num_classes, sizes=_resnet_sizes(found, depths), dtype=dtype)

    axes = {"Conv_0/kernel": (None, None, None, "stem"), "BatchNorm_0/.*": ("stem",)}
    axes |= _block_axes("Block", depths, _CIFAR_BLOCK, _CIFAR_SHORTCUT, project=1)
    return _supernet(decisions, sizes, axes, build, image_shape)


def imagenet_resnet_supernet(
    *,
    num_classes: int = 1000,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    depths: Sequence[Sequence[int]] = ((2, 3, 4), (2, 3, 4), (4, 5, 6), (2, 3, 4)),
    stem: Sequence[int] = (40, 48, 64),
    widths: Sequence[Sequence[int]] = (
        (168, 208, 256),
        (336, 408, 512),
        (664, 816, 1024),
        (1328, 1640, 2048),
    ),
    expansions: Sequence[int] = (20, 25, 35),
    divisor: int = 8,
    dtype: Any = jnp.float32,
) -> SuperNetwork:
    """Returns sub-networks of a bottleneck ResNet for ImageNet.

    By default those of Once-for-All's ResNet-50: widths are 0.65, 0.8 and 1 of the
    usual, rounded to multiples of 8.

    Args:
      num_classes: length of the logits.
      image_shape: of one image, [H, W, C].
      depths: for each of the four stages, how many blocks it may have.
      stem: how many channels the first convolution may have.
      widths: for each stage, how many channels.
      expansions: channels of a block's inner convolutions, in percent of its width.
      divisor: of the inner channels, which are at least this.
      dtype: of the computation.

    Raises:
      ValueError: if a list of options is not ascending, of another length, or begins
        below 1.

    Reference:
      Cai et al., Once-for-All, 2020, https://arxiv.org/abs/1908.09791 (its ResNet-50
      space, as SimQ-NAS searches it)

    Example:
      >>> len(imagenet_resnet_supernet().decisions)  # stem, 2 x 4, 4 + 4 + 6 + 4
      27
    """
    decisions = (
        Decision(name="stem/width", options=tuple(stem)),
        *_decisions(depths, widths, expansions),
    )

    def sizes(options: Mapping[str, Number]) -> dict[str, Number]:
        found = _block_sizes(options, depths, divisor)
        return {**found, "stem": options["stem/width"]}

    def build(found: Mapping[str, int]) -> ImageNetResNet:
        return ImageNetResNet(
            num_classes,
            bottleneck=True,
            sizes=_resnet_sizes(found, depths),
            dtype=dtype,
        )

    axes = {"stem/kernel": (None, None, None, "stem"), "BatchNorm_0/.*": ("stem",)}
    axes |= _block_axes(
        "BottleneckBlock", depths, _BOTTLENECK, _BOTTLENECK_SHORTCUT, project=0
    )
    return _supernet(decisions, sizes, axes, build, image_shape)


def _supernet(decisions, sizes, axes, build, image_shape) -> SuperNetwork:
    full = {decision.name: decision.options[-1] for decision in decisions}
    return SuperNetwork(
        model=build(sizes(full)),
        decisions=decisions,
        sizes=sizes,
        axes=axes,
        build=build,
        image_shape=tuple(image_shape),
    )


def _decisions(depths, widths, expansions) -> tuple[Decision, ...]:
    least = min(min(options) for options in (*depths, *widths, expansions))
    if least < 1:  # such a stage or block could be searched, but not be built
        raise ValueError(
            f"depths, widths and expansions must be at least 1, got {least}: a stage"
            " has a block"
        )
    found = []
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        found.append(Decision(name=f"stage{stage}/depth", options=tuple(depth)))
        found.append(Decision(name=f"stage{stage}/width", options=tuple(width)))
    for stage, block, number in _blocks(depths):
        name = f"stage{stage}/block{block}/expansion"
        options = tuple(expansions)
        found.append(Decision(name=name, options=options, within=f"block{number}"))
    return tuple(found)


def _blocks(depths):
    """Yields (stage, block in it, number of the block) for the deepest network."""
    number = 0
    for stage, options in enumerate(depths):
        for block in range(options[-1]):
            yield stage, block, number
            number += 1


def _block_sizes(options, depths, divisor: int) -> dict[str, Number]:
    found = {f"stage{s}": options[f"stage{s}/width"] for s in range(len(depths))}
    for stage, block, number in _blocks(depths):
        width = found[f"stage{stage}"]
        live = block < options[f"stage{stage}/depth"]
        percent = options[f"stage{stage}/block{block}/expansion"]
        hidden = (width * percent + 50 * divisor) // (100 * divisor) * divisor
        hidden = hidden + (divisor - hidden) * (hidden < divisor)
        found[f"block{number}"] = width * live
        found[f"block{number}/hidden"] = hidden * live
    return found


def _resnet_sizes(found: Mapping[str, int], depths) -> ResNetSizes:
    stages = [(int(found[f"stage{stage}"]), []) for stage in range(len(depths))]
    for stage, _, number in _blocks(depths):
        if hidden := int(found[f"block{number}/hidden"]):
            stages[stage][1].append((number, hidden))
    return ResNetSizes(
        stem=int(found["stem"]),
        stages=tuple((width, tuple(blocks)) for width, blocks in stages),
    )


def _block_axes(class_name, depths, inside, shortcut, *, project: int) -> dict:
    """Axes of all blocks; shortcuts of a stage's first block from `project` on."""
    axes = {"Dense_0/kernel": (f"stage{len(depths) - 1}", None)}
    for stage, block, number in _blocks(depths):
        came = "stem" if number == 0 else f"stage{stage - (block == 0)}"
        names = {
            "in": came,
            "hidden": f"block{number}/hidden",
            "out": f"block{number}",
            None: None,
        }
        layers = {**inside, **(shortcut if block == 0 and stage >= project else {})}
        for pattern, dims in layers.items():
            path = f"{class_name}_{number}/{pattern}"
            axes[path] = tuple(names[dim] for dim in dims)
    return axes
