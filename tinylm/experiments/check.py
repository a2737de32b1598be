"""Checks of all variants of an ablation before the first one is trained."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError
from tinylm.experiments.ablation import Ablation
from tinylm.experiments.trials import nested, planned_options


def check_variants(ablation: Ablation, check: Callable[[list[str]], None], words: Iterable[str] = ()) -> None:
    """Refuses a variant that `fit` would refuse.

    Args:
        ablation: the ablation
        check: checks the words after `tinylm fit`
        words: further words of the command line of `fit`

    Raises:
        ConfigError: naming the file and the variant.
    """
    for variant in ablation.variants:
        with tempfile.TemporaryDirectory() as place:
            trial = ablation.trial(variant, variant.name, words, seed_everything=0, trainer__max_steps=1)
            overlay = trial.write_overlay(Path(place))
            try:
                configs = [word for config in (*trial.configs, str(overlay)) for word in ("-c", config)]
                check([*configs, *trial.words])
                check_parts(planned_options(trial))
            except ConfigError as error:
                problem = str(error).removeprefix(f"{overlay}: ")
                raise ConfigError(f"{ablation.path}: {variant.name}: {problem}") from error


def check_parts(planned: dict[str, Any]) -> None:
    """Creates the configs of network, optimizer and schedule from planned options; they check their values.

    Left out: the network of a base model, the user's own classes, and their networks.
    """
    from tinylm.model import ModelConfig  # PyTorch takes a second
    from tinylm.optim.optimizer import OptimizerConfig
    from tinylm.optim.schedule import ScheduleConfig

    model = nested(planned).get("model", {})
    network = {"vocab_size": 1, **model.get("network", {})}
    if not model.get("init_from") and "class_path" not in model:
        ModelConfig(**network)
    for name, kind in (("optimizer", OptimizerConfig), ("schedule", ScheduleConfig)):
        options = model.get(name, {})
        if "class_path" not in options and "class_path" not in model:
            try:
                kind(**{key: _number(value) for key, value in options.items()})
            except ConfigError as error:
                raise ConfigError(f"model.{name}.{error}") from error


def _number(value: Any) -> Any:
    """A number that YAML reads as text, such as 1e-3; any other value unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
