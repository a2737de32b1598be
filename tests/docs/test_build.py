"""The exercises "Build it" of the tutorial: the gaps fail, the solutions pass, and plausible mistakes are found."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.attempts import MISTAKES, OTHERS
from tests.docs.runner import ROOT, Result

BUILD = ROOT / "docs/tutorial/build"
NAMES = {int(path.name.partition("_")[0]): path.name for path in BUILD.glob("[0-9]*.py")}
CHAPTERS = sorted((ROOT / "docs/tutorial").glob("*.md"))


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The module docs/tutorial/check.py."""
    path = ROOT / "docs/tutorial/check.py"
    module = ModuleType("check")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
    return module


def written(folder: Path, number: int, *changes: tuple[str, str]) -> Path:
    """A reader's file: the solution of a chapter with changes."""
    text = (BUILD / "solutions" / NAMES[number]).read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path = folder / NAMES[number]
    path.write_text(text, encoding="utf-8")
    return path


def signatures(path: Path) -> dict[str, str]:
    """Arguments and docstring of everything that a file defines, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    found = {
        node.name: f"{ast.unparse(node.args) if isinstance(node, ast.FunctionDef) else ''} {ast.get_docstring(node)}"
        for node in nodes
    }
    return found | {"": str(ast.get_docstring(tree))}


def test_there_is_something_to_build_for_each_chapter(check):
    numbers = [int(path.name.partition("-")[0]) for path in CHAPTERS]
    assert sorted(NAMES) == sorted(numbers) == list(check.chapters())
    for folder in ("solutions", "checks"):
        assert {path.name for path in (BUILD / folder).glob("*.py")} == set(NAMES.values())
    for path in CHAPTERS:
        text, name = path.read_text(encoding="utf-8"), NAMES[int(path.name.partition("-")[0])]
        assert f"[{name}](build/{name})" in text and f"(build/solutions/{name})" in text


@pytest.mark.parametrize("number", sorted(NAMES))
def test_gaps_fail_kindly_and_the_solution_passes(number, check):
    name = NAMES[number]
    gaps = list(check.check(name, BUILD / name))
    assert gaps and {result.state for result in gaps} == {"to do"}
    assert all("is not written yet" in result.difference for result in gaps)
    solved = list(check.check(name, BUILD / "solutions" / name))
    assert [result for result in solved if result.state != "ok"] == []
    assert [result.sentence for result in solved] == [result.sentence for result in gaps]
    assert len({result.sentence for result in solved}) == len(solved)
    assert signatures(BUILD / name) == signatures(BUILD / "solutions" / name)


@pytest.mark.parametrize(("number", "before", "after", "violated"), MISTAKES)
def test_a_plausible_mistake_is_found(number, before, after, violated, check, tmp_path):
    path = written(tmp_path, number, (before, after))
    wrong = [result for result in check.check(NAMES[number], path) if result.state == "wrong"]
    assert any(violated in result.sentence for result in wrong), wrong
    assert all(result.difference for result in wrong)


@pytest.mark.parametrize(("number", "before", "after"), OTHERS)
def test_another_right_solution_passes(number, before, after, check, tmp_path):
    results = list(check.check(NAMES[number], written(tmp_path, number, (before, after))))
    assert [result for result in results if result.state != "ok"] == []


def test_each_chapter_has_mistakes_that_are_found():
    assert all(sum(mistake[0] == number for mistake in MISTAKES) >= 2 for number in NAMES)


LAST = "return attention_weights(query, key) @ value"  # line 49 of 3_head.py


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (LAST, LAST.removeprefix("return "), "expected a tensor of shape (5, 16), found None; is a `return` missing?"),
        (LAST, "return attention_weights(query, key)", "expected the shape (5, 16), found (5, 5)"),
        (LAST, "return 'x'", "expected a tensor of shape (5, 16), found 'x'"),
        (LAST, "return value @ value", "line 49: RuntimeError: "),
        (LAST, "while True:\n        query = query", "no result after 0.2 seconds; is there a loop"),
        (LAST, "raise SystemExit", "line 49: SystemExit"),
        (LAST, "return attend(query, key, value)", "RecursionError: maximum recursion depth exceeded"),
        ("key: Tensor, value: Tensor) ->", "value: Tensor) ->", "TypeError: attend() takes 2 positional arguments"),
        ("def attend(", "def attended(", "3_head.py does not define attend; "),
        ("def attend(", "def attend(:", "3_head.py, line "),
        ("import torch\n", "import torch\n1 / 0\n", "3_head.py, line 4: ZeroDivisionError: division by zero"),
        ("import torch\n", "import torch\nwhile True:\n    pass\n", "no result after 0.2 seconds"),
    ],
)
def test_an_error_of_the_reader_is_one_clear_line(before, after, line, check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check", lambda name, path, run=check.check: run(name, path, seconds=0.2))
    written(tmp_path, 3, (before, after))
    assert check.main(["3"]) == 1
    output = capsys.readouterr().out
    assert [each for each in output.splitlines() if line in each], output
    assert "Traceback" not in output and "NotImplemented" not in output
    assert sys.gettrace() is None


@pytest.mark.parametrize(
    ("number", "before", "after", "line"),
    [
        (10, "    size_power: float  # a\n", "", "10_law.py, TypeError: "),
        (1, "return ids[start : start + context], ids", "ids", "the code gives None; is a `return` missing?"),
    ],
)
def test_so_is_one_that_the_checks_meet(number, before, after, line, check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, number, (before, after))
    assert check.main([str(number)]) == 1
    assert line in capsys.readouterr().out


def test_the_contents_show_what_the_check_prints(check, tmp_path, monkeypatch, capsys):
    contents = (ROOT / "docs/TUTORIAL.md").read_text(encoding="utf-8")
    expected = contents.partition("check.py 3\n3. ")[2].partition("```")[0]
    projected = "    return attend(x @ query_weight.T, x @ key_weight.T, x @ value_weight.T)"
    masked = 'scores.masked_fill(later, float("-inf"))'
    written(tmp_path, 3, (masked, "scores"), (projected, "    raise NotImplementedError"))
    monkeypatch.chdir(tmp_path)
    assert check.main(["3"]) == 1
    assert Result(0, "3. " + expected, capsys.readouterr().out).good


def test_the_reader_works_on_a_copy_that_is_never_overwritten(check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check.main(["8"]) == 1
    assert "8_bpe.py is not in this folder; python " in capsys.readouterr().out
    assert check.main(["8", "--start"]) == 0
    assert (tmp_path / "8_bpe.py").read_bytes() == (BUILD / "8_bpe.py").read_bytes()
    (tmp_path / "8_bpe.py").write_text("mine", encoding="utf-8")
    assert check.main(["8", "--start"]) == 1
    assert "8_bpe.py exists and was left as it is" in capsys.readouterr().out
    assert (tmp_path / "8_bpe.py").read_text(encoding="utf-8") == "mine"
    written(tmp_path, 8)
    assert check.main(["8"]) == 0
    assert "All 13 properties hold." in capsys.readouterr().out
    (tmp_path / "1_tokenizer.py").write_bytes((BUILD / "1_tokenizer.py").read_bytes())
    assert check.main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(None, 1)[0] for line in listed[:11]] == [str(number) for number in range(1, 12)]
    assert listed[0].endswith("0 of 9 properties hold") and listed[7].endswith("done")
    assert listed[2].endswith("not started")
    other = written(tmp_path / "..", 10)
    assert check.main(["10", "--file", os.path.relpath(other)]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["12"], "the chapters are 1 to 11, got 12"),
        (["--start"], "--start and --file need the number of a chapter"),
        (["3", "--start", "--file", "x.py"], "leave one of them out"),
    ],
)
def test_a_mistyped_command_is_refused(arguments, line, check, capsys):
    with pytest.raises(SystemExit, match="2"):
        check.main(arguments)
    assert line in capsys.readouterr().err


def test_a_missing_file_is_named(check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check.main(["3", "--file", "my.py"]) == 1
    assert "my.py: No such file or directory" in capsys.readouterr().out


def test_an_environment_without_the_packages_is_told_so(check, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    assert check.main(["3", "--file", str(BUILD / "3_head.py")]) == 1
    assert "install tinylm into this environment: pip install -e " in capsys.readouterr().out


def test_the_script_runs_from_any_folder(tmp_path):
    words = [sys.executable, str(ROOT / "docs/tutorial/check.py"), "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and done.stdout.startswith("1_tokenizer.py is not in this folder"), done
