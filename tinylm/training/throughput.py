"""Throughput, and the metrics of training that every logger receives."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tinylm.adapt import trainable_share
from tinylm.data.division import data_ranks
from tinylm.errors import notice
from tinylm.model import flops_per_token, parameter_count
from tinylm.training.checkpoint import finished_step
from tinylm.training.module import LitTransformerLM
from tinylm.training.precision import product_type, time_beside_float32
from tinylm.training.remarks import OverfittingWatch
from tinylm.training.rows import row_is_due


def measure_peak_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """Measures the peak FLOP/s of a device by repeating a square matrix product.

    Args:
        device: the device
        dtype: type of the matrices
        size: rows and columns; four times as many on CUDA, to fill the device
        seconds: time to spend
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
    """Measures tokens/s, MFU and the time of a step, without validation and saving."""

    def __init__(self, peak_flops: float | None = None) -> None:
        """Creates the callback.

        Args:
            peak_flops: Peak of one device in FLOP/s. Default: measured before training
        """
        self.peak_flops = peak_flops
        self._tokens = self._micro_steps = self._seconds = 0.0
        self._started: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the peak in the type of the matrix products, or in float32 if that is faster."""
        if self.peak_flops is None:
            dtype = product_type(str(trainer.precision))
            if pl_module.device.type == "cpu" and dtype.itemsize == 2 and time_beside_float32(dtype) > 1:
                dtype = torch.float32  # of a processor without instructions for the shorter type
            self.peak_flops = measure_peak_flops(pl_module.device, dtype)
            if trainer.is_global_zero:
                kind = str(dtype).removeprefix("torch.")
                notice(f"measured {kind} peak: {self.peak_flops / 1e9:,.0f} GFLOP/s; MFU is the share of it in use")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock if it is stopped."""
        if self._started is None:
            self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts tokens."""
        count = getattr(pl_module.objective, "num_tokens", lambda batch: batch.inputs.numel())
        self._tokens += count(batch) * data_ranks(trainer)[0]
        self._micro_steps += 1

    def stop(self) -> None:
        """Stops the clock until the next training batch."""
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self.stop()

    def measure(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> dict[str, float]:
        """Tokens/s over all devices, seconds per optimizer step, and MFU since the last `read`."""
        seconds = self._seconds + (0.0 if self._started is None else time.perf_counter() - self._started)
        rate, steps = self._tokens / max(seconds, 1e-9), self._micro_steps / trainer.accumulate_grad_batches
        metrics = {"perf/tokens_per_sec": rate, "perf/step_seconds": seconds / max(steps, 1)}
        if self.peak_flops:
            metrics["perf/mfu"] = rate * training_flops(pl_module) / self.peak_flops / trainer.world_size
        return metrics

    def read(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> dict[str, float]:
        """The result of `measure`, which then starts over, and the peak memory of a GPU in GB."""
        self.stop()
        metrics = self.measure(trainer, pl_module)
        self._tokens = self._micro_steps = self._seconds = 0.0
        if pl_module.device.type == "cuda":  # the peak since the start, of this process
            metrics["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        return metrics


def training_flops(module: LitTransformerLM) -> int:
    """FLOPs per token: `flops_per_token` without the gradients of frozen weights.

    Parameters that the config does not describe, such as adapters, cost six each.
    """
    trainable, everything = trainable_share(module.net)
    others = everything - parameter_count(module.network)
    return flops_per_token(module.network) + 6 * others - 2 * (everything - trainable)


class MetricsLog(Callback):
    """Sends loss, gradient norm, learning rate and throughput to all loggers every `log_every_n_steps`.

    `self.log` in every step would cost more than the optimizer of a small model.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.latest: dict[str, float] = {}
        self._step = -1  # of `latest`
        self._overfitting = OverfittingWatch()

    def setup(self, trainer: pl.Trainer, pl_module: LitTransformerLM, stage: str) -> None:
        """Logs the steps in place of the module."""
        pl_module.logs_steps = False

    def teardown(self, trainer: pl.Trainer, pl_module: LitTransformerLM, stage: str) -> None:
        """Lets the module log its steps again."""
        pl_module.logs_steps = True

    def figures(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> dict[str, float]:
        """Loss and throughput as of this step, from the row that was logged or measured now."""
        if trainer.global_step == self._step:
            return self.latest
        pl_module.settle()
        return {"train/loss": pl_module.train_loss.item(), **self.throughput.measure(trainer, pl_module)}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs if a row is due after this optimizer step."""
        step = trainer.global_step
        if not finished_step(trainer, batch_idx) or not row_is_due(trainer, step):
            return
        pl_module.settle()
        self.latest = {
            "train/loss": pl_module.train_loss.item(),
            **{f"train/{name}": loss.item() for name, loss in pl_module.other_losses.items()},
            "train/grad_norm": pl_module.grad_norm.item(),
            "lr": pl_module.step_lr,
            **self.throughput.read(trainer, pl_module),
        }
        self._step = step
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Remarks on overfitting."""
        if trainer.sanity_checking or hasattr(pl_module.objective, "monitor"):  # whose loss is another
            return
        if trainer.state.fn == "fit" and "val/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val/loss"])
            self._overfitting.add(loss, self.figures(trainer, pl_module)["train/loss"])
