"""The commands of the prompt loop, and their output.

A command is one line that begins with `/`; white space before it and upper case do not matter. At a terminal the words
`help`, `?`, `exit` and `quit` alone are commands too. `/say` takes any text as a prompt.
"""

import json
import math
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylm.commands import output
from tinylm.commands.interactive import settings as options
from tinylm.commands.interactive.screen import Screen
from tinylm.commands.interactive.session import Session
from tinylm.console import plural, use_color
from tinylm.errors import CannotCreateError, ConfigError, did_you_mean
from tinylm.files import write_text

COMMANDS = {
    "/again": "draw another answer to the last prompt: answer i uses the seed + i",
    "/more": "continue the last answer by up to max_new_tokens",
    "/undo": "take back the last prompt, /again, /more or /reset, exactly",
    "/reset": "forget all prompts and answers; the settings stay",
    "/set NAME VALUE": 'change a setting; the value is YAML: 0.5, null, ["."]',
    "/settings": "show all settings",
    "/probs on|off": "show the probability of each token of an answer, before temperature and filters",
    "/stats": "show tokens, seed and speed of the last answer, and the fit of its prompt",
    "/save FILE": "write prompts and answers to a new file; to a .jsonl file as training records",
    "/model PATH": "switch to another model and start over; the settings stay",
    "/say TEXT": "use any text as a prompt, even an empty one or one that begins with /",
    "/help": "show this help",
    "/quit": "leave, like Ctrl-D",
}
NAMES = [usage.split()[0] for usage in COMMANDS]
WORDS = {"help": "/help", "?": "/help", "exit": "/quit", "quit": "/quit"}  # at a terminal
NARROW = 70  # columns below which names and texts of the help are on separate lines


def execute(line: str, session: Session, screen: Screen) -> bool:
    """Answers a prompt or executes a command; returns whether the loop continues.

    Raises:
        TinyLMError: for an invalid line; nothing has changed.
    """
    if not line.strip():
        return True
    name, argument = split(line, screen.interactive)
    if name == "/quit" and not argument:
        return False
    if name in ("", "/say"):
        session.ask(argument)
    elif name in ACTIONS:
        ACTIONS[name](session, screen, argument)
    elif name in PLAIN and not argument:
        PLAIN[name](session, screen)
    elif name in NAMES:
        raise ConfigError(f"{name} takes nothing after it; for a prompt that begins so: /say {line.strip()}")
    else:
        hint = did_you_mean(name, NAMES) or "; /help lists all, and /say takes any text as a prompt"
        raise ConfigError(f"{name}: no such command{hint}")
    return True


def split(line: str, at_terminal: bool = True) -> tuple[str, str]:
    """The name of a command, or nothing for a prompt, and the text after it.

    >>> split(" /SET temp 0.5"), split("exit"), split("exit, pursued by a bear"), split("/say  /x")
    (('/set', 'temp 0.5'), ('/quit', ''), ('', 'exit, pursued by a bear'), ('/say', ' /x'))
    """
    stripped = line.lstrip()
    if at_terminal and (word := WORDS.get(stripped.strip().lower())):
        return word, ""
    name, _, argument = stripped.partition(" ")
    if name.lower() == "/say":
        return "/say", argument
    if not stripped.startswith("/") or "\n" in stripped.strip():  # a command is one line
        return "", line
    return name.strip().lower(), argument.strip()


# --- the actions


def _set(session: Session, screen: Screen, argument: str) -> None:
    name, value = options.parse_assignment(argument)
    if value is ...:
        shown = options.show({name: (options.DEFAULTS | session.settings)[name]})
        screen.show(f"{shown}   ({options.descriptions()[name]})")
        return
    session.set(name, value)
    screen.say(options.show({name: value}))


def _settings(session: Session, screen: Screen) -> None:
    screen.show(options.show(options.DEFAULTS | session.settings))


def _probs(session: Session, screen: Screen, argument: str) -> None:
    if argument not in ("on", "off"):
        raise ConfigError("/probs takes on or off, as in: /probs on")
    session.show_probs = argument == "on"
    if session.show_probs:
        screen.put(output.PROBABILITY.legend(use_color()) + "\n")
    else:
        screen.say("answers are shown as plain text")


