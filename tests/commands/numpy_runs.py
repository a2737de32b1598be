"""`tinylm train-numpy` in a process of its own, for `tests.processes.start`."""

import os
from pathlib import Path


def train_numpy(arguments: list[str], folder: Path, said: Path) -> None:
    """`tinylm train-numpy ARGUMENTS` in a folder; what it says goes into a file."""
    from tinylm.commands import run_command

    os.chdir(folder)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    os._exit(run_command("train-numpy", arguments))  # nothing of this process's parent is to be cleaned up
