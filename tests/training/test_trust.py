"""Code that a config names is imported only if it is tinylm's, Lightning's or PyTorch's, or the user trusts it."""

import sys
from pathlib import Path

import pytest

MINE = """
from pathlib import Path
Path("imported").touch()
from lightning.pytorch.callbacks import Callback

class Mine(Callback):
    def on_fit_end(self, trainer, module):
        Path("called").touch()

def make() -> Callback:
    return Mine()
"""
NAMED = {
    "class": "trainer: {callbacks+: [{class_path: mine.Mine}]}",
    "short": "trainer: {callbacks+: [mine.Mine]}",
    "function": "trainer: {callbacks: mine.make}",
    "logger": "trainer: {logger: {class_path: mine.Mine}}",
    "plugin": "trainer: {plugins: [mine.Mine]}",
    "hook": "trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.LambdaCallback,"
    " init_args: {on_fit_end: mine.make}}]}",
    "optimizer": "model: {optimizer: {class_path: mine.Mine}}",
    "run": "run: {class_path: mine.Mine}",
}


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A folder with a module, whose import leaves a file."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.py").write_text(MINE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path / "theirs"


@pytest.mark.parametrize("text", NAMED.values(), ids=NAMED)
def test_a_module_that_a_config_names_is_not_imported(text, cli, tiny_yaml, mine):
    sys.path.append(str(mine))
    (mine / "c.yaml").write_text(text)
    result = cli("fit", "-c", tiny_yaml, "-c", mine / "c.yaml")
    assert result.code == 2
    name = "mine.make" if "make" in text else "mine.Mine"
    code = "runs code outside tinylm, lightning, torch and torchmetrics"
    assert f"{name}: importing {'it runs code' if 'optimizer' in text else code}" in result.error
    assert "if you trust it, add --trust mine" in result.error
    assert not Path("imported").exists()


def test_a_function_of_the_system_is_not_called(cli, tiny_yaml):
    Path("c.yaml").write_text("trainer: {callbacks: [{class_path: os.system, init_args: {command: touch called}}]}")
    result = cli("fit", "-c", tiny_yaml, "-c", "c.yaml")
    assert result.code == 2 and "os.system: importing runs code" in result.error
    assert not Path("called").exists()


def test_a_trusted_module_beside_its_config_is_used(cli, tiny_yaml, mine):
    (mine / "c.yaml").write_text(NAMED["class"])
    words = ["fit", "-c", tiny_yaml, "-c", mine / "c.yaml", "--trust", "mine", "--trainer.max_steps", "1"]
    result = cli(*words)
    assert result.code == 0, result.err
    assert Path("called").exists()
    text = (
        Path("runs") / "c" / "config.yaml" if Path("runs/c").exists() else next(Path("runs").glob("*/config.yaml"))
    ).read_text()
    assert "mine.Mine" in text and "trust" not in text


def test_a_config_cannot_trust_itself(cli, tiny_yaml, mine):
    (mine / "c.yaml").write_text(NAMED["class"] + "\ntrust: [mine]\n")
    result = cli("fit", "-c", tiny_yaml, "-c", mine / "c.yaml")
    assert result.code == 2 and "c.yaml: trust: can be given on the command line only; leave it out" in result.error
    assert not Path("imported").exists()
