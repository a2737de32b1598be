"""The mistakes in docs/mistakes.md, typed as they stand there: one line answers each, and nothing is written."""

import contextlib
import io
import json
import pickle
import re
import shlex
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from tests.commands.conftest import save_model
from tinylm.bundle import load_bundle, save_bundle
from tinylm.commands import main
from tinylm.interop import export_huggingface
from tinylm.runs.folder import RUN_FOLDER

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| `tinylm (.+?)` \| `(.+)` \| (\d+) \|")
ROWS = [found.groups() for found in ROW.finditer((ROOT / "docs/mistakes.md").read_text("utf-8"))]
NEED_THE_MODEL = ("--prompt z", "--prompt aaaa", "ckpt.pt", "ruined")
TEXT = "".join(f"The {number}th cat sat on the mat, and the dog looked on.\n" for number in range(1000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of a new user: texts, tables, models of other programs."""
    folder = tmp_path_factory.mktemp("mistakes")
    with contextlib.chdir(folder):
        save_model(Path("m"), prompt="ab")
        bundle = load_bundle("m")
        export_huggingface(bundle.model, bundle.tokenizer, "hf", bundle.info)
        bundle.model.blocks[0].attention.query.weight.data.fill_(float("nan"))
        save_bundle("ruined", bundle.model, bundle.tokenizer)
        torch.save({"model": {}, "model_args": {}, "iter_num": 5}, "ckpt.pt")
        Path("meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0}, "itos": {0: "a"}}))
        for name, text in texts().items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        Path("utf16.txt").write_text(TEXT, encoding="utf-16")
        Path("latin1.txt").write_text("Él está aquí. " * 99, encoding="latin-1")
        Path("my.txt.gz").write_bytes(b"\x1f\x8b\x08" + bytes(99))
        Path("my.pdf").write_bytes(b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 99)
        Path("ids").mkdir()
        Path("ids/train.bin").write_bytes(struct.pack("<2000H", *(7 * number % 500 for number in range(2000))))
        with zipfile.ZipFile("my.docx", "w") as file:
            file.writestr("[Content_Types].xml", "<Types/>")
            file.writestr("word/document.xml", "<w:document/>")
        Path("link.txt").symlink_to("gone.txt")
    return folder


def texts() -> dict[str, str]:
    pairs = [{"prompt": f"Question {number}?", "response": f"Answer {number}."} for number in range(40)]
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    return {
        "my.txt": TEXT, "other.txt": TEXT.upper(), "t.txt": "abc abc\n", "ten.txt": "0123456789", "empty.txt": "",
        "exists.txt": "mine", "p.json": '[{"prompt": "a"}]', "notes/a.md": TEXT, "notes/deep/b.md": TEXT,
        "pairs.jsonl": "".join(lines), "broken.jsonl": lines[0][:20] + "\n",
        "qa.csv": "question,answer\nWho?,Me\nWhat?,This\n", "texts.jsonl": '{"text": "Once"}\n' * 50,
        "merges.txt": "#version: 0.2\nt h\n", "minbpe.model": "minbpe v1\n\n0\n97 98\n",
        "tabs.yaml": "data:\n\tcorpus: my.txt\n", "comment.json": "{\n  // mine\n}\n", "one.yaml": "small\n",
        "empty.yaml": "", "twice.yaml": "trainer: {max_steps: 5}\ndata: {corpus: my.txt}\ntrainer: {max_steps: 9}\n",
        "hollow.yaml": "data:\ntrainer: {max_steps: 5}\n",
    }  # fmt: skip


def test_there_are_sixty_mistakes():
    assert len(ROWS) >= 60 and len({typed for typed, _, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("typed", "answer", "code"), ROWS, ids=[typed for typed, _, _ in ROWS])
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(folder, tmp_path, monkeypatch, typed, answer, code):
    if "--trainer.accelerator gpu" in typed and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv(RUN_FOLDER, "")  # so that what the command sets is taken back
    monkeypatch.delenv(RUN_FOLDER)
    shutil.copytree(folder, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    before = listing()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(shlex.split(typed))
    *remarks, line = err.getvalue().strip().splitlines()
    assert re.fullmatch(".*".join(map(re.escape, answer.split("..."))), line.removeprefix("tinylm: error: ")), line
    assert line.startswith("tinylm: error: ") and found == int(code)
    assert not out.getvalue()
    allowed = ("config: ", "encoded ", "learned ") + ("loading ", "reading ") * any(
        each in typed for each in NEED_THE_MODEL
    )
    assert all(each.startswith(tuple(f"tinylm: {name}" for name in allowed)) for each in remarks), remarks
    assert listing() == before


def listing() -> dict[str, bytes]:
    files = [path for path in Path().rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if not {"cache", ".cache"} & set(path.parts)}
