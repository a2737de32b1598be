"""Runs of `tinylm fit` whose network has parts from a file of the user's. For the parts see tests/test_plugins.py."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import tinylm
from tests.training.snapshots import Snapshots, differences
from tinylm import plugins
from tinylm.commands import main
from tinylm.training.parts import fold_parts

NETWORK = {
    "attention": {"class_path": "own_parts.GatedAttention", "init_args": {"power": 2.0}},
    "feedforward": "own_parts.Bilinear",
    "norm": {"class_path": "own_parts.Signed", "init_args": {"scale": 0.5}},
    "positional_encoding": "own_parts.Sines",
}


@pytest.fixture
def own_yaml(own_parts) -> Path:
    """A config that names parts of own_parts.py, both in a folder of their own."""
    folder = own_parts / "mine"
    folder.mkdir()
    (own_parts / "own_parts.py").rename(folder / "own_parts.py")
    (folder / "own.yaml").write_text(yaml.safe_dump({"model": {"network": NETWORK}}))
    return folder / "own.yaml"


@torch.no_grad()
def plain_loop(folder: Path, prompt: str, count: int) -> str:
    """The most likely continuation by the modules alone."""
    model, tokenizer = tinylm.load(folder, trust=["own_parts"])
    ids = tokenizer.encode(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tokenizer.decode(ids)


def test_a_network_of_ones_own_is_trained_resumed_generated_from_and_compared(
    cli, tiny_yaml, own_yaml, own_parts, monkeypatch, capfd
):
    from tinylm.training.cli import TinyLMCLI

    words = ["fit", "-c", tiny_yaml, "-c", own_yaml, "--run.name", "mini"]
    refused = cli(*words)
    reason = (
        "own.yaml: model.network.attention: own_parts.GatedAttention: importing it runs code; if you trust it, add "
    )
    assert refused.code == 2 and reason in refused.error
    assert not Path("imported").exists() and not Path("runs/mini").exists()

    snapshots, callbacks = Snapshots(own_parts / "runs/mini", own_parts / "snapshots"), TinyLMCLI._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(TinyLMCLI, "_callbacks", lambda *given: [*callbacks(*given), snapshots])
        result = cli(*words, "--trust", "own_parts")
    assert result.code == 0, result.err
    assert "to try it: tinylm generate --model runs/mini --trust-code --prompt" in result.err
    saved = yaml.safe_load(Path("runs/mini/config.yaml").read_text())["model"]["network"]
    assert saved["norm"] == NETWORK["norm"] and saved["feedforward"]["class_path"] == "own_parts.Bilinear"

    found = list(snapshots.found.values())
    for snapshot in found[2 :: max(1, len(found) // 3)]:
        shutil.copytree(snapshot, "killed/mini")
        result = cli(*words, "--trust", "own_parts", "--run.dir", "killed", "--resume")
        assert result.code == 0, result.err
        assert differences(own_parts / "killed/mini", own_parts / "runs/mini") == [], snapshot.name
        shutil.rmtree("killed/mini")

    expected = plain_loop(Path("runs/mini"), "the ", 20)
    capfd.readouterr()
    words = ["generate", "--model", "runs/mini", "--prompt", "the ", "--max-new-tokens", "20", "--temperature", "0"]
    assert main([*words, "--trust-code"]) == 0
    assert capfd.readouterr().out.rstrip("\n") == expected
    assert main(["compare", "runs/mini"]) == 0
    Path("fox.txt").write_text("the quick brown fox")
    assert main(["score", "--model", "runs/mini", "--text", "fox.txt", "--trust-code"]) == 0
    plugins._trusted.clear()
    sys.modules.pop("own_parts")
    Path("imported").unlink()
    assert main(["generate", "--model", "runs/mini/checkpoints/last.ckpt", "--prompt", "a"]) == 2
    assert main(["compare", "runs/mini"]) == 0  # needs no code
    assert not Path("imported").exists()


def test_code_that_has_changed_is_reported_on_resume(cli, tiny_yaml, own_yaml):
    words = ["fit", "-c", tiny_yaml, "-c", own_yaml, "--run.name", "mini", "--trust", "own_parts"]
    assert cli(*words, "--trainer.max_steps", "2").code == 0
    code = own_yaml.parent / "own_parts.py"
    code.write_text(code.read_text() + "# another version\n")
    result = cli(*words, "--trainer.max_steps", "3", "--resume")
    assert result.code == 0
    assert "the code of own_parts.Bilinear has changed since the model was stored" in result.err


def test_parts_are_options_of_the_command_line(cli, tiny_yaml, own_yaml):
    network = "--model.network."
    words = ["fit", "-c", tiny_yaml, "-c", own_yaml, f"{network}norm.init_args.scale", "0.25", f"{network}activation",
             "torch.nn.SiLU", f"{network}attention=null", "--trust=own_parts", "--trainer.max_steps", "1"]  # fmt: skip
    result = cli(*words, f"{network}feedforward", "null")
    assert result.code == 0, result.err
    saved = yaml.safe_load(next(Path("runs").glob("*/config.yaml")).read_text())["model"]["network"]
    assert saved["norm"] == {"class_path": "own_parts.Signed", "init_args": {"scale": 0.25}}
    assert saved["activation"] == {"class_path": "torch.nn.SiLU", "init_args": {}} and saved["attention"] is None
    wrong = cli(*words, f"{network}norm.init_args.scael", "1")
    assert wrong.code == 2 and "norm: own_parts.Signed: init_args: " in wrong.error and "'scale'?" in wrong.error
    typo = cli("fit", "-c", tiny_yaml, f"{network}norm", "rmsnrm")
    assert typo.code == 2 and "model.network.norm" in typo.error and "rmsnorm" in typo.error


@pytest.mark.parametrize(
    ("words", "folded"),
    [
        (["--model.network.norm.init_args.eps", "1e-3", "--model.network.norm.class_path=a.B"],
         '{"class_path": "a.B", "init_args": {}}'),
        (["--model.network.norm.class_path", "a.B", "--model.network.norm.init_args={x: 1}",
          "--model.network.norm.init_args.y.z", "on"],
         '{"class_path": "a.B", "init_args": {"x": 1, "y.z": true}}'),
        (["--model.network.norm", '{"class_path": "a.B"}', "--model.network.norm.init_args.x", "a b"],
         '{"class_path": "a.B", "init_args": {"x": "a b"}}'),
    ],
)  # fmt: skip
def test_words_about_one_part_become_one_word(words, folded):
    others = ["fit", "--data.corpus", "a.txt", "--model.network.d_model=8"]
    assert fold_parts([*others, *words]) == [*others, f"--model.network.norm={folded}"]


def test_the_numpy_twin_refuses_plugins(cli, tiny_yaml, own_parts, capfd):
    words = ["train-numpy", "-c", str(tiny_yaml), "--model.network.norm", "torch.nn.RMSNorm"]
    assert main(words) == 2
    assert "model.network.norm: the NumPy twin has no plug-ins, got torch.nn.RMSNorm" in capfd.readouterr().err
