"""Weights & Biases by one flag: `fit -c small -c overlays/wandb.yaml`. docs/tracking.md says how to use it.

A run keeps its W&B id in `wandb.json`, so a resumed run goes on as the same run over there. Without an API key, or
without a network, W&B writes to `wandb/offline-run-*` in the run's folder, one such segment for each start; the line
that uploads them is said at the end. wandb is imported when a run starts, and only on rank 0.
"""

import os
import re
import shlex
import uuid
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from tinylm.errors import ConfigError, StorageError, notice
from tinylm.files import read_json, write_json
from tinylm.locate import MANIFEST
from tinylm.runs.metrics import read_metrics

STATE = "wandb.json"  # in the run's folder: the id over there, and the samples so far
INIT_SECONDS = 30.0  # wandb's own patience is 90
FLUSH_SECONDS = 0.5  # what a SIGKILL may cost of an offline run; wandb's own is 15
EMPTY_BYTES = 7  # of a log that was killed before its first record
BINS = 64


class Tracker:
    """A logger that is also given what is no number: samples, and the files at the end."""

    def log_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Takes the (prompt, text) pairs that were generated after a step."""

    def log_files(self, folder: Path) -> None:
        """Takes the folder of a run that has just been finished."""


def trackers(trainer: pl.Trainer) -> list[Tracker]:
    """Those of the trainer's loggers that are trackers."""
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]


class WandbTracker(WandbLogger, Tracker):
    """Lightning's WandbLogger with everything of a run: the config, samples, histograms, curves and the model."""

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
        """Weights & Biases.

        Args:
            save_dir: the run's folder
            project: over there. Empty: $WANDB_PROJECT, or tinylm
            entity: user or team. Empty: $WANDB_ENTITY, or your default
            name: of the run. Empty: $WANDB_NAME, or the folder's name
            group: what the run belongs to. Empty: $WANDB_RUN_GROUP
            tags: of the run
            notes: about the run
            mode: online, offline or disabled. Empty: $WANDB_MODE, or else online if there is an API key
            watch: histograms of what: gradients (as the optimizer takes them, clipped), weights, all or none
            watch_every: steps between two histograms; they fall on steps that are logged (trainer.log_every_n_steps)
            log_model: keep the finished model folder as an artifact
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
        self._watched = 0  # the last step with histograms
        self._logged = False
        self._variables: dict[str, str] = {}  # of the environment, while the run lasts

    # --- beginning and end

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, begun at first use.

        Raises:
            ConfigError: if W&B refuses the key, the project or the settings.
            StorageError: if W&B cannot be reached.
        """
        if self._experiment is None:
            self._begin()
        return self._experiment

    def _begin(self) -> None:
        import wandb
        from pydantic import ValidationError  # which wandb's settings raise

        if self._watch_every < 1:
            raise ConfigError(f"trainer.logger: watch_every must be at least 1, got {self._watch_every}")
        _forget_empty_variables()
        if "WANDB_DATA_DIR" not in os.environ:  # what awaits its upload stays with the run, and not in the home folder
            self._variables["WANDB_DATA_DIR"] = str((self.folder / "wandb").resolve())
            os.environ |= self._variables
        try:
            wandb.setup(wandb.Settings(silent=True))
            mode, reason = self._choose_mode()
            self._wandb_init |= {"id": self._run_id(), "mode": mode, "settings": _quiet_settings()}
            earlier = self._state().get("id")
            run = super().experiment
        except (wandb.Error, TimeoutError, ValidationError) as error:
            self._give_variables_back()
            raise _plain(error) from error
        if mode == "disabled":
            return
        write_json(self.folder / STATE, {"samples": [], **self._state(), "id": run.id})
        same = f" (going on with run {run.id})" if run.id == earlier else ""
        notice(f"W&B: {run.url if mode == 'online' else f'offline{reason}'}{same}")

    def _choose_mode(self) -> tuple[str, str]:
        """The mode, and for the notice the reason if it was not asked for; never a prompt."""
        import wandb

        asked = self._mode or os.environ.get("WANDB_MODE")
        if asked:
            return {"dryrun": "offline", "run": "online"}.get(asked, asked), ""
        if wandb.login(prompt=False, verify=False):
            return "online", ""
        return "offline", ", for there is no API key (WANDB_API_KEY, or wandb login)"

    def _state(self) -> dict[str, Any]:
        path = self.folder / STATE
        return read_json(path) if path.is_file() else {}

    def _run_id(self) -> str:
        """The environment's, which is how an agent of a sweep hands it on; else the one that the folder keeps."""
        return os.environ.get("WANDB_RUN_ID") or self._state().get("id") or uuid.uuid4().hex[:8]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run over there, after an exception too, and says how to upload what was written offline."""
        if self._experiment is None:
            return
        run, self._experiment = self._experiment, None
        run.finish(exit_code=0 if status == "success" else 1)
        self._give_variables_back()
        if run.settings.mode == "offline" and self._logged:
            notice(f"to upload it to W&B: {sync_command(self.folder, run.id)}")

    def _give_variables_back(self) -> None:
        for name in self._variables:
            os.environ.pop(name, None)

    # --- what is recorded

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Records the whole resolved config where the run has one, else what Lightning gives."""
        path = self.folder / "config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        super().log_hyperparams(config or params)

    @rank_zero_only
    def log_graph(self, model: pl.LightningModule) -> None:
        """Records the size of the model and of the vocabulary, and remembers whose histograms to take."""
        self._module = model
        sizes = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        network = getattr(model, "network", None)
        if network is not None:
            sizes["vocab_size"] = network.vocab_size
        self.experiment.config.update(sizes, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Records metrics at an optimizer step, and histograms where they are due."""
        if step is not None and step // self._watch_every > self._watched // self._watch_every:
            self._watched = step
            metrics = {**metrics, **self._histograms()}
        super().log_metrics(metrics, step)
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
        """Records all samples so far as one table; it goes on across resumes."""
        import wandb

        if not samples or self.experiment.disabled:
            return
        state = self._state()
        rows = [row for row in state["samples"] if row[0] < step] + [[step, *sample] for sample in samples]
        write_json(self.folder / STATE, {**state, "samples": rows})
        self.log_metrics({"samples": wandb.Table(columns=["step", "prompt", "text"], data=rows)}, step)

    def log_files(self, folder: Path) -> None:
        """Records the curves as a picture and the model folder as an artifact, with what is known of it."""
        import wandb

        if self.experiment.disabled:
            return
        self._logged = True
        if (folder / "curves.png").is_file():
            self.experiment.log({"curves": wandb.Image(str(folder / "curves.png"))})
        if self._keep_model and (folder / "model" / MANIFEST).is_file():
            artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model", metadata=model_metadata(folder))
            artifact.add_dir(str(folder / "model"))
            self.experiment.log_artifact(artifact)


def _quiet_settings() -> Any:
    """Nothing of wandb's on the console; what is wrong comes as an exception."""
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    settings.init_timeout = float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_SECONDS)
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # in older ones every record is flushed
        settings.x_transaction_log_flush_interval = FLUSH_SECONDS
    return settings


