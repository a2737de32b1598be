"""Weights & Biases: `fit -c small -c overlays/wandb.yaml`, described in docs/tracking.md.

The run folder keeps the W&B id in `wandb.json`, so a resumed run continues the same W&B run. Without an API key or a
network, W&B writes to `wandb/offline-run-*` in the run folder, one folder per start; the command that uploads them is
printed at the end. wandb is imported when a run starts, and only on rank 0.
"""

import math
import os
import shutil
import uuid
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from tinylm.errors import ConfigError, NumericError, Preempted, first_line, notice
from tinylm.files import read_json, write_json
from tinylm.locate import MANIFEST
from tinylm.runs.lineage import Counter
from tinylm.runs.metrics import read_metrics
from tinylm.safe_yaml import read_yaml
from tinylm.training.trackers import Tracker
from tinylm.training.wandb_files import histogram, log_artifact, model_metadata, sync_command
from tinylm.training.wandb_log import cut_incomplete_records, logged_metrics, uploaded_metrics
from tinylm.training.wandb_start import (
    FLOPS,
    TOKENS,
    check_environment,
    check_sweep,
    choose_mode,
    define_axes,
    group_name,
    job_type,
    plain_error,
    settings_of_run,
    step_cost,
)

STATE = "wandb.json"  # in the run folder: the W&B id and the samples so far
STAGING = "wandb/artifacts/links"  # in the run folder


