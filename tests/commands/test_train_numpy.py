"""`tinylm train-numpy` as a user runs it, beside `tinylm fit` on the same config."""

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
from tests.training.conftest import TINY
from tinylm import locate
from tinylm.commands import run_command
from tinylm.reference import files
from tinylm.reference.checkpoint import read_checkpoint
from tinylm.runs.folder import RUN_FOLDER
from tinylm.runs.metrics import read_metrics


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> Path:
    """A config whose run takes a second."""
    folder = tmp_path_factory.mktemp("mini")
    corpus = folder / "fox.txt"
    corpus.write_text("".join(f"the quick brown fox {n} jumps over the lazy dog {n * 7 % 13}.\n" for n in range(120)))
    config = yaml.safe_load(TINY.replace("CORPUS", str(corpus)).replace("CACHE", str(folder / "cache")))
    config["model"]["network"] |= dict(d_model=16, max_seq_len=16, dropout=0.0)
    config["model"]["schedule"]["name"] = "linear"
    config["run"]["prompts"] = ["the ", "Ω"]
    (folder / "mini.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return folder / "mini.yaml"


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) calls the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_FOLDER, raising=False)
    return load("train-numpy")


def fit_by_pytorch(monkeypatch, *arguments: object) -> Path:
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
NETWORK = dict(
    d_head=6, qkv_bias="true", head_bias="true", rotary_fraction=0.7, residual="parallel", layer_pattern="SN",
    sliding_window=5, attention_scale=0.3, mup_base_width=8,
    rope_scaling="{kind: yarn, factor: 2.0, original_max_seq_len: 8}",
)  # fmt: skip
AXES = [f"--model.network.{name}={value}" for name, value in NETWORK.items()]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model.optimizer.name", "adamw", "--model.network.document_mask", "true", "--trainer.precision", "64-true"],
        AXES,
        [
            "--data.corpus={fox: FOX, tales: 'stories:40'}",
            "--data.weights={fox: 0.7, tales: 0.3}",
            "--seed_everything=3",
        ],
        pytest.param(EPOCHS, marks=pytest.mark.slow),
    ],
    ids=["muon", "adamw-float64", "axes", "mixture", "epochs"],
)
def test_the_run_matches_pytorchs(options, run, mini, monkeypatch, tmp_path):
    """Columns, logged and validated steps, losses and greedy text are equal."""
    options = [each.replace("FOX", str(mini.with_name("fox.txt"))) for each in options]
    code, _, err = run("-c", mini, *options)
    assert code == 0, err
    ours, theirs = Path("runs/mini-numpy"), fit_by_pytorch(monkeypatch, "-c", mini, *options)
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
    """The folder of a finished run with dropout; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv(RUN_FOLDER, raising=False)
        with (folder / "log.txt").open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            assert run_command("train-numpy", ["-c", str(mini), *DROPOUT]) == 0
    return folder


def test_a_run_leaves_the_files_of_the_design(finished):
    folder = finished / "runs/mini-numpy"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("tinylm.json", "model.safetensors", "tokenizer.tinylm.json")}
    assert found - {"run.diff"} == {
        ".lock",
        "config.yaml",
        "run.json",
        "metrics.csv",
        "samples.txt",
        "curves.png",
        "tokenizer.tinylm.json",
        *model,
    } | {
        "checkpoints/last.npz",
        "checkpoints/best.npz",
    }
    log = (finished / "log.txt").read_text(encoding="utf-8")
    assert "training: 12 steps of 8 x 16 tokens (0.3 epochs), muon, NumPy " in log  # 37 steps in an epoch
    assert "step 12 | validation loss" in log and "no sample for 'Ω'" in log
    samples = (folder / "samples.txt").read_text()
    assert [line for line in samples.splitlines() if line.startswith("===")] == [f"=== step {n}" for n in (4, 8, 12)]
    assert samples.splitlines()[1].startswith("the ")


def test_generate_reads_the_run_and_writes_the_twins_text(finished, load):
    folder = finished / "runs/mini-numpy"
    code, out, err = load("generate")("--model", folder, "--prompt", "the ", "--temperature", 0, "--max-new-tokens", 12)
    assert code == 0, err
    from tinylm.reference.generate import generate

    _, tokenizer = tinylm.load(folder)
    twin, prompt = files.load(folder), tokenizer.encode("the ")
    assert tokenizer.end_of_text is None
    ids = generate(twin, np.array([prompt]), 12, temperature=0)[0]
    assert out.strip() == ("the " + tokenizer.decode(ids.tolist())).strip()


def test_a_run_with_scaled_positions_resumes_with_the_same_alone(run, mini):
    last = "--trainer.max_steps=2"
    code, _, err = run("-c", mini, *AXES, last)
    assert code == 0, err
    code, _, err = run("-c", mini, *AXES, "--resume", "--trainer.max_steps=3")
    assert code == 0 and f"resuming {Path('runs/mini-numpy')} from step 2" in err, err
    other = [*AXES, "--model.network.rope_scaling={kind: yarn, factor: 4.0, original_max_seq_len: 8}"]
    code, _, err = run("-c", mini, *other, "--resume", last)
    assert code == 2 and "error: rope_scaling: checkpoint {'kind': 'yarn', 'factor': 2.0," in err.splitlines()[-1]


def test_resuming_a_finished_run_changes_nothing(finished, run, mini, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    code, _, err = run("-c", mini, *DROPOUT, "--resume")
    assert code == 0, err
    assert "the run has 12 steps: there is nothing left to train" in err
    assert "12 steps in" not in err
    assert_same(tmp_path, finished, steps=12)


def test_the_saved_config_gives_the_same_run(finished, run, tmp_path):
    config = tmp_path / "again.yaml"
    shutil.copy(finished / "runs/mini-numpy/config.yaml", config)
    assert yaml.safe_load(config.read_text()).keys() == {"seed_everything", "model", "data", "trainer", "run"}
    code, _, err = run("-c", config)
    assert code == 0, err
    assert columns(Path("runs/again-numpy"))["train/loss"] == columns(finished / "runs/mini-numpy")["train/loss"]


NOT_AVAILABLE = "not available in the NumPy twin; leave it out, or use tinylm fit"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.network.n_head", "4"], "n_head: no such option, did you mean 'model.network.num_heads'?"),
        (["--trainer.max_stepz", "4"], "trainer.max_stepz: no such option, did you mean 'trainer.max_steps'?"),
        (["-c", "lora"], f"model.lora: {NOT_AVAILABLE}"),
        (["-c", "compile"], f"model.compile: {NOT_AVAILABLE}"),
        (["--model.init_from", "runs/x"], f"model.init_from: {NOT_AVAILABLE}"),
        (["--model.optimizer.ns_dtype", "bfloat16"], f"model.optimizer.ns_dtype: {NOT_AVAILABLE}"),
        (["--model.loss_rows", "64"], f"model.loss_rows: {NOT_AVAILABLE}"),
        (["--model.vocab_multiple", "64"], f"model.vocab_multiple: {NOT_AVAILABLE}"),
        (["-c", "bf16"], "trainer.precision must be 32-true or 64-true in NumPy, got bf16-mixed"),
        (["--trainer.devices", "2"], f"trainer.devices: {NOT_AVAILABLE}"),
        (["--trainer.gradient_clip_algorithm", "value"], f"trainer.gradient_clip_algorithm: {NOT_AVAILABLE}"),
        (
            ["--trainer.max_steps=-1"],
            "max_steps: missing; set it or trainer.max_epochs: the schedule needs the length of the run",
        ),
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


def test_options_without_effect_are_listed_and_the_run_continues(run, mini):
    options = ["--trainer.num_sanity_val_steps", "0", "--trainer.devices", "1", "--trainer.max_steps", "1"]
    code, _, err = run("-c", mini, *options, "-c", "early_stopping", "--run.name", "mine")
    assert code == 0, err
    [line] = [line for line in err.splitlines() if "without effect" in line]
    assert "twin: trainer.num_sanity_val_steps" in line and "EarlyStopping" in line
    assert Path("runs/mine/model/tinylm.json").is_file()


def test_a_loss_that_is_not_finite_is_one_line(run, mini):
    code, _, err = run("-c", mini, "--model.optimizer.name", "sgd", "--model.optimizer.lr", "1e30")
    assert code == 70
    assert "the weights are as before this step. Try a lower lr" in err.splitlines()[-1]


# --- stopping and resuming


def assert_same(ours: Path, whole: Path, steps: int) -> None:
    """Losses, weights and optimizer state are equal to the last bit."""
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
    """Waits for a condition while the process lives."""
    deadline = time.monotonic() + seconds
    while not condition() and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.002)


LAST = "runs/mini-numpy/checkpoints/last.npz"
LONG = [*DROPOUT, "--trainer.max_steps", "60", "--run.sample_tokens", "0"]


@pytest.fixture(scope="module")
def whole(mini, tmp_path_factory) -> tuple[Path, float]:
    """The folder of an uninterrupted run of 60 steps, and its seconds after the first save."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, mini, *LONG)
    until((folder / LAST).exists, process)
    started = time.monotonic()
    process.join(120)
    assert process.exitcode == 0, (folder / "log.txt").read_text()
    return folder, time.monotonic() - started


