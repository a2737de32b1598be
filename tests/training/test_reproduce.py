"""run.json of real runs, and `tinylm reproduce`."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml

from tinylm.bundle import load_bundle, read_checkpoint
from tinylm.commands import reproduce, run_command
from tinylm.data import TextDataModule
from tinylm.files import sha256_file
from tinylm.runs.folder import RUN_FOLDER
from tinylm.runs.losses import compare_losses
from tinylm.runs.provenance import read_record


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """Runs `tinylm reproduce ARGUMENTS` in a folder of its own; --run trains in this process."""
    monkeypatch.chdir(tmp_path)

    def train(words: list[str], threads: int | None) -> int:
        assert threads == torch.get_num_threads()
        monkeypatch.delenv(RUN_FOLDER, raising=False)
        code = run_command(words[0], words[1:])
        os.environ.pop(RUN_FOLDER, None)
        return code

    monkeypatch.setattr(reproduce, "train_again", train)
    monkeypatch.setattr("sys.argv", ["tinylm"])

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_command("reproduce", [str(each) for each in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def copied(finished_run, tmp_path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "runs/mini")


def edit(run: Path, group: str, name: str, value: object) -> None:
    """Changes a fact of a run's record."""
    found = json.loads((run / "run.json").read_text())
    found[group][name] = value
    (run / "run.json").write_text(json.dumps(found))


# --- the record


def test_a_run_records_data_computation_and_given_options(finished_run):
    found = read_record(finished_run / "run.json")
    checkpoint = read_checkpoint(finished_run / "checkpoints/last.ckpt")
    assert found["text"]["sha256"] == checkpoint["tinylm_data"]["fingerprint"]
    assert found["tokenizer"] == {"kind": "char", "sha256": checkpoint["tinylm"]["tokenizer"]["sha256"]}
    assert found["seeds"] == {"seed_everything": 0, "data.seed": None, "data.text_seed": 0}
    threads = torch.get_num_threads()
    assert found["compute"] | {"launcher": None} == {
        "accelerator": "cpu", "processes": 1, "precision": "32-true", "threads": threads, "launcher": None,
    }  # fmt: skip
    assert found["versions"]["torch"] == str(torch.__version__)
    assert [(each["step"], each["last_step"]) for each in found["starts"]] == [(0, 12)]
    assert found["parents"] == {} and set(found["given"]) == {
        "model.network.d_model", "model.network.num_layers", "model.network.num_heads", "model.network.num_kv_heads",
        "model.network.max_seq_len", "model.network.dropout", "model.optimizer.name", "model.optimizer.lr",
        "model.schedule.warmup_steps", "model.schedule.min_lr", "data.corpus", "data.batch_size",
        "data.micro_batch_size", "data.split", "data.cache_dir", "run.prompts", "run.sample_tokens", "run.peak_flops",
        "trainer.accelerator", "trainer.max_steps", "trainer.gradient_clip_val", "trainer.val_check_interval",
        "trainer.check_val_every_n_epoch", "trainer.log_every_n_steps", "trainer.callbacks", "trainer.precision",
    }  # fmt: skip
    assert load_bundle(finished_run / "model").info["provenance"] == found


def test_a_stopped_and_resumed_run_has_two_starts_and_is_reproduced_by_one(cli, call, tiny_yaml, monkeypatch):
    def stop(self, trainer, module, *_):  # the next step is still finished
        if trainer.global_step == 5 and not module.stop_wanted[1]:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("tinylm.training.progress.Progress.on_train_batch_end", stop)
        assert cli("fit", "-c", tiny_yaml).code == 75
    run = Path("runs/mini")
    (start,) = read_record(run / "run.json")["starts"]
    assert (start["step"], start["last_step"]) == (0, 6) and start["ended"] is not None
    assert cli("fit", "-c", run / "config.yaml", "--run.name", "mini", "--resume").code == 0
    found = read_record(run / "run.json")
    assert [(each["step"], each["last_step"]) for each in found["starts"]] == [(0, 6), (6, 12)]
    assert found["starts"][1]["changed"] == {} and "config" not in found["starts"][1]
    assert "--resume" in found["starts"][1]["command_line"]
    code, out, err = call(run, "--run")
    assert code == 0, err
    assert "resumed from step 6: nothing changed\n" in out
    losses = 12 + 3  # of training at each step, of validation at 4, 8 and 12
    assert out.endswith(f"{Path('runs/mini-again')}: all {losses} losses are those of {run}, to the last digit\n")


