"""`tinylm train-numpy` as a user meets it, beside `tinylm fit` on the same config."""

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

import tinylm
from tests import processes
from tests.commands.numpy_runs import train_numpy
from tinylm import locate
from tinylm.commands import run_command
from tinylm.reference import files
from tinylm.reference.checkpoint import read_checkpoint
from tinylm.runs.folder import RUN_FOLDER
from tinylm.runs.metrics import read_metrics

MINI = """
model:
  network: {d_model: 16, num_layers: 2, num_heads: 2, num_kv_heads: 1, max_seq_len: 16}
  optimizer: {name: muon, lr: 0.01}
  schedule: {name: linear, warmup_steps: 2, min_lr: 0.001}
data: {corpus: CORPUS, tokenizer: char, batch_size: 8, micro_batch_size: 4, split: [0.8, 0.1, 0.1], cache_dir: CACHE}
run: {prompts: ["the ", "Ω"], sample_tokens: 8, peak_flops: 1.0e+12}
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


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> Path:
    """A config whose run takes a second."""
    folder = tmp_path_factory.mktemp("mini")
    corpus = folder / "fox.txt"
    corpus.write_text("".join(f"the quick brown fox {n} jumps over the lazy dog {n * 7 % 13}.\n" for n in range(120)))
    (folder / "mini.yaml").write_text(MINI.replace("CORPUS", str(corpus)).replace("CACHE", str(folder / "cache")))
    return folder / "mini.yaml"


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) calls the script's main in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_FOLDER, raising=False)
    return load("train-numpy")


def by_pytorch(monkeypatch, *arguments: object) -> Path:
    """The run folder of the same config by `tinylm fit`."""
    from tinylm.training.cli import main

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *map(str, arguments)])
    assert main() == 0
    os.environ.pop(RUN_FOLDER, None)
    return Path("runs/mini")


def columns(folder: Path) -> dict:
    return read_metrics(folder / "metrics.csv")


EPOCHS = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.train_tokens", "530"]
EPOCHS += ["--trainer.val_check_interval=0.5", "--trainer.check_val_every_n_epoch=2"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model.optimizer.name", "adamw", "--model.network.document_mask", "true", "--trainer.precision", "64-true"],
        pytest.param(EPOCHS, marks=pytest.mark.slow),
    ],
    ids=["muon", "adamw-float64", "epochs"],
)
def test_the_run_is_pytorchs(options, run, mini, monkeypatch, tmp_path):
    """The same columns, the same steps with logs and validations, the same losses, the same greedy text."""
    code, _, err = run("-c", mini, *options)
    assert code == 0, err
    ours, theirs = Path("runs/mini-numpy"), by_pytorch(monkeypatch, "-c", mini, *options)
    assert (ours / "metrics.csv").read_text().splitlines()[0] == (theirs / "metrics.csv").read_text().splitlines()[0]
    one, other = columns(ours), columns(theirs)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name][0] == other[name][0], name
        if not name.startswith("perf/"):
            assert one[name][1] == pytest.approx(other[name][1], rel=1e-4, abs=1e-4), name
    assert one["val/loss"][1][-1] < one["val/loss"][1][0] or "epochs" in str(options)
    (model, tokenizer), (their_model, _) = tinylm.load(ours), tinylm.load(theirs)
    assert model.config == their_model.config
    for name, weight in model.state_dict().items():
        np.testing.assert_allclose(weight, their_model.state_dict()[name], rtol=0, atol=5e-3, err_msg=name)
    from tinylm.generation import Generator

    texts = [
        Generator(each, tokenizer).generate("the ", max_new_tokens=8, temperature=0) for each in (model, their_model)
    ]
    assert texts[0] == texts[1]


DROPOUT = ["--model.network.dropout", "0.1"]


@pytest.fixture(scope="module")
def finished(mini, tmp_path_factory):
    """Where a run with dropout came to its end; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv(RUN_FOLDER, raising=False)
        with (folder / "said.txt").open("w", encoding="utf-8") as said, contextlib.redirect_stderr(said):
            assert run_command("train-numpy", ["-c", str(mini), *DROPOUT]) == 0
    return folder


