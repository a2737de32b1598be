"""`tinylm play` from the command line: a process of its own, and its errors."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.commands.conftest import save_model
from tinylm.commands import run_command
from tinylm.commands.play import listen_from
from tinylm.errors import CannotCreateError
from tinylm.serving.server import url

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_served_until_the_process_is_stopped(tmp_path):
    save_model(tmp_path / "runs/small/model")
    words = [sys.executable, "-m", "tinylm", "play", "--model", "a=runs/small", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops it\)\n", line)[1]
        with urllib.request.urlopen(f"{address}/api/models") as response:
            assert b'"name":"a"' in response.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.communicate()


def test_the_next_free_port_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("tinylm.commands.play.PORTS", range(port, port + 1))
        with pytest.raises(CannotCreateError, match=f"the ports from {port} to {port} are in use; choose another"):
            listen_from("127.0.0.1")
        monkeypatch.setattr("tinylm.commands.play.PORTS", range(port, port + 20))
        with listen_from("127.0.0.1") as found:
            assert port < int(url(found).rpartition(":")[2]) < port + 20


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--port", "70000"], 2, "--port must be from 0 to 65535, got 70000"),
        (["--runs", "nowhere"], 66, "--runs nowhere: no such folder"),
        (["--model", "nowhere"], 66, "nowhere: no such model"),
        (["--model", "model", "--model", "model"], 2, "two models are called"),
        (["--model", "model", "--prot", "1"], 2, "--prot: no such option, did you mean '--port'?"),
    ],
)
def test_errors_are_one_line(words, code, problem, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    assert run_command("play", words) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tinylm: error: ") and problem in err and err.count("\n") == 1


def test_a_given_port_in_use_is_an_error(tmp_path, capfd):
    model = save_model(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command("play", ["--model", str(model), "--port", str(port)]) == 73
    assert f"--port {port}: Address already in use; choose another" in capfd.readouterr().err
