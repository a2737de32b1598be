"""The files of a run: written as it begins, or cut back to the step of the checkpoint; and the record of its config."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback

from tinylm.errors import ConfigError, DataError, TinyLMError, notice
from tinylm.files import make_folder, sweep, write_text
from tinylm.runs.provenance import RunFacts, begin_record, end_record
from tinylm.runs.settings import flat_config
from tinylm.safe_yaml import read_yaml
from tinylm.training.earlier import CONFIG
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.record import fit_facts
from tinylm.training.resume import ResumePoint
from tinylm.training.samples import truncate_samples


class ConfigRecord(Callback):
    """Stores the whole config in every checkpoint, and reports configuration changes on resume."""

    KEY = CONFIG
    PARTS = ("model.", "data.", "trainer.", "seed_everything")
    WITHOUT = ("model.network.vocab_size", "data.cache_dir", "data.num_workers", "trainer.logger", "trainer.callbacks",
               "trainer.enable_")  # fmt: skip

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the config."""
        checkpoint[self.KEY] = self.config

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Reports the differences in one line."""
        if changes := self.differences(checkpoint.get(self.KEY, self.config)):
            notice(f"changed since the checkpoint: {'; '.join(changes)}")

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """The changes of everything that affects the computation, such as `model.optimizer.lr 0.01 -> 0.02`."""
        before, now = flat_config(earlier), flat_config(self.config)
        before.setdefault("data.text_seed", now.get("data.text_seed"))  # a change of the text is refused
        names = [name for name in before | now if name.startswith(self.PARTS) and not name.startswith(self.WITHOUT)]
        pairs = [(name, before.get(name), now.get(name)) for name in names]
        return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


class RunFiles(Callback):
    """Brings the files of a run folder to the state of the first step, once the checkpoint has been accepted.

    Args:
        folder: the run folder
        config: the content of its config.yaml
        start: where the run is resumed
        words: the command line after `tinylm fit`
        given: names of the options whose value is not the default
    """

    def __init__(
        self, folder: Path, config: str, start: ResumePoint, words: Sequence[str], given: Sequence[str]
    ) -> None:
        self.folder, self.config, self.start, self.words, self.given = folder, config, start, words, given
        self._done, self._first = False, 0

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Notes the step from which the run begins."""
        self._first = checkpoint["global_step"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prepares the files, unless the checkpoint is restored later."""
        if not trainer.strategy.restore_checkpoint_after_setup:
            self.prepare(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prepares the files if that has not been done, and refuses a new run that has nothing to train."""
        self.prepare(trainer)
        step, total = trainer.global_step, trainer.datamodule.total_steps  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.ckpt_path is None or step < total:
            return
        if not pl_module.resumes:
            raise ConfigError(f"--ckpt_path {trainer.ckpt_path}: has {step:,} steps already; raise trainer.max_steps")
        notice(f"the run has {total:,} steps: there is nothing left to train")

    def prepare(self, trainer: pl.Trainer) -> None:
        """Drops metrics and samples beyond the step, sweeps temporary files, and writes config.yaml and run.json."""
        if self._done or not trainer.is_global_zero:
            return
        values = yaml.safe_load(self.config)
        facts = fit_facts(trainer, trainer.lightning_module, values, self.words, self.given, self._first)
        prepare_files(self.folder, self.config, facts, self.start.step, self.start.validating)
        self._done = True

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Records when and where the run was stopped."""
        with contextlib.suppress(TinyLMError, OSError):  # the exception is what the user must see
            self._end(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Records the end, before the record is copied to the model folder."""
        self._end(trainer)

    def _end(self, trainer: pl.Trainer) -> None:
        if self._done:
            end_record(self.folder, trainer.global_step)


def prepare_files(folder: Path, config: str, facts: RunFacts, step: int, validating: bool) -> None:
    """Brings the files of a run folder to the state of a step, and writes config.yaml and run.json.

    Args:
        folder: the run folder
        config: the content of its config.yaml
        facts: what run.json records of this start
        step: optimizer step from which the run continues
        validating: whether the validation after this step is to be repeated
    """
    MetricsCSV(folder).truncate(step, validating)
    truncate_samples(folder / "samples.txt", step, validating)
    for each in (make_folder(folder / "checkpoints"), folder):
        sweep(each, older_than=0)  # temporary files of killed processes
    begin_record(folder, facts, step, _config_changes(folder / "config.yaml", config) if step else ())
    write_text(folder / "config.yaml", config)


def _config_changes(path: Path, config: str) -> list[str]:
    """The changes of a run's config that affect the computation."""
    try:
        earlier = read_yaml(path)
    except (DataError, OSError):
        return []
    return ConfigRecord(yaml.safe_load(config)).differences(earlier) if isinstance(earlier, dict) else []