def test_a_run_leaves_what_the_design_says(finished):
    folder = finished / "runs/mini-numpy"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("tinylm.json", "model.safetensors", "tokenizer.tinylm.json")}
    assert found == {"config.yaml", "metrics.csv", "samples.txt", "curves.png", "tokenizer.tinylm.json", *model} | {
        "checkpoints/last.npz",
        "checkpoints/best.npz",
    }
    said = (finished / "said.txt").read_text(encoding="utf-8")
    assert "training: 12 steps of 8 x 16 tokens, muon, NumPy " in said
    assert "step 12 | validation loss" in said and "no sample for 'Ω'" in said
    samples = (folder / "samples.txt").read_text()
    assert [line for line in samples.splitlines() if line.startswith("===")] == [f"=== step {n}" for n in (4, 8, 12)]
    assert samples.splitlines()[1].startswith("the ")


def test_generate_py_reads_it_and_the_text_is_the_twins_own(finished, load):
    folder = finished / "runs/mini-numpy"
    code, out, err = load("generate")("--model", folder, "--prompt", "the ", "--temperature", 0, "--max-new-tokens", 12)
    assert code == 0, err
    from tinylm.reference.generate import generate

    _, tokenizer = tinylm.load(folder)
    twin, prompt = files.load(folder), tokenizer.encode("the ")
    assert tokenizer.end_of_text is None
    ids = generate(twin, np.array([prompt]), 12, temperature=0)[0]
    assert out.strip() == ("the " + tokenizer.decode(ids.tolist())).strip()


