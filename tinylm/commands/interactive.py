"""A prompt loop: a line that is typed is a prompt, its continuation follows as it comes; `/` begins a command.

Each text stands alone: the model does not see the lines before. At a terminal Ctrl-C stops a text; elsewhere, as when
lines come through a pipe, nothing but texts and asked-for answers is written to stdout, and Ctrl-C ends the program.
"""

import contextlib
import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from tinylm.console import interruptible
from tinylm.errors import ConfigError, TinyLMError, did_you_mean, notice
from tinylm.files import default_cache_dir
from tinylm.generation.generate import Generator
from tinylm.generation.sampling import SamplingConfig

COMMANDS = {
    "/set NAME VALUE": 'change a setting; the value is YAML: 0.5, null, ["."]',
    "/settings": "show all settings",
    "/help": "show this",
    "/quit": "leave, as Ctrl-D does",
}
HISTORY_LENGTH = 1000


def converse(generator: Generator, settings: dict[str, Any]) -> None:
    """Reads prompts and commands from stdin until it ends or `/quit` comes.

    Args:
        generator: what continues the prompts
        settings: options of `Generator.generate` to begin with

    Raises:
        ConfigError: if these have no meaning. What is wrong with a line is printed, and the loop goes on.
    """
    generator.check_options(settings)
    settings = dict(settings)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if not _at_terminal():
        return _loop(generator, settings)
    with _history():
        notice("the model is ready; /help lists commands, Ctrl-C stops a text, Ctrl-D ends")
        _loop(generator, settings)


def _loop(generator: Generator, settings: dict[str, Any]) -> None:
    while True:
        try:
            line = input("> " if _at_terminal() else "")
            if line.strip() == "/quit":
                return
            if line.startswith("/"):
                _obey(line, generator, settings)
            else:
                _continue(line, generator, settings)
        except EOFError:
            if _at_terminal():
                print()
            return
        except KeyboardInterrupt:
            if not _at_terminal():
                raise
            print("\n(Ctrl-D or /quit leaves)")
        except TinyLMError as error:
            print(f"tinylm: error: {error}", file=sys.stderr)


def _continue(prompt: str, generator: Generator, settings: dict[str, Any]) -> None:
    """Prints what follows a prompt, as it comes."""
    try:
        with interruptible():
            for piece in generator.stream(prompt, **settings):
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not _at_terminal():
            raise
    print(flush=True)


# --- commands


def _obey(line: str, generator: Generator, settings: dict[str, Any]) -> None:
    """Carries out a command, which may change the settings."""
    command, *arguments = line.split(maxsplit=2)
    if command == "/set":
        _set(arguments, generator, settings)
    elif command == "/settings":
        shown = dataclasses.asdict(SamplingConfig()) | {"truncate": None} | settings
        print(_shown(shown), flush=True)
    elif command == "/help":
        print(_help(), flush=True)
    else:
        known = [usage.split()[0] for usage in COMMANDS]
        raise ConfigError(f"{command}: no such command{did_you_mean(command, known) or '; /help lists all'}")


def _set(arguments: list[str], generator: Generator, settings: dict[str, Any]) -> None:
    if len(arguments) < 2:
        raise ConfigError("/set takes a name and a value, as in: /set temperature 0.5")
    name = arguments[0].replace("-", "_")
    changed = settings | {name: _value(name, arguments[1])}
    generator.check_options(changed)
    settings.update(changed)
    notice(_shown({name: changed[name]}))


def _value(name: str, text: str) -> Any:
    """What a value means as JSON, else as YAML.

    >>> _value("temperature", "1e-3"), _value("stop", "[., '!']"), _value("top_k", "null")
    (0.001, ['.', '!'], None)
    """
    with contextlib.suppress(ValueError):
        return json.loads(text)  # to YAML 1.1 a number like 1e-3 is a string
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f'{name} must be YAML, such as 0.5, null or ["."], got {text}') from error


def _shown(settings: dict[str, Any]) -> str:
    """Settings, one on each line, with values that `/set` takes back."""
    options: dict[str, Any] = dict(default_flow_style=True, allow_unicode=True, width=math.inf)
    values = [yaml.safe_dump([value], **options).strip()[1:-1] for value in settings.values()]
    return "\n".join(f"{name}: {value}" for name, value in zip(settings, values, strict=True))


def _help() -> str:
    """Commands, then the settings with what is said under each field."""
    import docstring_parser  # with which jsonargparse reads the help of the configs

    fields = docstring_parser.parse_from_object(SamplingConfig).params
    settings = {field.arg_name: (field.description or "").partition("\n")[0] for field in fields}
    settings["truncate"] = "left: cut a prompt that is longer than the context."
    return f"A line is a prompt. Commands:\n{_table(COMMANDS)}\nSettings:\n{_table(settings)}"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:20}{text}" for name, text in rows.items())


# --- the terminal


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines can be edited, and those of earlier times come back; where that cannot be, typing works all the same."""
    try:
        import readline  # from here on `input` uses it
    except ImportError:  # Windows, whose console does that by itself
        yield
        return
    path = default_cache_dir() / "history"
    readline.set_history_length(HISTORY_LENGTH)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
