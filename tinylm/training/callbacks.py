"""What happens around the steps: measuring and logging, signals, the model at the end, predictions."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FSDPModule

from tinylm.adapt import add_lora, save_adapter, trainable_share
from tinylm.bundle import load_bundle, network_weights, read_checkpoint, save_bundle
from tinylm.data import CHAT, Template
from tinylm.errors import ConfigError, Interrupted, MissingInputError, Preempted, notice
from tinylm.files import make_folder
from tinylm.locate import command
from tinylm.model import TransformerLM, flops_per_token, parameter_count
from tinylm.model.known import unknown_part
from tinylm.runs.plots import draw_curves
from tinylm.training.checkpoint import BestCheckpoint, LastCheckpoint, finished_step, validation_follows
from tinylm.training.module import LitTransformerLM
from tinylm.training.tracking import trackers


def measure_peak_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the best of many square matrix products: what this device can do, as found now.

    Args:
        device: where
        dtype: of the matrices
        size: rows and columns; on CUDA four times as many, to fill the device
        seconds: how long to try
    """
    size = size * 4 if device.type == "cuda" else size
    matrix = torch.randn(size, size, device=device).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.matmul(matrix, matrix).flatten()[0].item()  # .item() waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


class Throughput(Callback):
    """Measures tokens/s, MFU and the time of a step between two logs, validation and saving left out."""

    def __init__(self, peak_flops: float | None = None) -> None:
        """Speed.

        Args:
            peak_flops: of one device in FLOP/s. Empty: measured before training
        """
        self.peak_flops = peak_flops
        self._tokens = self._micro_steps = self._seconds = 0.0
        self._started: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the peak in the type that matrix products are computed in."""
        if self.peak_flops is None:
            low = {"bf16": torch.bfloat16, "16-": torch.float16, "64-": torch.float64}
            dtype = next((kind for name, kind in low.items() if str(trainer.precision).startswith(name)), torch.float32)
            self.peak_flops = measure_peak_flops(pl_module.device, dtype)
            if trainer.is_global_zero:
                kind = str(dtype).removeprefix("torch.")
                notice(f"peak: {self.peak_flops / 1e9:,.0f} GFLOP/s, measured by a {kind} matrix product, for the MFU")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock, where it does not run."""
        if self._started is None:
            self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the tokens."""
        self._tokens += batch.inputs.numel() * trainer.world_size
        self._micro_steps += 1

    def stop(self) -> None:
        """Stops the clock until the next training batch."""
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation does not count."""
        self.stop()

    def read(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> dict[str, float]:
        """Tokens/s over all devices, seconds of an optimizer step, and MFU since the last reading."""
        self.stop()
        rate = self._tokens / max(self._seconds, 1e-9)
        steps = self._micro_steps / trainer.accumulate_grad_batches
        metrics = {"perf/tokens_per_sec": rate, "perf/step_seconds": self._seconds / max(steps, 1)}
        self._tokens = self._micro_steps = self._seconds = 0.0
        if self.peak_flops:
            metrics["perf/mfu"] = rate * training_flops(pl_module) / self.peak_flops / trainer.world_size
        return metrics


def training_flops(module: LitTransformerLM) -> int:
    """Operations for each token: `flops_per_token`, without the gradients of weights that rest.

    Six for each parameter that the config does not describe: those of adapters, or of layers of one's own.
    """
    learning, everything = trainable_share(module.net)
    others = everything - parameter_count(module.network)
    return flops_per_token(module.network) + 6 * others - 2 * (everything - learning)


class MetricsLog(Callback):
    """Gives loss, gradient norm, learning rate and speed of the training to all loggers, every `log_every_n_steps`.

    Without the per-step bookkeeping of `self.log`, which would cost more than the optimizer of a small model.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.latest: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs after every so many optimizer steps."""
        step = trainer.global_step
        every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        due = step % every == 0 or step == trainer.max_steps
        if not finished_step(trainer, batch_idx) or not due:
            return
        self.latest = {
            "train/loss": pl_module.train_loss.item(),
            "train/grad_norm": pl_module.grad_norm.item(),
            "lr": pl_module.lr,
            **self.throughput.read(trainer, pl_module),
        }
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)


