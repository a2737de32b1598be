"""The terminal of the prompt loop: line editing by prompt_toolkit, a history of prompts, answers wrapped at words.

Enter answers a prompt, Alt-Enter begins a new line in it, and a paste of several lines is one prompt. What was typed is
bold. Left out: colours, which would depend on the terminal's theme.
"""

import contextlib
import io
import json
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from tinylm.commands.interactive.commands import COMMANDS, NAMES
from tinylm.commands.interactive.screen import Screen
from tinylm.commands.interactive.settings import DEFAULTS
from tinylm.errors import ConfigError, TinyLMError
from tinylm.files import default_cache_dir, locked

HISTORY_LENGTH = 1000  # prompts
COLOR = r"\x1b\[[\d;]*m"
COLORED_SPACE = r"(?=\x1b\[[\d;]+48[\d;]+m )"
JOINER = "\u200d"  # joins the emoji around it into one
VALUES = {"/probs": ("on", "off")}
SETTING_VALUES = {"truncate": ("left", "off")}


class Terminal(Screen):
    """Prompts typed at a terminal, and answers wrapped at its words."""

    interactive = True

    def __init__(self) -> None:
        self._answer = Wrapped(self)
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # the terminal's replies could end up among the keys
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation=". ",
            completer=LineCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            history=_history(),
            key_bindings=_keys(),
            style=Style.from_dict({"": "bold", "prompt": "bold"}),
            enable_suspend=True,
        )

    @property
    def width(self) -> float:
        """Columns of the window, at least 20."""
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, 20)

    def read(self) -> str:
        """The next prompt or command; EOFError at Ctrl-D, or at a second Ctrl-C on an empty line."""
        pressed = False
        while True:
            try:
                typed = self._session.prompt()
                break
            except KeyboardInterrupt:
                if pressed and not self._session.default_buffer.text:
                    raise EOFError from None
                pressed = True
                self.say("Ctrl-C again, or Ctrl-D, leaves")
        return typed.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # keys that are not UTF-8

    def write(self, piece: str) -> None:
        """Writes a piece of an answer. Control characters, which could confuse the terminal, are escaped."""
        self._answer.write("".join(map(_harmless, piece)))

    def show(self, text: str) -> None:
        """Prints the output of a command, wrapped at words."""
        print("\n".join(map(self._wrapped, text.splitlines())), flush=True)

    def put(self, text: str) -> None:
        """Writes a text that may have colours; if it has, lines end before coloured spaces."""
        if "\x1b" not in text:
            return self._answer.write(text)
        column = 0
        for word in re.split(COLORED_SPACE, text):
            size = get_cwidth(re.sub(COLOR, "", word.rstrip("\n")))
            if column + size > self.width:
                print()
                column = 0
            print(word, end="", flush=True)
            column += size

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Surrounds an answer. A blank line follows it, and then its notices."""
        held = io.StringIO()
        try:
            with contextlib.redirect_stderr(held):
                yield
        finally:
            self._answer.end()
            print(flush=True)
            for line in held.getvalue().splitlines():
                self.say(line.removeprefix("tinylm: "))

    def say(self, message: str) -> None:
        """Prints a notice on stderr, wrapped at words."""
        print(self._wrapped(f"tinylm: {message}"), file=sys.stderr, flush=True)

    def _wrapped(self, line: str) -> str:
        return textwrap.fill(line, int(self.width), subsequent_indent="  ", break_on_hyphens=False)


def _harmless(character: str) -> str:
    return ascii(character)[1:-1] if unicodedata.category(character) == "Cc" and character not in "\n\t" else character


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def submit(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


# --- answers


class Wrapped:
    """Writes a text as it arrives, with line breaks between words. A word is held until its end is known.

    Args:
        screen: has the width
    """

    def __init__(self, screen: Screen) -> None:
        self._screen, self._column, self._space, self._word = screen, 0, "", ""

    def write(self, piece: str) -> None:
        """Writes the next piece."""
        for character in piece:
            if character in " \n\t":
                self._place()
                self._separate(character)
            else:
                if self._begins_word(character):
                    self._place()
                self._word += character
        print(end="", flush=True)

    def end(self) -> None:
        """Writes the held word, and ends the line."""
        self._place()
        print(flush=True)
        self._column, self._space = 0, ""

    def _begins_word(self, character: str) -> bool:
        """Whether a line may end before a character: at wide ones, as of Chinese, that nothing joins."""
        if not self._word or self._word[-1] == JOINER or get_cwidth(character) == 0:
            return False
        wide = get_cwidth(character) == 2 or get_cwidth(self._word) >= 2 > len(self._word.rstrip(JOINER))
        return wide or get_cwidth(self._word + character) > self._screen.width

    def _separate(self, character: str) -> None:
        if character == "\n":
            print()
            self._column, self._space = 0, ""
        else:
            self._space += " " if character == " " else "    "

    def _place(self) -> None:
        """Writes the held word, on the next line if it does not fit on this one."""
        if not self._word:
            return
        size = get_cwidth(self._word)
        if self._column and self._column + len(self._space) + size > self._screen.width:
            print()
            self._column, self._space = 0, ""
        print(self._space + self._word, end="")
        self._column += len(self._space) + size
        self._space = self._word = ""


# --- completion


class LineCompleter(Completer):
    """Completes commands, settings, and the paths of `/save` and `/model`."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The completions of the text before the cursor."""
        before = document.text_before_cursor.lstrip(" ")
        name, space, argument = before.partition(" ")
        name = name.lower()
        if not before.startswith("/") or "\n" in before:
            return
        if not space:
            takes_more = {usage.split()[0] for usage in COMMANDS if " " in usage}
            yield from _fitting(name, [each + " " * (each in takes_more) for each in NAMES])
        elif name in ("/save", "/model"):
            path = Document(argument, len(argument))
            yield from PathCompleter(expanduser=True).get_completions(path, complete_event)
            if name == "/model":
                yield from _fitting(argument, ["storyteller"])
        elif name == "/set":
            setting, space, value = argument.partition(" ")
            known = SETTING_VALUES.get(setting, ()) if space else [f"{each} " for each in DEFAULTS]
            yield from _fitting(value if space else setting, known)
        else:
            yield from _fitting(argument, VALUES.get(name, ()))


