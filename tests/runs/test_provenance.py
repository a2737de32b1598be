"""The record of a run, run.json: what it holds, what it leaves out, and how it grows."""

import getpass
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from tinylm.errors import DataError
from tinylm.files import sha256_bytes
from tinylm.runs import provenance, repository
from tinylm.runs.masking import impersonal, masked_words
from tinylm.runs.provenance import RunFacts, begin_record, bundle_record, differences, end_record, parent, read_record

FACTS = dict(
    command="fit", words=["-c", "tiny"], compute={"threads": 1, "processes": 1}, text={"sha256": "t"},
    tokenizer={"sha256": "k"}, seeds={"seed_everything": 0}, given=["data.corpus"],
)  # fmt: skip


@pytest.fixture(autouse=True)
def _tinylm_is_installed(monkeypatch):
    """tinylm itself is not used from a clone."""
    monkeypatch.setattr(provenance, "own_repository", lambda: None)


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A repository with one commit, which is the working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "own.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.chdir(folder)
    return folder


def record(folder: Path, step: int = 0, changes=(), **other) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    begin_record(folder, RunFacts(**{**FACTS, **other}), step, changes)
    return read_record(folder / "run.json")


# --- code


def test_the_diff_of_a_dirty_tree_restores_it_on_the_commit(clone, tmp_path):
    (clone / "own.py").write_text("x = 2\n")
    (clone / "new.py").write_text("y = 1\n")
    state = record(clone / "runs/a")["code"]["folder"]
    assert (state["commit"], state["changed"], state["untracked"]) == (
        git(clone, "rev-parse", "HEAD"), ["own.py"], ["new.py"],
    )  # fmt: skip
    diff = clone / "runs/a" / state["diff"]
    assert sha256_bytes(diff.read_bytes()) == state["diff_sha256"]
    git(tmp_path, "clone", "-q", str(clone), "copy")
    git(tmp_path / "copy", "apply", str(diff))
    assert (tmp_path / "copy/own.py").read_text() == "x = 2\n"


def test_each_state_of_the_code_is_kept_once(clone):
    for content, name in (("x = 2\n", "run.diff"), ("x = 3\n", "run-2.diff"), ("x = 2\n", "run.diff")):
        (clone / "own.py").write_text(content)
        assert record(clone / "runs/a")["code"]["folder"]["diff"] == name
    (clone / "own.py").write_text("x = 1\n")
    state = record(clone / "runs/a")["code"]["folder"]
    assert (state["changed"], state["diff"], state["diff_sha256"]) == ([], None, None)


def test_a_long_diff_is_not_kept_and_its_files_are_named(clone, monkeypatch):
    monkeypatch.setattr(repository, "MOST_DIFF", 1000)
    (clone / "own.py").write_text("x = 2\n" * 500)
    state = record(clone / "runs/a")["code"]["folder"]
    assert (state["changed"], state["diff"]) == (["own.py"], None)


