"""The parser of `tinylm fit`: configs found by name, and one-line errors with "did you mean"."""

import contextlib
import inspect
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from docstring_parser import DocstringStyle
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import LightningEnum

from tinylm.checks import LINKED
from tinylm.chosen import chosen_values, flat_words, given_configs, names_class
from tinylm.errors import ConfigError, MissingInputError, did_you_mean
from tinylm.locate import find_config
from tinylm.mistakes import Given, read_config, source, unknown_option, unknown_word, wrong_value
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.schedule import ScheduleConfig
from tinylm.plugins import Part, trust
from tinylm.training.own_data_options import OwnClass, plain_config, plain_words, with_data_class
from tinylm.training.parts import fold_parts, typed_class_path

yaml.SafeDumper.add_multi_representer(  # a default of Lightning's Timer is one
    LightningEnum, lambda dumper, value: dumper.represent_str(str(value.value))
)
GROUP_TYPES = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig}  # options of model, or a class instead


def accepts(kind: type, argument: str) -> bool:
    """Whether a class's constructor takes an argument, or passes its options on to one that does."""
    for each in kind.__mro__:
        if "__init__" in vars(each):
            parameters = inspect.signature(each.__init__).parameters
            if argument in parameters:
                return True
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
    return False


class ConfigFile(ActionConfigFile):
    """`--config`, found by `find_config`."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Applies one file on top of the config so far."""
        path = find_config(str(value))
        Given.files.append(path)
        read_config(path)
        ActionConfigFile.apply_config(parser, cfg, dest, str(path))


