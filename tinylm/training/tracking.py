"""Weights & Biases: `fit -c small -c overlays/wandb.yaml`, described in docs/tracking.md.

The run folder keeps the W&B id in `wandb.json`, so a resumed run continues the same W&B run. Without an API key or a
network, W&B writes to `wandb/offline-run-*` in the run folder, one folder per start; the command that uploads them is
printed at the end. wandb is imported when a run starts, and only on rank 0.
"""

import math
import os
import re
import shlex
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from tinylm.errors import ConfigError, StorageError, notice
from tinylm.files import read_json, write_json
from tinylm.locate import MANIFEST
from tinylm.runs.metrics import read_metrics
from tinylm.safe_yaml import read_yaml
from tinylm.training.wandb_log import cut_incomplete_records, logged_metrics, uploaded_metrics

STATE = "wandb.json"  # in the run folder: the W&B id and the samples so far
INIT_SECONDS = 30.0  # wandb's default is 90
FLUSH_SECONDS = 0.5  # of an offline run; all that a SIGKILL can lose. wandb's default is 15
EMPTY_BYTES = 7  # of a log that was killed before its first record
BINS = 64


class Tracker:
    """A logger that also receives samples and, at the end, files."""

    def log_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Logs the (prompt, text) pairs generated after a step."""

    def log_files(self, folder: Path) -> None:
        """Logs the files of a finished run."""


def trackers(trainer: pl.Trainer) -> list[Tracker]:
    """The trackers among the trainer's loggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]