def test_a_secret_of_the_environment_is_not_in_the_diff(clone, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (clone / "own.py").write_text("key = '0123456789abcdef'\n")
    record(clone / "runs/a")
    assert "+key = '***'\n" in (clone / "runs/a/run.diff").read_text()


def test_the_code_is_unknown_without_a_repository_and_without_git(tmp_path, clone, monkeypatch):
    assert list(record(clone / "a")["code"]) == ["folder"]
    monkeypatch.chdir(tmp_path)
    assert record(tmp_path / "a")["code"] == {}
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record(tmp_path / "b")["code"] == {}


def test_a_repository_without_a_commit_is_no_error(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    monkeypatch.chdir(tmp_path)
    state = record(tmp_path / "a")["code"]["folder"]
    assert (state["commit"], state["changed"], state["diff"]) == (None, None, None)


# --- starts


def test_a_resumed_run_appends_what_has_changed(tmp_path):
    first = record(tmp_path / "a")
    assert first["starts"][0]["command_line"] == ["tinylm", "fit", "-c", "tiny"]
    assert (first["starts"][0]["step"], first["starts"][0]["ended"]) == (0, None)
    end_record(tmp_path / "a", 400)
    second = record(tmp_path / "a", 400, ["data.corpus a -> b"], compute={"threads": 2, "processes": 1})
    assert {name: value for name, value in second.items() if name != "starts"} == {
        name: value for name, value in first.items() if name != "starts"
    }
    before, after = second["starts"]
    assert before["last_step"] == 400 and before["begun"] <= before["ended"] <= after["begun"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", before["ended"])
    assert (after["step"], after["changed"]) == (400, {"compute.threads": 2})
    assert after["config"] == ["data.corpus a -> b"]
    assert bundle_record(tmp_path / "a") == {"provenance": second}


def test_a_run_that_starts_over_has_the_facts_of_its_weights(tmp_path):
    record(tmp_path / "a")
    found = record(tmp_path / "a", 0, text={"sha256": "other"})
    assert found["text"] == {"sha256": "other"} and len(found["starts"]) == 2


DAMAGED = ["", "[]", "{}", '{"format": 2}', '{"format": 1, "starts": []}', '{"format": 1, "starts": [{}], "code": 3}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_refused_in_one_line_and_kept_aside_on_resume(tmp_path, content, capfd):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json: ") as error:
        read_record(tmp_path / "run.json")
    assert "\n" not in str(error.value)
    assert bundle_record(tmp_path) == {}
    end_record(tmp_path, 5)
    assert (tmp_path / "run.json").read_text() == content
    assert len(record(tmp_path, 5)["starts"]) == 1
    assert (tmp_path / "run-damaged.json").read_text() == content
    assert capfd.readouterr().err.count("tinylm: warning: ") == 2


def test_differences_are_named_by_group_and_fact(tmp_path):
    then = record(tmp_path / "a")
    now = {**then, "versions": {**then["versions"], "torch": "9"}, "plugins": {"my.Layer": "ab"}}
    assert differences(then, now) == {
        "versions.torch": (then["versions"]["torch"], "9"), "plugins.my.Layer": (None, "ab"),
    }  # fmt: skip


def test_a_parent_is_known_by_the_hash_of_its_files(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert parent(tmp_path / "a.ckpt", 7) == {"path": impersonal(str(tmp_path / "a.ckpt")), "step": 7, "sha256": digest}
    for name in ("model", "hf"):
        (tmp_path / name).mkdir()
    (tmp_path / "model/tinylm.json").write_bytes(b"abc")  # it has the checksums of the other files
    assert parent(tmp_path / "model", None)["sha256"] == digest
    (tmp_path / "hf/a").write_bytes(b"abc")
    whole = parent(tmp_path / "hf", None)["sha256"]
    (tmp_path / "hf/a").write_bytes(b"abd")
    assert parent(tmp_path / "hf", None)["sha256"] != whole


# --- what is left out


def test_secrets_are_masked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("SHORT_KEY", "fit")  # would be found in any text
    words = {
        "fit": "fit",
        "WANDB_API_KEY=12": "WANDB_API_KEY=***",
        "--trainer.logger={class_path: W, init_args: {api_key: 'a b', n: 2}}":
            "--trainer.logger={class_path: W, init_args: {api_key: ***, n: 2}}",
        "--api-key": "--api-key",
        "abc": "***",
        "https://me:pw@host/x?X-Amz-Signature=ab&part=2": "https://***@host/x?X-Amz-Signature=***&part=2",
        "a-hf_0123456789-b": "a-***-b",
        "--data.tokenizer": "--data.tokenizer",
        "bpe:2048": "bpe:2048",
        "--run.sample_tokens=4": "--run.sample_tokens=4",
    }  # fmt: skip
    assert masked_words([*words]) == [*words.values()]


def test_user_and_host_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(platform, "node", lambda: "engine")
    if os.name == "posix":
        assert impersonal("/home/ada/x --a=/home/ada") == "~/x --a=~"
    assert impersonal("/net/engine/ada/ada.txt") == "/net/$HOSTNAME/$USER/ada.txt"
    text = json.dumps(record(tmp_path / "a", words=["-c", "/net/engine/ada/x"]))
    assert "engine" not in text and "ada" not in text
