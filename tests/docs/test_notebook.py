"""Runs the notebook cell by cell, as Jupyter does, with few training steps."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.runner import ROOT


@pytest.mark.slow
def test_notebook_runs_in_ten_cells_and_shows_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLM_NOTEBOOK_STEPS", "40")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs/tinylm.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without outputs
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert "validation loss" in printed[4] and "Once upon a time" in printed[6]
    difference = float(printed[9].rsplit(" ", 1)[1])
    assert difference < 1e-5
