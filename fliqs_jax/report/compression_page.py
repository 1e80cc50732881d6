"""The report page of a run that compressed its weights to codebooks."""

import pathlib
from html import escape
from typing import Any

from fliqs_jax.report import html, page, sections, words
from fliqs_jax.report.compression import (
    CompressionRecord,
    compression_sentence,
    draw_l_steps,
    draw_values,
    draw_weights,
    read_compression,
    shown_layers,
    values_text,
)
from fliqs_jax.report.reading import read_object, read_run
from fliqs_jax.report.records import Run


def write_compression_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report.html of a finished compression and returns the file's path.

    Args:
      workdir: with config.json, summary.json, compression.json and metrics.jsonl.

    Raises:
      FileNotFoundError: if one of the first three is missing.
    """
    folder = pathlib.Path(workdir)
    run, record = read_run(folder), read_compression(folder)
    summary = read_object(folder / "summary.json")
    network = words.pretty(run.config.model) or "A network"
    title = (
        f"{network} on {words.pretty(run.config.dataset)}: "
        f"{compression_sentence(folder)}"
    )
    body = [
        _head(title, run, record, summary),
        _weights(record),
        _course(record),
        _layers(record, summary),
        _training(run),
        sections.reproduction(run),
        sections.settings(run),
    ]
    return page.write(folder, title, body)


_METHODS = {
    "lc": "Learning-Compression",
    "qp": "Learning-Compression without multipliers (quadratic penalty)",
    "dc": "Direct compression",
    "idc": "Iterated direct compression",
    "ste": "Quantization-aware training on the codebook",
}


def _head(
    title: str, run: Run, record: CompressionRecord, summary: dict[str, Any]
) -> str:
    method = _METHODS.get(run.config.flags.get("method"), "Learning-Compression")
    gain = 100 * (summary["accuracy"] - summary["reference_accuracy"])
    tiles = [
        (
            "Test accuracy",
            words.percent(summary["accuracy"], 2),
            f"{abs(gain):.2f} points {'above' if gain > 0 else 'below'} the reference",
        ),
        (
            "Compression",
            f"{summary['compression_ratio']:.1f} ×",
            f"{words.count(summary['file_bytes'])} bytes on disk; "
            f"{summary['compression_ratio_formula']:.1f} × by formula, without header",
        ),
        ("Bits of a weight", f"{_mean_bits(record):.2f}", "indices and codebooks"),
        (
            "Distance to the codebook",
            f"{summary['residual']:.1e}",
            f"of |w|, after {summary['l_steps']} L steps",
        ),
        (
            "Time",
            words.duration(summary["seconds"]),
            f"{summary['steps_taken']} of {summary['steps']} steps",
        ),
    ]
    if summary["cost_ratio"] is not None:
        verdict = words.budget_verdict(summary["cost_ratio"])
        fraction = f"{summary['cost'] / summary['cost_of_reference']:.3f}"
        name = f"Size (uniform {run.config.cost_reference}: 1)"
        tiles.insert(2, (name, fraction, verdict))
    lead = (
        "The weights are exactly values of their codebooks; inputs and biases stay "
        "float."
    )
    moodless = [(*tile, "") for tile in tiles]
    return page.opening(f"{method} report", title, lead, moodless)


def _mean_bits(record: CompressionRecord) -> float:
    weights = sum(layer.weights for layer in record.layers)
    return sum(layer.bits for layer in record.layers) / max(1, weights)


def _weights(record: CompressionRecord) -> str:
    left_out = len(record.layers) - len(shown_layers(record))
    note = f" The {left_out} smallest layers are left out." if left_out else ""
    histograms = (
        "Histograms of the weights before the C step, each as high as its panel. "
        "Orange: the values of the codebook. Leftmost the reference network, "
        "whose weights know nothing of a codebook; at the end they should be on it."
        + note
    )
    paths = (
        "The same over all L steps: the darker, the more weights (square root, so that "
        "few are seen beside many). Orange: the paths of the codebook's values."
    )
    return page.section(
        "weights",
        "Weights pulled onto the codebook",
        page.figure(
            draw_weights(record), "histograms", "Weights by L step", histograms
        ),
        page.figure(draw_values(record), "paths", "Density of the weights", paths),
    )


def _course(record: CompressionRecord) -> str:
    caption = (
        "Loss and error are those of the compressed network, with batch statistics of "
        "its own; 0 is the reference, directly compressed. The network of least loss on"
        " training images is the result. Right: how far training has left the weights "
        "from the codebook."
    )
    plot = page.figure(draw_l_steps(record), "course", "Loss, error, distance", caption)
    return page.section("course", "Loss and error by L step", plot)


def _layers(record: CompressionRecord, summary: dict[str, Any]) -> str:
    rows = [
        (
            page.code(layer.name),
            escape(layer.codebook),
            str(len(layer.values)),
            words.count(layer.weights),
            f"{layer.bits / max(1, layer.weights):.2f}",
            words.count(layer.bits),
            escape(values_text(layer.values)),
            escape(_shares(layer)),
        )
        for layer in record.layers
    ]
    columns = {
        "layer": "", "codebook": "", "K": "number", "weights": "number",
        "bits a weight": "number", "bits": "number", "values": "",
        "weights of each": "",
    }  # fmt: skip
    weights = words.count(sum(layer.weights for layer in record.layers))
    bits = words.count(summary["cost"])
    name = f"{len(record.layers)} codebooks"
    foot = (name, "", "", weights, f"{_mean_bits(record):.2f}", bits, "", "")
    table = page.table(columns, rows, foot=foot)
    return page.section("layers", "Layers and their codebooks", table)


def _shares(layer) -> str:
    if len(layer.uses) > 4:
        used = int((layer.uses > 0).sum())
        return f"{used} of {len(layer.uses)} used"
    total = max(1, layer.weights)
    return ", ".join(words.percent(uses / total, 0) for uses in layer.uses)


def _training(run: Run) -> str:
    caption = (
        "Of the weights w of the L steps, on training batches, without the penalty. "
        "Pale: as recorded; full colour: running mean. The star is the compressed "
        "network on the test set."
    )
    return html.learning_section(run, "Training", caption)
