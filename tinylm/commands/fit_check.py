"""Finds mistyped options and values of `fit` and related commands before Lightning is imported, which takes seconds.

Names and types are read from the sources, as for `--help`: tinylm's own, and the installed Lightning's Trainer. The
parser would refuse the same options in the same words; uncertain cases are left to the parser.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tinylm.checks import LINKED
from tinylm.chosen import GROUPS, PARTS, chosen_path, chosen_values, flat_words, given_configs, names_class
from tinylm.commands.fit_help import SECTIONS, Section, declared, read_source
from tinylm.errors import ConfigError
from tinylm.locate import find_config
from tinylm.mistakes import Given, read_config, unknown_option, unknown_word, wrong_value

Kinds = list[tuple[str, str]]  # types and choices, as `wrong_value` takes them
CONFIG = re.compile(r"-c|--config(=|$)")
WORD = re.compile(r"[A-Za-z][\w.-]*( [\w.-]+)*|\d+,\d+|\d+[A-Za-z]+", re.ASCII)
FRACTION = re.compile(r"[+-]?\d+\.\d+|\d+(\.\d+)?[eE]\d+", re.ASCII)
SPECIAL = {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf", "infinity"}


class Options(NamedTuple):
    """The options that a command accepts.

    Attributes:
        names: options and groups of options, in the order of the parser
        groups: names of groups of options
        kinds: the types of the options whose type is simple
    """

    names: list[str]
    groups: set[str]
    kinds: dict[str, Kinds]

    def lack(self, name: str) -> bool:
        """Whether an option does not exist. Members of an existing option are left to its class."""
        parts = name.split(".")
        above = {".".join(parts[:count]) for count in range(1, len(parts))} - self.groups
        return name not in self.names and above.isdisjoint(self.names)

    def check(self, name: str, given: Any) -> None:
        """Raises ConfigError if an option certainly does not take a value."""
        kinds, value = self.kinds.get(name), plain_value(str(given)) if isinstance(given, str | float) else None
        if kinds is None or value is None or (CLASS in kinds and (len(kinds) == 1 or "." in str(value))):
            return
        kinds = [kind for kind in kinds if kind != CLASS]
        numbers = isinstance(value, float) and {kind for kind, _ in kinds} <= {"int", "NoneType"}
        words = isinstance(value, str) and not any(f"'{value}'" in choices.split(", ") for _, choices in kinds)
        if numbers or words:
            raise ConfigError(wrong_value(name, kinds, value if len(kinds) == 1 else given))

    def order(self, name: str) -> tuple[int, int]:
        """The sort key of an unknown option: the parser reports the first one."""
        section = name.partition(".")[0]
        return -name.count("."), self.names.index(section) if section in self.names else len(self.names)


def plain_value(text: str) -> str | float | None:
    """A word as it is, a number with a point or an exponent as float; None if the parser may read something else."""
    if FRACTION.fullmatch(text):
        return float(text)
    certain = WORD.fullmatch(text) and text.lower() not in SPECIAL and isinstance(yaml.safe_load(text), str)
    return text if certain else None


# --- the options, from the sources

OF_PYTHON = ("model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule")  # not on the command line
OWN = {"fit": ["resume"], "predict": ["overwrite"]}
FLAGS = ("resume", "overwrite")  # options without a value


CLASS = ("Part", "")  # the kind of an option that also takes an import path


@cache
def read_command(command: str) -> Options | None:
    """The options of `fit`, `validate`, `test`, `predict` or `train-numpy`; None without Lightning's source."""
    spec = find_spec("lightning")
    file = Path(str(spec and spec.origin)).parent / "pytorch/trainer/trainer.py"
    if not file.is_file():
        return None
    trainer = Section("Trainer", "trainer", str(file), "Trainer")
    options = Options(["help", "config", "print_config", "trust"], set(), {})
    if command == "train-numpy":
        options.names.extend(["resume", "seed_everything"])
        _read_sections(options, ("model", "data", "trainer", "run"), trainer)
        options.names.append("threads")
        return options
    options.names.append("seed_everything")
    _read_sections(options, ("trainer", "model", "data", "run"), trainer)
    methods = (each for each in read_source(trainer).body if isinstance(each, ast.FunctionDef))
    arguments = next(declared(each) for each in methods if each.name == command)
    options.names.extend([name for name in arguments if name not in OF_PYTHON] + OWN.get(command, []))
    return options


