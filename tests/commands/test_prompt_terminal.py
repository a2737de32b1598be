"""The prompt loop at a real terminal: keys in, and what then stands on the screen.

`python -m tests.commands.test_prompt_terminal` prints the twenty inputs and the session of docs/prompt.md as they look.
"""

import contextlib
import io
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm
from tests.terminal import Terminal
from tinylm.generation import Generator

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals", allow_module_level=True)

from tinylm.commands.interactive.terminal import HISTORY_LENGTH, SharedHistory, Wrapped, get_cwidth

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["generate", "--interactive", "--model", "storyteller", "--device", "cpu"]
SETTINGS = dict(max_new_tokens=20, temperature=0.8, seed=1)
BEGINNING = "Once upon a time"
UNLIKE = "this prompt is unlike the training text"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(*tinylm.load("storyteller"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("terminal")


def start(folder: Path, columns: int = 80) -> Terminal:
    words = [*WORDS, "--max-new-tokens", "20", "--seed", "1"]
    return Terminal(*words, folder=folder, columns=columns, TINYLM_CACHE=str(folder / "cache"))


@pytest.fixture(scope="module")
def terminals(folder) -> Iterator[tuple[Terminal, Terminal]]:
    """Two windows that are open at once, of 80 and of 40 columns."""
    both = start(folder), start(folder, columns=40)
    for terminal in both:
        assert "the model is ready; /help lists" in terminal.until()
    yield both
    for terminal in both:
        terminal.close()


def said(text: str) -> list[str]:
    """The words of a text, wherever its lines break."""
    return text.split()


# --- twenty inputs, and what comes back: words that it must have, `...` for any, `-` for nothing

TWENTY = [
    (BEGINNING, "there was"),
    ("/more", "..."),
    ("/again", "there was"),
    ("/undo", f"taken back; the last prompt is now: '{BEGINNING}'"),
    ("", "-"),
    ("help", "/quit"),
    (" /help", "Alt-Enter"),
    ("?", "/again"),
    ("exit, pursued by a bear", UNLIKE),
    ("Ella", f"{UNLIKE} (19.1 nats per token, validation text 0.88); a beginning that the model knows: {BEGINNING}"),
    ("/say /quit", UNLIKE),
    ("/set temp", "temperature: 0.8 (Divides the logits"),
    ("/set temperature=0.5", "tinylm: temperature: 0.5"),
    ("/set stop .", "tinylm: stop: [.]"),
    ("/set TOP_K 5", "tinylm: top_k: 5"),
    ("/set temprature 1", "error: temprature: no such setting, did you mean 'temperature'?"),
    ("/probs on", "probability from"),
    (BEGINNING + " there was", "..."),
    ("/stats", "seed: 1"),
    ("exit", "-"),
]


def twenty(terminal: Terminal) -> Iterator[tuple[str, str, str]]:
    """Each input, what must come back, and what does."""
    for typed, expected in TWENTY[:-1]:
        yield typed, expected, terminal.answer(typed)
    terminal.type("exit\r")
    yield "exit", "-", ""


def test_twenty_inputs_at_a_terminal(folder):
    terminal = start(folder)
    try:
        terminal.until()
        for typed, expected, found in twenty(terminal):
            assert expected == "..." or " ".join(said(expected.strip("-"))) in " ".join(said(found)), (typed, found)
            assert (expected != "-" or found == "") and "\ufffd" not in found, (typed, found)
        assert terminal.exit_code() == 0
    finally:
        terminal.close()


def session_of_the_page() -> tuple[list[str], str]:
    """The lines typed in docs/prompt.md, and all that stands on the screen then."""
    text = (ROOT / "docs" / "prompt.md").read_text(encoding="utf-8")
    shown = re.search(r"```console\n\$ [^\n]*\n(.*?)```", text, re.DOTALL)[1]
    return re.findall(r"^> (.*)", shown, re.MULTILINE), shown


def type_lines(folder: Path, lines: list[str]) -> str:
    """The screen after these lines, the last of which leaves."""
    terminal = start(folder)
    try:
        terminal.until()
        for line in lines[:-1]:
            terminal.answer(line)
        terminal.type(lines[-1] + "\r")
        assert terminal.exit_code() == 0
        terminal.until("\r\n")
        return "\n".join(terminal.lines()).rstrip() + "\n"
    finally:
        terminal.close()


def test_the_session_of_the_page_is_what_a_terminal_shows(folder):
    lines, shown = session_of_the_page()
    assert len(lines) >= 8 and type_lines(folder, lines) == shown


# --- keys


def test_answers_are_those_of_the_python_api_and_stand_apart_from_prompts(terminals, generator):
    terminal, _ = terminals
    found = terminal.answer(BEGINNING)
    assert said(found) == said(generator.generate(BEGINNING, **SETTINGS))
    row = max(n for n, line in enumerate(terminal.screen.display) if line.startswith(f"> {BEGINNING}"))
    bold = [terminal.screen.buffer[line][3].bold for line in (row, row + 1)]
    assert bold == [True, False]
    assert terminal.screen.display[terminal.screen.cursor.y - 1].strip() == ""  # a blank line after the answer


def test_ctrl_c_stops_an_answer_and_keeps_the_loop(terminals, generator):
    terminal, _ = terminals
    terminal.answer("/set max_new_tokens 100000000")
    terminal.answer("/set stop off")
    terminal.answer("/set min_new_tokens 100000000")
    moments = random.Random(0)
    for _ in range(5):
        terminal.type(BEGINNING + "\r")
        terminal.until("\n")  # of the prompt
        terminal.until("\n")  # of the answer's first line
        time.sleep(moments.uniform(0, 0.1))
        terminal.type("\x03")
        terminal.until()
    terminal.answer("/set min_new_tokens 0")
    terminal.answer("/set max_new_tokens 20")
    assert said(terminal.answer(BEGINNING)) == said(generator.generate(BEGINNING, **SETTINGS))
    terminal.type("zzz\x03")  # at the prompt it clears the line
    assert terminal.until() == "tinylm: Ctrl-C again, or Ctrl-D, leaves\n"
    assert said(terminal.answer(BEGINNING)) == said(generator.generate(BEGINNING, **SETTINGS))


def test_several_lines_are_one_prompt_pasted_or_typed(terminals, generator):
    terminal, narrow = terminals
    text = f"{BEGINNING} there was\nRosa"
    expected = said(generator.generate(text, **SETTINGS))
    terminal.type(f"\x1b[200~{text}\x1b[201~")
    found = terminal.answer("")
    assert said(found)[-len(expected) :] == expected and "> Once upon a time there was" in terminal.lines()
    assert ". Rosa" in terminal.lines()  # the second line of the same prompt
    narrow.type(text.replace("\n", "\x1b\r") + "\r")  # Alt-Enter
    assert said(narrow.until())[-len(expected) :] == expected


def test_tab_completes_commands_and_settings_and_up_recalls(terminals, generator):
    terminal, _ = terminals
    assert terminal.answer("/res\t") == "tinylm: forgotten; /undo restores it\n"
    assert terminal.answer("/set tempe\t0.25") == "tinylm: temperature: 0.25\n"
    assert terminal.answer("\x1b[A\x08\x08\x08\x080.8") == "tinylm: temperature: 0.8\n"
    assert terminal.answer("/probs of\t") == "tinylm: answers are shown as plain text\n"
    assert "/model takes" in terminal.answer("/mod\t")


@pytest.mark.parametrize("text", ["e\u0301", "日本語のテキスト", "👩\u200d👩\u200d👧 🎉", "ёжик", "नमस्ते"])
def test_text_of_any_script_arrives_as_typed(text, terminals, generator):
    _, narrow = terminals
    ids = generator.prompt_ids(text)
    found = narrow.answer(f"/say {text}")
    assert UNLIKE[:20] in found and text in narrow.echo
    assert f"after {len(ids)} of prompt" in " ".join(said(narrow.answer("/stats")))  # each has its own number of bytes
    assert "�" not in "".join(narrow.lines()) or "stands for bytes" in found
    narrow.answer("/undo")


def test_a_window_of_40_columns_breaks_no_word(terminals, generator):
    _, narrow = terminals
    narrow.answer("/set max_new_tokens 90")
    narrow.answer("/reset")
    found = narrow.answer(BEGINNING)
    narrow.answer("/set max_new_tokens 20")
    expected = generator.generate(BEGINNING, **SETTINGS | {"max_new_tokens": 90})
    assert said(found) == said(expected)
    lines = [line.rstrip() for line in found.splitlines()]
    assert len(lines) > 5 and {*lines} <= {*narrow.lines()}  # the terminal itself broke none of them
    help_lines = narrow.answer("/help").splitlines()
    assert max(map(len, help_lines)) <= 40 and "  presence_penalty" in help_lines


def test_ctrl_d_and_a_second_ctrl_c_leave(terminals):
    for terminal, keys in zip(terminals, ("\x04", "zzz\x03\x03"), strict=True):
        terminal.type(keys)
        assert terminal.exit_code() == 0


# --- wrapping


class Window:
    width = 12


@given(st.lists(st.text("ab ,\n日本e\u0301🎉", max_size=6), max_size=20))
@settings(max_examples=50, deadline=None)
def test_wrapped_lines_fit_and_lose_nothing(pieces):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        wrapped = Wrapped(Window())
        for piece in pieces:
            wrapped.write(piece)
        wrapped.end()
    found, text = out.getvalue(), "".join(pieces)
    assert re.sub(r"\s", "", found) == re.sub(r"\s", "", text)
    assert all(get_cwidth(line.rstrip()) <= Window.width for line in found.splitlines())
    narrow_words = [word for word in re.split(r"[\s日本🎉]+", text) if get_cwidth(word) <= Window.width]
    assert all(word in found for word in narrow_words)


# --- history


def test_several_loops_share_a_history(tmp_path):
    loops = [SharedHistory(tmp_path / "new" / "prompts.jsonl") for _ in range(4)]
    typed = [[f"{n} {i}\nsecond line é" for i in range(25)] for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: [pair[0].store_string(each) for each in pair[1]], zip(loops, typed, strict=True)))
    found = list(SharedHistory(tmp_path / "new" / "prompts.jsonl").load_history_strings())[::-1]
    assert sorted(found) == sorted(each for lines in typed for each in lines)
    assert [each for each in found if each.startswith("2 ")] == typed[2]
    assert (tmp_path / "new" / "prompts.jsonl").stat().st_mode & 0o077 == 0  # for its owner alone


def test_a_long_history_is_shortened_and_a_damaged_one_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'"{n}"\n' for n in range(2 * HISTORY_LENGTH + 1)) + '"half of a li\n')
    found = list(SharedHistory(path).load_history_strings())
    assert found[0] == str(2 * HISTORY_LENGTH) and len(found) == HISTORY_LENGTH - 1
    assert len(path.read_text().splitlines()) == HISTORY_LENGTH
    (tmp_path / "file").write_text("")
    nowhere = SharedHistory(tmp_path / "file" / "prompts.jsonl")
    nowhere.store_string("lost")
    assert list(nowhere.load_history_strings()) == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(type_lines(Path(temporary), [typed for typed, _ in TWENTY]))
        print(type_lines(Path(temporary), session_of_the_page()[0]))
