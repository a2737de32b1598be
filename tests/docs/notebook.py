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


def execute(notebook: NotebookNode, folder: Path, **environment: str) -> None:
    """Executes all cells in a folder; their outputs replace those of the notebook.

    Pieces of printed text that follow each other are joined. The path of the repository is left out of them.

    Args:
        notebook: is changed in place
        folder: the working folder
        environment: additional environment variables of the kernel
    """
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # which a kernel sets if there is none
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    language = notebook.metadata.language_info
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **backend, **path, **environment})
    notebook.metadata.language_info = language  # without the version of Python
    for output in (each for cell in code_cells(notebook) for each in cell.outputs if "text" in each):
        output.text = output.text.replace(f"{ROOT}{os.sep}", "")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def main() -> None:
    """Remakes the outputs of the notebook."""
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder), TINYLM_CACHE=folder)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