class WandbTracker(WandbLogger, Tracker):
    """Lightning's WandbLogger, which also logs the config, samples, histograms, curves and the model of a run."""

    def __init__(
        self,
        save_dir: str = ".",
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        watch: Literal["none", "gradients", "weights", "all"] = "none",
        watch_every: int = 100,
        log_model: bool = True,
    ) -> None:
        """Creates the logger.

        Args:
            save_dir: Run folder
            project: W&B project. Default: $WANDB_PROJECT, or tinylm
            entity: User or team. Default: $WANDB_ENTITY, or W&B's default
            name: Name of the run. Default: $WANDB_NAME, or the name of the run folder
            group: Group of the run. Default: $WANDB_RUN_GROUP
            tags: Tags of the run
            notes: Notes on the run
            mode: online, offline or disabled. Default: $WANDB_MODE, or online if there is an API key
            watch: Histograms of gradients (after clipping), weights, all or none
            watch_every: Steps between histograms, which are logged with the next row (trainer.log_every_n_steps)
            log_model: Upload the finished model folder as an artifact
        """
        self.folder = Path(save_dir)
        super().__init__(
            name=name or os.environ.get("WANDB_NAME") or self.folder.resolve().name,
            save_dir=save_dir,
            project=project or os.environ.get("WANDB_PROJECT") or "tinylm",
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
        )
        self._mode, self._watch, self._watch_every, self._keep_model = mode, watch, watch_every, log_model
        self._module: pl.LightningModule | None = None
        self._watched = 0  # step of the last histograms
        self._logged = False
        self._sent: dict[tuple[int, str], Any] = {}  # (step, metric) -> value in earlier segments of a resumed run
        self._catching_up = False
        self._variables: dict[str, str] = {}  # environment variables set during the run

    # --- start and end

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use.

        Raises:
            ConfigError: if W&B refuses the key, the project or the settings.
            StorageError: if W&B cannot be reached.
        """
        if self._experiment is None:
            self._begin()
        return self._experiment

    def _begin(self) -> None:
        import wandb
        from pydantic import ValidationError  # raised by wandb's settings

        if self._watch_every < 1:
            raise ConfigError(f"trainer.logger: watch_every must be at least 1, got {self._watch_every}")
        _forget_empty_variables()
        if "WANDB_DATA_DIR" not in os.environ:  # files to upload stay in the run folder, not in the home folder
            self._variables["WANDB_DATA_DIR"] = str((self.folder / "wandb").resolve())
            os.environ |= self._variables
        try:
            wandb.setup(wandb.Settings(silent=True))
            mode, reason = self._choose_mode()
            run_id = self._run_id()
            self._wandb_init |= {"id": run_id, "mode": mode, "settings": _quiet_settings()}
            earlier = self._state().get("id")
            if earlier:
                cut_incomplete_records(self.folder, run_id)
                self._sent, self._catching_up = logged_metrics(self.folder, run_id), True
            run = super().experiment
            if mode == "online":
                self._sent = uploaded_metrics(run) if run.resumed else {}
            elif self._sent:  # W&B would number the rows of each segment from 0
                run.log({}, step=1 + max(row for (_, name), row in self._sent.items() if name == "_step"), commit=False)
        except (wandb.Error, TimeoutError, ValidationError) as error:
            self.finalize("failed")
            self._give_variables_back()
            raise _plain(error) from error
        if mode == "disabled":
            return
        write_json(self.folder / STATE, {"samples": [], **self._state(), "id": run.id})
        same = f" (resuming run {run.id})" if run.id == earlier else ""
        notice(f"W&B: {run.url if mode == 'online' else f'offline{reason}'}{same}")

    def _choose_mode(self) -> tuple[str, str]:
        """The mode, and the reason for the notice if the user did not choose it. Never prompts."""
        import wandb

        asked = self._mode or os.environ.get("WANDB_MODE")
        if asked:
            return {"dryrun": "offline", "run": "online"}.get(asked, asked), ""
        if wandb.login(prompt=False, verify=False):
            return "online", ""
        return "offline", ", without an API key (set WANDB_API_KEY, or wandb login)"

    def _state(self) -> dict[str, Any]:
        path = self.folder / STATE
        return read_json(path) if path.is_file() else {}

    def _run_id(self) -> str:
        """The id from the environment, where a sweep agent sets it, or from the run folder, or a new one."""
        return os.environ.get("WANDB_RUN_ID") or self._state().get("id") or uuid.uuid4().hex[:8]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the W&B run, also after an exception, and prints how to upload an offline run."""
        if self._experiment is None:
            return
        run, self._experiment = self._experiment, None
        run.finish(exit_code=0 if status == "success" else 1)
        self._give_variables_back()
        if run.settings.mode == "offline" and self._logged:
            notice(f"to upload to W&B: {sync_command(self.folder, run.id)}")

    def _give_variables_back(self) -> None:
        for name in self._variables:
            os.environ.pop(name, None)

    # --- logging

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Logs the resolved config of the run or, without one, Lightning's hyperparameters."""
        path = self.folder / "config.yaml"
        config = read_yaml(path) if path.is_file() else {}
        super().log_hyperparams(config or params)

    @rank_zero_only
    def log_graph(self, model: pl.LightningModule) -> None:
        """Logs the sizes of model and vocabulary, and keeps the model for histograms."""
        self._module = model
        sizes = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        network = getattr(model, "network", None)
        if network is not None:
            sizes["vocab_size"] = network.vocab_size
        self.experiment.config.update(sizes, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Logs the metrics of an optimizer step, and histograms if they are due.

        A resumed run first logs what W&B lacks, since W&B loses the last moments before a kill, and then leaves out the
        repeated steps that W&B has.
        """
        self._log_missing({(step, name) for name in metrics})
        if step is not None and step // self._watch_every > self._watched // self._watch_every:
            self._watched = step
            metrics = {**metrics, **self._histograms()}
        if metrics := self._without_repeated(metrics, step):
            super().log_metrics(metrics, step)
            self._logged = True

    def _without_repeated(self, metrics: Any, step: int | None) -> Any:
        """The metrics that W&B lacks; all of them if a loss differs, as in a run resumed with another config."""
        known = {name: self._sent[step or 0, name] for name in metrics if (step or 0, name) in self._sent}
        for name, value in known.items():
            measured = name.startswith("perf/") or not isinstance(value, int | float)
            if not measured and not math.isclose(value, float(metrics[name]), rel_tol=1e-6):
                return metrics
        return {name: value for name, value in metrics.items() if name not in known}

    def _log_missing(self, new: Collection[tuple[int | None, str]] = ()) -> None:
        """Logs, once, the rows up to the resumed step and the samples that W&B lacks."""
        if not self._catching_up:
            return
        self._catching_up = False
        path, rows = self.folder / "metrics.csv", {}
        columns = read_metrics(path) if path.is_file() else {}
        for name, column in columns.items():
            for step, value in zip(*column, strict=True):
                if (step, name) not in new:
                    self._watched = max(self._watched, step)
                    if (step, name) not in self._sent:
                        rows.setdefault(step, {})[name] = value
        for step in sorted({row[0] for row in self._state()["samples"]} & {*columns.get("val/loss", [[]])[0]}):
            if (step, "samples") not in self._sent:
                rows.setdefault(step, {})["samples"] = self._table(step)
        for step in sorted(rows):
            super().log_metrics(rows[step], step)
            self._sent |= {(step, name): None for name in rows[step]}
            self._logged = True

    def _histograms(self) -> dict[str, Any]:
        found = {}
        for name, parameter in [] if self._module is None else self._module.named_parameters():
            if self._watch in ("weights", "all"):
                found[f"parameters/{name}"] = histogram(parameter)
            if self._watch in ("gradients", "all") and parameter.grad is not None:
                found[f"gradients/{name}"] = histogram(parameter.grad)
        return found

    def log_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Logs all samples so far as one table, which continues across resumes."""
        if not samples or self.experiment.disabled:
            return
        state = self._state()
        rows = [row for row in state["samples"] if row[0] < step] + [[step, *sample] for sample in samples]
        write_json(self.folder / STATE, {**state, "samples": rows})
        self.log_metrics({"samples": self._table(step)}, step)

    def _table(self, step: int) -> Any:
        import wandb

        rows = [row for row in self._state()["samples"] if row[0] <= step]
        return wandb.Table(columns=["step", "prompt", "text"], data=rows)

    def log_files(self, folder: Path) -> None:
        """Logs the curves as an image and the model folder as an artifact with metadata."""
        import wandb

        if self.experiment.disabled:
            return
        self._log_missing()
        self._logged = True
        if (folder / "curves.png").is_file():
            self.experiment.log({"curves": wandb.Image(str(folder / "curves.png"))})
        if self._keep_model and (folder / "model" / MANIFEST).is_file():
            artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model", metadata=model_metadata(folder))
            artifact.add_dir(str(folder / "model"))
            self.experiment.log_artifact(artifact)


def _quiet_settings() -> Any:
    """Settings that keep wandb off the console; errors arrive as exceptions."""
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    settings.init_timeout = float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_SECONDS)
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # older versions flush every record
        settings.x_transaction_log_flush_interval = FLUSH_SECONDS
    return settings