def _stats(session: Session, screen: Screen) -> None:
    model, lines = session.model, []
    if session.exchanges:
        last = session.exchanges[-1]
        context = model.generator.model.config.max_seq_len
        read, made = len(last.text.prompt), len(last.text.ids)
        lines.append(f"last answer: {plural(made, 'token')} after {read} of prompt; the context holds {context}")
        lines.append(f"seed: {last.seed + last.draw}")
        if last.fit is not None:
            lines.append(f"loss of the prompt: {last.fit.loss:.2f} nats per token; validation {last.fit.usual:.2f}")
    screen.show("\n".join([*lines, f"speed: {output.show_stats(model.generator.stats, model.threads)}"]))


def _save(session: Session, screen: Screen, argument: str) -> None:
    if not argument:
        raise ConfigError("/save takes the name of a new file, as in: /save answers.txt")
    if not session.exchanges:
        raise ConfigError("/save writes prompts and answers, and there are none yet")
    path = Path(os.path.expanduser(argument))  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    if os.path.lexists(path):
        raise CannotCreateError(f"{path}: exists; /save takes the name of a new file")
    if session.model.template is None:
        completions = [each.completion for each in session.exchanges]
        output.write_completions(path, completions, session.generator.tokenizer)
    else:
        write_text(path, _conversation(session, output.is_jsonl(path)))
    screen.say(f"saved: {path}")


def _conversation(session: Session, jsonl: bool) -> str:
    """The turns as a record that `data.pairs` reads, or as text."""
    turns = [turn for each in session.exchanges for turn in each.turns]
    if jsonl:
        return json.dumps({"messages": [{"role": r, "content": text} for r, text in turns]}, ensure_ascii=False) + "\n"
    return "\n\n".join(f"{role}: {text.strip()}" for role, text in turns) + "\n"


def _model(session: Session, screen: Screen, argument: str) -> None:
    if not argument:
        raise ConfigError("/model takes a run folder, a model folder or a checkpoint, as in: /model runs/small")
    session.open_model(os.path.expanduser(argument))  # noqa: PTH111


def _help(session: Session, screen: Screen) -> None:
    screen.show(help_text(screen.width))


def help_text(width: float) -> str:
    """The commands and the settings, described by their docstrings."""
    keys = {
        "Enter": "answer; Alt-Enter, or Esc and Enter, begins a new line, and a paste may have several",
        "Tab": "complete a command, a setting or a path; Up and Down: earlier prompts",
        "Ctrl-C": "stop an answer, or clear the line; twice at the prompt, it leaves",
    }
    known = {} if width == math.inf else {"Keys:": keys}
    known |= {"Commands:": COMMANDS, "Settings:": options.descriptions()}
    lines = ["A line is a prompt. A chat model remembers the conversation; for any other, prompts are independent."]
    lines = lines if width == math.inf else textwrap.wrap(lines[0], int(width))
    for title, rows in known.items():
        lines += [title, *(_row(name, text, width) for name, text in rows.items())]
    return "\n".join(lines)


def _row(name: str, text: str, width: float) -> str:
    if width == math.inf:
        return f"  {name:20}{text}"
    first, indent = (f"  {name}\n    ", 4) if width < NARROW else (f"  {name:20}", 22)
    lines = textwrap.wrap(text, int(width) - indent, break_on_hyphens=False)
    return first + f"\n{' ' * indent}".join(lines)


ACTIONS: dict[str, Callable[[Session, Screen, str], None]] = {
    "/set": _set, "/probs": _probs, "/save": _save, "/model": _model,
}  # fmt: skip
PLAIN: dict[str, Callable[[Session, Screen], Any]] = {
    "/again": lambda session, _: session.again(),
    "/more": lambda session, _: session.more(),
    "/undo": lambda session, _: session.undo(),
    "/reset": lambda session, _: session.reset(),
    "/settings": _settings,
    "/stats": _stats,
    "/help": _help,
}
