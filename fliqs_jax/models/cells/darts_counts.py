"""What a DARTS network costs, in closed form, and where its cells stand."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from fliqs_jax.checks import check_at_least
from fliqs_jax.models.cells.darts import darts_genotype
from fliqs_jax.models.cells.operations import Counts, operation_counts

_IMAGE_SHAPES = {"cifar10": (32, 32, 3), "imagenet": (224, 224, 3)}
Shape = tuple[int, int, int]


class DartsPlace(NamedTuple):
    """Where a cell stands in its network: what comes in, and which cell it is."""

    inputs: tuple[int, int]  # channels of the output of the cell before the last, last
    channels: int  # of each node; the output has four times as many
    reduction: bool
    after_reduction: bool  # the first input is twice as large as the second
    size: tuple[int, int]  # of the second input

    @property
    def pixels(self) -> int:
        """Of the second input, and of the first once it is made as small."""
        return self.size[0] * self.size[1]

    @property
    def output_pixels(self) -> int:
        """Of the nodes and the output."""
        height, width = _halved(self.size) if self.reduction else self.size
        return height * width


def _halved(size: Iterable[int], times: int = 1) -> tuple[int, int]:
    height, width = (-(-side // 2**times) for side in size)
    return height, width


def darts_places(
    channels: int = 36,
    layers: int = 20,
    image_shape: Shape = (32, 32, 3),
    *,
    imagenet_stem: bool = False,
) -> tuple[DartsPlace, ...]:
    """Returns the cells of a DARTS network, first to last.

    Cells `layers // 3` and `2 * layers // 3` are reductions: they halve the image and
    double the channels.

    Args:
      channels: of a node in the first cell; even.
      layers: number of cells.
      image_shape: height, width and channels of an example.
      imagenet_stem: three strided convolutions before the first cell, instead of one
        that keeps the image and has three times the channels.

    Raises:
      ValueError: if `channels` is odd or below 2, or `layers` below 1.

    Example:
      >>> [place.channels for place in darts_places(16, 8)]
      [16, 16, 32, 32, 32, 64, 64, 64]
    """
    if channels < 2 or channels % 2:
        raise ValueError(
            "channels must be even, as a strided skip connection computes them in two"
            f" halves, got {channels}: the nearest is {max(2, channels + 1)}"
        )
    check_at_least(1, layers=layers)
    size = _halved(image_shape[:2], 3 if imagenet_stem else 0)
    before = last = channels if imagenet_stem else 3 * channels
    after_reduction = imagenet_stem
    places = []
    for layer in range(layers):
        reduction = layer in (layers // 3, 2 * layers // 3)
        channels *= 2 if reduction else 1
        place = DartsPlace((before, last), channels, reduction, after_reduction, size)
        places.append(place)
        before, last, after_reduction = last, 4 * channels, reduction
        size = _halved(size) if reduction else size
    return tuple(places)


def darts_counts(
    genotype: Any,
    channels: int = 36,
    layers: int = 20,
    num_classes: int = 10,
    dataset: str = "cifar10",
    *,
    image_shape: Shape | None = None,
) -> Counts:
    """Returns parameters and MACs of the network that is trained with a genotype.

    As in published tables parameters leave the auxiliary head out, which is dropped
    after training, and include batch normalisation and the classifier's bias. MACs are
    those of convolutions and classifier. Equal to `DartsNetwork`. The networks that are
    published have 36 channels and 20 layers on CIFAR-10, 48, 14 and 1000 classes on
    ImageNet.

    Args:
      genotype: in any form that `darts_genotype` takes.
      channels: of a node in the first cell; even.
      layers: number of cells.
      num_classes: length of the logits.
      dataset: "cifar10" or "imagenet", for the layers before the first cell.
      image_shape: height, width and channels of an example; None is 32 x 32 x 3 or
        224 x 224 x 3.

    Returns:
      The pair (parameters, macs).

    Raises:
      ValueError: if an argument is none of these.

    Example:
      >>> darts_counts("DARTS_V2").parameters
      3349342
    """
    genotype = darts_genotype(genotype)
    if dataset not in _IMAGE_SHAPES:
        raise ValueError(
            "dataset must be 'cifar10' (its network serves other small images, too) or"
            f" 'imagenet', got {dataset!r}"
        )
    shape = image_shape or _IMAGE_SHAPES[dataset]
    imagenet = dataset == "imagenet"
    places = darts_places(channels, layers, shape, imagenet_stem=imagenet)
    stem = (_imagenet_stem_counts if imagenet else _stem_counts)(channels, shape)
    last = 4 * places[-1].channels
    classifier = Counts((last + 1) * num_classes, last * num_classes)
    parts = [stem, classifier]
    for place in places:
        parts.append(darts_input_counts(place))
        pairs = genotype.reduce if place.reduction else genotype.normal
        parts.extend(darts_edge_counts(place, name, source) for name, source in pairs)
    return _total(parts)


def darts_input_counts(place: DartsPlace, *, affine: bool = True) -> Counts:
    """Returns what the 1x1 convolutions of a cell's two inputs cost.

    Args:
      place: one of `darts_places`.
      affine: batch normalisations have scale and bias (a search network's do not).

    Example:
      >>> darts_input_counts(darts_places(16, 8)[0])
      Counts(parameters=1600, macs=1572864)
    """
    weights = sum(place.inputs) * place.channels
    return Counts(weights + 4 * place.channels * affine, weights * place.pixels)


def darts_edge_counts(
    place: DartsPlace, operation: str, source: int, *, affine: bool = True
) -> Counts:
    """Returns what one operation of a cell costs.

    Args:
      place: one of `darts_places`.
      operation: a name in `DARTS_OPERATIONS`.
      source: node whose output it takes; 0 and 1 are the cell's inputs.
      affine: batch normalisations have scale and bias (a search network's do not).

    Example:
      >>> place = darts_places(16, 8)[2]  # a reduction: 32 channels, 32 pixels to 16
      >>> darts_edge_counts(place, "skip_connect", 0)
      Counts(parameters=1088, macs=262144)
      >>> darts_edge_counts(place, "skip_connect", 2)
      Counts(parameters=0, macs=0)
    """
    return operation_counts(
        operation,
        place.channels,
        stride=darts_stride(place.reduction, source),
        pixels=place.output_pixels,
        affine=affine,
    )


def darts_stride(reduction: bool, source: int) -> int:
    """Returns 2 for the inputs of a reduction cell (sources 0 and 1), else 1.

    Example:
      >>> [darts_stride(True, source) for source in range(3)]
      [2, 2, 1]
    """
    return 2 if reduction and source < 2 else 1


def _stem_counts(channels: int, shape: Shape) -> Counts:
    weights = 9 * shape[2] * 3 * channels
    return Counts(weights + 2 * 3 * channels, weights * shape[0] * shape[1])


def _imagenet_stem_counts(channels: int, shape: Shape) -> Counts:
    features = (shape[2], channels // 2, channels, channels)
    parts = []
    for number in (1, 2, 3):
        height, width = _halved(shape[:2], number)
        weights = 9 * features[number - 1] * features[number]
        parts.append(Counts(weights + 2 * features[number], weights * height * width))
    return _total(parts)


def _total(parts: Iterable[Counts]) -> Counts:
    return Counts(*map(sum, zip(*parts, strict=True)))
