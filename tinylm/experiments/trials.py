"""Trials: runs of `tinylm fit` that are planned together, and the state of each in its folder.

    folder/trials/wide-0.yaml   the options in which a trial differs from its configs
    folder/wide-0/              its run folder
    folder/logs/wide-0.log      its output

A run folder that differs from the plan in a relevant setting is refused, so results are never mixed.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tinylm.chosen import GROUPS, flat_values
from tinylm.errors import CannotCreateError, ConfigError
from tinylm.files import TEMPORARY, make_folder, write_text
from tinylm.locate import TOKENIZER, find_config
from tinylm.mistakes import read_config
from tinylm.runs.folder import DIFF, LOCK, RECORD, WRITER, RunConfig, is_finished
from tinylm.runs.settings import FREE, SEEDS, flat_config, inside

OVERLAYS, LOGS = "trials", "logs"
BEGUN = {LOCK, WRITER, RECORD, TOKENIZER, "checkpoints", "metrics.csv", "samples.txt", "wandb", "wandb.json"}
"""Files of a run that was killed before it wrote its config."""
OF_BASE = ("model.network", "data.tokenizer", "data.max_seq_len")  # taken from the model of model.init_from


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One planned run.

    Attributes:
        name: name of its run folder
        configs: configs of `fit`, by path or name; later ones override earlier ones
        options: further options, by dotted name or nested as in a config
        words: further words of the command line, such as `--trust mine`
    """

    name: str
    configs: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.name or self.name in (OVERLAYS, LOGS) or self.name.startswith("."):
            raise ConfigError(f"{self.name!r}: cannot name a trial; choose another name")
        RunConfig(name=self.name)  # refuses what is not a plain folder name

    def overlay(self, folder: Path) -> Path:
        """The config that the trial adds to its own."""
        return folder / OVERLAYS / f"{self.name}.yaml"

    def log(self, folder: Path) -> Path:
        """The file of its output."""
        return folder / LOGS / f"{self.name}.log"

    def arguments(self, folder: Path) -> list[str]:
        """The words after `tinylm` that train or resume it; call `write_overlay` first."""
        configs = [word for config in (*self.configs, self.overlay(folder)) for word in ("-c", str(config))]
        return ["fit", *configs, *self.words, "--run.dir", str(folder), "--run.name", self.name, "--resume"]

    def write_overlay(self, folder: Path) -> Path:
        """Writes the config that the trial adds, unless it exists."""
        path, text = self.overlay(folder), yaml.safe_dump(nested(self.options), sort_keys=False, allow_unicode=True)
        text = f"# changes of {self.name} to {' '.join(self.configs)}\n{text}"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            make_folder(path.parent)
            write_text(path, text)
        return path


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Options with dotted names as the sections of a config.

    >>> nested({"model.network.norm": "layernorm", "model": {"optimizer": {"lr": 0.01}}})
    {'model': {'network': {'norm': 'layernorm'}, 'optimizer': {'lr': 0.01}}}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        inner = nested(value) if isinstance(value, dict) else value
        for key in reversed(name.split(".")):
            inner = {key: inner}
        _merge(found, inner, name)
    return found


def _merge(target: dict[str, Any], values: dict[str, Any], name: str) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value, name)
        elif key in target:
            raise ConfigError(f"{name}: is given twice; keep one")
        else:
            target[key] = value


# --- planned options


def planned_options(trial: Trial) -> dict[str, Any]:
    """The options that the configs of a trial and its own options give, by dotted name.

    Raises:
        ConfigError: if a config cannot be read.
        MissingInputError: if there is no such config.
    """
    found: dict[str, Any] = {}
    for config in trial.configs:
        path = find_config(config)
        _override(found, flat_values(read_config(path), str(path)))
    _override(found, flat_values(nested(trial.options), trial.name))
    return found


