"""The notebooks: stored with outputs of one run from top to bottom, and run again."""

import os
import pathlib

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_without_errors(path):
    cells = code_cells(path)
    numbers = [cell.execution_count for cell in cells]
    assert numbers == list(range(1, len(cells) + 1))  # in order: no hidden state
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    stored = [o for o in outputs if "image/png" in o.get("data", {})]
    assert stored, "the pictures are stored, so that they show without running"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_cell_installs_where_the_package_is_missing(path):
    first = code_cells(path)[0].source
    assert "find_spec" in first and "%pip install" in first


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_again(path, tmp_path, monkeypatch):
    if "cifar10" in path.stem:
        if "FLIQS_TEST_DATA" not in os.environ:
            pytest.skip("needs CIFAR-10: set FLIQS_TEST_DATA")
        monkeypatch.setenv("TFDS_DATA_DIR", f"{os.environ['FLIQS_TEST_DATA']}/tfds")
    # As a user runs it, not on the simulated devices of the other tests.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
