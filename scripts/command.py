"""What the scripts beside it are: one command of tinylm each, as `tinylm COMMAND`."""

import sys
from pathlib import Path


def run(*words: str) -> None:
    """Runs a command with this process's arguments behind it, and ends the process with its exit code.

    Args:
        words: what would stand behind `tinylm`
    """
    try:
        from tinylm.commands import main
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        install = f'"{sys.executable}" -m pip install -e "{Path(__file__).resolve().parent.parent}"'
        sys.exit(f"tinylm: error: {sys.executable} has no {missing}; to install it: {install}")
    sys.exit(main([*words, *sys.argv[1:]]))
