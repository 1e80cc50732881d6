"""Vision transformer super-networks: layers, heads and hidden units of each layer.

The length of a token is never elastic, as in SimQ-NAS: layer norms see whole tokens.
The full network is `ViT`, so trained weights of it fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from fliqs_jax.models.supernets.network import Decision, Number, SuperNetwork
from fliqs_jax.models.vit import ViT

_LAYER = {
    "LayerNorm_[01]/.*": ("token",),
    "MultiHeadDotProductAttention_0/(query|key|value)/kernel": (None, "heads", None),
    "MultiHeadDotProductAttention_0/(query|key|value)/bias": ("heads", None),
    "MultiHeadDotProductAttention_0/out/kernel": ("heads", None, None),
    "MultiHeadDotProductAttention_0/out/bias": ("token",),
    "Dense_0/kernel": (None, "mlp"),
    "Dense_0/bias": ("mlp",),
    "Dense_1/kernel": ("mlp", None),
    "Dense_1/bias": ("token",),
}


def vit_supernet(
    *,
    num_classes: int = 1000,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    patch_size: int = 16,
    dim: int = 768,
    head_dim: int = 64,
    num_layers: int = 12,
    layers: Sequence[int] | None = (10, 11, 12),
    heads: Sequence[int] = (6, 8, 10, 12),
    mlp_dims: Sequence[int] = (1024, 2048, 3072),
    class_token: bool = True,
    dtype: Any = jnp.float32,
) -> SuperNetwork:
    """Returns sub-networks of a vision transformer; SimQ-NAS's of ViT-B/16 by default.

    Kept are the first layers, in each the first heads and the first hidden units.

    Args:
      num_classes: length of the logits.
      image_shape: of one image, [H, W, C].
      patch_size: side of a patch in pixels.
      dim: length of a token.
      head_dim: length of a head; trained weights of `ViT` fit if the most heads times
        this are `dim`.
      num_layers: of the full network.
      layers: how many layers there may be, the last being `num_layers`; None is that or
        one less.
      heads: how many heads a layer may have.
      mlp_dims: how many hidden units.
      class_token: as of `ViT`.
      dtype: of the computation.

    Raises:
      ValueError: if options are not ascending or begin below 1, or `layers` ends at
        another number.

    Reference:
      SimQ-NAS, 2023, https://arxiv.org/abs/2312.13301; InstaTune, 2023,
      https://arxiv.org/abs/2308.15609

    Example:
      >>> len(vit_supernet().decisions)  # 1 + 12 + 12
      25
    """
    depths = tuple(layers or range(max(1, num_layers - 1), num_layers + 1))
    if depths[-1] != num_layers:
        raise ValueError(f"layers must end at num_layers={num_layers}, got {depths}")
    least = min(*depths, *heads, *mlp_dims)
    if least < 1:
        raise ValueError(
            f"layers, heads and mlp_dims must be at least 1, got {least}: such a"
            " network could be searched, but not be built"
        )
    decisions = [Decision(name="layers", options=depths)]
    for number in range(num_layers):
        for kind, options in (("heads", heads), ("mlp", mlp_dims)):
            decisions.append(
                Decision(
                    name=f"layer{number}/{kind}",
                    options=tuple(options),
                    within=f"layer{number}/token",
                )
            )

    def sizes(options: Mapping[str, Number]) -> dict[str, Number]:
        found = {}
        for number in range(num_layers):
            live = number < options["layers"]
            found[f"layer{number}/token"] = dim * live
            for kind in ("heads", "mlp"):
                name = f"layer{number}/{kind}"
                found[name] = options[name] * live
        return found

    def build(found: Mapping[str, int]) -> ViT:
        pairs = [
            (int(found[f"layer{number}/heads"]), int(found[f"layer{number}/mlp"]))
            for number in range(num_layers)
        ]
        return ViT(
            num_classes=num_classes,
            patch_size=patch_size,
            dim=dim,
            layers=tuple(pair for pair in pairs if min(pair)),
            head_dim=head_dim,
            class_token=class_token,
            dtype=dtype,
        )

    axes = {
        f"EncoderLayer_{number}/{pattern}": tuple(
            dim and f"layer{number}/{dim}" for dim in dims
        )
        for number in range(num_layers)
        for pattern, dims in _LAYER.items()
    }
    full = {decision.name: decision.options[-1] for decision in decisions}
    return SuperNetwork(
        model=build(sizes(full)),
        decisions=tuple(decisions),
        sizes=sizes,
        axes=axes,
        build=build,
        image_shape=tuple(image_shape),
    )
