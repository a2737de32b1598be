# ruff: noqa: E501 (messages in tables are whole)
"""Mistakes in configs and command lines, and remarks on a run: one line each, before anything is lost."""

import ast
import builtins
import io
import os
import pwd
import random
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests import processes
from tinylm.commands import run_command
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig
from tinylm.safe_yaml import read_yaml
from tinylm.training import LitTransformerLM, memory_check, preflight, remarks
from tinylm.training.memory import allocator_bytes
from tinylm.training.memory_check import control_group_limits
from tinylm.training.preflight import check_devices

# --- config files

FILES = {
    "nothing": ("", "c.yaml: is empty; write options as in trainer: {max_steps: 100}"),
    "only a comment": ("# later\n", "c.yaml: is empty; write options as in trainer: {max_steps: 100}"),
    "one word": ("small\n", "c.yaml: has no options; write options as in trainer: {max_steps: 100}"),
    "a list": ("- data\n- run\n", "c.yaml: has no options; write options as in trainer: {max_steps: 100}"),
    "run left empty": ("run:\n", "c.yaml: line 1: run is empty; indent its options below it, or remove the line"),
    "run null": ("run: null\n", "c.yaml: run must have options below it, got null; add some, or leave it out"),
    "model null": ("model: null\n", "c.yaml: model must have options below it, got null; add some, or leave it out"),
    "model left empty": ("model:\n", "c.yaml: line 1: model is empty; indent its options below it, or remove the line"),
    "data left empty": ("\ndata:\n", "c.yaml: line 2: data is empty; indent its options below it, or remove the line"),
    "trainer left empty": ("trainer:\n# max_steps: 3\n", "c.yaml: line 1: trainer is empty; indent its options below it, or remove the line"),
    "network left empty": ("model:\n  network:\n", "c.yaml: line 2: model.network is empty; indent its options below it, or remove the line"),
    "optimizer null": ("model: {optimizer: ~}\n", "c.yaml: model.optimizer must have options below it, got null; add some, or leave it out"),
    "lora left empty": ("model:\n  lora:\n", "c.yaml: line 2: model.lora is empty; indent its options below it, or remove the line"),
    "a file for a section": ("data: my.txt\n", "c.yaml: data must have options below it, got my.txt; add some, or leave it out"),
    "a section twice": ("trainer: {max_steps: 3}\nrun: {}\ntrainer: {max_steps: 4}\n", "c.yaml: trainer is given twice, in lines 1 and 3; keep one"),
    "an option twice": ("model:\n  optimizer:\n    lr: 0.1\n    name: sgd\n    lr: 0.2\n", "c.yaml: model.optimizer.lr is given twice, in lines 3 and 5; keep one"),
    "twice in braces": ("model: {network: {d_model: 32, d_model: 64}}\n", "c.yaml: model.network.d_model is given twice, in lines 1 and 1; keep one"),
    "twice in a list": ("trainer:\n  callbacks:\n  - class_path: a\n    class_path: b\n", "c.yaml: trainer.callbacks.class_path is given twice, in lines 3 and 4; keep one"),
    "tabs": ("trainer:\n\tmax_steps: 3\n", "c.yaml: is not valid YAML, line 2: indent with spaces, not with tabs"),
    "JSON with //": ('{"trainer": {"max_steps": 3}, // three\n}\n', "c.yaml: is not valid YAML, line 1: comments begin with # in YAML, and JSON has none"),
    "JSON with // above": ('{\n  // three\n  "trainer": {"max_steps": 3}\n}\n', "c.yaml: is not valid YAML, line 2: comments begin with # in YAML, and JSON has none"),
    "JSON with /* */": ('{\n/* three */\n"trainer": {"max_steps": 3}}\n', "c.yaml: is not valid YAML, line 2: comments begin with # in YAML, and JSON has none"),
    "a bracket left open": ("trainer: {max_steps: [\n", "c.yaml: is not valid YAML, line 2: did not find expected node content"),
    "trust": ("trust: [mine]\n", "c.yaml: trust: can be given on the command line only; leave it out"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_config_that_says_something_else_than_it_seems_is_refused(cli, tiny_yaml, tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    result = cli("fit", "-c", tiny_yaml, "-c", "c.yaml")
    assert (result.code, result.error) == (2, message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["nothing", "run null", "model left empty", "a section twice", "tabs"])
def test_the_numpy_twin_reads_configs_the_same_way(tiny_yaml, tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    text, message = FILES[name]
    (tmp_path / "c.yaml").write_text(text)
    assert run_command("train-numpy", ["-c", str(tiny_yaml), "-c", "c.yaml"]) == 2
    assert capfd.readouterr().err.endswith(f"tinylm: error: {message}\n")


def test_an_explicit_null_and_a_shared_anchor_are_no_mistakes(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {lora: null}\na: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "c.yaml", no_blanks=True)["b"] == {"x": 2}


def test_every_config_of_ours_is_strict():
    root = Path(__file__).resolve().parents[2] / "configs"
    for path in root.rglob("*.yaml"):
        assert isinstance(read_yaml(path, no_blanks=True), dict), path


# --- encodings


@pytest.fixture
def cp1252(monkeypatch):
    """Opens text files as Windows does where no encoding is given."""
    opened = io.open

    def open_(file, mode="r", buffering=-1, encoding=None, *others, **options):
        if "b" not in mode and encoding in (None, "locale"):
            encoding = "cp1252"
        return opened(file, mode, buffering, encoding, *others, **options)

    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr(builtins, "open", open_)


def test_a_config_is_read_and_written_in_utf_8_on_windows(cli, tiny_yaml, tmp_path, cp1252):
    (tmp_path / "ü.yaml").write_bytes("\ufeffrun: {name: Größe, prompts: ['the Ü€😀']}  # Ĳ\n".encode())
    result = cli("fit", "-c", tiny_yaml, "-c", "ü.yaml", "--trainer.max_steps", "1")
    assert result.code == 0, result.err
    saved = yaml.safe_load((tmp_path / "runs/Größe/config.yaml").read_bytes())
    assert saved["run"]["prompts"] == ["the Ü€😀"]
    again = cli("fit", "--config", "runs/Größe/config.yaml", "--run.name", "again", "--trainer.max_steps", "1")
    assert again.code == 0, again.err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the locale is a variable of POSIX")
def test_a_config_is_read_in_utf_8_in_the_c_locale(tiny_yaml, tmp_path):
    (tmp_path / "c.yaml").write_text("run: {name: c, prompts: ['the Ü']}\n", encoding="utf-8")
    words = ["fit", "-c", str(tiny_yaml), "-c", "c.yaml", "--trainer.max_steps", "1"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(processes.ROOT)}
    options = dict(cwd=tmp_path, env=os.environ | locale, capture_output=True, encoding="utf-8", timeout=100)
    command = [sys.executable, "-m", "tinylm", *words]
    run = subprocess.run(command, **options)
    assert run.returncode == 0, run.stderr
    text = (tmp_path / "runs/c/config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["run"]["prompts"] == ["the Ü"]
    (tmp_path / "c.yaml").write_text("run: {name: größe}\n", encoding="utf-8")
    run = subprocess.run(command, **options)
    assert run.returncode == 2
    assert "cannot name a file in this locale, whose encoding is ascii; set PYTHONUTF8=1" in run.stderr


def test_a_config_in_another_encoding_is_named(cli, tiny_yaml, tmp_path):
    for encoding, place in (("utf-16", 0), ("latin-1", 12)):
        (tmp_path / "c.yaml").write_bytes("run: {name: ünder}\n".encode(encoding))
        result = cli("fit", "-c", tiny_yaml, "-c", "c.yaml")
        assert (result.code, result.error) == (2, f"c.yaml: is not UTF-8 at byte {place}; save it as UTF-8")


def text_calls(path: Path) -> Iterator[ast.Call]:
    """The calls in a source file that open a text file without naming its encoding."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        place = 1 if isinstance(call.func, ast.Name) else 0  # of the mode
        modes = [*call.args[place : place + 1], *(each.value for each in call.keywords if each.arg == "mode")]
        constants = [each for mode in modes for each in ast.walk(mode) if isinstance(each, ast.Constant)]
        binary = any("b" in str(constant.value) for constant in constants)
        whole = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
        opens = whole or (name == "open" and not owner.startswith(BINARY) and not binary)
        if opens and not any(each.arg == "encoding" for each in call.keywords):
            yield call


BINARY = (
    "os",
    "fsspec",
    "webbrowser",
    "self",
    "source",
    "Source(",
    "super()",
)  # `open` of no text; the last four are sources
SOURCES = [*(processes.ROOT / "tinylm").rglob("*.py"), *(processes.ROOT / "scripts").glob("*.py")]


def test_every_text_file_is_opened_in_utf_8():
    """Whatever the locale: no call of open, read_text or write_text leaves the encoding out."""
    found = [f"{path}:{call.lineno}" for path in SOURCES for call in text_calls(path)]
    assert not found


# --- words of the command line

WORDS = {
    ("my.txt",): "my.txt: is not an option, did you mean '--data.corpus my.txt'?",
    ("small",): "small: is not an option, did you mean '-c small'?",
    ("other.yaml",): "other.yaml: is not an option, did you mean '-c other.yaml'?",
    ("pairs.jsonl",): "pairs.jsonl: is not an option, did you mean '--data.pairs pairs.jsonl'?",
    ("--data.corpus", "notes/a.md", "notes/b.md", "notes/c.md"): "notes/b.md: is not an option; --data.corpus takes one value: put a pattern or several words in quotes",
    ("--run.prompts", "The", "king"): "king: is not an option; --run.prompts takes one value: put a pattern or several words in quotes",
    ("--d_model", "256"): "d_model: no such option, did you mean 'model.network.d_model'?",
    ("--d-model", "256"): "d_model: no such option, did you mean 'model.network.d_model'?",
    ("--d_modl=256",): "d_modl: no such option, did you mean 'model.network.d_model'?",
    ("--lr", "0.1"): "lr: no such option, did you mean 'model.optimizer.lr'?",
    ("--warmup", "5"): "warmup: no such option, did you mean 'model.schedule.warmup_steps'?",
    ("--epochs", "5"): "epochs: no such option, did you mean 'trainer.max_epochs'?",
    ("--batch-size", "5"): "batch_size: no such option, did you mean 'data.batch_size'?",
    ("--seed", "5"): "seed: no such option, did you mean 'data.seed' or 'seed_everything'?",
    ("--name", "x"): "name: no such option, did you mean 'model.optimizer.name' or 'model.schedule.name' or 'run.name'?",
    ("--network.d_model", "5"): "network.d_model: no such option, did you mean 'model.network.d_model'?",
    ("--model.d_model", "5"): "model.d_model: no such option, did you mean 'model.network.d_model'?",
    ("--data.max_seq_len", "5"): "data.max_seq_len: follows model.network.max_seq_len; set that instead",
    ("--data", "my.txt"): "data: is a group of options; give them one by one, as in --data.corpus (got my.txt)",
    ("--data.split", "0.9"): "data.split must be a list such as [0.9, 0.1], got 0.9",
    ("--data.split", "90"): "data.split must be a list such as [0.9, 0.1], got 90",
    ("--model.optimizer.betas", "0.9"): "model.optimizer.betas must be a list such as [0.9, 0.95], got 0.9",
    ("--model.lora", "true"): "model.lora must be options or null, got true",
    ("--model.compile", "maybe"): "model.compile must be bool, got maybe",
    ("--trainer.gradient_clip_val", "big"): "trainer.gradient_clip_val must be int or float or null, got big",
    ("--trainer.callbacks+", "EarlyStoping"): "trainer.callbacks: no class EarlyStoping, did you mean 'EarlyStopping'?",
    ("--trainer.callbacks+", "Nonsense"): "trainer.callbacks: no class Nonsense; give its import path, as in tinylm.training.BestCheckpoint",
    ("--trainer.max_steps",): "--trainer.max_steps: its value is missing",
    ("--trainer.val_check_interval", "0"): "trainer.val_check_interval must be positive, got 0; for no validations set trainer.limit_val_batches to 0",
    ("--trainer.gradient_clip_val", "-1"): "trainer.gradient_clip_val must not be negative, got -1",
    ("--data.num_workers", "-1"): "data.num_workers must not be negative, got -1",
    ("--data.tokenizer", "gpt2"): "data.tokenizer: no kind 'gpt2', did you mean 'tiktoken:gpt2'?",
    ("--data.tokenizer", "GPT-4"): "data.tokenizer: no kind 'GPT-4', did you mean 'tiktoken:cl100k'?",
    ("--data.tokenizer", "cl100k_base"): "data.tokenizer: no kind 'cl100k_base', did you mean 'tiktoken:cl100k'?",
    ("--data.tokenizer", "bpe1024"): "data.tokenizer: no kind 'bpe1024', did you mean 'bpe:1024'?",
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), WORDS.items(), ids=lambda each: " ".join(each)[:40])
def test_a_word_out_of_place_is_answered_with_what_was_meant(cli, tiny_yaml, words, message):
    result = cli("fit", "-c", tiny_yaml, *words)
    assert (result.code, result.error) == (2, message)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_precision_names_its_values(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--trainer.precision", "fp16")
    assert result.code == 2 and re.match("trainer.precision must be one of .*bf16-mixed.*, got fp16$", result.error)


@pytest.mark.parametrize("given", ["the ", "[the , a ]", "5"])
def test_one_prompt_needs_no_brackets(cli, tiny_yaml, tmp_path, given):
    result = cli("fit", "-c", tiny_yaml, "--run.prompts", given, "--trainer.max_steps", "1")
    assert result.code == 0, result.err
    prompts = {"the ": ["the "], "[the , a ]": ["the", "a"], "5": ["5"]}[given]
    samples = (tmp_path / "runs/mini/samples.txt").read_text(encoding="utf-8").split("=== step 1\n")[1:]
    assert len(samples) == len(prompts)
    assert all(text.startswith(prompt) for prompt, text in zip(prompts, samples, strict=True))


# --- what this machine lacks


@pytest.mark.parametrize("kind", ["gpu", "cuda", "mps", "tpu"])
def test_an_accelerator_that_is_not_there_is_refused_before_the_data_are_read(cli, tiny_yaml, kind):
    if check_devices_says_nothing(kind):
        pytest.skip("this machine has one")
    result = cli("fit", "-c", tiny_yaml, "--trainer.accelerator", kind, "--data.corpus", "nosuch.txt")
    assert result.code == 2
    assert re.fullmatch(rf"trainer.accelerator: {kind} cannot be used \(.+\); leave it out, or take cpu", result.error)


def check_devices_says_nothing(kind: str) -> bool:
    try:
        check_devices(kind, "auto")
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("devices", [0, -2, "many", [0, 1], "0,1", -1])
def test_devices_that_a_processor_has_not_are_refused(devices):
    with pytest.raises(ConfigError, match="devices must be a positive number or auto, got "):
        check_devices("cpu", devices)


@pytest.mark.parametrize("devices", [1, 2, "2", "auto", 64])
def test_a_processor_takes_any_number_of_processes(devices):
    check_devices("cpu", devices)


@pytest.mark.parametrize(("devices", "fits"), [(2, True), ("2", True), ([0, 1], True), ("0,1", True), ("1", True), (-1, True),
                                               ("auto", True), (3, False), ([0, 2], False), ("2,", False), (0, False)])  # fmt: skip
def test_more_gpus_than_there_are_is_one_line(monkeypatch, devices, fits):
    two = SimpleNamespace(is_available=lambda: True, auto_device_count=lambda: 2)
    cpu = preflight.AcceleratorRegistry["cpu"]
    monkeypatch.setattr(
        preflight, "AcceleratorRegistry", {"cpu": cpu, "cuda": {"accelerator": two}, "mps": cpu, "tpu": cpu}
    )
    if fits:
        return check_devices("gpu", devices)
    with pytest.raises(ConfigError, match=r"devices(: this machine has 2| must be a positive number)"):
        check_devices("gpu", devices)


def test_an_unknown_accelerator_is_named(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--trainer.accelerator", "cudaa")
    assert (result.code, result.error) == (2, "trainer.accelerator: no kind 'cudaa', did you mean 'cuda'?")


@pytest.mark.parametrize(("kind", "name"), [("MLFlowLogger", "MLflow"), ("TensorBoardLogger", "TensorBoard"), ("CometLogger", "Comet")])  # fmt: skip
@pytest.mark.parametrize("form", ["trainer: {logger: {class_path: KIND, init_args: {save_dir: x}}}", "trainer: {logger: [{class_path: lightning.pytorch.loggers.KIND, init_args: {save_dir: x}}]}"])  # fmt: skip
def test_a_logger_that_is_not_installed_is_named_with_its_package(
    cli, tiny_yaml, tmp_path, monkeypatch, kind, name, form
):
    monkeypatch.setattr(preflight, "find_spec", lambda module: None)
    text = form.replace("KIND", kind)
    (tmp_path / "c.yaml").write_text(text if kind == "TensorBoardLogger" else re.sub(", init_args: {.*?}", "", text))
    result = cli("fit", "-c", tiny_yaml, "-c", "c.yaml")
    assert result.code == 2 and f"trainer.logger: {name} is not installed; pip install " in result.error


@pytest.mark.parametrize(("option", "value"), [("max_time", "often"), ("strategy", "ddpp")])
def test_a_value_that_only_lightning_knows_to_be_wrong_is_an_argument_error(cli, tiny_yaml, option, value):
    result = cli("fit", "-c", tiny_yaml, f"--trainer.{option}", value)
    assert result.code == 2 and result.error.startswith("trainer: ") and f"'{value}'" in result.error


def test_a_user_without_a_home_is_told_what_to_set(cli, tiny_yaml, monkeypatch, tmp_path):
    text = tiny_yaml.read_text()
    (tmp_path / "c.yaml").write_text(re.sub(r", cache_dir: [^}]*", "", text))
    for name in ("HOME", "TINYLM_CACHE", "XDG_CACHE_HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    result = cli("fit", "-c", "c.yaml")
    assert (result.code, result.error) == (
        2,
        "this user has no home folder for the cache; set TINYLM_CACHE to a folder",
    )
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))
    result = cli("fit", "-c", "c.yaml", "-c", "wandb")
    assert result.code == 2 and result.error.endswith("W&B needs a home folder, which this user lacks; set HOME")
    result = cli("fit", "-c", "c.yaml", "--trainer.max_steps", "1")
    assert result.code == 0, result.err


# --- callbacks


@pytest.mark.parametrize("kind", ["EarlyStopping", "ModelCheckpoint", "tinylm.training.BestCheckpoint"])
@pytest.mark.parametrize("metric", ["train/loss", "val_loss", "lr"])
def test_a_metric_that_no_validation_measures_is_refused_at_the_start(cli, tiny_yaml, kind, metric):
    result = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+", kind, "--trainer.callbacks.monitor", metric)
    name = kind.rpartition(".")[2]
    known = "val/loss, val/perplexity, val/bpb, val/accuracy"
    message = f"trainer.callbacks: {name} monitors {metric}, which no validation measures; there are {known}"
    assert result.code == 2 and result.error.endswith(message)
    assert "step 4" not in result.err


def test_any_metric_may_be_monitored_where_someone_elses_callback_may_log_it(cli, tiny_yaml, tmp_path, monkeypatch):
    own = "import lightning.pytorch as pl\n\nclass Own(pl.Callback):\n    def on_validation_epoch_end(self, trainer, module):\n"
    (tmp_path / "own_metric.py").write_text(own + "        module.log('own', 1.0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        "--trainer.callbacks+=own_metric.Own",
        "--trainer.callbacks+",
        "EarlyStopping",
        "--trainer.callbacks.monitor",
        "own",
    ]
    result = cli("fit", "-c", tiny_yaml, *words, "--trainer.max_steps", "4")
    assert result.code == 0, result.err


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "lightning.pytorch.callbacks.TQDMProgressBar"])
def test_another_progress_bar_takes_the_place_of_ours(cli, tiny_yaml, bar):
    result = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+", bar, "--trainer.max_steps", "4")
    assert result.code == 0, result.err
    assert "step 1/4" not in result.err and "validation loss" in result.err


def test_a_callback_whose_package_is_missing_is_named(cli, tiny_yaml, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress._RICH_AVAILABLE", False)
    result = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+", "RichProgressBar")
    assert result.code == 2 and result.error.startswith("RichProgressBar cannot be created: `RichProgressBar`")


RAISING = """
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

class Watcher(Callback):
    def __init__(self, kind: str = "a") -> None:
        raise RuntimeError(f"no watcher of kind {kind}\\nsecond line")

class Remote(CSVLogger):
    def __init__(self, host: str) -> None:
        raise ConnectionError(f"no server at {host}")

class Ours(Callback):
    def __init__(self) -> None:
        from tinylm.errors import MissingInputError
        raise MissingInputError("prompts.txt: no such file")
"""
WATCHER, REMOTE = "raising_parts.Watcher", "raising_parts.Remote"
NO_WATCHER = "Watcher cannot be created: no watcher of kind a"
RAISED = {
    "callback": (["callbacks", WATCHER], 2, NO_WATCHER),
    "callbacks": (["callbacks+", WATCHER], 2, NO_WATCHER),
    "logger": (["logger", REMOTE, "--trainer.logger.host", "x"], 2, "Remote cannot be created: no server at x"),
    "loggers": (
        ["logger", f"[{{class_path: {REMOTE}, init_args: {{host: y}}}}]"], 2, "Remote cannot be created: no server at y"
    ),
    "error of tinylm": (["callbacks", "raising_parts.Ours"], 66, "prompts.txt: no such file"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "code", "problem"), RAISED.values(), ids=RAISED)
def test_what_the_constructor_of_a_users_class_raises_is_the_error(
    words, code, problem, cli, tiny_yaml, tmp_path, monkeypatch
):
    (tmp_path / "raising_parts.py").write_text(RAISING)
    monkeypatch.syspath_prepend(tmp_path)
    result = cli("fit", "-c", tiny_yaml, f"--trainer.{words[0]}", *words[1:])
    assert (result.code, result.error) == (code, problem)


def test_one_callback_needs_no_list(cli, tiny_yaml, tmp_path):
    result = cli(
        "fit", "-c", tiny_yaml, "--trainer.callbacks", "tinylm.training.LastCheckpoint", "--trainer.max_steps", "1"
    )
    assert result.code == 0, result.err


def test_curves_are_announced_only_where_there_are_some(cli, tiny_yaml, tmp_path):
    result = cli("fit", "-c", tiny_yaml, "--trainer.logger", "false", "--trainer.max_steps", "1")
    assert result.code == 0, result.err
    assert "curves" not in result.err and not list(tmp_path.rglob("curves.png"))


def test_the_optimizer_of_a_subclass_is_not_called_by_the_configs_name(cli, tiny_yaml, monkeypatch):
    class Mine(LitTransformerLM):
        def configure_optimizers(self):
            return torch.optim.RMSprop(self.parameters(), lr=1e-3)

    monkeypatch.setattr("tinylm.training.cli.LitTransformerLM", Mine)
    result = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "1")
    assert "optimizer of Mine, CPU" in result.err and "muon" not in result.err


def test_a_nan_in_float16_is_told_with_the_precision(cli, tiny_yaml):
    words = ["--trainer.precision", "16-true", "--trainer.max_steps", "60", "--trainer.val_check_interval", "60"]
    result = cli("fit", "-c", tiny_yaml, *words, "--model.optimizer.name", "adamw")
    assert result.code == 70
    assert "is nan; the weights are unchanged by this step. trainer.precision=16-true rounds" in result.error


def test_a_length_in_time_alone_is_refused_for_its_reason(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "-1", "--trainer.max_time", "00:00:00:03")
    assert (
        result.code == 2 and "the schedule needs the length of the run (run.seconds adjusts max_steps" in result.error
    )


# --- finetuning, and where one is


def test_a_preset_beside_init_from_is_named_by_its_file(cli, tiny_yaml, finished_run, tmp_path):
    result = cli("fit", "-c", "own_text", "--model.init_from", finished_run)
    assert result.code == 2
    assert re.search(
        r"own_text.yaml: model.network.d_model: .* has 32, got 128; leave it out, as -c finetune does$", result.error
    )
    (tmp_path / "c.yaml").write_text("data: {tokenizer: byte}\nmodel: {network: {max_seq_len: 32}}\n")
    result = cli("fit", "-c", tiny_yaml, "-c", "c.yaml", "--model.init_from", finished_run)
    message = f"c.yaml: data.tokenizer: {finished_run / 'model'} was trained with another tokenizer; leave"
    assert result.code == 2 and result.error.startswith(message)


@pytest.mark.parametrize("inside", ["runs", "runs/mini"])
def test_no_runs_are_made_inside_runs(cli, tiny_yaml, tmp_path, monkeypatch, inside):
    (tmp_path / "runs/mini/checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / inside)
    up = ".." if inside == "runs" else "../.."
    for command in ("fit", "validate"):
        result = cli(command, "-c", tiny_yaml)
        message = f"run.dir: the current folder is inside {tmp_path / 'runs'}; cd {up} first, or give run.dir"
        assert (result.code, result.error) == (2, message)
    assert run_command("fit", ["--resume", "mini"]) == 2
    assert cli("fit", "-c", tiny_yaml, "--run.dir", "here", "--trainer.max_steps", "1").code == 0


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("fit", "--run.output=x.jsonl"),
        ("validate", "--run.output=x.jsonl"),
        ("test", "--model.optimizer.lr=0.1"),
        ("predict", "--trainer.max_steps=5"),
        ("predict", "--run.prompts=The"),
    ],
)
def test_an_option_that_a_command_does_not_use_is_refused_by_name(tiny_yaml, capfd, name, option):
    assert run_command(name, ["-c", str(tiny_yaml), option]) == 2
    message = f"tinylm: error: {option.partition('=')[0]}: does not work with {name}; leave it out\n"
    assert capfd.readouterr().err == message


# --- remarks


def test_remarks_at_the_start_are_one_line_each(cli, tiny_yaml, corpus, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(corpus.read_text())
    words = ["--data.corpus", "[0-9].txt", "--data.tokenizer", "bpe:5000", "--model.schedule.warmup_steps", "7"]
    result = cli("fit", "-c", tiny_yaml, *words, "--trainer.max_steps", "6")
    assert result.code == 0, result.err
    remarks = (
        r"tinylm: \[0-9\].txt: 3 files",
        r"tinylm: learned [\d,]+ tokens from \[0-9\].txt \(.* s\): the text has no more \(5,000 were requested\)",
        r"tinylm: model.schedule.warmup_steps is 7 and the run has 6 steps: the learning rate never reaches 0.01",
    )
    for remark in remarks:
        assert len(re.findall(f"^{remark}$", result.err, re.MULTILINE)) == 1, (remark, result.err)


def test_a_run_without_anything_remarkable_gets_no_remark(cli, tiny_yaml):
    result = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "6")
    lines = result.err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("tinylm: training: "))
    assert lines[first + 1].startswith("step 1/6 ")
    # 3 of 4 runs of 29 or 30 characters fit twice 32: 4,829 training tokens make 152 windows, 19 steps of 8
    assert "6 steps of 8 x 32 tokens (0.3 epochs), muon" in lines[first]


def test_overfitting_is_remarked_on_once_after_three_rises(capfd):
    watch = remarks.OverfittingWatch()
    for validation, training in [(2.0, 1.9), (2.1, 1.7), (2.2, 1.5), (2.1, 1.3), (2.2, 1.2), (2.3, 1.1)]:
        watch.add(validation, training)
    assert capfd.readouterr().err == ""  # never three in a row
    watch.add(2.4, 1.4)
    assert capfd.readouterr().err == ""  # the training loss rose too
    watch.add(2.5, 1.0)
    said = capfd.readouterr().err
    assert said.startswith("tinylm: the validation loss has risen for 3 validations while the training loss falls")
    watch.add(2.6, 0.9)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", ["fit", "train-numpy"])
def test_overfitting_is_remarked_on_by_both_programs(tiny_yaml, tmp_path, monkeypatch, capfd, command):
    """Random letters can only be learned by heart: the training loss falls, and the validation loss rises."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("".join(random.Random(0).choices("abcdefgh", k=900)))
    words = f"-c {tiny_yaml} --data.corpus a.txt --data.split [0.5,0.5] --run.sample_tokens 0 --trainer.max_steps 105"
    words += " --trainer.val_check_interval 15 --model.network.dropout 0"
    for name in [name for name in os.environ if name.startswith("TINYLM_RUN")]:
        monkeypatch.delenv(name)
    assert run_command(command, words.split()) == 0
    os.environ.pop("TINYLM_RUN_FOLDER", None)
    assert capfd.readouterr().err.count("has risen for 3 validations") == 1


@pytest.mark.parametrize("command", ["fit", "train-numpy"])
def test_an_unknown_theme_is_refused_before_the_run(tiny_yaml, tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_THEME", "drak")
    assert run_command(command, ["-c", str(tiny_yaml)]) == 2
    assert "TINYLM_THEME must be one of light, dark, got 'drak'" in capfd.readouterr().err
    assert not Path("runs").exists()


# --- progress


def test_progress_off_a_terminal_shows_the_loss_of_its_step(cli, tiny_yaml):
    lines = {}
    for every in ("1", "50", "0"):
        result = cli("fit", "-c", tiny_yaml, "--trainer.log_every_n_steps", every, "--run.name", f"every{every}")
        assert result.code == 0, result.err
        lines[every] = re.findall(r"^step (\d+)/12 \| loss ([\d.]+), [\d,]+ tokens/s, MFU", result.err, re.MULTILINE)
    assert [int(step) for step, _ in lines["1"]] == list(range(1, 13))
    assert len({loss for _, loss in lines["1"]}) > 6
    assert lines["1"] == lines["50"] == lines["0"]


# --- memory


@pytest.mark.parametrize("command", ["fit", "train-numpy"])
def test_a_batch_larger_than_the_training_text_is_refused(tiny_yaml, tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    assert run_command(command, ["-c", str(tiny_yaml), "--data.batch_size", "100000"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"tinylm: error: data.batch_size: 100,000 is more than the 1\d\d sequences of 32 tokens to train on; "
        "lower it, or give more data", last,
    )  # fmt: skip
    assert not list(tmp_path.glob("runs/*"))


def test_a_step_that_does_not_fit_is_said_before_the_first(cli, tiny_yaml, monkeypatch):
    known = {}
    monkeypatch.setattr(memory_check, "device_memory", lambda device: 10**9)
    monkeypatch.setattr(memory_check, "step_bytes", lambda *_, **__: known["need"])
    for need, code, line in [
        (0.5e9, 0, None),
        (1.0e9, 0, "a step takes about 1.5 GB, and this machine has 1.0 GB; if it does not fit, set data.micro_batch_size below 4"),
        (1.2e9, 2, "error: DATA.batch_size: a step takes about 1.8 GB, and this machine has 1.0 GB; set data.micro_batch_size below 4"),
    ]:  # fmt: skip
        known["need"] = int(need)
        result = cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "1")
        assert result.code == code, result.err
        line = line and line.replace("DATA", f"{tiny_yaml}: data")  # where it is given
        assert (f"tinylm: {line}\n" in result.err) if line else ("a step takes" not in result.err)


def test_gradients_that_outlive_a_micro_batch_and_the_buckets_of_ddp_are_counted(cli, tiny_yaml, monkeypatch):
    module = LitTransformerLM(ModelConfig(d_model=64, num_layers=2, num_heads=2, max_seq_len=64, vocab_size=128))
    gradients = sum(parameter.nbytes for parameter in module.parameters())  # in float32, as the weights

    def peak(**options: bool) -> int:
        return memory_check.step_bytes(module, "32-true", 32, 64, there=10**6, **options)

    assert peak(accumulates=True) - peak() == gradients  # at the beginning of the backward pass
    assert peak(summed=True) - peak() == gradients
    given = []
    monkeypatch.setattr(memory_check, "step_bytes", lambda *_, **options: given.append(options) or 0)
    whole = ["--data.micro_batch_size", "null"]
    for words in (whole, ["--data.micro_batch_size", "2"], [*whole, "--trainer.strategy", "ddp"]):
        assert cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "1", *words).code == 0
    assert [(each["accumulates"], each["summed"]) for each in given] == [(False, False), (True, False), (False, True)]


def test_control_groups_limit_the_memory(tmp_path):
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert control_group_limits(tmp_path) == []
    write("proc/self/cgroup", "0::/user/job\n")
    write("sys/fs/cgroup/user/job/memory.max", "max\n")
    assert control_group_limits(tmp_path) == []
    write("sys/fs/cgroup/user/memory.max", "5000\n")
    assert control_group_limits(tmp_path) == [5000]
    write("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/1\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n")
    assert control_group_limits(tmp_path) == [7000]


SHAPES = {
    "a wide batch": dict(d_model=128, num_layers=4, num_heads=4, max_seq_len=128, vocab_size=1024, rows=64),
    "dropout and the plain kernel": dict(d_model=192, num_layers=4, num_heads=8, max_seq_len=256, vocab_size=256,
                                         rows=16, dropout=0.1, attention_kernel="plain"),
    "a large vocabulary": dict(d_model=256, num_layers=3, num_heads=8, max_seq_len=256, vocab_size=16384, rows=8),
    "recomputed activations": dict(d_model=256, num_layers=6, num_heads=4, max_seq_len=256, vocab_size=2048, rows=16,
                                   activation_checkpointing=True),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is measured as Linux counts it")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_estimate_is_near_the_measured_peak(shape, tmp_path):
    process = processes.start(measure_peak, shape, tmp_path / "figures.txt")
    process.join(200)
    tensors, measured = map(int, (tmp_path / "figures.txt").read_text().split())
    reserved = allocator_bytes(tensors, on_cpu=True, recomputed="activation_checkpointing" in shape)
    assert tensors < measured  # a step that fits is never refused
    assert 0.75 < (tensors + reserved) / measured < 1.45, (tensors, reserved, measured)


def measure_peak(shape: dict, out: Path) -> None:
    """Takes two steps, and writes the estimated bytes of their tensors and the growth of the resident set."""
    rows = shape.pop("rows")
    module = LitTransformerLM(ModelConfig(**shape))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensors = memory_check.step_bytes(module, "32-true", rows, module.network.max_seq_len, there=10**9)
    optimizer = torch.optim.AdamW(module.net.parameters(), fused=True)
    ids = torch.zeros(rows, module.network.max_seq_len).long()
    for _ in range(2):  # in Lightning's order
        loss = module.net(ids, targets=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    out.write_text(f"{tensors} {grown + weights}")
