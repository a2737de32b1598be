"""The notebook: executed cell by cell as Jupyter does, its outputs are those stored in it.

Training takes few steps here, so what depends on the trained weights (cells with the tag `trained`) is compared by
the kinds of its outputs and the sizes of its pictures. `python -m tests.docs.notebook` remakes the outputs.
"""

import base64
import importlib.util
import struct
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from tests.docs.notebook import NOTEBOOK, code_cells, execute, read
from tests.docs.runner import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def stored() -> NotebookNode:
    """The notebook as it is committed."""
    return read()


def printed(cell: NotebookNode) -> str:
    """The text that a cell prints, without that on stderr."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def pictures(cell: NotebookNode) -> list[tuple[int, int]]:
    """Width and height of the pictures that a cell shows."""
    shown = [base64.b64decode(each.data["image/png"]) for each in cell.outputs if "image/png" in each.get("data", {})]
    return [struct.unpack(">II", png[16:24]) for png in shown]


def test_the_notebook_has_ten_cells_with_the_outputs_of_a_whole_run(stored):
    nbformat.validate(stored)
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, 11))
    assert all(cell.outputs for cell in cells)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert [number for number, cell in enumerate(cells, start=1) for _ in pictures(cell)] == [6, 8, 9]
    for width, height in (size for cell in cells for size in pictures(cell)):
        assert 800 <= width <= 1600 and 300 <= height <= 1200
    assert NOTEBOOK.stat().st_size < 500_000
    assert "800 steps in " in printed(cells[4]) and "best possible" in printed(cells[4])
    assert "gradients agree: True" in printed(cells[9])
    assert "/home/" not in NOTEBOOK.read_text(encoding="utf-8") and str(ROOT) not in NOTEBOOK.read_text("utf-8")


@pytest.mark.slow
def test_the_notebook_gives_the_outputs_stored_in_it(stored, tmp_path):
    notebook = read()
    execute(notebook, tmp_path, TINYLM_NOTEBOOK_STEPS="10")
    for found, expected in zip(code_cells(notebook), code_cells(stored), strict=True):
        if "trained" not in expected.metadata.get("tags", []):
            assert printed(found) == printed(expected), expected.source
        assert bool(printed(found)) == bool(printed(expected)), expected.source
        assert len(pictures(found)) == len(pictures(expected)), expected.source
        for sizes in zip(pictures(found), pictures(expected), strict=True):
            assert sizes[0] == pytest.approx(sizes[1], rel=0.15), expected.source
    assert "10 steps in " in printed(code_cells(notebook)[4])
    assert "gradients agree: True" in printed(code_cells(notebook)[9])


def test_the_first_cell_installs_tinylm_only_where_it_is_missing(stored, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    address = PROJECT["urls"]["Repository"]
    source = code_cells(stored)[0].source
    assert f'REPOSITORY = "{address}"\n' in source
    installed = []
    shell = SimpleNamespace(run_line_magic=lambda name, words: installed.append((name, words)))
    program = compile(TransformerManager().transform_cell(source), "cell", "exec")
    exec(program, {"get_ipython": lambda: shell})
    assert installed == []
    folder, package = SimpleNamespace(origin=None), SimpleNamespace(origin="tinylm/__init__.py")
    missing = [folder, package]  # before and after the installation
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: missing.pop(0))
    exec(program, {"get_ipython": lambda: shell})
    assert [name for name, _ in installed] == ["pip"]
    assert f"installing it from {address}" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder)
    with pytest.raises(ModuleNotFoundError, match="set REPOSITORY to the address of its git repository"):
        exec(program, {"get_ipython": lambda: shell})


def test_binder_installs_the_package_of_this_repository():
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "." in lines
    version = (folder / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert PROJECT["requires-python"] == ">=3.11" and tuple(map(int, version.split("."))) >= (3, 11)
