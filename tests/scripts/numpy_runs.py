"""scripts/train_numpy.py as a module, and in a process of its own for `tests.processes.start`."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_numpy.py"


def read_script() -> ModuleType:
    """The script, not run."""
    spec = importlib.util.spec_from_file_location("train_numpy_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def train_numpy(arguments: list[str], folder: Path, said: Path) -> None:
    """`train_numpy.py ARGUMENTS` in a folder; what it says goes into a file."""
    os.chdir(folder)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    os._exit(read_script().main(arguments))  # nothing of this process's parent is to be cleaned up