def _read_sections(options: Options, prefixes: tuple[str, ...], trainer: Section) -> None:
    """Adds the options of some sections and their subsections."""
    sections = {section.prefix: section for section in (*SECTIONS, trainer)}
    for prefix in prefixes:
        options.names.append(prefix)
        options.groups.add(prefix)
        source = read_source(sections[prefix])
        arguments = sorted(source.declared().items(), key=lambda argument: f"{prefix}.{argument[0]}" in GROUPS)
        for name, annotation in arguments:  # the parser adds these groups last
            full = f"{prefix}.{name}"
            if full in sections and (full in GROUPS or isinstance(annotation, ast.Name)):
                _read_sections(options, (full,), trainer)
                continue
            options.names.append(full)
            if (kinds := _kinds(annotation, source.literals)) is not None:
                options.kinds[full] = kinds


def _kinds(annotation: ast.expr, literals: dict[str, ast.expr]) -> Kinds | None:
    """The types and choices of an annotation of numbers, booleans, null and literals; None for any other."""
    match annotation:
        case ast.Name(id="int" | "float" | "bool" as name):
            return [(name, "")]
        case ast.Constant(value=None):
            return [("NoneType", "")]
        case ast.Name(id="Part"):
            return [CLASS]
        case ast.Name(id=name) if name in literals:
            return _kinds(literals[name], {})
        case ast.Subscript(value=ast.Name(id="Literal")):
            return [("", ast.unparse(annotation.slice).strip("()"))]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            parts = [inner, ast.Constant(None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            pass
        case ast.BinOp(left=left, right=right):
            parts = [left, right]
        case _:
            return None
    found = [_kinds(part, literals) for part in parts]
    return None if None in found else [kind for kinds in found for kind in kinds or []]


# --- the check


def check_options(command: str, words: list[str]) -> None:
    """Refuses options that do not exist, and values of another type than the option's.

    Args:
        command: `fit`, `validate`, `test`, `predict` or `train-numpy`
        words: its arguments

    Raises:
        ConfigError: naming the option, and the config if one gives it.
        MissingInputError: if a config cannot be read.
    """
    listing = any(word.endswith("help") or word.startswith("--print_") or word == "--" for word in words)
    if listing or (options := read_command(command)) is None:
        return
    options, words = with_chosen(options, words), flat_words(words)
    Given.words, known = [command, *words], [name for name in options.names if name not in LINKED]
    Given.files.clear()
    in_configs: list[str] = []
    for word, following in pairwise([*words, ""]):
        values = _values(word, following)
        in_configs += [] if word.startswith("--") and not CONFIG.match(word) else values
        for name, value in values.items():
            options.check(name, value)
    if (word := _unknown_word(options, words)) is not None:
        raise ConfigError(unknown_word(word, known))
    unknown = [name for name in in_configs if options.lack(name)]
    if unknown and all(re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name) for name in unknown):
        raise ConfigError(unknown_option(min(unknown, key=options.order), known))


def with_chosen(options: Options, words: list[str]) -> Options:
    """The options, without checks for those of a class that the user names."""
    chosen = {part for part in PARTS if chosen_path(part, words) is not None}
    chosen |= {option for option in GROUPS if names_class(option, words)}
    above = tuple(f"{name}." for name in chosen)
    kinds = (
        {name: kinds for name, kinds in options.kinds.items() if not name.startswith(above)} if above else options.kinds
    )
    return options._replace(groups=options.groups - chosen, kinds=kinds)


def _values(word: str, following: str) -> dict[str, Any]:
    """The options that a word sets, directly or through a config, with their values."""
    if CONFIG.match(word):
        path = find_config(given_configs([word, following])[0])
        Given.files.append(path)
        return dict(_leaves(chosen_values(read_config(path), str(path), Given.words)))
    name, given, value = word.partition("=")
    return {name[2:]: value if given else following} if word.startswith("--") else {}


def given_values(words: list[str]) -> dict[str, Any]:
    """The options that a command line sets, directly or through configs, by dotted name; later ones override.

    >>> given_values(["--data.batch_size", "8", "--data.corpus=my.txt"])
    {'data.batch_size': 8, 'data.corpus': 'my.txt'}
    """
    words, given = flat_words(words), {}
    for word, following in pairwise([*words, ""]):
        in_config = CONFIG.match(word) is not None
        for name, value in _values(word, following).items():
            if not name.endswith("+") and "." in name:
                given[name] = value if in_config else _typed(value)
    return given


def _typed(text: str) -> Any:
    """The value of a word: YAML, with `1e-3` as a number."""
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) else yaml.safe_load(text)


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a config with their values."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _unknown_word(options: Options, words: list[str]) -> str | None:
    """The first word that is certainly neither an option nor the value of one; None if there is none."""
    for before, word in pairwise(["", *words]):
        option = re.fullmatch(r"--([\w.-]+)\+?(=.*)?", word, re.DOTALL)
        if word.startswith("-") and before.startswith("--") and "=" not in before and before[2:] not in FLAGS:
            return None  # a value is missing before it
        alone = not before.startswith("-") or (before.startswith("--") and "=" in before)
        if (option and options.lack(option[1])) or (alone and not word.startswith("-")):
            return word
    return None
