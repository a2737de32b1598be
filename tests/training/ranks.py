"""Functions and callbacks that run in every process of a job, for tests of several ranks."""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import ModelParallelStrategy
from torch._dynamo import lookup_backend

from tinylm.data import TextDataModule
from tinylm.kernels.compiled import CompiledNetwork
from tinylm.model import ModelConfig
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig
from tinylm.training.cli import quiet_lightning
from tinylm.training.metrics import TextMetrics
from tinylm.training.thawed import ThawedParameters


def build(
    corpus: str, cache: str, world_size: int, precision: str, data: dict, trainer: dict, shard: bool = False
) -> tuple[Any, Any, Any]:
    """Module, data module and trainer, the same on every process."""
    quiet_lightning()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    datamodule = TextDataModule(corpus, "char", cache_dir=cache, **data)
    torch.manual_seed(0)
    network = ModelConfig(
        vocab_size=datamodule.vocab_size, d_model=16, num_layers=2, num_heads=2, max_seq_len=data["max_seq_len"]
    )
    module = LitTransformerLM(network, OptimizerConfig(name="adamw", lr=0.01), ScheduleConfig(warmup_steps=5))
    options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    options |= dict(accelerator="cpu", devices=world_size, num_sanity_val_steps=0, use_distributed_sampler=False)
    strategy: Any = "ddp" if world_size > 1 else "auto"
    if shard:
        strategy = ModelParallelStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    return module, datamodule, pl.Trainer(**options | trainer, strategy=strategy, precision=precision)