def test_a_finished_run_trains_no_further_and_stays_as_it_is(finished, run, mini, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    code, _, err = run("-c", mini, *DROPOUT, "--resume")
    assert code == 0, err
    assert "the run is of 12 steps: there is nothing left to train" in err
    assert_same(tmp_path, finished, steps=12)


def test_config_yaml_runs_again_and_the_same(finished, run, tmp_path):
    config = tmp_path / "again.yaml"
    shutil.copy(finished / "runs/mini-numpy/config.yaml", config)
    assert yaml.safe_load(config.read_text()).keys() == {"seed_everything", "model", "data", "trainer", "run"}
    code, _, err = run("-c", config)
    assert code == 0, err
    assert columns(Path("runs/again-numpy"))["train/loss"] == columns(finished / "runs/mini-numpy")["train/loss"]


NO_SUCH_THING = "the NumPy twin has no such thing; leave it out, or use tinylm fit"
CANNOT_HONOUR = "the NumPy twin cannot honour it; leave it out, or use tinylm fit"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.network.n_head", "4"], "n_head: no such option, did you mean 'model.network.num_heads'?"),
        (["--trainer.max_stepz", "4"], "trainer.max_stepz: no such option, did you mean 'trainer.max_steps'?"),
        (["-c", "lora"], f"model.lora: {NO_SUCH_THING}"),
        (["-c", "compile"], f"model.compile: {NO_SUCH_THING}"),
        (["--model.init_from", "runs/x"], f"model.init_from: {NO_SUCH_THING}"),
        (["-c", "bf16"], "trainer.precision: NumPy computes in 32-true or 64-true, got bf16-mixed"),
        (["--trainer.devices", "2"], f"trainer.devices: {CANNOT_HONOUR}"),
        (["--trainer.gradient_clip_algorithm", "value"], f"trainer.gradient_clip_algorithm: {CANNOT_HONOUR}"),
        (["--trainer.max_steps=-1"], "max_steps: missing; give it, or trainer.max_epochs, or the run never ends"),
        # (4,829 - 16) // 16 windows, 8 of them in a step
        (
            ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=50"],
            "37 steps of an epoch, got 50; set",
        ),
        (["--model.schedule.min_lr", "1"], "min_lr must not exceed lr, got min_lr=1.0 and lr=0.01"),
        (["--model.network.num_layers", "0"], "num_layers must be at least 1, got 0"),
        (["--data.corpus", "nosuch.txt"], "data.corpus: nosuch.txt: no such corpus or file"),
        (["-c", "tiney"], "tiney: no such config file, did you mean 'tiny'?"),
        (["--resume"], "no such run"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line_with_an_exit_code_and_leave_nothing(run, mini, tmp_path, arguments, message):
    code, out, err = run("-c", mini, *arguments)
    assert (code, out) == (66 if re.search("no such (run|corpus|config file)", message) else 2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("tinylm: error: ") and err.count("error: ") == 1
    assert message in last
    assert not list(tmp_path.glob("runs/*"))


def test_what_is_of_no_use_is_said_and_the_run_goes_on(run, mini):
    options = ["--trainer.num_sanity_val_steps", "0", "--trainer.devices", "1", "--trainer.max_steps", "1"]
    code, _, err = run("-c", mini, *options, "-c", "early_stopping", "--run.name", "mine")
    assert code == 0, err
    [line] = [line for line in err.splitlines() if "of no use" in line]
    assert "twin: trainer.num_sanity_val_steps" in line and "EarlyStopping" in line
    assert Path("runs/mine/model/tinylm.json").is_file()


def test_a_loss_that_is_no_number_is_one_line(run, mini):
    code, _, err = run("-c", mini, "--model.optimizer.name", "sgd", "--model.optimizer.lr", "1e30")
    assert code == 70
    assert "the weights are as before this step. Try a lower lr" in err.splitlines()[-1]


# --- stopping and going on


def assert_same(ours: Path, whole: Path, steps: int) -> None:
    """Losses, weights, optimizer state: equal to the last bit."""
    ours, whole = ours / "runs/mini-numpy", whole / "runs/mini-numpy"
    one, other = columns(ours), columns(whole)
    for name in ("train/loss", "train/grad_norm", "lr", "val/loss", "val/accuracy"):
        assert one[name] == other[name], (name, ours)
    assert one["train/loss"][0] == list(range(1, steps + 1))
    for name in ("last", "best"):
        first, second = (read_checkpoint(folder / f"checkpoints/{name}.npz") for folder in (ours, whole))
        assert first.step == second.step
        for arrays, others in ((first.model.parameters, second.model.parameters), (first.state, second.state)):
            assert arrays.keys() == others.keys()
            for each, array in arrays.items():
                np.testing.assert_array_equal(array, others[each], err_msg=each)
    assert not list(ours.rglob(".tmp-*"))


def until(condition, process, seconds: float = 60) -> None:
    """Waits, as long as the process lives."""
    deadline = time.monotonic() + seconds
    while not condition() and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.002)


LAST = "runs/mini-numpy/checkpoints/last.npz"
LONG = [*DROPOUT, "--trainer.max_steps", "60", "--run.sample_tokens", "0"]


@pytest.fixture(scope="module")
def whole(mini, tmp_path_factory) -> tuple[Path, float]:
    """60 steps that nobody stopped: where, and how many seconds they took after the first save."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, mini, *LONG)
    until((folder / LAST).exists, process)
    started = time.monotonic()
    process.join(120)
    assert process.exitcode == 0, (folder / "said.txt").read_text()
    return folder, time.monotonic() - started


def start(folder: Path, mini: Path, *arguments: str):
    folder.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return processes.start(train_numpy, ["-c", str(mini), *arguments], folder, folder / "said.txt", **environment)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("moment", [0.3, *(pytest.param(n / 12, marks=pytest.mark.slow) for n in range(12))])
def test_a_killed_run_that_goes_on_is_the_same_to_the_last_bit(whole, mini, tmp_path, moment):
    """Dropout, accumulation and validation inside; killed in steps, validations and saves."""
    process = start(tmp_path, mini, *LONG)
    until((tmp_path / LAST).exists, process)
    time.sleep(whole[1] * moment * (1 + random.Random(moment).random() / 12))
    process.kill()
    process.join()
    assert process.exitcode != 0 or moment > 0.5, "it ended before it was killed"
    if process.exitcode != 0:
        resumed = start(tmp_path, mini, *LONG, "--resume")
        resumed.join(120)
        said = (tmp_path / "said.txt").read_text()
        assert resumed.exitcode == 0, said
        assert "going on with" in said
    assert_same(tmp_path, whole[0], steps=60)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to send")
def test_a_signal_saves_the_step_and_says_how_to_go_on(whole, mini, tmp_path):
    process = start(tmp_path, mini, *LONG)
    until((tmp_path / LAST).exists, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 75, said
    step = int(said.rsplit("stopped after step ", 1)[1].split(",")[0])
    assert read_checkpoint(tmp_path / LAST).step == step
    assert f"to go on: {locate.command('train-numpy', '-c', mini)}" in said and said.rstrip().endswith("--resume")
    resumed = start(tmp_path, mini, *LONG, "--resume")
    resumed.join(120)
    assert resumed.exitcode == 0, (tmp_path / "said.txt").read_text()
    assert f"from step {step}" in (tmp_path / "said.txt").read_text()
    assert_same(tmp_path, whole[0], steps=60)


def test_a_damaged_checkpoint_is_passed_over_and_another_architecture_refused(finished, run, mini, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    for option, message in (
        (["--model.network.num_layers", "1"], "num_layers: checkpoint 2, config 1"),
        (["--model.optimizer.name", "adamw"], "optimizer.name: checkpoint muon, config adamw"),
        (["--data.tokenizer", "byte"], "vocab_size: checkpoint"),
    ):
        code, _, err = run("-c", mini, *DROPOUT, *option, "--resume")
        assert code == 2 and message in err.splitlines()[-1]
    last = tmp_path / "runs/mini-numpy/checkpoints/last.npz"
    last.write_bytes(last.read_bytes()[:-40])
    code, _, err = run("-c", mini, *DROPOUT, "--resume", "--trainer.max_steps", "13", "--model.optimizer.lr", "0.02")
    assert code == 0, err
    assert "last.npz: is damaged" in err and "going on from step 12" in err
    assert "changed since the checkpoint: model.optimizer.lr 0.01 -> 0.02; trainer.max_steps 12 -> 13" in err


# --- TinyStories


@pytest.fixture
def stories_server(tmp_path):
    """The URL of a folder on a web server with files in TinyStories' format: 60 stories to train on, 8 to validate."""
    draw = random.Random(0)

    def story() -> str:
        name, thing = draw.choice(["Lily", "Tom", "Zoë"]), draw.choice(["ball", "cake", "“red” hat"])
        return (
            f"\nOnce upon a time, {name} had a {thing}.\n\n{name} was {draw.choice(['happy', 'sad'])}.\n<|endoftext|>"
        )

    served = tmp_path / "served"
    served.mkdir()
    for name, count in (("TinyStoriesV2-GPT4-train.txt", 60), ("TinyStoriesV2-GPT4-valid.txt", 8)):
        (served / name).write_text("".join(story() for _ in range(count)), encoding="utf-8", newline="")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("tokenizer", ["char", "bpe:290"])
def test_tinystories_from_the_download_to_a_text(stories_server, run, load, mini, monkeypatch, tokenizer):
    monkeypatch.setenv("no_proxy", "*")
    code, out, err = load("prepare")("tinystories", "--sample", 40, "--val", 8, "--url", stories_server)
    assert code == 0, err
    command = out.splitlines()[-1].split("train-numpy ")[1].split()  # the one that prepare says
    assert command == ["-c", "tiny", "--data.corpus", "tinystories-40"]
    options = ["--data.tokenizer", tokenizer, "--run.prompts", '["Once"]']
    code, _, err = run("-c", mini, *command[2:], *options, "--trainer.max_steps", 12)
    assert code == 0, err
    folder = Path("runs/mini-numpy")
    losses = columns(folder)["val/loss"][1]
    assert losses[-1] < losses[0]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    _, saved = tinylm.load(folder)
    assert saved.end_of_text is not None  # so that stories are told apart
    code, out, err = load("generate")("--model", folder, "--prompt", "Once", "--max-new-tokens", 8, "--seed", 1)
    assert code == 0, err
    assert out.startswith("Once")