class WandbTracker(WandbLogger, Tracker):
    """Lightning's WandbLogger, which also logs the config, samples, histograms, curves and the model of a run."""

    def __init__(
        self,
        save_dir: str = ".",
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        watch: Literal["none", "gradients", "weights", "all"] = "none",
        watch_every: int = 100,
        log_model: Literal["all"] | bool = True,
        console: bool = True,
        save_code: bool = True,
    ) -> None:
        """Creates the logger.

        Args:
            save_dir: Run folder
            project: W&B project. Default: $WANDB_PROJECT, or tinylm
            entity: User or team. Default: $WANDB_ENTITY, or W&B's default
            name: Name of the run. Default: $WANDB_NAME, or the name of the run folder
            group: Group of the run. Default: $WANDB_RUN_GROUP, or a name shared by runs that differ only in the seed
            job_type: Job type. Default: $WANDB_JOB_TYPE, or train, finetune or lora
            tags: Tags of the run
            notes: Notes on the run
            mode: online, offline or disabled. Default: $WANDB_MODE, or online if there is an API key
            watch: Histograms of gradients (after clipping), weights, all or none
            watch_every: Steps between histograms, which are logged with the next row (trainer.log_every_n_steps)
            log_model: Upload the finished model folder as an artifact; all: every checkpoint, too
            console: Upload the lines that the run prints
            save_code: Upload the script and the uncommitted changes of its git repository
        """
        self.folder = Path(save_dir)
        super().__init__(
            name=name or os.environ.get("WANDB_NAME") or self.folder.resolve().name,
            save_dir=save_dir,
            project=project or os.environ.get("WANDB_PROJECT") or "tinylm",
            entity=entity,
            group=group or os.environ.get("WANDB_RUN_GROUP"),
            job_type=job_type or os.environ.get("WANDB_JOB_TYPE"),
            tags=tags,
            notes=notes,
            save_code=save_code,
        )
        self._mode, self._watch, self._watch_every, self._keep_model = mode, watch, watch_every, log_model
        self._console = console
        self._module: pl.LightningModule | None = None
        self._watched = 0  # step of the last histograms
        self._logged = False
        self._tokens: Counter | None = None  # from steps to their tokens, if they are known
        self._flops = 0  # of a token
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
        check_environment()
        check_sweep({**self._config, "run": {"name": self.folder.name, "dir": str(self.folder.parent)}})
        if self._config:
            self._wandb_init["group"] = self._wandb_init["group"] or group_name(self._config)
            self._wandb_init["job_type"] = self._wandb_init["job_type"] or job_type(self._config)
        if "WANDB_DATA_DIR" not in os.environ:  # files to upload stay in the run folder, not in the home folder
            self._variables["WANDB_DATA_DIR"] = str((self.folder / "wandb").resolve())
            os.environ |= self._variables
        try:
            wandb.setup(wandb.Settings(silent=True))
            mode, reason = choose_mode(self._mode)
            run_id = self._run_id()
            self._wandb_init |= {"id": run_id, "mode": mode, "settings": settings_of_run(self._console)}
            earlier = self._state().get("id")
            if earlier:
                cut_incomplete_records(self.folder, run_id)
                self._sent, self._catching_up = logged_metrics(self.folder, run_id), True
            run = super().experiment
            define_axes(run)
            if mode == "online":
                self._sent = uploaded_metrics(run) if run.resumed else {}
            elif self._sent:  # W&B would number the rows of each segment from 0
                run.log({}, step=1 + max(row for (_, name), row in self._sent.items() if name == "_step"), commit=False)
        except (wandb.Error, TimeoutError, ValidationError) as error:
            self.finalize("failed")
            self._give_variables_back()
            raise plain_error(error) from error
        if mode == "disabled":
            return
        write_json(self.folder / STATE, {"samples": [], **self._state(), "id": run.id})
        same = f" (resuming run {run.id})" if run.id == earlier else ""
        notice(f"W&B: {run.url if mode == 'online' else f'offline{reason}'}{same}")

    @cached_property
    def _config(self) -> dict[str, Any]:
        """The resolved config of the run; empty if there is none."""
        path = self.folder / "config.yaml"
        return read_yaml(path) if path.is_file() else {}

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
        if run.settings.mode == "online" and "WANDB_FINISH_TIMEOUT" not in os.environ:  # all is uploaded
            shutil.rmtree(self.folder / STAGING, ignore_errors=True)
        if run.settings.mode == "offline" and self._logged:
            notice(f"to upload to W&B: {sync_command(self.folder, run.id)}")

    def _give_variables_back(self) -> None:
        for name in self._variables:
            os.environ.pop(name, None)

    # --- logging

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Logs the resolved config of the run or, without one, Lightning's hyperparameters."""
        super().log_hyperparams(self._config or params)

    @rank_zero_only
    def log_graph(self, model: pl.LightningModule) -> None:
        """Logs the sizes of model and vocabulary, and keeps the model for histograms."""
        self._module = model
        sizes = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        network = getattr(model, "network", None)
        if network is not None:
            sizes["vocab_size"] = network.vocab_size
            self._tokens, self._flops = step_cost(model)
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
            self._send(metrics, step)

    def _send(self, metrics: Any, step: int | None) -> None:
        """Logs a row, with the tokens and FLOPs up to its step."""
        super().log_metrics({**metrics, **self._axes(step)}, step)
        self._logged = True

    def _axes(self, step: int | None) -> dict[str, float]:
        if step is None or self._tokens is None:
            return {}
        tokens = int(self._tokens(step))
        return {TOKENS: tokens, FLOPS: float(tokens) * self._flops}

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
        path = self.folder / "metrics.csv"
        columns = read_metrics(path) if path.is_file() else {}
        ours = {(step, name): value for name, column in columns.items() for step, value in zip(*column, strict=True)}
        ours = {place: value for place, value in ours.items() if place not in new}
        self._watched = max([self._watched, *(step for step, _ in ours)])
        for step in {row[0] for row in self._state()["samples"]} & {*columns.get("val/loss", [[]])[0]}:
            ours[step, "samples"] = self._table(step)
        rows: dict[int, dict[str, Any]] = {}
        for (step, name), value in ours.items():
            if (step, name) not in self._sent:
                rows.setdefault(step, {})[name] = value
        for step in sorted(rows):
            self._send(rows[step], step)
            self._sent |= {(step, name): None for name in rows[step]}

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
            metadata = model_metadata(folder)
            trained = self._module is not None and metadata.get("step") == self._module.trainer.global_step
            aliases = ["best", "last"] if trained else ["best"]
            files = sorted(path for path in (folder / "model").iterdir() if path.is_file())
            self._log_artifact("model", files, aliases, metadata)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Logs the checkpoint that Lightning has just saved."""
        assert self._module is not None
        self.log_checkpoint(Path(checkpoint_callback._last_checkpoint_saved), self._module.trainer.global_step)

    @rank_zero_only
    def log_checkpoint(self, path: Path, step: int) -> None:
        """Logs a checkpoint as an artifact if all are wanted."""
        if self._keep_model == "all" and not self.experiment.disabled:
            self._log_artifact("checkpoint", [path], [path.stem, f"step-{step}"], {"step": step})

    def _log_artifact(self, kind: str, files: list[Path], aliases: list[str], metadata: dict[str, Any]) -> None:
        log_artifact(self.experiment, kind, files, self.folder / STAGING, aliases, metadata)

    @rank_zero_only
    def log_failure(self, error: BaseException) -> None:
        """Sends an alert if a loss is not finite or the run is preempted; a sweep is also told of the preemption."""
        if self._experiment is None or self._experiment.disabled:
            return
        if isinstance(error, NumericError):
            self._experiment.alert("Not finite", first_line(error), level="ERROR")
        elif isinstance(error, Preempted):
            self._experiment.alert("Preempted", first_line(error), level="WARN")
            self._experiment.mark_preempting()
