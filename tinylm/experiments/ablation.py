"""The YAML file of an ablation: a base config and variants of it, seeds and a budget.

    base: tiny                       # a config by path or name, or a list of them
    variants:                        # or grid: {model.optimizer.lr: [0.005, 0.01], data.batch_size: [8, 16]}
      - {name: rotary}               # nothing changed: the base itself
      - {name: learned, model.network.positional_encoding: learned}
    seeds: 3                         # 0, 1 and 2; or a list
    budget: {steps: 800}             # or tokens, flops or seconds of training, of each run

Every variant is trained once with each seed, and all variants read the same text in the same order for a seed, so
their losses are compared in pairs.
"""

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.checks import require
from tinylm.errors import ConfigError, DataError, MissingInputError, did_you_mean
from tinylm.experiments.trials import Trial, nested, planned_options
from tinylm.locate import CONFIGS
from tinylm.runs.settings import inside, shown
from tinylm.safe_yaml import read_yaml

FOLDER = CONFIGS / "ablations"
KEYS = ("base", "variants", "grid", "seeds", "budget")
UNITS = ("steps", "tokens", "flops", "seconds")
BASE = "base"
DECIDED = {"seed_everything": "seeds", "trainer.max_steps": "budget", "trainer.max_epochs": "budget",
           "trainer.max_time": "budget", "run.seconds": "budget", "run.name": "name", "run.dir": "--out"}  # fmt: skip
"""Options that a variant cannot set, and the entry that sets them."""


@dataclass(frozen=True)
class Variant:
    """A variant: its name, and the options in which it differs from the base."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """The length of each run, in steps, tokens, FLOPs or seconds of training."""

    unit: str
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:,.12g} {'FLOPs' if self.unit == 'flops' else self.unit}"


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """An ablation, as described by its file.

    Attributes:
        path: the file
        base: the configs that all variants share
        variants: all variants, the reference among them
        reference: name of the variant to which the others are compared: the base
        seeds: the seeds of each variant
        budget: the length of each run
    """

    path: Path
    base: tuple[str, ...]
    variants: tuple[Variant, ...]
    reference: str
    seeds: tuple[int, ...]
    budget: Budget

    def trial(self, variant: Variant, name: str, words: Iterable[str] = (), **options: Any) -> Trial:
        """A run of a variant. Further options override the variant's; their dots are written as two underscores."""
        chosen = copy.deepcopy(variant.options)
        for key, value in options.items():
            *sections, last = key.split("__")
            place = chosen
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return Trial(name=name, configs=self.base, options=chosen, words=tuple(words))

    def trials(self, steps: dict[str, int], words: Iterable[str] = ()) -> list[Trial]:
        """All runs, those of one seed together.

        Args:
            steps: number of steps by variant
            words: further words of the command line of `fit`
        """
        words = tuple(words)
        return [
            self.trial(each, run_name(each.name, seed), words, seed_everything=seed,
                       trainer__max_steps=steps[each.name], trainer__max_epochs=-1)
            for seed in self.seeds for each in self.variants
        ]  # fmt: skip


def run_name(variant: str, seed: int) -> str:
    """The name of the run folder of a variant and a seed."""
    return f"{variant}-{seed}"


def find_ablation(name: str) -> Path:
    """The file of an ablation: a path, or a name in configs/ablations; `.yaml` may be left out."""
    for folder in (Path(), FOLDER):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    known = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
    hint = did_you_mean(Path(name).stem, known) or f"; known are {_all(known)}"
    raise MissingInputError(f"{name}: no such ablation{hint}")


def read_ablation(path: Path, configs: Iterable[str] = ()) -> Ablation:
    """Reads the file of an ablation.

    Args:
        path: the file
        configs: further configs for all variants

    Raises:
        ConfigError: naming the file and the entry.
        MissingInputError: if a config does not exist.
    """
    try:
        values = read_yaml(path, no_blanks=True)
    except DataError as error:
        raise ConfigError(str(error)) from error
    require(isinstance(values, dict), f"{path}: has no entries; give {', '.join(KEYS[:2])}, seeds and budget")
    for key in values:
        hint = did_you_mean(str(key), KEYS) or f"; known are {_all(KEYS)}"
        require(key in KEYS, f"{path}: {key}: no such entry{hint}")
    for key in ("base", "seeds", "budget"):
        require(key in values, f"{path}: {key} is missing; give it")
    base = values["base"] if isinstance(values["base"], list) else [values["base"]]
    require(
        all(isinstance(each, str) for each in base) and len(base) > 0,
        f"{path}: base must be a config, or a list of them",
    )
    require(("variants" in values) != ("grid" in values), f"{path}: give either variants or grid")
    made = _listed(path, values["variants"]) if "variants" in values else _crossed(path, values["grid"])
    base = (*base, *configs)
    variants, reference = _with_reference(path, base, made)
    seeds, budget = _seeds(path, values["seeds"]), _budget(path, values["budget"])
    return Ablation(path=path, base=base, variants=variants, reference=reference, seeds=seeds, budget=budget)


