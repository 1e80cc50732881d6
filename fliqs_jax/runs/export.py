"""A finished run's network as files for deployment, checked after they are written.

`weights.safetensors` holds the weights in the bits of their formats
(`deploy.weight_file`), `network.jax_export` the whole network as a program
(`deploy.program`), `export.json` what each site expects of its input, and what was
measured. A run with codebooks has them copied (`deploy.codebook_file`).
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fliqs_jax.deploy.program import check_exportable, compact_weight, serialize_program
from fliqs_jax.deploy.weight_file import load_weights, save_weights
from fliqs_jax.files import replace_bytes
from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model.static_weights import stored_static_weights
from fliqs_jax.quantized_model.weights import StoredWeight, stored_weights
from fliqs_jax.runs.network import CODEBOOK_FILE, Network
from fliqs_jax.runs.results import versions
from fliqs_jax.train.workdir import write_json

PROGRAM, WEIGHTS, MANIFEST = "network.jax_export", "weights.safetensors", "export.json"


def export_network(
    network: Network,
    image_shape: Sequence[int],
    folder: pathlib.Path,
    *,
    platforms: Sequence[str] | None,
    batch_size: int | None = None,
    codebooks: pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a network's files and returns what `export.json` says.

    Args:
      network: from `load_network`.
      image_shape: of one image, [H, W, C].
      folder: made if absent; files of an earlier export are replaced.
      platforms: that the program shall run on; None leaves the program out.
      batch_size: images a call of the program; None leaves it open.
      codebooks: the run's codebook file, if it has one: copied in place of weights.
      config: what else to note.

    Raises:
      ModuleNotFoundError: before anything is written, if flatbuffers is missing.
      ValueError: if a platform is unknown, a weight is not finite, or weights were
        quantized after training with zero points.
    """
    weights = stored(network)  # refused before anything is written
    if platforms is not None:
        check_exportable(platforms)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    if codebooks is not None:
        files[CODEBOOK_FILE] = _write(folder / CODEBOOK_FILE, codebooks.read_bytes())
    else:
        save_weights(
            folder / WEIGHTS,
            network.variables,
            network.classifier.quantized.sites(),
            policy=network.policy,
            stored=weights,
        )
        files[WEIGHTS] = (folder / WEIGHTS).stat().st_size
    if platforms is not None:
        data = serialize_program(
            deployed(network, weights),
            image_shape,
            platforms=platforms,
            batch_size=batch_size,
        )
        files[PROGRAM] = _write(folder / PROGRAM, data)
    float_bytes = sum(
        np.size(leaf) * 4 for leaf in jax.tree.leaves(nn.meta.unbox(network.params))
    )
    manifest = {
        "fliqs_jax_export": 1,
        "image_shape": list(image_shape),
        "mean": list(network.classifier.mean),
        "std": list(network.classifier.std),
        "per_channel": network.classifier.quantized.per_channel,
        "sites": _describe(network),
        "bytes": files,
        "bytes_of_float32_params": float_bytes,
        "platforms": list(platforms or ()),
        "batch_size": batch_size,
        "versions": versions(),
        **(config or {}),
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def stored(network: Network) -> dict[tuple[str, ...], StoredWeight]:
    """Returns the weights of a network's sites as numbers and scales.

    Raises:
      ValueError: if they were quantized after training with zero points.
    """
    quantized = network.classifier.quantized
    sites = quantized.sites()
    if not network.static:
        return stored_weights(
            network.params, sites, network.formats, per_channel=quantized.per_channel
        )
    formats = network.policy.formats(sites).weight
    try:
        return stored_static_weights(
            network.params, sites, formats, per_channel=quantized.per_channel
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; weights with zero points have no place in the file: search"
            " without --weight_modes, or train the network on at its formats"
            " (--finetune_steps) and export that run"
        ) from error


def deployed(
    network: Network, weights: Mapping[tuple[str, ...], StoredWeight]
) -> Callable[[Array], Float[Array, "B C"]]:
    """Returns the network as a function of uint8 images, its weights on their grids.

    What `Network.__call__` computes, without the rounding of weights at every call.

    Args:
      network: the network.
      weights: its own, from `stored`.
    """
    makers = {path: compact_weight(weight) for path, weight in weights.items()}
    flat = flax.traverse_util.flatten_dict(network.params)
    others = {path: nn.meta.unbox(leaf) for path, leaf in flat.items()}
    inputs_alone = _inputs_alone(network)

    def predict(images: UInt8[Array, "B H W channels"]) -> Float[Array, "B C"]:
        on_grids = {path: make() for path, make in makers.items()}
        return network.classifier.predict(
            flax.traverse_util.unflatten_dict({**others, **on_grids}),
            network.model_state,
            images,
            formats=inputs_alone,
        )

    return predict


def load_program(folder: pathlib.Path) -> Callable[[Array], Float[Array, "B C"]]:
    """Returns the program of an export: uint8 images in, logits out."""
    data = (folder / PROGRAM).read_bytes()
    return jax.jit(jax.export.deserialize(bytearray(data)).call)


def loaded_weights(network: Network, folder: pathlib.Path) -> Callable[..., Array]:
    """Returns the network as a function of images, its weights read from the file."""
    variables = jax.tree.map(jnp.asarray, load_weights(folder / WEIGHTS))
    params = variables.pop("params")
    return functools.partial(
        network.classifier.predict, params, variables, formats=_inputs_alone(network)
    )


def _inputs_alone(network: Network) -> SiteFormats:
    """Returns fp32 for weights, on their grids already; a product keeps its formats."""
    formats, sites = network.formats, network.classifier.quantized.sites()
    plain = stack_formats([parse_format("fp32")] * len(sites))
    weighted = np.array([bool(site.weights) for site in sites])
    weight = jax.tree.map(
        lambda float32, own: jnp.where(weighted, float32, own), plain, formats.weight
    )
    return formats.replace(weight=weight)


def _describe(network: Network) -> list[dict[str, Any]]:
    formats, rows = network.formats, []
    for index, site in enumerate(network.classifier.quantized.sites()):
        weights, activations = network.policy[site.path]
        largest = smallest = None
        if formats.activation_clip is not None:
            largest = float(formats.activation_clip[index])
            grid = formats.activation[index]
            smallest = largest * float(grid.min_value / grid.max_value)
        rows.append(
            {
                "path": site.path,
                "op": site.op,
                "weight_shape": list(site.weight_shape),
                "weights": weights,
                "activations": activations,
                # What is kept of the input. A scale is the largest over the format's
                # largest; where the format is an integer of b bits with a zero point,
                # (largest - smallest) / (2^b - 1).
                "largest_input": largest,
                "smallest_input": smallest,
            }
        )
    return rows


def _write(path: pathlib.Path, data: bytes) -> int:
    replace_bytes(path, data)
    return len(data)