def start(folder: Path, mini: Path, *arguments: str):
    folder.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return processes.start(train_numpy, ["-c", str(mini), *arguments], folder, folder / "log.txt", **environment)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("moment", [0.3, *(pytest.param(n / 12, marks=pytest.mark.slow) for n in range(12))])
def test_a_killed_and_resumed_run_is_the_same_to_the_last_bit(whole, mini, tmp_path, moment):
    """With dropout, accumulation and validation; killed during steps, validations and saves."""
    process = start(tmp_path, mini, *LONG)
    until((tmp_path / LAST).exists, process)
    time.sleep(whole[1] * moment * (1 + random.Random(moment).random() / 12))
    process.kill()
    process.join()
    assert process.exitcode != 0 or moment > 0.5, "the run ended before it was killed"
    if process.exitcode != 0:
        resumed = start(tmp_path, mini, *LONG, "--resume")
        resumed.join(120)
        log = (tmp_path / "log.txt").read_text()
        assert resumed.exitcode == 0, log
        assert "resuming runs" in log.replace(os.sep, "/")
    assert_same(tmp_path, whole[0], steps=60)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals to send")
def test_a_signal_saves_the_step_and_prints_how_to_resume(whole, mini, tmp_path):
    process = start(tmp_path, mini, *LONG)
    until((tmp_path / LAST).exists, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    log = (tmp_path / "log.txt").read_text()
    assert process.exitcode == 75, log
    step = int(re.findall(r"stopped (?:in the validation )?after step (\d+),", log)[-1])
    assert read_checkpoint(tmp_path / LAST).step == step
    assert log.rstrip().endswith(f"to resume: {locate.command('train-numpy', '--resume', Path('runs/mini-numpy'))}")
    resumed = start(tmp_path, mini, *LONG, "--resume")
    resumed.join(120)
    assert resumed.exitcode == 0, (tmp_path / "log.txt").read_text()
    assert f"from step {step}" in (tmp_path / "log.txt").read_text()
    assert_same(tmp_path, whole[0], steps=60)


def test_a_damaged_checkpoint_is_skipped_and_another_architecture_is_refused(finished, run, mini, tmp_path):
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
    assert "last.npz: is damaged" in err and "resuming from step 12" in err
    assert "changed since the checkpoint: model.optimizer.lr 0.01 -> 0.02; trainer.max_steps 12 -> 13" in err


# --- TinyStories


@pytest.fixture
def stories_server(tmp_path):
    """The URL of a web server's folder with files in TinyStories' format: 60 training and 8 validation stories."""
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
def test_tinystories_from_download_to_generation(stories_server, run, load, mini, monkeypatch, tokenizer):
    monkeypatch.setenv("no_proxy", "*")
    code, out, err = load("prepare")("tinystories", "--sample", 40, "--val", 8, "--url", stories_server)
    assert code == 0, err
    command = out.splitlines()[-1].split("train-numpy ")[1].split()  # printed by prepare
    assert command == ["-c", "tiny", "--data.corpus", "tinystories-40"]
    options = ["--data.tokenizer", tokenizer, "--run.prompts", '["Once"]']
    code, _, err = run("-c", mini, *command[2:], *options, "--trainer.max_steps", 12)
    assert code == 0, err
    folder = Path("runs/mini-numpy")
    losses = columns(folder)["val/loss"][1]
    assert losses[-1] < losses[0]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    _, saved = tinylm.load(folder)
    assert saved.end_of_text is not None  # stories are separated
    code, out, err = load("generate")("--model", folder, "--prompt", "Once", "--max-new-tokens", 8, "--seed", 1)
    assert code == 0, err
    assert out.startswith("Once")
