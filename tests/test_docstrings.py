"""Docstrings begin with their subject."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NODES = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("folder", ["tinylm", "scripts", "tests"])
def test_no_docstring_opens_with_a_word_that_postpones_its_subject(folder):
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = (ast.get_docstring(node) or "") if isinstance(node, NODES) else ""
            if re.match(r"(What|How|As|The same)\b", text):
                found.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert not found
