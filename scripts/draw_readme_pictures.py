"""Draws the README's pictures from a finished run.

  python scripts/draw_readme_pictures.py runs/cifar10_resnet8

Writes docs/images/formats.png and docs/images/search.png.
"""

import pathlib
import sys

from fliqs_jax.report import draw_expected_bits, draw_formats, read_run


def main(workdir: str) -> None:
    folder = pathlib.Path(__file__).resolve().parents[1] / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    run = read_run(workdir)
    pictures = {"formats": draw_formats(run), "search": draw_expected_bits(run)}
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
