"""One tiny run, trained once for all tests, and the command line inside this process."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import processes
from tinylm.runs.folder import RUN_FOLDER

ROOT = Path(__file__).resolve().parents[2]

TINY = """
model:
  network: {d_model: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, max_seq_len: 32, dropout: 0.1}
  optimizer: {name: muon, lr: 0.01}
  schedule: {warmup_steps: 2, min_lr: 0.001}
data: {corpus: CORPUS, tokenizer: char, batch_size: 8, micro_batch_size: 4, split: [0.8, 0.1, 0.1], cache_dir: CACHE}
run: {prompts: ["the "], sample_tokens: 8, peak_flops: 1.0e+12}
trainer:
  accelerator: cpu
  max_steps: 12
  gradient_clip_val: 1.0
  val_check_interval: 4
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  callbacks:
    - class_path: tinylm.training.LastCheckpoint
      init_args: {every_n_train_steps: 3}
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error: there must be exactly one, and it must be the last."""
        lines = self.err.strip().splitlines()
        assert [line.startswith("tinylm: error: ") for line in lines].count(True) == 1, self.err
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("tinylm: error: ")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "fox.txt"
    path.write_text("".join(f"the quick brown fox {n} jumps over the lazy dog {n * 7 % 13}.\n" for n in range(120)))
    return path


@pytest.fixture(scope="session")
def tiny_yaml(corpus: Path) -> Path:
    path = corpus.parent / "mini.yaml"
    path.write_text(TINY.replace("CORPUS", str(corpus)).replace("CACHE", str(corpus.parent / "cache")))
    return path


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """Runs `train.py ARGUMENTS` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        from tinylm.training.cli import main

        monkeypatch.delenv(RUN_FOLDER, raising=False)
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        capfd.readouterr()
        with processes.left_group():
            code = main()
        os.environ.pop(RUN_FOLDER, None)
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def finished_run(tiny_yaml, tmp_path_factory) -> Path:
    """The folder of a finished run, which tests must not change."""
    from tinylm.training.cli import main

    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.delenv(RUN_FOLDER, raising=False)
    patch.setattr(sys, "argv", ["train.py", "fit", "-c", str(tiny_yaml), "--run.dir", str(folder)])
    assert main() == 0
    patch.undo()
    os.environ.pop(RUN_FOLDER, None)
    return folder / "mini"