class GracefulStop(Callback):
    """On a signal to any process: all finish the optimizer step, save, and say how to go on.

    SIGINT is the user's and ends with exit code 130; SIGTERM and SIGUSR1 (SLURM's, before the time is up) are the
    system's, 75. A second signal quits at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))

    def __init__(self, command: str) -> None:
        self.command = command
        self._earlier: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Takes the signals over; Lightning's own handlers come back when training ends."""

        def receive(number: int, frame: Any) -> None:
            by_user, by_system = pl_module.stop_wanted
            pl_module.stop_wanted = (by_user or number == signal.SIGINT, by_system or number != signal.SIGINT)
            for each in self.SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            if trainer.is_global_zero:
                os.write(2, b"\ntinylm: finishing this step, then saving (once more to quit at once)\n")

        self._earlier = {number: signal.signal(number, receive) for number in self.SIGNALS}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and leaves, if a signal came to any process before the step was computed."""
        if any(pl_module.stop_agreed) and finished_step(trainer, batch_idx) and not validation_follows(trainer):
            self._stop(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """The same after the validation that belongs to the step, which a resumed run would not do again."""
        if any(pl_module.stop_agreed) and not trainer.sanity_checking:
            for callback in trainer.checkpoint_callbacks:  # whose turn would be after this
                callback.on_validation_end(trainer, pl_module)
            self._stop(trainer, pl_module)

    def _stop(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save_now(trainer)
        kind = Interrupted if pl_module.stop_agreed[0] else Preempted
        raise kind(f"stopped after step {trainer.global_step:,}, which is saved; to go on: {self.command}")

    def teardown(self, trainer: pl.Trainer, pl_module: LitTransformerLM, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}


class FinishRun(Callback):
    """When training ends: the best model as a folder, the curves as a picture, and where they are."""

    def __init__(self, folder: Path, prompt: str) -> None:
        self.folder, self.prompt = folder, prompt

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Takes the time."""
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Only after the last step: an exception or a signal does not come here."""
        if not trainer.is_global_zero:
            return
        problem = pl_module.changed or self._save_model(trainer, pl_module)
        hooked = None if problem or isinstance(pl_module.net, FSDPModule) else unknown_part(pl_module.net)
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if (self.folder / "metrics.csv").is_file():
            draw_curves(self.folder / "metrics.csv", self.folder / "curves.png", self.folder.name)
        for tracker in trackers(trainer):
            tracker.log_files(self.folder)
        minutes, seconds = divmod(time.perf_counter() - self._started, 60)
        figures = f", {loss_and_floor(found)}" if "val/loss" in found else ""
        notice(f"{trainer.global_step:,} steps in {minutes:.0f} min {seconds:.0f} s{figures}")
        if problem is not None:
            notice(f"no model folder is written, since it cannot describe this network: {problem}")
            return
        notice(f"model: {self.folder / 'model'}   curves: {self.folder / 'curves.png'}")
        if hooked is not None:
            notice(f"warning: {hooked}, which the saved model does not have")
        notice(f"to hear it: {generate_command(self.folder, self.prompt, pl_module.template)}")

    def _save_model(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> str | None:
        """Writes the model folder, of the best checkpoint where there are any; why it could not, or None."""
        try:
            best = load_bundle(_best_or_last(self.folder))
        except MissingInputError:  # checkpoints were switched off
            info, model = {"step": trainer.global_step}, pl_module.net
        else:
            info, model = best.info | self._best_loss(trainer), best.model
            self._save_adapter(pl_module)
        try:
            info |= {"run": self.folder.name, "prompt": self.prompt}
            info |= {"template": pl_module.template.name} if pl_module.template is not None else {}
            save_bundle(self.folder / "model", model, pl_module.tokenizer, info)
        except ConfigError as error:
            return str(error)
        return None

    def _best_loss(self, trainer: pl.Trainer) -> dict[str, float]:
        """The best checkpoint's figure of what it was chosen by."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
                return {str(callback.monitor): float(callback.best_model_score)}
        return {}

    def _save_adapter(self, pl_module: LitTransformerLM) -> None:
        """Beside the model, which has the best adapter in its weights, the adapter alone."""
        if pl_module.lora is None or pl_module.start is None:
            return
        net = TransformerLM(pl_module.network)  # the module's own may be in pieces on many devices
        add_lora(net, pl_module.lora)
        net.load_state_dict(network_weights(read_checkpoint(_best_or_last(self.folder))))
        save_adapter(self.folder / "adapter", net, base=pl_module.start.path)
        notice(f"adapter: {self.folder / 'adapter'}")


def generate_command(folder: Path, prompt: str, template: Template | None = None) -> str:
    """What to type to hear a model. A long prompt is left out: it is recorded with the model, and the default."""
    chat = ["--chat"] if template == CHAT else []
    words = [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    return command("generate", "--model", folder, *([*chat, *words] if len(prompt) <= 60 else []))


def loss_and_floor(metrics: dict[str, float]) -> str:
    """`validation loss 0.412, floor 0.387, 6% above the best possible`; without a floor where none is known."""
    text = f"validation loss {metrics['val/loss']:.4f}"
    if "val/floor" not in metrics:
        return text
    excess = metrics["val/excess"]
    side = "above" if excess >= 0 else "below"  # below: by luck, within a few standard errors
    return f"{text}, floor {metrics['val/floor']:.4f}, {abs(excess):.1%} {side} the best possible"


def _best_or_last(folder: Path) -> Path:
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / "checkpoints" / name).is_file():
            return folder / "checkpoints" / name
    raise MissingInputError(f"{folder}: has no checkpoint")


class PredictionWriter(Callback):
    """`predict`: one JSON line for each token of the text, with its log probability given all before it in its window.

    `{"position": 1, "id": 43, "token": "e", "log_prob": -0.53}`, log_prob in nats; the first token has none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_predict_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Opens the file."""
        if trainer.world_size > 1:
            raise ConfigError("predict works on one device; set trainer.devices=1")
        make_folder(self.path.parent)
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._position = 1
        self._nats = 0.0

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Writes a batch's tokens."""
        for token, log_prob in zip(outputs[0].tolist(), outputs[1].tolist(), strict=True):
            text = pl_module.tokenizer.token_bytes[token].decode("utf-8", "replace")
            row = {"position": self._position, "id": token, "token": text, "log_prob": round(log_prob, 6)}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._position += 1
            self._nats -= log_prob

    def on_predict_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Closes the file and says where it is."""
        self._file.close()
        count = self._position - 1
        notice(f"{count:,} tokens, {self._nats / count:.4f} nats per token: {self.path}")
