"""The FLIQNAS space: kernel, expansion and channels of a MobileNetV2.

The option lists are TuNAS's, those of FLIQNAS being unpublished. A smaller kernel is
the centre of the largest one, where TuNAS keeps a kernel of its own for each size: a
mask does it, and no decision changes the program.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from fliqs_jax.models.inverted_residual import make_divisible
from fliqs_jax.models.mobilenet_v2 import MobileNetSizes, MobileNetV2
from fliqs_jax.models.supernets.network import Decision, Number, SuperNetwork

# Channels, blocks, stride of the first, of each stage. The first stage has expansion 1.
IMAGENET_STAGES = (
    (16, 1, 1),
    (24, 2, 2),
    (32, 3, 2),
    (64, 4, 2),
    (96, 3, 1),
    (160, 3, 2),
    (320, 1, 1),
)
CIFAR_STAGES = ((16, 1, 1), (24, 2, 1), (32, 2, 2), (64, 2, 2), (96, 1, 1))
_MULTIPLIERS = (0.5, 0.625, 0.75, 1, 1.25, 1.5, 2.0)

_BLOCK = {
    "expand/kernel": (None, None, "in", "hidden"),
    "BatchNorm_0/.*": ("hidden",),
    "depthwise/kernel": ("window", "window", None, "hidden"),
    "BatchNorm_1/.*": ("hidden",),
    "project/kernel": (None, None, "hidden", "out"),
    "BatchNorm_2/.*": ("out",),
}
_BLOCK_UNEXPANDED = {
    "depthwise/kernel": ("window", "window", None, "hidden"),
    "BatchNorm_0/.*": ("hidden",),
    "project/kernel": (None, None, "hidden", "out"),
    "BatchNorm_1/.*": ("out",),
}


def mobilenet_v2_supernet(
    *,
    num_classes: int = 1000,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    stages: Sequence[tuple[int, int, int]] = IMAGENET_STAGES,
    stem: int = 32,
    stem_stride: int = 2,
    head: int = 1280,
    multipliers: Sequence[int | float] = _MULTIPLIERS,
    kernels: Sequence[int] = (3, 5, 7),
    expansions: Sequence[int] = (3, 6),
    dtype: Any = jnp.float32,
) -> SuperNetwork:
    """Returns sub-networks of a MobileNetV2: the space of TuNAS and FLIQNAS.

    A block adds its input where it is not a stage's first, whatever the channels are.

    Args:
      num_classes: length of the logits.
      image_shape: of one image, [H, W, C].
      stages: of each the channels at multiplier 1, blocks, and stride of the first.
      stem: channels of the first convolution at multiplier 1.
      stem_stride: its stride; 1 for small images.
      head: channels before the classifier at multiplier 1.
      multipliers: of the channels of stem, stages and head, each for itself, then
        rounded to multiples of 8; ascending.
      kernels: sides of the depthwise windows, odd, no less than a stride.
      expansions: channels of a block's middle over those that come in; at least 2, as
        blocks with 1 have no expanding layer (those of the first stage, always).
      dtype: of the computation.

    Raises:
      ValueError: if options are not ascending, a kernel is even or smaller than a
        stride, or an expansion is below 2.

    Reference:
      Bender et al., TuNAS, 2020, https://arxiv.org/abs/2008.06120 (MobileNetV2 space);
      Dotzel et al., FLIQS, 2024, section on FLIQNAS, https://arxiv.org/abs/2308.03290

    Example:
      >>> net = mobilenet_v2_supernet()
      >>> len(net.decisions), max(net.counts.values())  # 9 + 17 + 16
      (42, 7)
    """
    if any(side % 2 == 0 for side in kernels):
        raise ValueError(f"kernels must be odd, to have a centre, got {kernels}")
    steps = max(stride for _, _, stride in stages)
    if min(kernels) < steps:  # "SAME" would put its centre elsewhere
        raise ValueError(f"kernels must be at least a stride, {steps}, got {kernels}")
    if min(expansions) < 2:
        raise ValueError(f"expansions must be at least 2, got {expansions}")
    blocks = [
        (stage, stride if index == 0 else 1, index > 0)
        for stage, (_, count, stride) in enumerate(stages)
        for index in range(count)
    ]

    def channels(name: str, base: int) -> Decision:
        counts = sorted({make_divisible(base * factor) for factor in multipliers})
        return Decision(name=name, options=tuple(counts))

    decisions = [channels("stem/channels", stem)]
    for stage, (base, _, _) in enumerate(stages):
        decisions.append(channels(f"stage{stage}/channels", base))
    decisions.append(channels("head/channels", head))
    for number, (stage, _, _) in enumerate(blocks):
        name = f"block{number}"
        decisions.append(Decision(name=f"{name}/kernel", options=tuple(kernels)))
        if stage > 0:
            options = tuple(expansions)
            decisions.append(Decision(name=f"{name}/expansion", options=options))

    def sizes(options: Mapping[str, Number]) -> dict[str, Number]:
        found = {"stem": options["stem/channels"], "head": options["head/channels"]}
        came = found["stem"]
        for stage in range(len(stages)):
            found[f"stage{stage}"] = options[f"stage{stage}/channels"]
        for number, (stage, _, _) in enumerate(blocks):
            expansion = options[f"block{number}/expansion"] if stage > 0 else 1
            found[f"block{number}/window"] = options[f"block{number}/kernel"]
            found[f"block{number}/hidden"] = came * expansion
            came = found[f"stage{stage}"]
        return found

    def build(found: Mapping[str, int]) -> MobileNetV2:
        settings, came = [], int(found["stem"])
        for number, (stage, stride, residual) in enumerate(blocks):
            expansion = int(found[f"block{number}/hidden"]) // came
            came = int(found[f"stage{stage}"])
            window = int(found[f"block{number}/window"])
            settings.append((came, expansion, window, stride, residual))
        layers = MobileNetSizes(
            stem=int(found["stem"]),
            blocks=tuple(settings),
            head=int(found["head"]),
            stem_stride=stem_stride,
        )
        return MobileNetV2(num_classes, sizes=layers, dtype=dtype)

    axes = {
        "stem/kernel": (None, None, None, "stem"),
        "BatchNorm_0/.*": ("stem",),
        "head/kernel": (None, None, f"stage{len(stages) - 1}", "head"),
        "BatchNorm_1/.*": ("head",),
        "Dense_0/kernel": ("head", None),
    }
    for number, (stage, _, inner) in enumerate(blocks):
        came = "stem" if number == 0 else f"stage{stage if inner else stage - 1}"
        names = {"in": came, "out": f"stage{stage}", None: None}
        names |= {kind: f"block{number}/{kind}" for kind in ("hidden", "window")}
        layers = _BLOCK if stage > 0 else _BLOCK_UNEXPANDED
        for pattern, dims in layers.items():
            path = f"InvertedResidual_{number}/{pattern}"
            axes[path] = tuple(names[dim] for dim in dims)
    full = {decision.name: decision.options[-1] for decision in decisions}
    return SuperNetwork(
        model=build(sizes(full)),
        decisions=tuple(decisions),
        sizes=sizes,
        axes=axes,
        build=build,
        image_shape=tuple(image_shape),
        windows=frozenset(f"block{number}/window" for number in range(len(blocks))),
    )