def _forget_empty_variables() -> None:
    """An empty WANDB_SILENT= crashes wandb."""
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]


def _plain(error: Exception) -> ConfigError | StorageError:
    """wandb's error in one line, with what to do."""
    from pydantic import ValidationError
    from wandb.errors import AuthenticationError, UsageError

    if isinstance(error, ValidationError):
        (name, *_), wrong = error.errors()[0]["loc"], error.errors()[0]
        return ConfigError(f"WANDB_{str(name).upper()}: {wrong['msg']}, got {wrong['input']!r}; correct or unset it")
    remedy = "or add --trainer.logger.mode offline"
    text = re.sub(r"\s+", " ", str(error)).strip()
    refused = isinstance(error, AuthenticationError | UsageError)
    if refused or re.search(r"\b(40[013]|api key|permission|not logged in)\b", text, re.IGNORECASE):
        return ConfigError(
            f"trainer.logger: W&B refuses the run ({text}); wandb login with a key that is good, {remedy}"
        )
    return StorageError(f"trainer.logger: W&B cannot be reached ({text}); try again when the network is back, {remedy}")


def histogram(values: torch.Tensor) -> Any:
    """The finite values of a tensor in 64 equal bins from the least to the greatest, as a `wandb.Histogram`."""
    import wandb

    flat = values.detach().flatten().float()
    flat = flat[flat.isfinite()]
    low, high = (value.item() for value in flat.aminmax()) if flat.numel() else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5  # as NumPy does
    counts = torch.histc(flat, BINS, low, high)
    return wandb.Histogram(np_histogram=(counts.cpu().numpy(), torch.linspace(low, high, BINS + 1).numpy()))


def sync_command(folder: Path, run_id: str) -> str:
    """The line that uploads all that a run has written offline, oldest first."""
    *earlier, latest = sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))  # the latest is still being written
    logs = [*(log for log in earlier if log.stat().st_size > EMPTY_BYTES), latest]
    return shlex.join(["wandb", "sync", *(str(log.parent) for log in logs)])


def model_metadata(folder: Path) -> dict[str, Any]:
    """What is known of a finished run's model: its architecture, its step, and its figures at that step."""
    manifest = read_json(folder / "model" / MANIFEST)
    step = manifest["info"].get("step")
    figures = {}
    if (folder / "metrics.csv").is_file():
        for name, (steps, values) in read_metrics(folder / "metrics.csv").items():
            if name.startswith("val/") and step in steps:
                figures[name] = dict(zip(steps, values, strict=True))[step]
    return {"model": manifest["model"], **manifest["info"], **figures}