def _forget_empty_variables() -> None:
    """Deletes empty variables: an empty WANDB_SILENT crashes wandb."""
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]


def _plain(error: Exception) -> ConfigError | StorageError:
    """Turns an error of wandb into one line with a remedy."""
    from pydantic import ValidationError
    from wandb.errors import AuthenticationError, UsageError

    if isinstance(error, ValidationError):
        (name, *_), wrong = error.errors()[0]["loc"], error.errors()[0]
        return ConfigError(f"WANDB_{str(name).upper()}: {wrong['msg']}, got {wrong['input']!r}; correct or unset it")
    remedy = "or add --trainer.logger.mode offline"
    text = re.sub(r"\s+", " ", str(error)).strip()
    refused = isinstance(error, AuthenticationError | UsageError)
    if refused or re.search(r"\b(40[013]|api key|permission|not logged in)\b", text, re.IGNORECASE):
        return ConfigError(f"trainer.logger: W&B refuses the run ({text}); wandb login with a valid key, {remedy}")
    return StorageError(f"trainer.logger: W&B cannot be reached ({text}); try again when the network is back, {remedy}")


def histogram(values: torch.Tensor) -> Any:
    """A `wandb.Histogram` of the finite values of a tensor, in 64 equal bins from the smallest to the largest."""
    import wandb

    flat = values.detach().flatten().float()
    flat = flat[flat.isfinite()]
    low, high = (value.item() for value in flat.aminmax()) if flat.numel() else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5  # as NumPy does
    counts = torch.histc(flat, BINS, low, high)
    return wandb.Histogram(np_histogram=(counts.cpu().numpy(), torch.linspace(low, high, BINS + 1).numpy()))


def sync_command(folder: Path, run_id: str) -> str:
    """The command that uploads all offline folders of a run, oldest first."""
    *earlier, latest = sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))  # the latest is being written
    logs = [*(log for log in earlier if log.stat().st_size > EMPTY_BYTES), latest]
    return shlex.join(["wandb", "sync", *(str(log.parent) for log in logs)])


def model_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a finished run's model: its config, its step, and the metrics at that step."""
    manifest = read_json(folder / "model" / MANIFEST)
    step = manifest["info"].get("step")
    figures = {}
    if (folder / "metrics.csv").is_file():
        for name, (steps, values) in read_metrics(folder / "metrics.csv").items():
            if name.startswith("val/") and step in steps:
                figures[name] = dict(zip(steps, values, strict=True))[step]
    return {"model": manifest["model"], **manifest["info"], **figures}
