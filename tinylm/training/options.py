"""The parser of `tinylm fit`: configs found by name, and one-line errors with "did you mean"."""

import contextlib
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from docstring_parser import DocstringStyle
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from tinylm.checks import FOREIGN_NAMES, LINKED
from tinylm.errors import ConfigError, DataError, MissingInputError, did_you_mean
from tinylm.locate import find_config
from tinylm.safe_yaml import read_yaml


class ConfigFile(ActionConfigFile):
    """`--config`, found by `find_config`."""

    read: ClassVar[list[Path]] = []  # files of this command line, for error messages
    words: ClassVar[list[str]] = []  # this command line
    trusted: ClassVar[list[str]] = []  # modules of this command line, whose classes a config may name

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Applies one file on top of the config so far."""
        path = find_config(str(value))
        ConfigFile.read.append(path)
        try:
            check_sections(path, read_yaml(path, no_blanks=True))
        except DataError as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            raise MissingInputError(f"{path}: cannot be read ({error.strerror})") from error
        if ConfigFile.trusted and (folder := str(path.resolve().parent)) not in sys.path:
            sys.path.append(folder)  # callbacks may stand beside their config
        ActionConfigFile.apply_config(parser, cfg, dest, str(path))


SECTIONS = ("model", "model.network", "model.optimizer", "model.schedule", "data", "run", "trainer")


def check_sections(path: Path, values: Any) -> None:
    """Checks that a config has options, and nothing but options in its sections.

    Raises:
        ConfigError: naming the file and the section.
    """
    if not isinstance(values, dict):
        problem = "is empty" if values is None else "has no options"
        raise ConfigError(f"{path}: {problem}; write options as in trainer: {{max_steps: 100}}")
    if "trust" in values:
        raise ConfigError(f"{path}: trust: can be given on the command line only; leave it out")
    for name in SECTIONS:
        value: Any = values
        for key in name.split("."):
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            given = "null" if value is None else value
            raise ConfigError(f"{path}: {name} must have options below it, got {given}; add some, or leave it out")


class ConfigParser(LightningArgumentParser):
    """Raises ConfigError where jsonargparse prints its usage and exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        helping = any(word.endswith("help") for word in sys.argv)  # parsing docstrings takes a second
        set_parsing_settings(docstring_parse_attribute_docstrings=helping, docstring_parse_style=DocstringStyle.GOOGLE)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: list[str] | None = None, *others: Any, **options: Any) -> Any:
        """Parses a command line, whose `--trust` counts for all of it."""
        ConfigFile.words = sys.argv[1:] if args is None else list(args)
        ConfigFile.trusted = trusted_modules(ConfigFile.words)
        allowed = [*TRUSTED, *ConfigFile.trusted]
        try:
            set_parsing_settings(
                import_path_denylist=["*"], import_path_allowlist=allowed, instantiate_subclass_spec_in_any=False
            )
        except ValueError as error:
            raise ConfigError(f"--trust must be the name of a module ({error})") from error
        try:
            return super().parse_args(args, *others, **options)
        except ImportError as error:  # denied, outside the lists that jsonargparse checks
            self.error(str(error), error)

    def parse_path(self, path: Any, *others: Any, **options: Any) -> Any:
        """Parses a config in UTF-8, whatever the locale."""
        return self.parse_string(Path(path).read_text(encoding="utf-8-sig"), str(path), *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a ConfigError of one line."""
        raise ConfigError(plain_error(" ".join(message.split()), _defaults(self))) from ex


TRUSTED = ("tinylm", "lightning", "torch", "torchmetrics")


def add_trust_option(parser: LightningArgumentParser) -> None:
    """Adds `--trust`. Importing a module runs it, so a config may name `TRUSTED` and `trusted_modules` only."""
    trusted = "A module of yours whose classes the configs may name; may be repeated."
    parser.add_argument("--trust", action="append", type=str, default=[], metavar="MODULE", help=trusted)


def trusted_modules(words: list[str]) -> list[str]:
    """The modules that the user of a command line trusts, read before anything is parsed.

    >>> trusted_modules(["-c", "theirs.yaml", "--trust", "mine", "--trainer.callbacks+=own.Stop"])
    ['mine', 'own']
    """
    found = []
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name == "--trust":
            found.append(value or following)
        elif name.startswith("--trainer."):  # a class path that the user has typed
            found += CLASS_PATH.findall(value or following)
    return found


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
    for name in ("config", "resume", "threads", "trust", *([] if values.get("ckpt_path") else ["ckpt_path"])):
        values.pop(name, None)
    values["model"]["network"]["vocab_size"] = vocab_size
    return f"# tinylm {command} --config config.yaml\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"


NO_VALUE = re.compile(r"argument (\S+): expected (?:one|at least one) argument")
UNKNOWN_WORD = re.compile(r"unrecognized arguments: (.*)")
UNKNOWN_OPTION = re.compile(r"(?:does not accept option '|No action for key \"?)([\w.]+)")
LINKED_OPTION = re.compile(r"Linked \"(.*?)\" must be given via \"(.*?)\"")
CLASS_PATH = re.compile(r"(?<![\w.])([A-Za-z_]\w*)(?:\.\w+)*\.[A-Za-z_]\w*")
WRONG_IMPORT = re.compile(r"Importing '(([\w.]+)\.\w+)' is not allowed|([\w.]+): importing runs .* --trust ([\w.]+)")
WRONG_VALUE = re.compile(r"^([\w.]+): (.*) (?:Got|Given) value: (.*)$")
WRONG_GROUP = re.compile(r"^([\w.]+): Unable to load config '(.*?)'")
WRONG_CLASS = re.compile(r"^(trainer\.\w+): .*Expected a dot import path string: (\w+)")
WRONG_KIND = re.compile(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])")
WRONG_MEMBER = re.compile(  # of an optional group, as model.lora is
    r"^([\w.]+): Does not .* Subtypes: \[<class 'tinylm\.[\w.]+'>, <class 'NoneType'>\] Errors: "
    r"- (?:Option '(\w+)' is not accepted|(?!Expected)(.+?)) - Expected a <class 'NoneType'>"
)
WRONG_COMMAND = re.compile(r"argument subcommand: invalid choice: '(.*?)' \(choose from (.*)\)")
NO_ARGUMENT = re.compile(r"^([\w.]+): .*the following arguments are required: ([\w, ]+?)(?: -|$)")
WRONG_IN_LIST = re.compile(r"^(trainer\.(?:logger|callbacks)): .*? Errors: - (.*?) - Expected")
KINDS = {"NoneType": "null", "tuple": "a list", "list": "a list", "dict": "options", "str": "text"}


def plain_error(message: str, defaults: dict[str, Any]) -> str:
    """Shortens an error of jsonargparse: the file or option, what is wrong, and a suggestion.

    Args:
        message: jsonargparse's message on one line
        defaults: all options by dotted name, with their defaults
    """
    message = re.sub(r'^Parser key "([\w.]+)": ?', r"\1: ", message)
    if unknown := UNKNOWN_WORD.search(message):
        word = next((word for word in ConfigFile.words if unknown[1].startswith(word)), unknown[1])
        return _unknown_word(word, defaults)
    if missing := NO_VALUE.search(message):
        return f"{missing[1].split('/')[-1]}: its value is missing"
    if unknown := UNKNOWN_OPTION.search(message):
        name = unknown.group(1)
        return f"{_source(name)}{name}: no such option{suggest(name, defaults)}"
    if wrong := WRONG_IMPORT.search(message):
        others = f"{', '.join(TRUSTED[:-1])} and {TRUSTED[-1]}"
        path, module = (found for found in wrong.groups() if found)  # the second form is ours, from a nested parser
        return f"{path}: importing runs code outside {others}; if you trust it, add --trust {module}"
    if linked := LINKED_OPTION.search(message):
        return f"{_source(linked[1])}{linked[1]}: follows {linked[2]}; set that instead"
    if wrong := WRONG_COMMAND.search(message):
        commands = wrong.group(2).replace("'", "").split(", ")
        return f"{wrong.group(1)}: no such command{did_you_mean(wrong.group(1), commands)} ({', '.join(commands)})"
    return _wrong_value(message, defaults) or message[:500]


def _wrong_value(message: str, defaults: dict[str, Any]) -> str | None:
    """The error of a value: the option, what it takes, and what it got; None if the message is none."""
    if wrong := WRONG_GROUP.match(message):
        member = next((name for name in defaults if name.startswith(f"{wrong[1]}.")), "")
        return f"{wrong[1]}: is a group of options; give them one by one, as in --{member} (got {wrong[2]})"
    if wrong := WRONG_CLASS.match(message):
        hint = (
            did_you_mean(wrong[2], [*_subclasses(Callback), *_subclasses(Logger)])
            or "; give its import path, as in tinylm.training.BestCheckpoint"
        )
        return f"{wrong[1]}: no class {wrong[2]}{hint}"
    if wrong := NO_ARGUMENT.match(message):
        place = "init_args lacks" if wrong[1].startswith("trainer.") else "lacks"
        return f"{_source(wrong[1])}{wrong[1]}: {place} {wrong[2]}; give it"
    if wrong := WRONG_MEMBER.match(message):
        member = wrong[3] or f"{wrong[2]}: no such option"
        return f"{_source(wrong[1])}{wrong[1]}.{member}"
    if wrong := WRONG_IN_LIST.match(message):
        return ": ".join(wrong.groups())
    if (wrong := WRONG_VALUE.match(message)) and (kinds := WRONG_KIND.findall(wrong[2])):
        name, value = wrong[1], wrong[3]
        kinds = [("dict", ""), *kinds] if "import path" in wrong[2] else kinds  # a class, whose options may be given
        return f"{_source(name)}{name} must be {_expected(kinds, defaults.get(name))}, got {value}"
    return None


def _subclasses(kind: type) -> Iterator[str]:
    for each in kind.__subclasses__():
        yield each.__name__
        yield from _subclasses(each)


def _expected(kinds: list[tuple[str, str]], default: Any) -> str:
    """The values that an option takes, from the classes and choices in an error of jsonargparse."""
    choices = dict.fromkeys(
        choice for _, literals in kinds for choice in literals.replace("'", "").split(", ") if choice
    )
    names = list(dict.fromkeys(KINDS.get(name, name) for name, _ in kinds if name))
    if isinstance(default, tuple | list) and default and "a list" in names:
        names[names.index("a list")] = f"a list such as {list(default)}"
    if choices:
        return f"one of {', '.join([*choices, *[name for name in names if name == 'null']])}"
    return " or ".join([*[name for name in names if name != "null"], *[name for name in names if name == "null"]])


def _unknown_word(word: str, defaults: dict[str, Any]) -> str:
    """A word of the command line that is no option, or an option that does not exist."""
    if word.startswith("-"):
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        return f"{name}: no such option{suggest(name, defaults)}"
    before = ConfigFile.words[: ConfigFile.words.index(word)] if word in ConfigFile.words else []
    place = max((i for i, each in enumerate(before) if each.startswith("-")), default=None)
    if place is not None and before[place] not in ("-c", "--config") and ("=" in before[place] or before[place + 1 :]):
        option = before[place].partition("=")[0]
        return f"{word}: is no option; {option} takes one value: put a pattern or several words in quotes"
    options = {".yaml": "-c", ".yml": "-c", ".jsonl": "--data.pairs", ".csv": "--data.pairs", ".ckpt": "--ckpt_path"}
    suffix = Path(word).suffix
    with contextlib.suppress(MissingInputError):
        suffix = find_config(word).suffix
    if suffix or Path(word).exists():
        return f"{word}: is no option, did you mean '{options.get(suffix, '--data.corpus')} {word}'?"
    return f"{word}: no such option{suggest(word, defaults)}"


@contextlib.contextmanager
def located_errors() -> Iterator[None]:
    """Adds to a ConfigError about an option the config that gives it, as `small.yaml: data.tokenizer: ...`."""
    try:
        yield
    except ConfigError as error:
        name = re.match(r"(?:model|data|trainer|run)\.[\w.]*\w", str(error))
        if name is None or not (source := _source(name[0])):
            raise
        raise type(error)(f"{source}{error}") from error


def _source(name: str) -> str:
    """`file: ` for the last config file that sets an option; empty if the command line does."""
    path = option_source(name)
    return "" if path is None else f"{path}: "


def option_source(name: str) -> Path | None:
    """The last config file that sets an option; None if the command line does, or nothing."""
    if any(word.lstrip("-").split("=")[0].rstrip("+") == name for word in ConfigFile.words):
        return None
    for path in reversed(ConfigFile.read):
        value: Any = read_yaml(path)
        for key in name.split("."):
            value = value.get(key, value.get(f"{key}+", _ABSENT)) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            return path
    return None


_ABSENT = object()


def suggest(name: str, known: Iterable[str]) -> str:
    """A suggestion for an unknown option: the same name in its section, ours for a foreign one, or the most similar."""
    known, leaf = list(known), name.rsplit(".", 1)[-1]
    leaves: dict[str, list[str]] = {}
    for option in known:
        leaves.setdefault(option.rsplit(".", 1)[-1], []).append(option)
    longer = [name for each in leaves if each.startswith(f"{leaf}_") for name in leaves[each]] if name == leaf else []
    same = leaves.get(leaf, []) + longer
    if not same:
        same = leaves.get(FOREIGN_NAMES.get(leaf, ""), [])
    siblings = [option for option in known if option.rpartition(".")[0] == name.rpartition(".")[0]]
    for candidates in (siblings, known):
        same = same or difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)
    for close in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8) if not same else ():
        same = leaves[close]
    if not same or len(same) > 3:
        return "; --help lists all"
    return f", did you mean {' or '.join(map(repr, same))}?"


def _defaults(parser: Any) -> dict[str, Any]:
    """The options of a parser and its subcommands by dotted name, with their defaults."""
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            parsers += action.choices.values()
    found = {str(action.dest): action.default for each in parsers for action in each._actions}
    return {name: default for name, default in found.items() if name not in LINKED}
