"""Runs the code blocks of a document in order: Python in one namespace, commands in one folder.

- A ```python block is executed; the ```text block directly after it is its expected output.
- In a ```console block, a line that starts with `$` is a command, and the lines below it are its expected output.
  `...` matches anything; differences in white space are ignored.
- In a ```sh block, each line is a command that must succeed; its output is ignored. Training takes two steps (BUDGETS).

A comment in the line above a block changes this. `<!-- budget: options -->` appends options to its commands, so that
they take seconds, or, as `<!-- budget: max_steps=2 -->`, replaces an argument in a ```python block, whose output
is then ignored; `<!-- not run: reason -->` skips the block; `<!-- not compared: reason -->` ignores its output;
`<!-- file: name -->` writes a ```yaml or ```python block to that file.

    python -m tests.docs.runner docs/tutorial/*.md     updates the outputs and pictures of the documents
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import processes

os.environ["MPLBACKEND"] = "Agg"  # no windows
ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:<!-- (?P<directive>budget|not run|not compared|file): (?P<words>.*?) -->\n)?"
    r"^```(?P<kind>python|console|sh|yaml)\n(?P<code>.*?)^```$"
    r"(?:\n\n^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
PICTURE = re.compile(r"!\[[^\]]*\]\((?P<name>[^)/]+)\)")
TWO_STEPS = "--trainer.max_steps 2 --trainer.val_check_interval 2 --run.sample_tokens 4"
BUDGETS = {"fit": f"{TWO_STEPS} --trainer.limit_val_batches 2", "train-numpy": TWO_STEPS}
SECONDS = 300  # for one command


@dataclass(frozen=True)
class Result:
    """The expected and the actual output of a block or a command."""

    line: int
    expected: str
    found: str
    output: tuple[int, int] = (-1, -1)  # span of the expected output in the document; (-1, -1): none
    code: int = 0  # a command's exit status

    @property
    def good(self) -> bool:
        """Whether the outputs match, and the command succeeded unless an error was expected."""
        if self.code != 0 and "error: " not in self.expected:
            return False
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        expected = re.sub(r"\A\.\.\.\n", "...", self.expected)  # a leading `...` may match nothing, not even a newline
        return doctest.OutputChecker().check_output(expected, self.found, options)


def run_document(text: str, folder: Path) -> Iterator[Result]:
    """Runs the blocks of a document in `folder`, the current working directory."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        if block["directive"] == "file":
            (folder / block["words"]).write_text(block["code"], encoding="utf-8")
        if block["directive"] in ("not run", "file") or block["kind"] == "yaml":
            continue
        line = text.count("\n", 0, block.start("code")) + 1
        budget = block["words"] if block["directive"] == "budget" else ""
        ignored = "..." if block["directive"] == "not compared" else ""
        if block["kind"] == "python":
            printed, code = io.StringIO(), block["code"]
            if budget:
                name, _, value = budget.partition("=")
                code, found = re.subn(rf"\b{name}=\w+", f"{name}={value}", code)
                assert found, f"line {line}: there is no {name}= to replace"
                ignored = "..."
            with contextlib.redirect_stdout(printed):
                exec(compile(code, f"line {line}", "exec"), namespace)
            yield Result(line, ignored or block["output"] or "", printed.getvalue(), block.span("output"))
        elif block["kind"] == "console":
            for part in re.split(r"^\$ ", block["code"], flags=re.MULTILINE)[1:]:
                command, _, expected = part.partition("\n")
                found, code = run_command(command, budget, folder)
                yield Result(line, ignored or expected, found, code=code)
                line += part.count("\n")
        else:
            for command in block["code"].splitlines():
                found, code = run_command(command, f"{default_budget(command)} {budget}", folder)
                yield Result(line, "...", found, code=code)
                line += 1


def default_budget(command: str) -> str:
    """The options that make a command of a ```sh block short."""
    _, words = split_command(command)
    if words[:1] == ["analyze"] and words[1].startswith("-"):  # all reports
        return "--format png"
    return BUDGETS.get(words[0], "") if words else ""


def split_command(command: str) -> tuple[str | None, list[str]]:
    """The script of a command (None for `tinylm`) and its arguments."""
    program, *words = shlex.split(command, comments=True)
    if program == "tinylm":
        return None, words
    assert program == "python" and words[0].startswith("scripts/"), command
    return words[0], words[1:]


def run_command(command: str, budget: str, folder: Path) -> tuple[str, int]:
    """Runs a command; returns its output, stdout and stderr together, and its exit status."""
    script, words = split_command(command)
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "output"
        arguments = [*words, *shlex.split(budget)]
        if script is None:
            process = processes.start(processes.command_line, arguments, folder, output, **os.environ)
        else:
            process = processes.start(processes.script, ROOT / script, arguments, folder, output, **os.environ)
        process.join(SECONDS)
        process.kill()
        process.join()
        return output.read_text(encoding="utf-8"), -1 if process.exitcode is None else process.exitcode


def main() -> None:
    """Writes the outputs of blocks into their documents, and their pictures beside them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp())  # shared by all documents, as for a reader
    paths = [Path(each).resolve() for each in sys.argv[1:]]
    os.chdir(folder)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for result in reversed(list(run_document(text, folder))):
            begin, end = result.output
            if begin >= 0 and not result.good:
                text = text[:begin] + result.found + text[end:]
            elif not result.good:
                print(f"{path}:{result.line}: expected\n{result.expected}\nfound\n{result.found}")
        path.write_text(text, encoding="utf-8")
        for picture in PICTURE.finditer(text):
            if (folder / picture["name"]).exists():
                shutil.copy(folder / picture["name"], path.parent)


if __name__ == "__main__":
    main()
