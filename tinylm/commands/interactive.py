"""The prompt loop of `tinylm generate --interactive`: each line is a prompt, its completion is printed below.

Prompts are independent: the model does not see earlier lines. A line that begins with `/` is a command. At a terminal
Ctrl-C stops a completion. When lines come through a pipe, stdout gets nothing but completions and the answers to
commands, and Ctrl-C ends the program.
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
from tinylm.generation.options import SamplingConfig

COMMANDS = {
    "/set NAME VALUE": 'change a setting; the value is YAML: 0.5, null, ["."]',
    "/settings": "show all settings",
    "/help": "show this help",
    "/quit": "leave, as Ctrl-D does",
}
HISTORY_LENGTH = 1000


def converse(generator: Generator, settings: dict[str, Any]) -> None:
    """Reads prompts and commands from stdin until it ends or `/quit` is typed. An invalid line prints an error.

    The settings to begin with are options of `Generator.generate`; invalid ones raise ConfigError.
    """
    generator.check_options(settings)
    settings = dict(settings)
    if isinstance(sys.stdin, io.TextIOWrapper):  # in a pipe lines end with LF or CRLF, as in a prompts file
        encoding, newline = ("utf-8", None) if _at_terminal() else ("utf-8-sig", "\n")
        sys.stdin.reconfigure(encoding=encoding, errors="replace", newline=newline)
    if not _at_terminal():
        return _loop(generator, settings)
    with _history():
        notice("the model is ready; /help lists commands, Ctrl-C stops a completion, Ctrl-D leaves")
        _loop(generator, settings)


def _loop(generator: Generator, settings: dict[str, Any]) -> None:
    while True:
        try:
            line = input("> ") if _at_terminal() else input().removesuffix("\r")
            if line.strip() == "/quit":
                return
            if line.startswith("/"):
                _execute(line, generator, settings)
            else:
                _complete(line, generator, settings)
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


def _complete(prompt: str, generator: Generator, settings: dict[str, Any]) -> None:
    """Prints a completion as it is generated."""
    try:
        with interruptible():
            for piece in generator.stream(prompt, **settings):
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not _at_terminal():
            raise
    print(flush=True)


# --- commands


def _execute(line: str, generator: Generator, settings: dict[str, Any]) -> None:
    """Executes a command, which may change the settings."""
    command, *arguments = line.split(maxsplit=2)
    if command == "/set":
        _set(arguments, generator, settings)
    elif command == "/settings":
        print(_format(dataclasses.asdict(SamplingConfig()) | {"truncate": None} | settings), flush=True)
    elif command == "/help":
        print(_help(), flush=True)
    else:
        known = [usage.split()[0] for usage in COMMANDS]
        raise ConfigError(f"{command}: no such command{did_you_mean(command, known) or '; /help lists all'}")


def _set(arguments: list[str], generator: Generator, settings: dict[str, Any]) -> None:
    if len(arguments) < 2:
        raise ConfigError("/set takes a name and a value, as in: /set temperature 0.5")
    name = arguments[0].replace("-", "_")
    changed = settings | {name: _parse(name, arguments[1])}
    generator.check_options(changed)
    settings.update(changed)
    notice(_format({name: changed[name]}))


def _parse(name: str, text: str) -> Any:
    """Parses a value as JSON, else as YAML.

    >>> _parse("temperature", "1e-3"), _parse("stop", "[., '!']"), _parse("top_k", "null")
    (0.001, ['.', '!'], None)
    """
    with contextlib.suppress(ValueError):
        return json.loads(text)  # in YAML 1.1 a number like 1e-3 is a string
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f'{name} must be YAML, such as 0.5, null or ["."], got {text}') from error


def _format(settings: dict[str, Any]) -> str:
    """Settings, one per line, with values that `/set` accepts."""
    options: dict[str, Any] = dict(default_flow_style=True, allow_unicode=True, width=math.inf)
    values = [yaml.safe_dump([value], **options).strip()[1:-1] for value in settings.values()]
    return "\n".join(f"{name}: {value}" for name, value in zip(settings, values, strict=True))


def _help() -> str:
    """The commands and the settings, described by their docstrings."""
    import docstring_parser  # jsonargparse uses it for the help of configs

    fields = docstring_parser.parse_from_object(SamplingConfig).params
    settings = {field.arg_name: (field.description or "").partition("\n")[0] for field in fields}
    settings["truncate"] = "left: drop the beginning of a prompt that exceeds the context."
    commands, options = ([f"  {name:20}{text}" for name, text in rows.items()] for rows in (COMMANDS, settings))
    return "\n".join(["A line is a prompt. Commands:", *commands, "Settings:", *options])


# --- the terminal


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing, with the lines of earlier sessions, where the system supports it."""
    try:
        import readline  # from now on `input` uses it
    except ImportError:  # Windows: its console has both
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