def _all(words: Iterable[str]) -> str:
    return ", ".join(words)


def _listed(path: Path, given: Any) -> list[Variant]:
    """The variants of a list."""
    require(
        isinstance(given, list) and len(given) > 0, f"{path}: variants must be a list such as [{{name: wide, ...}}]"
    )
    found = []
    for place, entry in enumerate(given):
        where = f"{path}: variants[{place}]"
        require(isinstance(entry, dict) and "name" in entry, f"{where}: must have a name, and options of fit")
        found.append(_variant(where, str(entry["name"]), {key: entry[key] for key in entry if key != "name"}))
    return found


def _crossed(path: Path, given: Any) -> list[Variant]:
    """The variants of a grid, named after their values."""
    require(isinstance(given, dict) and len(given) > 0, f"{path}: grid must have options with a list of values each")
    for name, values in given.items():
        full = isinstance(values, list) and len(values) > 0
        require(full, f"{path}: grid: {name} must have a list of values, got {values}")
    lasts = [name.rpartition(".")[2] for name in given]
    words = [name if lasts.count(last) > 1 else last for name, last in zip(given, lasts, strict=True)]
    found = []
    for values in itertools.product(*given.values()):
        name = ",".join(f"{word}={shown(value)}" for word, value in zip(words, values, strict=True))
        found.append(_variant(f"{path}: grid", name.replace("/", "-"), dict(zip(given, values, strict=True))))
    return found


def _variant(where: str, name: str, options: dict[str, Any]) -> Variant:
    """A variant, after a check that it does not set what the file sets for all."""
    try:
        Trial(name=run_name(name, 0), configs=(), options=options)
        flat = planned_options(Trial(name="x", configs=(), options=options))
    except ConfigError as error:
        raise ConfigError(f"{where}: {name}: {error}") from error
    for option, instead in DECIDED.items():
        given = any(inside(each, option) for each in flat)
        require(not given, f"{where}: {name}: {option} follows {instead}; leave it out")
    return Variant(name, nested(options))


def _with_reference(path: Path, base: tuple[str, ...], variants: list[Variant]) -> tuple[tuple[Variant, ...], str]:
    """The variants and the name of the base among them: the variant that changes nothing, added if there is none."""
    names = [each.name.lower() for each in variants]
    for each in variants:
        require(names.count(each.name.lower()) == 1, f"{path}: {each.name}: two variants have this name; change one")
    plain = planned_options(Trial(name="x", configs=base))
    trials = {each.name: Trial(name="x", configs=base, options=each.options) for each in variants}
    same = [name for name, trial in trials.items() if planned_options(trial) == plain]
    if len(same) > 1:
        raise ConfigError(f"{path}: {' and '.join(same)} both change nothing of the base; keep one")
    if same:
        return tuple(variants), same[0]
    require(BASE not in names, f"{path}: {BASE}: names the base, which is trained too; choose another name")
    return (Variant(BASE, {}), *variants), BASE


def _seeds(path: Path, given: Any) -> tuple[int, ...]:
    seeds = range(given) if type(given) is int else given
    valid = isinstance(seeds, list | range) and len(seeds) and all(type(each) is int and each >= 0 for each in seeds)
    require(bool(valid) and len(set(seeds)) == len(seeds),
            f"{path}: seeds must be a number of seeds, or a list of distinct ones, got {given}")  # fmt: skip
    return tuple(seeds)


def _budget(path: Path, given: Any) -> Budget:
    entries = given if isinstance(given, dict) else {}
    for unit in entries:
        hint = did_you_mean(str(unit), UNITS) or f"; known are {_all(UNITS)}"
        require(unit in UNITS, f"{path}: budget.{unit}: no such entry{hint}")
    require(len(entries) == 1, f"{path}: budget must have one of {_all(UNITS)}, as in budget: {{steps: 800}}")
    ((unit, value),) = entries.items()
    try:
        amount = float(str(value))
    except ValueError:
        amount = 0.0
    whole = unit not in ("steps", "tokens") or amount.is_integer()
    require(0 < amount < 1e30 and whole, f"{path}: budget.{unit} must be a positive number, got {value}")
    return Budget(unit, amount)
