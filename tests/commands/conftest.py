"""Fixtures that run commands in this process, and a small model."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.commands import run_command
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer


@pytest.fixture
def load(capfd):
    """load("compare")(*arguments) is `tinylm compare ARGUMENTS`: exit code, stdout, stderr.

    The line that names the loaded model is removed; tests/commands/test_commands.py checks it.
    """

    def load(name: str) -> Callable[..., tuple[int, str, str]]:
        def call(*arguments: object) -> tuple[int, str, str]:
            code = run_command(name, [str(argument) for argument in arguments])
            out, err = capfd.readouterr()
            return code, out, re.sub(r"\Atinylm: (loading|reading) .*\n", "", err)

        return call

    return load


def save_model(folder: Path, **info: str) -> Path:
    """Writes a random character-level model with a context of 16."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer("abcdefghé\n 😀")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=16)
    save_bundle(folder, TransformerLM(config), tokenizer, info)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The folder of that model."""
    return save_model(tmp_path_factory.mktemp("run") / "model")
