"""Pictures of a compression: L steps, and the weights pulled onto their codebooks.

Each function takes what the run wrote into compression.json, and returns a figure or a
text. The page around them is in `compression_page`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fliqs_jax.report import style
from fliqs_jax.report.reading import read_object
from fliqs_jax.report.words import count, percent, shorten

_MOST_LAYERS, _MOST_COLUMNS = 12, 6  # panels of the histograms
_FEW_VALUES = 16  # of a codebook, whose marks can be told apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """The weights under one codebook, at the end of the run."""

    name: str
    codebook: str
    weights: int
    values: Float[np.ndarray, "K"]
    uses: Int[np.ndarray, "K"]  # weights of each value
    bits: int  # indices and values


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionRecord:
    """What compression.json holds, by L step: row 0 is direct compression."""

    layers: tuple[LayerRecord, ...]
    ends: Int[np.ndarray, "J"]  # training steps taken
    residual: Float[np.ndarray, "J"]
    measured: Mapping[str, Float[np.ndarray, "J"]]
    values: tuple[Float[np.ndarray, "J _"], ...]  # of each layer's codebook
    span: Float[np.ndarray, "L 2"]  # of each layer's histograms
    counts: Int[np.ndarray, "L J B"]


def read_compression(workdir: str | pathlib.Path) -> CompressionRecord:
    """Reads a run's compression.json.

    Raises:
      FileNotFoundError: if the run has not written it yet.
    """
    content = read_object(pathlib.Path(workdir) / "compression.json")
    return CompressionRecord(
        layers=tuple(_layer(layer) for layer in content["layers"]),
        ends=np.array(content["ends"], np.int64),
        residual=_floats(content["residual"]),
        measured={name: _floats(row) for name, row in content["measured"].items()},
        values=tuple(_floats(rows) for rows in content["values"]),
        span=_floats(content["span"]),
        counts=np.array(content["counts"], np.int64),
    )


def _layer(layer: Mapping[str, Any]) -> LayerRecord:
    return LayerRecord(
        name=layer["name"],
        codebook=layer["codebook"],
        weights=layer["weights"],
        values=_floats(layer["values"]),
        uses=np.array(layer["uses"], np.int64),
        bits=layer["bits"],
    )


def _floats(values: Any) -> np.ndarray:
    return np.array(values, np.float64)  # null becomes NaN


def draw_l_steps(record: CompressionRecord) -> "matplotlib.figure.Figure":
    """Draws loss, error and residual against the L steps.

    Loss and error are those of the compressed network, Delta(Theta).
    """
    figure = style.new_figure(3.5)
    panels = figure.subplots(1, 3)
    numbers = np.arange(len(record.ends))
    splits = (
        ("train", style.BLUE, "training"),
        ("validation", style.ORANGE, "held-out"),
    )
    for axes, quantity, factor, ylabel in (
        (panels[0], "loss", 1.0, "cross-entropy loss (nats)"),
        (panels[1], "error", 100.0, "error (%)"),
    ):
        for split, colour, label in splits:
            values = factor * record.measured[f"{split}_{quantity}"]
            if np.isfinite(values).any():
                _line(axes, numbers, values, colour, f"{label} images")
        title = f"{quantity.capitalize()} at the codebook"
        style.dress(axes, title=title, xlabel="L steps taken", ylabel=ylabel)
        axes.set_yscale("log")
        style.loss_ticks(axes)
        style.add_legend(axes, loc="best")
    _line(panels[2], numbers, record.residual, style.GREEN, "")
    panels[2].set_yscale("log")
    style.dress(
        panels[2],
        title="Distance to the codebook",
        xlabel="L steps taken",
        ylabel="|w − Δ(Θ)| / |w|",
    )
    for axes in panels:
        style.step_ticks(axes)
    return figure


def _line(axes, numbers, values, colour: str, label: str) -> None:
    # Zero has no place on a log axis: it is drawn below all others, and hollow.
    numbers, zero = np.asarray(numbers), values == 0
    least = values[values > 0].min(initial=1.0)
    shown = np.where(zero, least / 2, values)
    axes.plot(
        numbers, shown, color=colour, linewidth=1.4, marker="o", markersize=2.5,
        label=label,
    )  # fmt: skip
    if zero.any():
        axes.plot(
            numbers[zero], shown[zero], linestyle="none", marker="o", markersize=4,
            markeredgecolor=colour, markerfacecolor="white", label="0",
        )  # fmt: skip


def draw_weights(record: CompressionRecord) -> "matplotlib.figure.Figure":
    """Draws histograms of the weights: a row a layer, a column an L step.

    The reference is leftmost, the last L step rightmost. Each panel has its own height;
    the panels of a layer share its axis of weights. Codebook values are marked.
    """
    rows = shown_layers(record)
    last = len(record.ends) - 1
    columns = np.unique(np.round(last * _COLUMN_SHARES).astype(int))
    figure = style.new_figure(0.9 + 1.15 * len(rows))
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, layer in zip(panels, rows, strict=True):
        for axes, column in zip(line, columns, strict=True):
            _histogram(axes, record, layer, int(column))
        line[0].set_ylabel(
            shorten(record.layers[layer].name.removesuffix("/kernel"), 18),
            fontsize=style.LABEL_SIZE, color=style.INK,
        )  # fmt: skip
    for axes, column in zip(panels[0], columns, strict=True):
        name = f"after L step {column}" if column else "reference"
        axes.set_title(
            name, loc="left", fontsize=style.LABEL_SIZE, color=style.INK,
            fontweight="bold",
        )  # fmt: skip
    return figure


# The weights move most at first.
_COLUMN_SHARES = np.linspace(0.0, 1.0, _MOST_COLUMNS) ** 1.5


def shown_layers(record: CompressionRecord) -> list[int]:
    """Returns the layers that have room in a picture: those of most weights."""
    sizes = [layer.weights for layer in record.layers]
    return sorted(np.argsort(sizes)[::-1][:_MOST_LAYERS].tolist())


def _histogram(axes, record: CompressionRecord, layer: int, column: int) -> None:
    low, high = record.span[layer]
    counts = record.counts[layer, column]
    edges = np.linspace(low, high, len(counts) + 1)
    heights = counts / max(1, counts.max())
    axes.stairs(heights, edges, fill=True, color=style.BLUE, alpha=0.75, linewidth=0)
    values = record.values[layer][column]
    if len(values) <= _FEW_VALUES:
        axes.vlines(
            values, 0, 1.0, color=style.ORANGE, linewidth=0.9, linestyle=(0, (3, 2))
        )
    axes.plot(
        values, np.full(len(values), 1.06), marker="v", markersize=3.5,
        linestyle="none", color=style.ORANGE, markeredgewidth=0, clip_on=False,
    )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1.13)
    style.dress(axes, grid="")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=3)


def draw_values(record: CompressionRecord) -> "matplotlib.figure.Figure":
    """Draws the weights' density over the L steps, with the paths of the values.

    A panel a layer: dark where many weights are.
    """
    layers = shown_layers(record)
    across = min(3, len(layers))
    down = -(-len(layers) // across)
    figure = style.new_figure(0.6 + 2.3 * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    numbers = np.arange(len(record.ends))
    for axes, layer in zip(panels, layers, strict=False):
        low, high = record.span[layer]
        counts = record.counts[layer].T.astype(float)
        # The square root keeps the tails visible beside peaks of all weights.
        density = np.sqrt(counts / np.maximum(counts.max(axis=0, keepdims=True), 1))
        axes.imshow(
            density, origin="lower", aspect="auto", cmap="Blues", vmin=0.0, vmax=1.15,
            extent=(-0.5, len(numbers) - 0.5, low, high), interpolation="nearest",
        )  # fmt: skip
        axes.plot(numbers, record.values[layer], color=style.ORANGE, linewidth=0.9)
        axes.set_xlim(-0.5, len(numbers) - 0.5)
        axes.set_ylim(low, high)
        name = shorten(record.layers[layer].name.removesuffix("/kernel"), 34)
        style.dress(axes, title=name, xlabel="L steps taken", ylabel="weight", grid="")
        style.step_ticks(axes)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    return figure


def compression_table(workdir: str | pathlib.Path) -> str:
    """Returns the layers of a compressed network as a text for the terminal."""
    record = read_compression(workdir)
    lines = [f"{'layer':34}  {'codebook':22}{'K':>4}{'weights':>10}{'bits':>10}"]
    for layer in record.layers:
        lines.append(
            f"{shorten(layer.name, 34):34}  {shorten(layer.codebook, 22):22}"
            f"{len(layer.values):4}{count(layer.weights):>10}{count(layer.bits):>10}"
        )
    return "\n".join([*lines, compression_sentence(workdir)])


def compression_sentence(workdir: str | pathlib.Path) -> str:
    """Returns the result in a sentence, from summary.json."""
    summary = read_object(pathlib.Path(workdir) / "summary.json")
    return (
        f"{percent(summary['accuracy'], 2)} test accuracy "
        f"(reference: {percent(summary['reference_accuracy'], 2)}) in "
        f"{count(summary['file_bytes'])} bytes: {summary['compression_ratio']:.1f} "
        "times smaller than float32"
    )


def values_text(values: Sequence[float] | np.ndarray, most: int = 4) -> str:
    """Returns the values of a small codebook, or the ends of a large one.

    Example:
      >>> values_text([-0.05, 0.25]), values_text([1.0, 2.0, 3.0, 4.0, 5.0])
      ('−0.05, 0.25', '1 … 5')
    """
    shown = [f"{value:.3g}".replace("-", "−") for value in values]
    return ", ".join(shown) if len(shown) <= most else f"{shown[0]} … {shown[-1]}"
