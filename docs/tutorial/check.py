"""Checks the exercises "Build it" of the tutorial, one property at a time.

    python docs/tutorial/check.py                  lists the chapters and their state in this folder
    python docs/tutorial/check.py 3 --start        copies the file of chapter 3, with gaps, into this folder
    python docs/tutorial/check.py 3                checks the copy in this folder
    python docs/tutorial/check.py 3 --file my.py   checks another file

The exit status is 0 if every property holds. build/ has the files with gaps, build/solutions/ a solution of each, and
build/checks/ the properties: `properties(mine)` yields for each a sentence, the expected value, a function that finds
it by the reader's code, and a hint; build/compare.py compares the two values. Expected values come from PyTorch, from
tinylm or from a calculation by hand.

An endless loop is stopped where the reader's own lines run, not within a single call of a library.
"""

import argparse
import ast
import os
import runpy
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

BUILD = Path(__file__).resolve().parent / "build"
SECONDS = 10  # for one property
OK, WRONG, TODO = "ok", "wrong", "to do"


class Problem(Exception):
    """A sentence for the reader about the whole file or the command."""


class OutOfTime(BaseException):
    """The time limit has passed; `except Exception` in the reader's code does not catch it."""


class Result(NamedTuple):
    """One property: whether it holds, the difference in words, and a hint."""

    state: str
    sentence: str
    difference: str = ""
    hint: str = ""


# --- the chapters


def chapters() -> dict[int, str]:
    """The name of each chapter's file, by number."""
    return dict(sorted((int(path.name.partition("_")[0]), path.name) for path in BUILD.glob("[0-9]*.py")))


def title(name: str) -> str:
    """The subject of a chapter's file: its docstring up to the colon."""
    docstring = ast.get_docstring(ast.parse((BUILD / name).read_text(encoding="utf-8"))) or ""
    return docstring.partition(":")[0]


