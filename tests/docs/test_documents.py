"""README and the other documents: their Python and commands run, and print the outputs shown.

Not covered: docs/tutorial (see test_tutorial.py), the installation commands (see .ci/run), and docs/benchmarks.md,
whose commands take hours.
"""

import json
import pydoc
import re
import shutil
from pathlib import Path

import pytest

from tests.docs.runner import BLOCK, BUDGETS, ROOT, default_budget, run_command, run_document

DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.stem != "benchmarks"]
WITH_BLOCKS = [path for path in DOCUMENTS if BLOCK.search(path.read_text(encoding="utf-8"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of a reader who has trained README's first model and has texts, modules and Hugging Face folders."""
    folder = tmp_path_factory.mktemp("documents")
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE"))
    for name in ("my.txt", "corpus.txt", "more.txt", "letter.txt"):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "notes" / "deep").mkdir(parents=True)
    for name in ("notes/a.md", "notes/deep/b.md"):
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("moe.py", "mla.py"):
        shutil.copy(ROOT / "scripts" / "examples" / name, folder)
    (folder / "prompts.txt").write_text("The\nAnd\n", encoding="utf-8")
    sums = [{"prompt": f"{a} + {b} =", "response": f" {a + b}"} for a in range(10) for b in range(10)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, sums)), encoding="utf-8")
    command = "tinylm fit --config small.yaml"
    output, code = run_command(command, BUDGETS["fit"], folder)
    assert code == 0, output
    for name in ("gpt2", "llama-folder"):
        output, code = run_command(f"tinylm export --model runs/small --to hf --out {name}", "", folder)
        assert code == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_BLOCKS, ids=lambda path: path.stem)
def test_document_runs_and_prints_the_outputs_shown(path, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    results = list(run_document(path.read_text(encoding="utf-8"), tmp_path))
    for result in results:
        assert result.good, f"{path.name}:{result.line}: expected\n{result.expected}\nfound\n{result.found}"


@pytest.mark.slow
def test_commands_of_readme_table_run_in_order(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rows = re.findall(r"^\|.*\| (`tinylm .*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 10
    for command in (each for row in rows for each in re.findall("`(.*?)`", row)):
        output, code = run_command(command, default_budget(command), tmp_path)
        assert code == 0, (command, output)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_are_in_blocks_that_are_run(path):
    for kind, code in FENCED.findall(path.read_text(encoding="utf-8")):
        if kind not in ("console", "sh", "bash"):
            assert not re.search(r"^(\$ |tinylm |python |pip |torchrun |sbatch |wandb )", code, re.MULTILINE), code


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_inline_python_runs(path):
    for code in re.findall(r'`python -c "(.*?)"`', path.read_text(encoding="utf-8")):
        exec(code, {})


def test_names_of_tinylm_in_documents_exist():
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    names = {name for text in texts for name in re.findall(r"`(tinylm(?:\.\w+)+)", text)} - {"tinylm.json"}
    assert len(names) > 5
    for name in names:
        assert pydoc.locate(name) is not None, name
