"""Runs a document: its Python in one namespace, its commands in the same folder, in the order in which they stand.

A block ```python is executed; the block ```text right behind it is what it prints. In a block ```console the line
after `$` is a command of scripts/, and what follows what it prints. `...` stands for anything, and white space is
white space. A comment `<!-- budget: words -->` adds words to the next command, so that it takes seconds.

    python tests/docs/runner.py docs/tutorial/*.md     writes what comes out into the documents
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:<!-- budget: (?P<budget>.*?) -->\n)?^```(?P<kind>python|console)\n(?P<code>.*?)^```$"
    r"(?:\n\n^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Result:
    """What a block was to print, and what it printed."""

    line: int
    expected: str
    found: str
    output: tuple[int, int]  # where in the document the expected output stands; (-1, -1): nowhere

    @property
    def good(self) -> bool:
        """Whether they are the same."""
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        expected = re.sub(r"\A\.\.\.\n", "...", self.expected)  # nothing may come first, not even a line's end
        return doctest.OutputChecker().check_output(expected, self.found, options)


def run_document(text: str, folder: Path) -> Iterator[Result]:
    """Runs the blocks of a document in a folder that is the current one."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code")) + 1
        if block["kind"] == "console":
            command, _, expected = block["code"].partition("\n")
            yield Result(line, expected, run_command(command, block["budget"] or "", folder), (-1, -1))
        else:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(block["code"], f"line {line}", "exec"), namespace)
            yield Result(line, block["output"] or "", said.getvalue(), block.span("output"))


def run_command(command: str, budget: str, folder: Path) -> str:
    """What a command prints, on stdout and stderr together."""
    prompt, python, script, *words = shlex.split(command, posix=False)
    assert (prompt, python) == ("$", "python") and script.startswith("scripts/"), command
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words, *shlex.split(budget)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout


def main() -> None:
    """Writes what blocks print into their documents."""
    temporary = tempfile.mkdtemp()  # one for all, as their reader has it
    for path in [Path(each).resolve() for each in sys.argv[1:]]:
        text = path.read_text(encoding="utf-8")
        os.chdir(temporary)
        results = list(run_document(text, Path(temporary)))
        for result in reversed(results):
            begin, end = result.output
            if begin >= 0 and not result.good:
                text = text[:begin] + result.found + text[end:]
            elif not result.good:
                print(f"{path}:{result.line}: expected\n{result.expected}\nfound\n{result.found}")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
