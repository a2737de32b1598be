"""The parser of `tinylm fit`: configs found by name, and one-line errors with "did you mean"."""

import difflib
import re
import sys
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from docstring_parser import DocstringStyle
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from tinylm.checks import FOREIGN_NAMES
from tinylm.errors import ConfigError, did_you_mean
from tinylm.locate import find_config


class ConfigFile(ActionConfigFile):
    """`--config`, found by `find_config`."""

    read: ClassVar[list[Path]] = []  # files of this command line, for error messages

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Applies one file on top of the config so far."""
        path = find_config(str(value))
        ConfigFile.read.append(path)
        try:
            yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not valid YAML ({error})") from error
        ActionConfigFile.apply_config(parser, cfg, dest, str(path))


class ConfigParser(LightningArgumentParser):
    """Raises ConfigError where jsonargparse prints its usage and exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        helping = any(word.endswith("help") for word in sys.argv)  # parsing docstrings takes a second
        set_parsing_settings(docstring_parse_attribute_docstrings=helping, docstring_parse_style=DocstringStyle.GOOGLE)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a ConfigError of one line."""
        raise ConfigError(plain_error(" ".join(message.split()), _option_names(self))) from ex


def check_vocab_size(given: int | None, known: int) -> None:
    """Refuses a `vocab_size` in a config that is not the tokenizer's."""
    if given not in (None, known):
        raise ConfigError(f"model.network.vocab_size: the tokenizer has {known} tokens, got {given}; leave it out")


def saved_config(command: str, dump: str, vocab_size: int) -> str:
    """The config.yaml of a run, which can be run again.

    Args:
        command: `fit` or `train-numpy`
        dump: all resolved options as YAML
        vocab_size: size of the tokenizer's vocabulary
    """
    values = yaml.safe_load(dump)
    for name in ("config", "resume", "threads", *(["ckpt_path"] if not values.get("ckpt_path") else [])):
        values.pop(name, None)
    values["model"]["network"]["vocab_size"] = vocab_size
    return f"# tinylm {command} --config config.yaml\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


UNKNOWN_OPTION = re.compile(r"(?:unrecognized arguments: -*|does not accept option '|No action for key \"?)([\w.]+)")
WRONG_VALUE = re.compile(r"^([\w.]+): .*?Expected a <class '(\w+)'>. Got value: (.*)$")
WRONG_COMMAND = re.compile(r"argument subcommand: invalid choice: '(.*?)' \(choose from (.*)\)")
WRONG_CHOICE = re.compile(r"^([\w.]+): .*?Literal\[(.*?)\].*Got value: (\S+)")
WRONG_IN_LIST = re.compile(r"^(trainer\.(?:logger|callbacks)): .*? Errors: - (.*?) - Expected")


def plain_error(message: str, known: list[str]) -> str:
    """Shortens an error of jsonargparse: the file or option, what is wrong, and a suggestion.

    Args:
        message: jsonargparse's message on one line
        known: dotted names of all options
    """
    message = re.sub(r'^Parser key "([\w.]+)": ?', r"\1: ", message)
    if unknown := UNKNOWN_OPTION.search(message):
        name = unknown.group(1)
        return f"{_source(name)}{name}: no such option{suggest(name, known)}"
    if wrong := WRONG_VALUE.match(message):
        name, kind, value = wrong.groups()
        return f"{_source(name)}{name} must be {kind}, got {value}"
    if wrong := WRONG_CHOICE.match(message):
        name, choices, value = wrong.groups()
        return f"{_source(name)}{name} must be one of {choices.replace(chr(39), '')}, got {value}"
    if wrong := WRONG_IN_LIST.match(message):
        return ": ".join(wrong.groups())
    if wrong := WRONG_COMMAND.search(message):
        commands = wrong.group(2).replace("'", "").split(", ")
        return f"{wrong.group(1)}: no such command{did_you_mean(wrong.group(1), commands)} ({', '.join(commands)})"
    return message[:500]


def _source(name: str) -> str:
    """`file: ` for the last config file that sets an option; empty if the command line does."""
    if any(word.lstrip("-").split("=")[0].rstrip("+") == name for word in sys.argv):
        return ""
    for path in reversed(ConfigFile.read):
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in name.split("."):
            value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            return f"{path}: "
    return ""


_ABSENT = object()


def suggest(name: str, known: list[str]) -> str:
    """A suggestion for an unknown option: our name for a foreign one, or the most similar option."""
    leaf = name.rsplit(".", 1)[-1]
    leaves = {option.rsplit(".", 1)[-1]: option for option in known}
    if FOREIGN_NAMES.get(leaf) in leaves:
        return f", did you mean '{leaves[FOREIGN_NAMES[leaf]]}'?"
    siblings = [option for option in known if option.rpartition(".")[0] == name.rpartition(".")[0]]
    for candidates in (siblings, known):
        if close := difflib.get_close_matches(name, candidates, n=1, cutoff=0.8):
            return f", did you mean '{close[0]}'?"
    if close := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8):
        return f", did you mean '{leaves[close[0]]}'?"
    return "; --help lists all"


def _option_names(parser: Any) -> list[str]:
    """Dotted names of all options of a parser and its subcommands."""
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            parsers += action.choices.values()
    return sorted({str(action.dest) for each in parsers for action in each._actions})
