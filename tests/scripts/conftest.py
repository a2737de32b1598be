"""Scripts, called inside this process."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

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