def _fitting(typed: str, known: Iterable[str]) -> Iterator[Completion]:
    for word in known:
        if word.startswith(typed.lower()):
            yield Completion(word, start_position=-len(typed), display=word.strip())


# --- history


class SharedHistory(History):
    """The prompts of this and of earlier loops, in a file with a JSON string on each line.

    Several loops may run at once: each appends whole lines under a lock, and reads the lines of others when it starts.
    A file that cannot be read or written is ignored.

    Args:
        path: the file; a `.lock` lies beside it
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._lock = path, path.with_name(f"{path.name}.lock")

    def load_history_strings(self) -> Iterable[str]:
        """The stored prompts, the newest first; a file of many more than `HISTORY_LENGTH` is shortened."""
        lines: list[str] = []
        with contextlib.suppress(OSError, TinyLMError), locked(self._lock):
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            if len(lines) > 2 * HISTORY_LENGTH:
                new = self._path.with_name(f".tmp-{self._path.name}-{os.getpid()}")
                _append(new, "".join(f"{line}\n" for line in lines[-HISTORY_LENGTH:]))
                new.replace(self._path)
        for line in reversed(lines[-HISTORY_LENGTH:]):
            with contextlib.suppress(ValueError):  # a line that a killed process began
                if isinstance(prompt := json.loads(line), str):
                    yield prompt

    def store_string(self, string: str) -> None:
        """Appends a prompt."""
        with contextlib.suppress(OSError, TinyLMError), locked(self._lock):
            _append(self._path, json.dumps(string) + "\n")


def _history() -> History:
    try:
        return SharedHistory(default_cache_dir() / "prompts.jsonl")
    except ConfigError:  # a user without a home folder
        return InMemoryHistory()


def _append(path: Path, text: str) -> None:
    """Appends to a file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8", newline="\n") as file:
        file.write(text)
