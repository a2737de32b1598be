"""Metrics that a callback or a subclass logs by Lightning's own `self.log` stand in the row of their optimizer step."""

import csv
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinylm.data import TextDataModule
from tinylm.model import ModelConfig
from tinylm.runs.metrics import read_metrics
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig
from tinylm.training.cli import quiet_lightning
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.rows import is_logged
from tinylm.training.throughput import MetricsLog, Throughput


class Own(LitTransformerLM):
    """Logs, under every way that Lightning has, the number of the step as the module knows it."""

    def training_step(self, batch, batch_idx):
        self.log("in_step", self.trainer.global_step + 1.0)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/own", float(self.trainer.global_step))


class Log(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.log("at_start", trainer.global_step + 1.0)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            module.log("at_end", float(trainer.global_step), on_step=True, on_epoch=True)

    def on_train_epoch_end(self, trainer, module):
        module.log("epoch_end", float(trainer.global_step))

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics({"after": trainer.global_step}, step=trainer.global_step)


def own_logs(corpus, folder, steps, accumulate, checkpoint=None):
    """Trains to a step with rows at every second one: the loggers and the steps per epoch."""
    quiet_lightning()
    pl.seed_everything(0)
    data = TextDataModule(
        str(corpus), max_seq_len=32, batch_size=24, micro_batch_size=24 // accumulate, cache_dir=str(folder / "cache")
    )
    shape = dict(d_model=8, num_layers=1, num_heads=1, max_seq_len=32)
    schedule = ScheduleConfig(name="constant")
    module = Own(ModelConfig(vocab_size=data.vocab_size, **shape), OptimizerConfig(lr=0.01), schedule)
    module.resumes = checkpoint is not None
    loggers = [MetricsCSV(folder), CSVLogger(folder, "csv"), TensorBoardLogger(folder, "board")]
    callbacks = [Log(), MetricsLog(Throughput(1e12)), LearningRateMonitor(), DeviceStatsMonitor()]
    options = dict(max_steps=steps, accumulate_grad_batches=accumulate, log_every_n_steps=2, accelerator="cpu")
    options |= dict(val_check_interval=3, check_val_every_n_epoch=None, enable_progress_bar=False)
    options |= dict(enable_model_summary=False, enable_checkpointing=False)
    trainer = pl.Trainer(**options, callbacks=callbacks, logger=loggers)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "last.ckpt")
    return loggers, trainer.num_training_batches // accumulate


@pytest.mark.parametrize("accumulate", [1, 2])
def test_metrics_logged_by_lightning_stand_at_the_step_of_the_loss(corpus, tmp_path, accumulate):
    """For each logger, with accumulation, over the end of an epoch, and in a resumed run."""
    own_logs(corpus, tmp_path, 5, accumulate)
    MetricsCSV(tmp_path).truncate(5)
    loggers, per_epoch = own_logs(corpus, tmp_path, 9, accumulate, str(tmp_path / "last.ckpt"))
    assert per_epoch < 9  # an epoch ends
    columns = read_metrics(tmp_path / "metrics.csv")
    rows = [1, 2, 4, 5, 6, 8, 9]  # 1 is the dense start; 5 and 9 are the last steps of the two segments
    for name in ("in_step", "at_start", "at_end_step"):
        assert columns[name] == (columns["train/loss"][0], columns["train/loss"][0]) == (rows, rows), name
    devices = [name for name in columns if name.startswith("DeviceStatsMonitor.on_train")]
    for name in ("lr-AdamW/decay", "train/loss", *devices):
        assert columns[name][0] == rows, name
    assert columns["val/own"] == columns["after"] == ([3, 6, 9], [3, 6, 9])
    assert columns["val/loss"][0] == [3, 6, 9]
    assert columns["epoch_end"][0] == columns["epoch_end"][1] == columns["at_end_epoch"][0]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))

    others = read_metrics(next(tmp_path.glob("csv/version_1/metrics.csv")))
    board = EventAccumulator(loggers[2].log_dir).Reload()
    for name in ("in_step", "at_start", "at_end_step", "val/own", "lr-AdamW/decay", "epoch_end"):
        expected = [step for step in columns[name][0] if step > 5]
        assert sorted({*others[name][0]}) == sorted({event.step for event in board.Scalars(name)}) == expected, name


def test_peak_memory_of_a_gpu_is_a_metric(monkeypatch):
    """On a stub: two gigabytes on the first device."""
    module = SimpleNamespace(device=torch.device("cuda", 0))
    throughput = Throughput(None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2e9 * (device == module.device))
    trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1)
    assert throughput.read(trainer, module)["perf/gpu_memory_gb"] == 2.0
    module.device = torch.device("cpu")
    assert "perf/gpu_memory_gb" not in throughput.read(trainer, module)


def test_rows_begin_densely_whatever_the_interval():
    found = {every: [step for step in range(1, 301) if is_logged(step, every)] for every in (0, 1, 25, 50, 300)}
    assert found[0] == [] and found[1] == [*range(1, 301)]
    assert found[25] == [*range(1, 11), 20, *range(25, 301, 25)]
    assert found[50] == [*range(1, 11), 20, 30, 40, *range(50, 301, 50)]
    assert found[300] == [*range(1, 11), *range(20, 101, 10), 200, 300]