def test_the_checkpoints_from_which_a_run_begins_are_its_parents(cli, call, tiny_yaml, copied):
    base, checkpoint = copied / "model", copied / "checkpoints/last.ckpt"
    short = ["--trainer.max_steps", "14", "--trainer.val_check_interval", "14"]
    assert cli("fit", "-c", tiny_yaml, *short, "--run.name", "on", "--ckpt_path", checkpoint).code == 0
    assert cli("fit", "-c", tiny_yaml, "--trainer.max_steps", "2", "--run.name", "tuned",
               "--data.tokenizer", base / "tokenizer.tinylm.json", "--model.init_from", copied).code == 0  # fmt: skip
    found = {name: read_record(Path("runs", name, "run.json"))["parents"] for name in ("on", "tuned")}
    assert found["on"]["ckpt_path"]["step"] == 12
    assert found["on"]["ckpt_path"]["sha256"] == sha256_file(checkpoint)
    assert found["tuned"]["model.init_from"]["step"] == 12
    assert found["tuned"]["model.init_from"]["sha256"] == sha256_file(base / "tinylm.json")
    for name, option in (("on", "ckpt_path"), ("tuned", "model.init_from")):
        code, out, err = call(Path("runs", name))
        assert code == 0 and out.endswith("nothing that is recorded differs today\n"), (out, err)
        edit(Path("runs", name), "parents", option, {"sha256": "f" * 64})
        _, out, _ = call(Path("runs", name))
        assert out.splitlines()[-1].startswith(f"  {option} ({copied}") and "ffffffffffff, now" in out


def test_the_numpy_twin_records_and_is_reproduced(call, tiny_yaml):
    words = ["-c", str(tiny_yaml), "--trainer.max_steps", "3", "--run.sample_tokens", "0", "--threads", "1"]
    words += ["--trainer.val_check_interval", "2", "--data.micro_batch_size", "8"]
    assert run_command("train-numpy", words) == 0
    found = read_record(Path("runs/mini-numpy/run.json"))
    assert (found["compute"]["accelerator"], found["options"]["threads"]) == ("numpy", 1)
    info = json.loads(Path("runs/mini-numpy/model/tinylm.json").read_text())["info"]
    assert info["provenance"] == found and found["starts"][0]["last_step"] == 3
    code, out, err = call("runs/mini-numpy", "--run")
    assert code == 0, err
    assert "  tinylm train-numpy -c " in out.replace("python -m tinylm", "tinylm") and "--threads 1\n" in out
    assert "nothing that is recorded differs today\n" in out


# --- today


def test_the_commands_to_train_again_are_printed(finished_run, call):
    code, out, err = call(finished_run)
    assert (code, err) == (0, "")
    assert out.endswith("nothing that is recorded differs today\n")
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0].startswith(f"{finished_run}: fit, 12 steps, from 20")
    assert f"torch=={torch.__version__} lightning==" in out
    assert lines[-3].endswith(f" OMP_NUM_THREADS={torch.get_num_threads()}")
    again = ["fit", "-c", str(finished_run / "config.yaml"), "--run.dir", str(finished_run.parent)]
    assert lines[-2].endswith(f"tinylm {' '.join(again)} --run.name mini-again")


@pytest.mark.parametrize(
    ("group", "name", "value", "line"),
    [
        ("versions", "torch", "1.0", f"torch: 1.0, now {torch.__version__}"),
        ("machine", "processor", "Z80", "processor: Z80, now "),
        ("machine", "devices", ["H200"], "devices: H200, now none"),
        ("compute", "accelerator", "cuda", "accelerator: cuda, now cpu"),
        ("compute", "threads", 99, "threads: 99, now "),
        ("text", "sha256", "f" * 64, "fox.txt): ffffffffffff, now "),
        ("tokenizer", "sha256", "f" * 64, "tokenizer: ffffffffffff, now "),
        ("code", "folder", {"commit": "f" * 40}, f"commit of the working folder: {'f' * 40}, now no repository"),
    ],
)
def test_a_fact_that_differs_today_is_one_line(copied, call, group, name, value, line):
    edit(copied, group, name, value)
    code, out, _ = call(copied)
    found = out.partition("different today:\n")[2].splitlines()
    assert code == 0 and len(found) == 1 and line in found[0]