def required(name: str) -> list[str]:
    """The functions, classes and methods that the file with gaps defines, such as `CharTokenizer.encode`."""
    found = []
    for node in ast.parse((BUILD / name).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
            methods = [each.name for each in ast.walk(node) if each is not node and isinstance(each, ast.FunctionDef)]
            found += [f"{node.name}.{method}" for method in methods if method != "__init__"]
    return found


def start(name: str, folder: Path) -> None:
    """Copies the file with gaps into a folder; Problem if a file of that name exists."""
    if (folder / name).exists():
        raise Problem(f"{name} exists and was left as it is; to begin again, rename it or move it away")
    shutil.copyfile(BUILD / name, folder / name)


# --- the reader's code


@contextmanager
def limited(path: Path, seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the code of a file as soon as it has run for so many seconds."""
    deadline = time.monotonic() + seconds

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != str(path):
            return None
        if time.monotonic() > deadline:
            raise OutOfTime(f"no result after {seconds:g} seconds; is there a loop that never ends?")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.settrace(before)


def load(path: Path, seconds: float = SECONDS) -> ModuleType:
    """Executes the reader's file; Problem if that fails."""
    module = ModuleType(path.stem)
    try:
        code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        with limited(path, seconds):
            exec(code, vars(module))
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Problem(f"{path.name} is not a text in UTF-8") from None
    except SyntaxError as error:
        raise Problem(f"{path.name}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit, OutOfTime) as error:
        raise Problem(f"{path.name}, {in_words(error, path)}") from None
    return module


def in_words(error: BaseException, path: Path) -> str:
    """An exception in one line, with the line of the file that raised it."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, NotImplementedError) and lines:
        return f"`{lines[-1].name}` is not written yet"
    place = f"line {lines[-1].lineno}: " if lines else ""
    if isinstance(error, OutOfTime):
        return f"{place}{error}"
    text = str(error).partition("\n")[0]
    if not lines and "'NoneType'" in text:
        return "the code gives None; is a `return` missing?"
    return f"{place}{type(error).__name__}: {text[:160]}" if text else f"{place}{type(error).__name__}"


def ours(name: str) -> dict[str, Any]:
    """The names of a file in build/; Problem without PyTorch or tinylm. It is not needed for --start and --help."""
    try:
        import torch

        torch.manual_seed(0)  # properties draw tensors at random
        return runpy.run_path(str(BUILD / name))
    except ImportError as error:
        raise Problem(f"{error}; install tinylm into this environment: pip install -e {BUILD.parents[2]}") from None


def check(name: str, path: Path, seconds: float = SECONDS) -> Iterator[Result]:
    """Checks the properties of a chapter; Problem if the file as a whole does not serve."""
    compare, properties = ours("compare.py")["compare"], ours(f"checks/{name}")["properties"]
    mine = load(path, seconds)
    missing = [each for each in required(name) if not has(mine, each)]
    if missing:
        raise Problem(f"{path.name} does not define {', '.join(missing)}; {BUILD / name} shows what is needed")
    try:
        for sentence, expected, find, hint in properties(mine):
            result = evaluate(sentence, partial(compare, expected, find), hint, path, seconds)
            yield result
            if "never ends" in result.difference:
                break  # the other properties would wait as long
    except Exception as error:  # such as of a class that the properties need
        raise Problem(f"{path.name}, {in_words(error, path)}") from None


def has(module: ModuleType, name: str) -> bool:
    """Whether a module defines `function`, `Class` or `Class.method`."""
    outer, _, inner = name.partition(".")
    return hasattr(module, outer) and (not inner or hasattr(getattr(module, outer), inner))


def evaluate(sentence: str, compare: Callable[[], str], hint: str, path: Path, seconds: float) -> Result:
    """One property; `compare` runs the reader's code and gives the difference from what is expected, in words."""
    try:
        with limited(path, seconds):
            wrong = compare()
    except NotImplementedError as error:
        return Result(TODO, sentence, in_words(error, path))
    except OutOfTime as error:
        return Result(WRONG, sentence, in_words(error, path))
    except (Exception, SystemExit) as error:
        return Result(WRONG, sentence, in_words(error, path), hint)
    return Result(WRONG, sentence, wrong, hint) if wrong else Result(OK, sentence)


# --- the command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console without Unicode
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("chapter", type=int, nargs="?", help="number of the chapter. Default: list all")
    parser.add_argument("--start", action="store_true", help="copy the chapter's file with gaps into this folder")
    parser.add_argument("--file", type=Path, help="the file to check. Default: the copy in this folder")
    options = parser.parse_args(arguments)
    names = chapters()
    if options.chapter is None and (options.start or options.file):
        parser.error("--start and --file need the number of a chapter")
    if options.start and options.file:
        parser.error("--start copies a file and --file checks one; leave one of them out")
    if options.chapter is not None and options.chapter not in names:
        parser.error(f"the chapters are {min(names)} to {max(names)}, got {options.chapter}")
    try:
        if options.chapter is None:
            return print_chapters(names)
        if options.start:
            return print_start(names[options.chapter], options.chapter)
        return print_check(options.chapter, names[options.chapter], options.file)
    except Problem as problem:
        print(problem)
        return 1
    except KeyboardInterrupt:
        return 130


def command(*words: object) -> str:
    """The command line of this program, to be copied."""
    try:
        path = os.path.relpath(__file__)
    except ValueError:  # on another drive of Windows
        path = __file__
    return " ".join(["python", path, *map(str, words)])


def print_chapters(names: dict[int, str]) -> int:
    """Lists the chapters and their state in this folder."""
    for number, name in names.items():
        print(f"{number:>3}  {title(name):<32} {name:<17} {state(name, Path.cwd() / name)}")
    print(f"\nStart a chapter, for example the third: {command(3, '--start')}")
    return 0


def state(name: str, path: Path) -> str:
    """The state of a chapter in a few words."""
    if not path.exists():
        return "not started"
    try:
        results = list(check(name, path))
    except Problem as problem:
        return str(problem)
    right = sum(result.state == OK for result in results)
    return "done" if right == len(results) else f"{right} of {len(results)} properties hold"


def print_start(name: str, number: int) -> int:
    """Copies a chapter's file and says what to do with it."""
    start(name, Path.cwd())
    print(f"{name}: fill the gaps, then run {command(number)}")
    return 0


def print_check(number: int, name: str, file: Path | None) -> int:
    """Prints the results of a chapter; 0 if every property holds."""
    path = (file or Path(name)).absolute()
    if file is None and not path.exists():
        raise Problem(f"{name} is not in this folder; {command(number, '--start')} copies it here")
    print(f"{number}. {title(name)}: {path.name}")
    results = []
    for result in check(name, path):
        results.append(result)
        print(f"  {result.state:<6} {result.sentence}{': ' if result.difference else ''}{result.difference}")
        if result.hint:
            print(f"         hint: {result.hint}")
    right = sum(result.state == OK for result in results)
    print(f"All {right} properties hold." if right == len(results) else f"{right} of {len(results)} properties hold.")
    return int(right < len(results))


if __name__ == "__main__":
    sys.exit(main())