class Recorder(pl.Callback):
    """Keeps the loss of every step, and the first token of every window that this process read."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.windows: list[list[int]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.windows.append(batch.inputs[:, :4].tolist())
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(float(pl_module.train_loss))


def fit(corpus: str, cache: str, world_size: int, precision: str, shard: bool, path: Path) -> None:
    """100 steps."""
    recorder = Recorder()
    data = dict(max_seq_len=16, batch_size=8, micro_batch_size=2)
    limits = dict(max_steps=100, limit_val_batches=0, gradient_clip_val=1.0, callbacks=[recorder])
    module, datamodule, trainer = build(corpus, cache, world_size, precision, data, limits, shard)
    trainer.fit(module, datamodule=datamodule)
    path.write_text(json.dumps({"losses": recorder.losses, "windows": recorder.windows}))


class Thaw(BaseFinetuning):
    """Trains the first block from the second epoch on."""

    def freeze_before_training(self, pl_module) -> None:
        self.freeze(pl_module.net.blocks[0])

    def finetune_function(self, pl_module, epoch, optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.blocks[0], optimizer, lr=0.01)


def fit_thawed(corpus: str, cache: str, world_size: int, path: Path) -> None:
    """60 steps in float64, with `Thaw`."""
    recorder = Recorder()
    data = dict(max_seq_len=16, batch_size=8, micro_batch_size=2)
    callbacks = [recorder, Thaw(), ThawedParameters()]
    limits = dict(max_steps=60, limit_val_batches=0, gradient_clip_val=1.0, callbacks=callbacks)
    module, datamodule, trainer = build(corpus, cache, world_size, "64-true", data, limits)
    before = module.net.blocks[0].attention.query.weight.detach().clone()
    trainer.fit(module, datamodule=datamodule)
    moved = (module.net.blocks[0].attention.query.weight.detach() - before).abs().max().item()
    path.write_text(json.dumps({"losses": recorder.losses, "moved": moved, "epochs": trainer.current_epoch}))


def train(corpus: str, cache: str, world_size: int, layout: str, options: dict[str, Any], path: Path) -> None:
    """50 steps in float64; the parameters of rank 0, whole, are saved beside `path`.

    Args:
        layout: ddp, fsdp, or the tensor-parallel size as a number
        options: `network`, `optimizer`, `trainer` and `data` settings, and the `model` arguments of the module
    """
    from tinylm.training import ShardedStrategy

    quiet_lightning()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    data = dict(max_seq_len=16, batch_size=8, micro_batch_size=2) | options.get("data", {})
    datamodule = TextDataModule(corpus, data.pop("tokenizer", "char"), cache_dir=cache, **data)
    shape = dict(d_model=16, num_layers=2, num_heads=4, vocab_size=datamodule.vocab_size, max_seq_len=16)
    pl.seed_everything(0, verbose=False)
    module = LitTransformerLM(
        ModelConfig(**shape | options.get("network", {})),
        OptimizerConfig(**dict(name="muon", lr=0.01) | options.get("optimizer", {})),
        ScheduleConfig(warmup_steps=5), **options.get("model", {}),
    ).double()  # fmt: skip
    strategy: Any = "auto" if world_size == 1 else layout
    if world_size > 1 and layout != "ddp":
        strategy = ShardedStrategy(tensor_parallel_size=1 if layout == "fsdp" else int(layout))
    recorder = Recorder()
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", devices=world_size, num_sanity_val_steps=0, use_distributed_sampler=False,
        strategy=strategy, callbacks=[recorder],
        **dict(max_steps=50, limit_val_batches=0, gradient_clip_val=0.5) | options.get("trainer", {}),
    )  # fmt: skip
    trainer.fit(module, datamodule=datamodule)
    torch.save(trainer.strategy.lightning_module_state_dict(), path.with_suffix(".pt"))
    path.write_text(json.dumps({"losses": recorder.losses, "windows": recorder.windows}))


def record(arguments: list[str], folder: str, path: Path) -> None:
    """`tinylm ARGUMENTS` in a folder."""
    from tinylm.commands import main

    recorder = Recorder()
    LitTransformerLM.configure_callbacks = lambda self: [recorder]  # type: ignore[method-assign]
    os.chdir(folder)
    sys.argv = ["train.py", *arguments]
    assert main() == 0
    path.write_text(json.dumps({"losses": recorder.losses, "windows": recorder.windows}))


class Pause(pl.Callback):
    """Makes every step take at least this many seconds, so that a run can be stopped in the middle."""

    def __init__(self, seconds: float = 0.03) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        time.sleep(self.seconds)


def validate(corpus: str, cache: str, world_size: int, path: Path) -> None:
    """The sums of a validation over eleven windows, as all processes have them after sharing."""
    data = dict(max_seq_len=16, batch_size=world_size, micro_batch_size=1, split=(0.9, 0.1))
    module, datamodule, trainer = build(corpus, cache, world_size, "32-true", data, {})
    seen = []
    compute = TextMetrics.compute

    def record(sums: TextMetrics) -> dict[str, float]:  # after the sums over processes
        seen.append([float(each) for each in (sums.nats, sums.tokens, sums.hits, sums.num_bytes, sums.best)])
        return compute(sums)

    TextMetrics.compute = record  # type: ignore[method-assign]
    metrics = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    path.write_text(json.dumps({"totals": seen[0], "metrics": metrics}))


def measure(path: Path) -> None:
    """Adds every second batch of `test_metrics.batches` to a metric, and computes it over both processes."""
    from tests.training.test_metrics import LENGTHS, batches
    from tinylm.training.metrics import TextMetrics

    rank, world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    metric = TextMetrics(LENGTHS, sources=["web", "books"])
    for batch, source in [*zip(batches(), ["web", "books", "books", "web"], strict=True)][rank::world_size]:
        metric.update(*batch, log_prob=-2.0, source=source)
    path.write_text(json.dumps(metric.compute()))
    if world_size > 1:
        torch.distributed.destroy_process_group()


def fit_compiled(corpus: str, cache: str, world_size: int, shard: bool, rows: int | None, path: Path) -> None:
    """10 steps; on several processes compiled, by a compiler that generates no code, and by rows of logits."""
    recorder = Recorder()
    data = dict(max_seq_len=16, batch_size=8, micro_batch_size=2)
    limits = dict(max_steps=10, limit_val_batches=0, gradient_clip_val=1.0, callbacks=[recorder])
    module, datamodule, trainer = build(
        corpus, cache, world_size, "32-true" if shard else "64-true", data, limits, shard
    )
    programs = 0
    if world_size > 1:
        module._compiled, module.net.loss_rows = CompiledNetwork(module.net), rows

        def backend(graph, example):
            nonlocal programs
            programs += 1
            return lookup_backend("aot_eager")(graph, example)

        module._compiled._run = torch.compile(module.net.__call__, backend=backend)
    trainer.fit(module, datamodule=datamodule)
    path.write_text(json.dumps({"losses": recorder.losses, "programs": programs}))