def _override(found: dict[str, Any], values: dict[str, Any]) -> None:
    """Adds the options of a later config.

    A new class drops the arguments of the previous one, as do a class and a group of options that replace each other.
    A name that ends in `+` appends to a list.
    """
    flat = flat_config(values)
    flat = {f"{name}.class_path" if name in GROUPS and isinstance(value, str) else name: value
            for name, value in flat.items()}  # fmt: skip
    for name, value in flat.items():
        part, _, last = name.rpartition(".")
        if last == "class_path" and found.get(name, value) != value:
            _drop(found, f"{part}.init_args")
    for group in GROUPS:
        theirs = [name for name in flat if inside(name, group)]
        if theirs and (f"{group}.class_path" in flat) != (f"{group}.class_path" in found):
            _drop(found, group)
    for name, value in flat.items():
        list_name = name.removesuffix("+")
        earlier = found.get(list_name) or []
        appended = name != list_name and isinstance(value, list) and isinstance(earlier, list)
        found[list_name] = [*earlier, *value] if appended else value


def _drop(found: dict[str, Any], part: str) -> None:
    for name in [name for name in found if inside(name, part)]:
        del found[name]


# --- the state of a trial


State = Literal["new", "unfinished", "finished"]


def state(trial: Trial, folder: Path) -> State:
    """Whether the run of a trial has begun, and whether it has ended.

    Raises:
        CannotCreateError: if something else occupies the folder, naming the first difference.
    """
    run = folder / trial.name
    if not run.is_dir():
        if run.exists():
            raise CannotCreateError(f"{run}: exists and is not a folder; choose another --out")
        return "new"
    if not (run / "config.yaml").is_file():
        others = {path.name for path in run.iterdir() if not path.name.startswith(TEMPORARY)} - BEGUN
        if others := [name for name in others if not DIFF.fullmatch(name)]:
            raise CannotCreateError(f"{run}: exists and is not a run of tinylm ({min(others)}); choose another --out")
        return "new"
    if found := differences(planned_options(trial), read_config(run / "config.yaml")):
        raise CannotCreateError(f"{run}: is not the planned run: {found[0]}; choose another --out")
    return "finished" if is_finished(run) else "unfinished"


def differences(planned: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Planned options that the config of a run does not have, such as `data.batch_size is 8 there, 16 planned`.

    Settings that do not affect a result are left out (runs/settings.py), as are those that a base model determines.
    """
    found = flat_config(flat_values(config, "config.yaml"))
    return [
        f"{name} is {_shown(found.get(name))} there, {_shown(value)} planned"
        for name, value in what_matters(planned).items()
        if not _same(value, found.get(name)) and (name, value) != ("trainer.precision", None)
    ]


def what_matters(planned: dict[str, Any]) -> dict[str, Any]:
    """The planned options that affect a result."""
    free = [name for name in FREE if name not in SEEDS]
    free += OF_BASE if planned.get("model.init_from") else []
    return {name: value for name, value in planned.items() if not any(inside(name, each) for each in free)}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _same(planned: Any, found: Any) -> bool:
    """Whether a value of a config is the planned one; the parser adds defaults and completes class names."""
    if isinstance(planned, dict) and isinstance(found, dict):
        return all(_same(value, found.get(name)) for name, value in planned.items())
    if isinstance(planned, list) and isinstance(found, list):
        return len(planned) == len(found) and all(map(_same, planned, found))
    if planned == found or str(planned) == str(found):
        return True
    try:
        return float(str(planned)) == float(str(found))
    except ValueError:
        return isinstance(found, str) and "." in found and found.rpartition(".")[2] == planned


def check_names(trials: Iterable[Trial]) -> None:
    """Refuses two trials of one name, whatever its case: a file system may not distinguish them."""
    seen: dict[str, str] = {}
    for trial in trials:
        if (lower := trial.name.lower()) in seen:
            raise ConfigError(f"{trial.name}: another trial is called {seen[lower]}; give them distinct names")
        seen[lower] = trial.name
