"""`tinylm generate --interactive` at a real terminal and with piped lines.

`python -m tests.commands.test_interactive 200` presses Ctrl-C 200 times while two other processes keep the cores busy.
"""

import io
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import tinylm
from tests.commands.conftest import save_model
from tinylm.commands.interactive import converse
from tinylm.errors import ConfigError
from tinylm.generation import Generator, SamplingConfig

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate.py"
SETTINGS = dict(max_new_tokens=9, temperature=0.8, seed=1)
# makes the terminal the controlling terminal of the process, so that Ctrl-C reaches it
AT_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")


@pytest.fixture(scope="module")
def generator(model) -> Generator:
    return Generator(*tinylm.load(model, device="cpu"))


# --- at a terminal


class Terminal:
    """The script in a pseudo-terminal."""

    def __init__(self, model: Path, cache: Path) -> None:
        self.master, slave = os.openpty()
        words = ["--model", str(model), "--interactive", "--device", "cpu", "--max-new-tokens", "9", "--seed", "1"]
        environment = os.environ | {"TINYLM_CACHE": str(cache), "TERM": "dumb"}
        command = [sys.executable, "-c", AT_TERMINAL, str(SCRIPT), *words]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.unread = b""

    def until(self, end: str, timeout: float = 60) -> str:
        """The output up to a given end, which is not included."""
        deadline = time.monotonic() + timeout
        while end.encode() not in self.unread:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no {end!r} within {timeout} seconds, but {self.unread.decode(errors='replace')!r}"
            self.unread += os.read(self.master, 1 << 16).replace(b"\r\n", b"\n")
        shown, _, self.unread = self.unread.partition(end.encode())
        return shown.decode()

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def answer(self, line: str) -> str:
        """The output after a line, up to the next prompt."""
        self.type(line + "\n")
        shown = self.until("\n> ")
        assert shown.startswith(line + "\n"), shown
        return shown[len(line) + 1 :]

    def exit_code(self) -> int:
        return self.process.wait(timeout=60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def terminals(model, cache) -> Iterator[tuple[Terminal, Terminal]]:
    """Two terminals started in parallel; the second cannot write its history."""
    no_folder = cache / "file"
    no_folder.write_text("")
    both = Terminal(model, cache / "new"), Terminal(model, no_folder)
    yield both
    for terminal in both:
        terminal.close()


@needs_terminal
def test_a_conversation_at_a_terminal(terminals, generator, cache):
    terminal, _ = terminals
    banner = terminal.until("> ")
    assert banner.splitlines()[1].startswith("tinylm: the model is ready; /help") and banner.count("\n") == 2

    # completions equal those of the Python API
    assert terminal.answer("ab é") == generator.generate("ab é", **SETTINGS)
    assert terminal.answer("/set temperature 0.5") == "tinylm: temperature: 0.5"
    assert terminal.answer("ab") == generator.generate("ab", **SETTINGS | {"temperature": 0.5})

    # an invalid line prints one line and changes nothing
    for line, problem in [
        ("/set temperature -1", "temperature must be 0 (greedy) or positive, got -1.0"),
        ("/set temprature 1", "temprature: no such option of generation, did you mean 'temperature'?"),
        ("/sett", "/sett: no such command, did you mean '/set'?"),
        ("abz", "'z' (U+007A) at position 2"),
        ("a" * 20, "the prompt has 20 tokens, the context holds 16"),
    ]:
        shown = terminal.answer(line)
        assert shown.startswith("tinylm: error: ") and problem in shown and "\n" not in shown
    assert terminal.answer("ab") == generator.generate("ab", **SETTINGS | {"temperature": 0.5})

    # Ctrl-C during a completion stops only the completion
    assert terminal.answer("/set max_new_tokens 100000000") == "tinylm: max_new_tokens: 100000000"
    terminal.type("ab\n")
    terminal.until("context and continues\n")  # it has started, and passed the end of the context
    terminal.type("\x03")
    terminal.until("\n> ")
    terminal.answer("/set max_new_tokens 9")
    assert terminal.answer("ab") == generator.generate("ab", **SETTINGS | {"temperature": 0.5})

    # Ctrl-C at the prompt clears the line
    terminal.type("zzz")
    terminal.until("zzz")
    terminal.type("\x03")
    assert "(Ctrl-D or /quit leaves)" in terminal.until("\n> ")
    assert terminal.answer("ab") == generator.generate("ab", **SETTINGS | {"temperature": 0.5})

    # the history has the previous line
    terminal.type("\x1b[A\n")
    assert terminal.until("\n> ").endswith("ab\n" + generator.generate("ab", **SETTINGS | {"temperature": 0.5}))

    terminal.type("/quit\n")
    assert terminal.exit_code() == 0
    assert "/set temprature 1" in (cache / "new" / "history").read_text().replace(r"\040", " ")


@needs_terminal
def test_ctrl_d_ends_and_an_unwritable_history_is_ignored(terminals, generator):
    _, terminal = terminals
    terminal.until("> ")
    assert terminal.answer("ab") == generator.generate("ab", **SETTINGS)
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    terminal.process.wait()
    assert "error" not in terminal.unread.decode()


def seconds_until_stopped(terminal: Terminal, times: int) -> list[float]:
    """Presses Ctrl-C at random moments of completions, while two other processes keep the cores busy."""
    moments = random.Random(0)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        terminal.until("> ")
        terminal.answer("/set max_new_tokens 100000000")
        found = []
        for _ in range(times):
            terminal.type("ab\n")
            terminal.until("ab\n")
            terminal.until("\n")  # of the text
            time.sleep(moments.uniform(0, 0.3))
            pressed = time.monotonic()
            terminal.type("\x03")
            terminal.until("\n> ")
            found.append(time.monotonic() - pressed)
        return found
    finally:
        for process in busy:
            process.kill()
            process.wait()


@needs_terminal
@pytest.mark.slow
def test_ctrl_c_works_at_any_moment_of_a_completion(model, tmp_path):
    terminal = Terminal(model, tmp_path)
    try:
        assert len(seconds_until_stopped(terminal, 20)) == 20  # each within `Terminal.until`'s minute
    finally:
        terminal.close()


# --- through a pipe


@pytest.fixture
def talk(generator, monkeypatch, capfd):
    """talk(*lines) returns what the loop writes to stdout and stderr."""

    def talk(*lines: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        converse(generator, SETTINGS)
        return capfd.readouterr()

    return talk


def test_piped_lines_give_completions_and_nothing_else(talk, generator):
    expected = [generator.generate(prompt, **SETTINGS) + "\n" for prompt in ("ab", " c")]
    assert talk("ab", " c") == ("".join(expected), "")
    assert talk("ab", " /quit ", " c") == (expected[0], "")
    assert talk() == ("", "")


def test_options_of_the_script_are_the_initial_settings(model, load, generator, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    words = ["--model", model, "--interactive", "--device", "cpu"]
    run = load("generate")
    assert run(*words, "--max-new-tokens", 9, "--seed", 1) == (0, generator.generate("ab", **SETTINGS) + "\n", "")
    code, out, err = run(*words, "--temperature", "-1")
    assert (code, out) == (2, "") and "temperature must be" in err
    code, out, err = run(*words, "--prompt", "a")
    assert (code, out) == (2, "") and "--prompt: does not work with --interactive; leave it out" in err


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ('stop ["b", "\\n"]', "stop", ["b", "\n"]),
        ("stop [b, 'c d']", "stop", ["b", "c d"]),
        ("top_k 3", "top_k", 3),
        ("top-k null", "top_k", None),
        ("temperature 1e-3", "temperature", 1e-3),
        ("logit_bias {3: 1.5}", "logit_bias", {3: 1.5}),
        ("banned_tokens [1, 2]", "banned_tokens", [1, 2]),
        ("truncate left", "truncate", "left"),
    ],
)
def test_a_setting_applies_to_later_prompts_and_is_shown_as_typed(typed, name, value, talk, generator):
    out, err = talk(f"/set {typed}", "abc")
    assert out == generator.generate("abc", **SETTINGS | {name: value}) + "\n"
    assert yaml.safe_load(err.removeprefix("tinylm: ")) == {name: value}

    shown, _ = talk(f"/set {typed}", "/settings")
    assert yaml.safe_load(shown)[name] == value
    assert set(yaml.safe_load(shown)) == {"truncate", *SamplingConfig.__dataclass_fields__}


@pytest.mark.parametrize(
    "line",
    [
        "/set", "/set stop", "/set stop .", "/set stop [", "/set top_k many", "/set seed 2020-01-01", "/set nothing 1",
        "/set truncate right", "/set banned_tokens [99]", "/set logit_bias {1: x}", "/", "/xyz", "/quit now",
        "/set seed 1" + "0" * 5000,
    ],
)  # fmt: skip
def test_an_invalid_line_prints_one_line_and_changes_no_setting(line, talk, generator):
    out, err = talk(line, "ab")
    assert out == generator.generate("ab", **SETTINGS) + "\n"
    assert err.startswith("tinylm: error: ") and err.count("\n") == 1


def test_invalid_settings_are_refused_before_the_first_prompt(generator):
    with pytest.raises(ConfigError, match="top_k must be at least 1, got 0"):
        converse(generator, {"top_k": 0})


def test_help_lists_commands_and_every_setting(talk):
    out, err = talk("/help")
    assert err == ""
    for name, text in [("/quit", "leave"), ("top_k", "Keep the "), ("truncate", "left: drop")]:
        assert f"\n  {name:20}{text}" in out
    assert all(f"\n  {name} " in out for name in SamplingConfig.__dataclass_fields__)


def test_invalid_utf8_does_not_end_the_loop(generator, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\nab\n"), encoding="utf-8"))
    converse(generator, SETTINGS)
    out, err = capfd.readouterr()
    assert out == generator.generate("ab", **SETTINGS) + "\n"
    assert "U+FFFD" in err


def test_ctrl_c_ends_a_loop_that_reads_a_pipe(generator, monkeypatch):
    def stream(prompt: str, **options):
        yield "a"
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, "stream", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    with pytest.raises(KeyboardInterrupt):
        converse(generator, SETTINGS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(save_model(Path(folder) / "model"), Path(folder))
        seconds = sorted(seconds_until_stopped(terminal, int(sys.argv[1])))
        terminal.close()
    half, longest = 1000 * seconds[len(seconds) // 2], 1000 * seconds[-1]
    print(f"{len(seconds)} of {sys.argv[1]} heard; half of them within {half:.0f} ms, all within {longest:.0f} ms")
