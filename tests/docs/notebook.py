"""Executes the notebook docs/tinylm.ipynb as Jupyter does, and stores its outputs.

    python -m tests.docs.notebook      executes a copy from top to bottom, and writes its outputs into the notebook

This takes two to three minutes. Look at the pictures before you commit them.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.docs.runner import ROOT

NOTEBOOK = ROOT / "docs/tinylm.ipynb"
SECONDS = 600  # for one cell


def read() -> NotebookNode:
    """The notebook, with the outputs stored in it."""
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Executes all cells in a folder; their outputs replace those of the notebook.

    Successive pieces of printed text are joined, and what says nothing about the notebook itself is left out.
    """
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel sets it by itself
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    language = notebook.metadata.language_info
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata.language_info = language  # not the version of Python here
    for output in (each for cell in code_cells(notebook) for each in cell.outputs if "text" in each):
        output.text = output.text.replace(f"{ROOT}{os.sep}", "")  # where the repository lies


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def main() -> None:
    """Remakes the outputs of the notebook."""
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TINYLM_CACHE"] = folder
        execute(notebook, Path(folder))
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