def test_a_changed_default_a_new_and_a_removed_option_are_named(copied, call, monkeypatch):
    names = TextDataModule.__init__.__code__.co_varnames[1:]
    changed = dict(zip(names, TextDataModule.__init__.__defaults__, strict=False)) | {"max_val_tokens": 640}
    monkeypatch.setattr(TextDataModule.__init__, "__defaults__", tuple(changed.values()))
    config = yaml.safe_load((copied / "config.yaml").read_text())
    del config["model"]["network"]["bias"]
    config["model"]["network"]["gate"] = 3
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = call(copied)
    assert code == 0 and out.partition("different today:\n")[2].splitlines() == [
        "  default of data.max_val_tokens: null, now 640; config.yaml keeps null",
        "  option model.network.gate: 3, now unknown",
        "  option model.network.bias: unknown then, now false by default",
    ]  # fmt: skip


def test_a_text_that_is_gone_is_one_line(copied, call):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["data"]["corpus"] = "gone.txt"
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, _ = call(copied)
    assert code == 0 and "cannot be opened now (data.corpus: gone.txt: no such" in out.splitlines()[-1]


def test_a_run_without_a_record_says_what_is_not_known(copied, call):
    (copied / "run.json").unlink()
    code, out, _ = call(copied)
    assert code == 0 and out.startswith(f"{copied}: has no run.json, ") and "options are unknown" in out.splitlines()[0]
    assert "--run.name mini-again" in out


def test_a_model_folder_tells_what_it_knows(copied, call, tmp_path):
    whole = call(copied)[1]
    assert call(copied / "model")[1] == whole
    moved = shutil.move(copied / "model", tmp_path / "moved")
    code, out, err = call(moved)
    assert (code, err) == (0, "") and "tinylm fit -c" in out and "its config is in the run folder" in out
    assert call(moved, "--run")[0] == 2


# --- training again


def test_the_first_loss_that_differs_is_named_with_both_values(copied, call, monkeypatch):
    shutil.copytree(copied, "runs/other")
    rows = Path("runs/other/metrics.csv").read_text().splitlines(keepends=True)
    columns, third = rows[0].strip().split(","), rows[3].strip().split(",")
    then = third[columns.index("train/loss")]
    third[columns.index("train/loss")], third[columns.index("perf/mfu")] = "7.5", "0"
    Path("runs/other/metrics.csv").write_text("".join([*rows[:3], ",".join(third) + "\n", *rows[4:-2]]))
    found = compare_losses(copied, Path("runs/other"))
    assert found.first == (3, "train/loss", then, "7.5") and found.rows == 15 and found.equal < 14
    monkeypatch.setattr(reproduce, "train_again", lambda *_: shutil.copytree("runs/other", "runs/mini-again") and 0)
    code, _, err = call("runs/mini", "--run")
    assert code == 70 and f"at step 3 train/loss is 7.5, and was {then}; {found.equal} of 15 losses are the same" in err
    monkeypatch.setattr(reproduce, "train_again", lambda *_: 75)
    assert call("runs/mini", "--run")[0] == 75


@pytest.mark.parametrize(
    ("arguments", "group", "name", "value", "code", "message"),
    [
        (["nowhere"], None, "", None, 66, "nowhere: not a run folder or model folder"),
        (["runs/mini", "--trust", "mine"], None, "", None, 2, "--trust: does not work without --run"),
        (["runs/mini", "--run"], "options", "trust", ["mine"], 2, "if you trust it, add --trust mine"),
        (["runs/mini", "--run"], "compute", "launcher", "torchrun", 2, "--run: the run was started by torchrun"),
        (["runs/mini"], None, "run.json", "{", 65, "run.json: is not valid JSON"),
        (["runs/mini", "--run"], None, "metrics.csv", None, 65, "has no metrics.csv"),
    ],
)
def test_mistakes_are_one_line(copied, call, arguments, group, name, value, code, message):
    if group:
        edit(copied, group, name, value)
    elif value:
        (copied / name).write_text(value)
    elif name:
        (copied / name).unlink()
    found, out, err = call(*arguments)
    assert (found, out) == (code, "") and message in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_run_is_trained_in_a_process_of_its_own_to_which_signals_are_passed_on(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "-c", "runs/mini/config.yaml", "--run.dir", "runs", "--run.name", "again"]
    words += ["--trainer.max_steps", "100000"]
    saved, ended = Path("runs/again/checkpoints/last.ckpt"), threading.Event()

    def stop() -> None:
        while not saved.is_file() and not ended.wait(0.1):
            pass
        if saved.is_file():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert reproduce.train_again(words, 1) == 75
    finally:
        ended.set()
        thread.join()
    assert read_record(Path("runs/again/run.json"))["compute"]["threads"] == 1
