"""Scripts, called inside this process, and a small model for those that use one."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def load(capfd):
    """load("compare")(*arguments) calls the main of scripts/compare.py: exit code, stdout, stderr."""

    def load(name: str) -> Callable[..., tuple[int, str, str]]:
        spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)

        def call(*arguments: object) -> tuple[int, str, str]:
            code = script.main([str(argument) for argument in arguments])
            return code, *capfd.readouterr()

        return call

    return load


def save_model(folder: Path) -> Path:
    """Writes a random model by character with a context of 16."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer("abcdefghé\n 😀")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=16)
    save_bundle(folder, TransformerLM(config), tokenizer)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The folder of that model."""
    return save_model(tmp_path_factory.mktemp("run") / "model")