class ConfigParser(LightningArgumentParser):
    """Raises ConfigError where jsonargparse prints its usage and exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        helping = any(word.endswith("help") for word in sys.argv)  # parsing docstrings takes a second
        set_parsing_settings(docstring_parse_attribute_docstrings=helping, docstring_parse_style=DocstringStyle.GOOGLE)
        super().__init__(*args, **kwargs)

    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, *args: Any, **options: Any) -> list[str]:
        """Adds the options of a class; optimizer and schedule are groups of options, or the user's own class."""
        if nested_key != "model":
            return super().add_lightning_class_args(lightning_class, nested_key, *args, **options)
        groups = {name: kind for name, kind in GROUP_TYPES.items() if accepts(lightning_class, name)}
        added = self.add_class_arguments(
            lightning_class, nested_key, fail_untyped=False, sub_configs=True, skip={*groups}
        )
        for name, kind in groups.items():
            if names_class(f"model.{name}", sys.argv[1:]):
                self.add_argument(f"--model.{name}", type=Part, required=True)
            else:
                self.add_argument(f"--model.{name}", type=kind, default=kind())
        return [*added, *(f"model.{name}" for name in groups)]

    def parse_args(self, args: list[str] | None = None, *others: Any, **options: Any) -> Any:
        """Parses a command line; `--trust` applies to the whole line."""
        Given.words = args = flat_words(sys.argv[1:] if args is None else list(args))
        allowed = [*TRUSTED, *trusted_modules(Given.words)]
        trust(allowed)
        look_beside_configs(Given.words)
        args = fold_parts(Given.words)
        OwnClass.named = False
        if OwnClass.path is not None:
            args = plain_words(args)
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
        """Parses a config in UTF-8, whatever the locale, with the options of a whole class one level up."""
        text = plain_config(Path(path).read_text(encoding="utf-8-sig"), Path(path))
        values = yaml.safe_load(text)
        if isinstance(values, dict) and (chosen := chosen_values(values, str(path), Given.words)) != values:
            text = yaml.safe_dump(chosen, sort_keys=False)
        return self.parse_string(text, str(path), *others, **options)

    def dump(self, cfg: Any, *args: Any, **options: Any) -> str:
        """A config as YAML; that of `--print_config` can be run again: it names the data module, and no trust."""
        if not hasattr(getattr(self, "parent_parser", self), "print_config"):
            return super().dump(cfg, *args, **options)
        cfg = cfg.clone()
        cfg.pop("trust", None)
        text = super().dump(cfg, *args, **options)
        return text if OwnClass.path is None else with_data_class(text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a ConfigError of one line."""
        raise ConfigError(plain_error(" ".join(message.split()), _defaults(self))) from ex


TRAINER_DEFAULTS = {"enable_model_summary": False, "max_epochs": -1, "use_distributed_sampler": False}  # of `fit`
TRUSTED = ("tinylm", "lightning", "torch", "torchmetrics")


def add_trust_option(parser: LightningArgumentParser) -> None:
    """Adds `--trust`. Importing a module runs it, so a config may name `TRUSTED` and `trusted_modules` only."""
    trusted = "A module of yours whose classes the configs may name; may be repeated."
    parser.add_argument("--trust", action="append", type=str, default=[], metavar="MODULE", help=trusted)


def trusted_modules(words: list[str]) -> list[str]:
    """The modules that the user of a command line trusts, read before anything is parsed.

    >>> trusted_modules(["-c", "theirs.yaml", "--trust", "mine", "--trainer.callbacks+=own.Stop"])
    ['mine', 'own']
    >>> trusted_modules(["--trainer.logger.tracking_uri", "sqlite:///mlflow.db"])
    []
    """
    found = []
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name == "--trust":
            found.append(value or following)
        elif name.startswith("--trainer.") and _takes_class(name, value or following):
            found += CLASS_PATH.findall(value or following)
        elif name.startswith("--") and (typed := typed_class_path(name[2:], value or following)):
            found += CLASS_PATH.findall(typed)
    return found


def _takes_class(name: str, value: str) -> bool:
    """Whether the value of an option of the trainer holds a class path, and not a setting of a class, such as a URL."""
    whole = name.count(".") == 1 and name != "--trainer.default_root_dir"
    return whole or name.endswith(".class_path") or "class_path" in value


def look_beside_configs(words: list[str]) -> None:
    """Lets trusted modules be imported from the folder of the config that names them."""
    if trusted_modules(words):
        for name in given_configs(words):
            with contextlib.suppress(MissingInputError):  # reported where the config is read
                if (folder := str(find_config(name).resolve().parent)) not in sys.path:
                    sys.path.append(folder)


def check_vocab_size(given: int | None, known: int) -> None:
    """Refuses a `vocab_size` in a config that is not the tokenizer's."""
    if given not in (None, known):
        raise ConfigError(f"model.network.vocab_size: the tokenizer has {known} tokens, got {given}; leave it out")


def saved_config(command: str, dump: str, vocab_size: int, chosen: dict[str, str] | None = None) -> str:
    """The config.yaml of a run, which can be run again.

    Args:
        command: `fit` or `train-numpy`
        dump: all resolved options as YAML
        vocab_size: size of the tokenizer's vocabulary
        chosen: class paths of the parts whose class the user names
    """
    values = yaml.safe_load(dump)
    for name in ("config", "resume", "threads", "trust", *([] if values.get("ckpt_path") else ["ckpt_path"])):
        values.pop(name, None)
    values["model"]["network"]["vocab_size"] = vocab_size
    for part, path in (chosen or {}).items():
        values[part] = {"class_path": path, **values[part]}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"# tinylm {command} --config config.yaml\n{with_data_class(text) if OwnClass.path else text}"


NO_VALUE = re.compile(r"argument (\S+): expected (?:one|at least one) argument")
UNKNOWN_WORD = re.compile(r"unrecognized arguments: (.*)")
UNKNOWN_OPTION = re.compile(
    r"(?:Group '([\w.]+)' |)does not accept option '([\w.]+)|No action for key \"?([\w.]+)"
    r"|^Option '([\w.]+)' is not accepted$"
)
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


def plain_error(message: str, defaults: dict[str, Any]) -> str:
    """Shortens an error of jsonargparse: the file or option, what is wrong, and a suggestion.

    Args:
        message: jsonargparse's message on one line
        defaults: all options by dotted name, with their defaults
    """
    message = re.sub(r'^Parser key "([\w.]+)": ?', r"\1: ", message)
    if unknown := UNKNOWN_WORD.search(message):
        word = next((word for word in Given.words if f"{unknown[1]} ".startswith(f"{word} ")), unknown[1])
        return unknown_word(word, defaults)
    if missing := NO_VALUE.search(message):
        return f"{missing[1].split('/')[-1]}: its value is missing"
    if unknown := UNKNOWN_OPTION.search(message):
        return unknown_option(".".join(filter(None, unknown.groups())), defaults)
    if wrong := WRONG_IMPORT.search(message):
        others = f"{', '.join(TRUSTED[:-1])} and {TRUSTED[-1]}"
        path, module = (found for found in wrong.groups() if found)  # the second form is ours, from a nested parser
        return f"{path}: importing runs code outside {others}; if you trust it, add --trust {module}"
    if linked := LINKED_OPTION.search(message):
        return f"{source(linked[1])}{linked[1]}: follows {linked[2]}; set that instead"
    if wrong := WRONG_COMMAND.search(message):
        commands = wrong.group(2).replace("'", "").split(", ")
        return f"{wrong.group(1)}: no such command{did_you_mean(wrong.group(1), commands)} ({', '.join(commands)})"
    return _wrong_value(message, defaults) or message[:500]


def _wrong_value(message: str, defaults: dict[str, Any]) -> str | None:
    """The error of a value: the option, what it takes, and what it got; None if the message is about something else."""
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
        return f"{source(wrong[1])}{wrong[1]}: {place} {wrong[2]}; give it"
    if wrong := WRONG_MEMBER.match(message):
        member = wrong[3] or f"{wrong[2]}: no such option"
        return f"{source(wrong[1])}{wrong[1]}.{member}"
    if wrong := WRONG_IN_LIST.match(message):
        return ": ".join(wrong.groups())
    if (wrong := WRONG_VALUE.match(message)) and (kinds := WRONG_KIND.findall(wrong[2])):
        name, value = wrong[1], wrong[3]
        kinds = [("dict", ""), *kinds] if "import path" in wrong[2] else kinds  # a class, whose options may be given
        return wrong_value(name, kinds, value, defaults.get(name))
    return None


def _subclasses(kind: type) -> Iterator[str]:
    for each in kind.__subclasses__():
        yield each.__name__
        yield from _subclasses(each)


@contextlib.contextmanager
def located_errors() -> Iterator[None]:
    """Adds to a ConfigError about an option the config that gives it, as `small.yaml: data.tokenizer: ...`."""
    try:
        yield
    except ConfigError as error:
        name = re.match(r"(?:model|data|trainer|run)\.[\w.]*\w", str(error))
        if name is None or not (file := source(name[0])):
            raise
        raise type(error)(f"{file}{error}") from error


def _defaults(parser: Any) -> dict[str, Any]:
    """The options of the current command by dotted name, with their defaults."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            parser = action.choices.get("".join(sys.argv[1:2]), parser)
    found = {str(action.dest): action.default for action in parser._actions}
    return {name: default for name, default in found.items() if name not in LINKED and not name.endswith(".help")}
