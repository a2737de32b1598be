"""Runs a command of tinylm from a script of this folder."""

import sys
from pathlib import Path


def run(*words: str) -> None:
    """Runs a command with the arguments of this process, and exits with its exit code.

    Args:
        words: the first words after `tinylm`
    """
    try:
        from tinylm.commands import main
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        remedy = f'activate its environment, or: "{sys.executable}" -m pip install -e "{Path(__file__).parents[1]}"'
        print(f"tinylm: error: {sys.executable} has no {missing}; {remedy}", file=sys.stderr)
        sys.exit(70)
    sys.exit(main([*words, *sys.argv[1:]]))
