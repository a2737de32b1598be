"""The options of a command: a parser with one-line errors, and the model and the device that the options name."""

import argparse
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.locate import STORYTELLER, command, find_model, newest_run
from tinylm.plugins import trust_code

THEME, THEMES = "TINYLM_THEME", ("light", "dark")
"""The environment variable that chooses the theme of pictures, and the themes."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks, and adds the defaults of options that do not name theirs."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = isinstance(action.default, str | int | float | Path) and not isinstance(action.default, bool)
        named = not action.help or "default" in action.help or action.default in ("", argparse.SUPPRESS)
        return action.help if named or not plain else f"{action.help} (default: %(default)s)"


@dataclass(frozen=True)
class Mode:
    """A way to run a command in which some of its options have no meaning.

    Attributes:
        name: "with" or "without" and the condition, such as `with --num-beams`
        unused: names of the options that it does not use
        active: whether parsed arguments choose this mode. None: by the presence or absence of the option in the name
    """

    name: str
    unused: Collection[str]
    active: Callable[[argparse.Namespace], bool] | None = None


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without abbreviations.

    Args:
        command: the words after `tinylm`
        description: the help text
        modes: the options that a mode does not use are refused by name
    """

    def __init__(self, command: str, description: str | None, modes: Iterable[Mode] = ()) -> None:
        name, form, self._modes = f"tinylm {command}", _HelpFormatter, modes
        super().__init__(prog=name, description=description, allow_abbrev=False, formatter_class=form)
        self.add_argument("--debug", action="store_true", help="print the traceback of an error")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parses the arguments, whose option names may have `-` or `_`; ConfigError for an invalid one."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        words = [*map(_dashed, arguments[:end])]
        options, unknown = self.parse_known_args([*words, *arguments[end:]])
        if unknown:
            raise ConfigError(self._unknown(unknown[0], words))
        if vars(options).get("trust_code"):
            trust_code()
        if theme := vars(options).get("theme"):
            os.environ[THEME] = theme
        typed = {word.partition("=")[0] for word in words if word.startswith("-")}
        for mode in self._modes:
            sort, _, option = mode.name.partition(" ")
            active = (option in typed) == (sort == "with") if mode.active is None else mode.active(options)
            if active and (useless := sorted(typed.intersection(mode.unused))):
                raise ConfigError(f"{useless[0]}: does not work {mode.name}; leave it out")
        return options

    def _unknown(self, word: str, words: list[str]) -> str:
        """The error for a word that is not an argument: a wrong name, or a part of a text that was not quoted."""
        names = self._option_string_actions
        if word.startswith("-") or word not in words:
            return f"{word}: no such option{did_you_mean(word, names) or '; --help lists all'}"
        if os.path.exists(word):  # noqa: PTH110 (Path.exists raises for a name that is too long)
            name = "--model" if os.path.isdir(word) else "--text"  # noqa: PTH112
            if name in names and name not in words:
                return f"{word}: not expected here; did you mean {name} {word}?"
        place = words.index(word)
        begin = next((i for i in reversed(range(place)) if words[i].startswith("-")), 0)
        end = next((i for i in range(place, len(words)) if words[i].startswith("-")), len(words))
        action = names.get(words[begin])
        if action is None or action.nargs == 0 or os.path.exists(words[begin + 1]):  # noqa: PTH110 (of any length)
            return f"{word}: not expected here; quote a text of several words, or see --help"
        if action.type in (int, float) or place == begin + 1:
            return f"{word}: not expected here; {words[begin]} takes one value"
        return f'{word}: not expected here; quote the text: {words[begin]} "{" ".join(words[begin + 1 : end])}"'

    def format_help(self) -> str:
        """The help, with a usage line of the arguments and the required options."""
        names = {action.dest: action.nargs for action in self._actions if not action.option_strings}
        words = [f"[{name}]" if nargs in ("?", "*") else name for name, nargs in names.items()]
        required = [action for action in self._actions if action.option_strings and action.required]
        words += [f"{action.option_strings[-1]} {action.dest.upper()}" for action in required]
        self.usage = " ".join(["%(prog)s", *words, "[options]"])
        return super().format_help()

    def error(self, message: str):
        """Raises instead of printing the usage."""
        message = message.removeprefix("argument ")
        for kind, rule in (("int", "a whole number, such as 8"), ("float", "a number, such as 0.8")):
            message = message.replace(f"invalid {kind} value: ", f"must be {rule}, got ")
        if "are required" in message:
            message += f"; {self.prog} --help explains them"
        if "expected one argument" in message:
            name = message.partition(":")[0]
            message = f"{name}: needs a value; one that begins with a dash is written {name}=VALUE"
        raise ConfigError(message)

    def add_model_option(self, kinds: str = "run folder, model folder or checkpoint") -> None:
        """Adds `--model`, to be passed to `announce_model`."""
        kinds = f"{kinds}, or storyteller, the built-in model"
        self.add_argument("--model", help=f"{kinds} (default: the newest run in runs/, else storyteller)")
        self.add_trust_option()

    def add_trust_option(self) -> None:
        """Adds `--trust-code`, which `parse` carries out."""
        trusted = "run the code that the model names, if it has parts of your own (default: refuse it)"
        self.add_argument("--trust-code", action="store_true", help=trusted)

    def add_overwrite_option(self) -> None:
        """Adds `--overwrite`, to be passed to `check_target`."""
        replaced = "replace an earlier output of this command at --out (default: refuse what exists)"
        self.add_argument("--overwrite", action="store_true", help=replaced)

    def add_theme_option(self) -> None:
        """Adds `--theme`, which `parse` carries out."""
        chosen = f"colours of the pictures, light or dark (default: {THEME} in the environment, else light)"
        self.add_argument("--theme", choices=THEMES, help=chosen)

    def add_device_option(self) -> None:
        """Adds `--device`, to be passed to `pick_device`."""
        self.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto for the fastest")


def _dashed(word: str) -> str:
    """An option's name with `-` for `_`; any other word unchanged."""
    return re.sub(r"\A--\w[\w-]*(?=\Z|=)", lambda found: found.group().replace("_", "-"), word)


def check_at_least(least: int, options: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError for an option below a minimum; options that were not given may be None."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def pick_device(name: str) -> str:
    """Checks a device name, and replaces `auto` by the fastest device: cuda, else mps, else cpu."""
    import torch  # imported here: help and errors must not wait for it

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if reason := device_problem(name):
        raise ConfigError(f"--device {name}: cannot be used ({reason}); try --device cpu")
    return name


def device_problem(name: str) -> str | None:
    """The reason why PyTorch cannot use a device; None if it can."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def announce_model(given: str | None) -> tuple[str, Path]:
    """Finds the model given by `--model`, or by default the newest run's, and announces it before PyTorch is imported.

    Without a trained run, the default is the built-in storyteller. The result is the path of the run, or the one given,
    and the model folder or checkpoint there.
    """
    chosen = str(newest_run()) if given is None else given
    found = find_model(chosen)
    if found == STORYTELLER:
        own = f" (runs/ has no trained run); {command('fit', '-c', 'small')} trains your own" if given is None else ""
        notice(f"loading the built-in storyteller{own}")
        return str(found), found
    notice(f"loading {found}" + (", the newest run; --model takes another" if given is None else ""))
    return chosen, found
