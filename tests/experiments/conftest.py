"""A config whose runs take a second, and the command line in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MINI = """
seed_everything: 0
model:
  network: {d_model: 16, num_layers: 1, num_heads: 2, max_seq_len: 16}
  optimizer: {name: adamw, lr: 0.01}
  schedule: {warmup_steps: 2}
data: {corpus: CORPUS, tokenizer: char, batch_size: 4, split: [0.8, 0.1, 0.1], cache_dir: CACHE}
run: {sample_tokens: 0, peak_flops: 1.0e+12}
trainer:
  accelerator: cpu
  max_steps: 6
  val_check_interval: 3
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  callbacks:
    - class_path: tinylm.training.LastCheckpoint
      init_args: {every_n_train_steps: 2}
"""


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> str:
    """The path of that config."""
    folder = tmp_path_factory.mktemp("mini")
    corpus = folder / "fox.txt"
    corpus.write_text("".join(f"the quick fox {n} jumps over the lazy dog {n * 7 % 13}.\n" for n in range(60)))
    path = folder / "mini.yaml"
    path.write_text(MINI.replace("CORPUS", str(corpus)).replace("CACHE", str(folder / "cache")))
    return str(path)


def start(*words: str, cwd: Path) -> subprocess.Popen:
    """Starts Python with these words in a process group of its own, whose Ctrl-C is not ours."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("TINYLM_RUN", "PL_"))}
    return subprocess.Popen(
        [sys.executable, *words], cwd=cwd, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True, env=ours | {"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )  # fmt: skip
