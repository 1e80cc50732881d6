"""The table of cells: what a search may read of it, and what only a judge may."""

import numpy as np
import pytest

from fliqs_jax.models.cells import ArchitectureTable, nasbench201_string

HEADER = "index,architecture,valid_accuracy,test_accuracy,macs,latency_ms_chip"
CELLS = {index: nasbench201_string(index) for index in (0, 9, 1835)}
ROWS = [
    f"9,{CELLS[9]},50.5,60.25,300,1.5",
    f"0,{CELLS[0]},70,80,200,-1",
    f"1835,{CELLS[1835]},,,100,",
]


def write(folder, *lines):
    file = folder / "table.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def table(tmp_path):
    return ArchitectureTable.load(write(tmp_path, HEADER, *ROWS))


def test_columns_are_by_index_and_empty_where_the_file_is(table):
    assert table.columns == tuple(HEADER.split(",")[2:])
    macs = table.search_values("macs")
    assert macs.shape == (15_625,) and macs[[0, 9, 1835]].tolist() == [200, 300, 100]
    assert np.isfinite(macs).sum() == 3
    latency = table.search_values("latency_ms_chip")
    assert np.isfinite(latency).sum() == 1 and latency[9] == 1.5


def test_cells_are_looked_up_by_index_or_string(table):
    for cell in (9, np.int64(9), CELLS[9]):
        assert table.search_value(cell, "valid_accuracy") == 50.5
        assert table.judged_value(cell, "test_accuracy") == 60.25


def test_test_accuracy_is_read_by_the_judge_alone(table):
    assert table.search_columns == ("valid_accuracy", "macs", "latency_ms_chip")
    for call in (
        lambda: table.search_values("test_accuracy"),
        lambda: table.search_value(9, "test_accuracy"),
    ):
        with pytest.raises(ValueError, match="'test_accuracy' .* is for judging what"):
            call()
    assert table.judged_values("test_accuracy")[[0, 9]].tolist() == [80, 60.25]


@pytest.mark.parametrize(
    ("column", "searched"),
    [
        ("cifar10_valid_accuracy_12_epochs", True),
        ("energy_mj_edgegpu", True),
        ("parameters", True),
        ("cifar10_test_accuracy_12_epochs", False),
        ("valid_and_test_accuracy", False),
        ("accuracy_ptq8", False),
        ("top1", False),
    ],
)
def test_what_is_not_known_to_be_harmless_is_not_searched(column, searched, tmp_path):
    lines = (f"index,{column}", "3,1.0")
    assert (
        column in ArchitectureTable.load(write(tmp_path, *lines)).search_columns
    ) == searched


def test_columns_cannot_be_written(table):
    with pytest.raises(ValueError, match="read-only"):
        table.search_values("macs")[0] = 1.0


@pytest.mark.parametrize("name", ["index", "architecture"])
def test_one_name_of_a_cell_is_enough(name, tmp_path):
    value = {"index": "9", "architecture": CELLS[9]}[name]
    table = ArchitectureTable.load(write(tmp_path, f"{name},macs", f"{value},7"))
    assert table.search_value(9, "macs") == 7.0


def test_unknown_columns_and_missing_values_are_named(table):
    with pytest.raises(ValueError, match="has no column 'mac': its columns are macs"):
        table.search_values("mac")
    with pytest.raises(ValueError, match="has no column 'mac'"):
        table.judged_value(0, "mac")
    with pytest.raises(
        ValueError, match=r"no latency_ms_chip of cell 0, .*: 1 of 15,625 cells"
    ):
        table.search_value(0, "latency_ms_chip")
    with pytest.raises(ValueError, match="got 15625: the nearest is 15624"):
        table.judged_value(15_625, "macs")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9,x", "2 fields, where the first line names 6"),
        (ROWS[0] + ",1", "7 fields, where the first line names 6"),
        (ROWS[0].replace("300", "many"), "macs must be a number or empty, got 'many'"),
        (ROWS[0].replace("300", "nan"), "macs must be a number or empty, got 'nan'"),
        ("8" + ROWS[0][1:], "index 8 is |"),
        ("16000" + ROWS[0][1:], "index must be 0 to 15624"),
        ("x" + ROWS[0][1:], "index must be a whole number from 0, got 'x'"),
        (ROWS[0].replace("none", "zero"), "operation 'zero'"),
        (ROWS[1], "cell 0 is in line 2: keep one"),
    ],
)
def test_malformed_line_is_named_by_number(line, message, tmp_path):
    with pytest.raises(ValueError) as error:
        ArchitectureTable.load(write(tmp_path, HEADER, ROWS[1], line))
    assert f"table.csv, line 3: {message}" in str(error.value)


def test_files_that_are_no_table_are_refused(tmp_path):
    for lines in (["macs", "1"], ["index", "1"], [""]):
        with pytest.raises(
            ValueError, match="its first line must name index or archit"
        ):
            ArchitectureTable.load(write(tmp_path, *lines))
    with pytest.raises(ValueError, match="has no row below its header"):
        ArchitectureTable.load(write(tmp_path, HEADER))
    with pytest.raises(FileNotFoundError):
        ArchitectureTable.load(tmp_path / "nowhere.csv")


def test_table_of_the_benchmark(shared_data):
    file = shared_data / "nasbench201" / "nasbench201_cifar10.csv"
    table = ArchitectureTable.load(file)
    assert table.search_columns == (
        "cifar10_valid_accuracy_12_epochs",
        "parameters",
        "macs",
        "latency_ms_raspi4",
        "latency_ms_edgegpu",
    )
    accuracy = table.judged_values("cifar10_test_accuracy_200_epochs")
    # The best cell, plain DARTS's, and HW-NAS-Bench's latency of the first.
    assert accuracy.argmax() == 6111 and round(accuracy.max(), 2) == 94.37
    assert round(accuracy[1835], 2) == 54.30
    assert table.search_value(0, "latency_ms_raspi4") == 10.482
    assert np.isfinite(table.search_values("latency_ms_edgegpu")).sum() == 1999
    within = table.search_values("parameters") <= 0.2e6
    assert accuracy[within].max() == pytest.approx(91.31, abs=0.01)
