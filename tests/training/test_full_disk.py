"""Commands on a full disk: exit code 74, one line with the path and the bytes, and all that was there before."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.training.conftest import TINY

pytestmark = pytest.mark.skipif(os.name != "posix", reason="rlimits are POSIX's")


def limited(limit: int, words: list[str], folder: Path, output: Path, stdout: Path | None) -> None:
    """Runs a command that can write no file beyond `limit` bytes; its messages go to `output` through a pipe."""
    import resource

    from tinylm.commands import main

    os.chdir(folder)
    pipe = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output.open("wb"))
    assert pipe.stdin is not None
    os.dup2(pipe.stdin.fileno(), 2)
    os.dup2(os.open(stdout or os.devnull, os.O_WRONLY | os.O_CREAT), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # the server's know other files
    sys.argv = ["tinylm", *words]
    code = main(words)
    pipe.stdin.close()
    os.close(2)
    pipe.wait()
    os._exit(code)


@pytest.fixture
def full(tmp_path):
    """full(limit, *words) is the exit code and the last line of a command."""

    def call(limit: int, *words: object, stdout: Path | None = None) -> tuple[int | None, str]:
        output = tmp_path / "messages"
        process = processes.start(limited, limit, [*map(str, words)], tmp_path, output, stdout)
        process.join(60)
        return process.exitcode, (output.read_text().strip().splitlines() or [""])[-1]

    return call


@pytest.fixture
def folder(tmp_path, corpus, finished_run) -> Path:
    """A folder with a finished run, its config and a text."""
    shutil.copytree(finished_run, tmp_path / "runs" / "mini")
    text = TINY.replace("CORPUS", str(corpus)).replace("CACHE", str(tmp_path / "cache"))
    (tmp_path / "mini.yaml").write_text(text)
    (tmp_path / "t.txt").write_text("the quick fox\n" * 50)
    return tmp_path


OUTPUTS = {
    "export": (2000, "out: could", ["export", "--model", "runs/mini", "--to", "hf", "--out", "out"]),
    "quantize": (2000, "out: could", ["quantize", "--model", "runs/mini", "--text", "t.txt", "--out", "out"]),
    "completions": (50, "out.jsonl: could", ["generate", "--model", "runs/mini", "--prompt=a", "--out", "out.jsonl"]),
    "tokenizer": (20, "out.json: could", ["tokenizer", "train", "t.txt", "--kind", "char", "--out", "out.json"]),
    "pairs": (500, "out/train.jsonl: could", ["prepare", "questions", "--train=50", "--out", "out"]),
    "predict": (3000, "out.jsonl: could", ["predict", "-c", "mini.yaml", "--data.text=t.txt",
                                           "--run.output=out.jsonl"]),
}  # fmt: skip


@pytest.mark.parametrize(("limit", "message", "words"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_command_names_the_path_and_the_bytes_and_leaves_nothing(limit, message, words, full, folder):
    code, line = full(limit, *words)
    assert code == 74, line
    assert message in line and re.search(
        r"not be written \(File too large, after [0-9,]+ bytes\); free some space", line
    )
    assert [path for path in folder.glob("out*") if path.is_file() or any(path.iterdir())] == []
    assert not list(folder.rglob(".tmp-*"))


def test_standard_output_on_a_full_disk_is_74_with_the_bytes_that_were_written(full, folder):
    words = ["tokenizer", "inspect", "runs/mini/model/tokenizer.tinylm.json", "the " * 200]
    code, line = full(100, *words, stdout=folder / "out.txt")
    problem = "standard output, after 100 bytes, could not be written (File too large); free some space and try again"
    assert (code, line) == (74, f"tinylm: error: {problem}")
    assert full(10**6, *words, stdout=folder / "out.txt")[0] == 0


@pytest.mark.parametrize("limit", [200, 30_000, 150_000])
def test_a_run_on_a_full_disk_keeps_its_checkpoints_and_goes_on_later(limit, full, folder):
    from tinylm.bundle import load_bundle, read_checkpoint

    run = folder / "runs" / "mini"
    kept = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ["fit", "-c", "mini.yaml", "--resume", "--trainer.max_steps", "18"]
    code, line = full(limit, *words)
    assert code == 74, line
    assert re.search(r"could not be written \(File too large, (after )?[0-9,]+ bytes", line)
    for name in ("last", "best"):
        assert read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["global_step"] >= 12
    assert load_bundle(run / "model").info["step"] == 12
    for name, content in kept.items():
        if name.suffix in (".csv", ".txt"):
            assert (run / name).read_bytes().startswith(content)
    assert full(10**9, *words)[0] == 0
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 18


def test_predictions_are_replaced_only_when_asked_or_at_their_default_place(full, folder):
    """On a disk with room for everything."""
    words = ["predict", "-c", "mini.yaml", "--data.text=t.txt"]
    assert [full(10**9, *words)[0] for _ in range(2)] == [0, 0]  # predictions.jsonl in the run folder
    words += ["--run.output=out.jsonl"]
    assert full(10**9, *words)[0] == 0
    code, line = full(10**9, *words)
    assert code == 73 and "out.jsonl: exists; choose another path, or replace it with --overwrite" in line
    assert full(10**9, *words, "--overwrite")[0] == 0
    (folder / "out.jsonl").write_text('{"letter": "dear"}\n')
    code, line = full(10**9, *words, "--overwrite")
    assert code == 73 and "out.jsonl: exists and is not a file of predictions of tinylm" in line
    assert (folder / "out.jsonl").read_text() == '{"letter": "dear"}\n'
