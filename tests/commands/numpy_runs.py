"""`tinylm train-numpy` in a process of its own, for `tests.processes.start`."""

import os
from pathlib import Path


def train_numpy(arguments: list[str], folder: Path, log: Path) -> None:
    """Runs `tinylm train-numpy ARGUMENTS` in a folder; its output is appended to a file."""
    from tinylm.commands import run_command

    os.chdir(folder)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    os._exit(run_command("train-numpy", arguments))  # skips the clean-up of the parent's state
