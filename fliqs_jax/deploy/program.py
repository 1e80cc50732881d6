"""A network as one serialized program: runs anywhere that JAX does, without its code.

The program is JAX's portable StableHLO (`jax.export`), the weights in it as numbers of
their formats in the smallest type that holds them, times their scales.
"""

import importlib.util
from collections.abc import Callable, Sequence

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float

from fliqs_jax.quantized_model.weights import StoredWeight

_TYPES = (np.int8, np.uint8, np.int16, ml_dtypes.bfloat16, np.float16)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def compact_weight(stored: StoredWeight) -> Callable[[], Float[Array, "..."]]:
    """Returns a function that makes a weight from its smallest exact form.

    Example:
      >>> make = compact_weight(StoredWeight(jnp.array([-1.0, 3.0]), jnp.array([0.5])))
      >>> make()
      Array([-0.5,  1.5], dtype=float32)
    """
    numbers, scale = (np.asarray(part) for part in stored)
    for kind in _TYPES:
        with np.errstate(invalid="ignore"):  # floats beyond an integer's range
            small = numbers.astype(kind)
        if np.array_equal(small.astype(np.float32), numbers):
            return lambda: jnp.asarray(small).astype(jnp.float32) * scale
    return lambda: jnp.asarray(numbers) * scale


def check_exportable(platforms: Sequence[str] = PLATFORMS) -> None:
    """Refuses what `serialize_program` could not do, before any work.

    Raises:
      ModuleNotFoundError: if flatbuffers is missing.
      ValueError: if a platform is unknown.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "jax.export needs the package flatbuffers to serialize a program:"
            " pip install flatbuffers"
        )
    if unknown := sorted(set(platforms) - set(PLATFORMS)):
        raise ValueError(f"platforms: {unknown[0]!r} is none of {', '.join(PLATFORMS)}")


def serialize_program(
    function: Callable[[Array], Array],
    image_shape: Sequence[int],
    *,
    platforms: Sequence[str] = PLATFORMS,
    batch_size: int | None = None,
) -> bytes:
    """Returns a function of uint8 images as bytes for `jax.export.deserialize`.

    Args:
      function: of images [B, *image_shape], traceable.
      image_shape: of one image.
      platforms: on which it shall run.
      batch_size: B; None leaves it open, which not every model permits.

    Raises:
      ModuleNotFoundError: if flatbuffers is missing.
      ValueError: if a platform is unknown, or the model needs to know B.
    """
    check_exportable(platforms)
    size = batch_size or jax.export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((size, *image_shape), np.uint8)
    export = jax.export.export(jax.jit(function), platforms=tuple(platforms))
    try:
        exported = export(images)
    except (
        jax.errors.InconclusiveDimensionOperation,
        jax.errors.ConcretizationTypeError,
        TypeError,  # of `len(images)`
    ) as error:
        if batch_size is not None:
            raise
        raise ValueError(
            "batch_size: the model needs a fixed number of images a call, give one"
            " (--fixed_batch)"
        ) from error
    return bytes(exported.serialize())
