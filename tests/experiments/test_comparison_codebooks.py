"""The table of compressions: which runs it takes, and its figures."""

import json

import pytest

from experiments.comparison.codebooks import (
    codebook_table,
    read_codebook_rows,
    write_codebook_results,
)

RUNS = {  # accuracy, training loss
    "lc_k2-seed0": (0.97, 0.02),
    "lc_k2-seed1": (0.98, 0.04),
    "dc_k2-seed0": (0.40, 2.5),
    "lc_k16-seed0": (0.985, 0.01),
    "search-seed0": (0.9, None),
}


@pytest.fixture
def root(tmp_path):
    for name, (accuracy, loss) in RUNS.items():
        (tmp_path / name).mkdir()
        summary = {"accuracy": accuracy, "seconds": 120.0}
        if loss is not None:
            summary |= {
                "train_loss": loss,
                "compression_ratio": 30.0,
                "reference_accuracy": 0.98,
                "reference_train_loss": 0.01,
            }
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_only_compressions_are_rows(root):
    rows = read_codebook_rows(root)
    assert [(row.method, row.size) for row in rows] == [
        ("dc", 2), ("lc", 16), ("lc", 2), ("lc", 2),
    ]  # fmt: skip


def test_table_has_means_and_deviations_by_ascending_k(root):
    lines = codebook_table(read_codebook_rows(root)).splitlines()
    assert lines[2] == "| | reference | | 0.01 | 2.00 | 1 | |"
    assert lines[3] == ("| 2 | lc | 2 | 0.03 ± 0.014 | 2.50 ± 0.71 | 30.0 | 2.0 |")
    assert lines[4].startswith("| 2 | dc | 1 | 2.5 | 60.00 |")
    assert lines[5].startswith("| 16 | lc | 1 |")


def test_files_are_written_where_a_compression_finished(root, tmp_path):
    table = write_codebook_results(root)
    assert (root / "compression.md").read_text() == table + "\n"
    assert (root / "compression.png").exists()
    (tmp_path / "other").mkdir()
    assert write_codebook_results(tmp_path / "other") == ""
    assert not (tmp_path / "other" / "compression.md").exists()
