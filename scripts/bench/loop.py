"""Measures the overhead of Lightning's Trainer over a raw training loop.

    python scripts/bench/loop.py --corpus tinyshakespeare

Both loops take the same optimizer steps on the same batches from the same initial weights, alternately, `--steps` at a
time. Their final weights are checked to be equal. The result is the median ratio of Trainer time to raw time.
"""

import argparse
import statistics
import time

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from tinylm.data import TextDataModule
from tinylm.model import ModelConfig
from tinylm.optim.optimizer import make_optimizer
from tinylm.optim.schedule import learning_rate
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig
from tinylm.training.cli import quiet_lightning
from tinylm.training.throughput import MetricsLog, Throughput


def make(corpus: str) -> tuple[LitTransformerLM, TextDataModule]:
    """Makes the module and data of nanoGPT's CPU recipe, always with the same initial weights."""
    data = TextDataModule(corpus, max_seq_len=64, batch_size=12)
    torch.manual_seed(0)
    network = ModelConfig(
        vocab_size=data.vocab_size, d_model=128, num_layers=4, num_heads=4, max_seq_len=64, norm="layernorm",
        positional_encoding="learned", activation="gelu", qk_norm=False,
    )  # fmt: skip
    optimizer = OptimizerConfig(lr=1e-3, betas=(0.9, 0.99))
    return LitTransformerLM(network, optimizer, ScheduleConfig(min_lr=1e-4)), data


class Stopwatch(pl.Callback):
    """Times the training loop alone, without the Trainer's setup and teardown."""

    def on_train_start(self, *_) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_train_end(self, *_) -> None:
        """Stops the clock."""
        self.seconds = time.perf_counter() - self.started


def lightning_turn(corpus: str, steps: int) -> tuple[float, torch.Tensor]:
    """Returns the seconds and final weights of the Trainer, with the logging of `tinylm fit`."""
    module, data = make(corpus)
    watch, throughput = Stopwatch(), Throughput(peak_flops=1e12)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, accelerator="cpu",
        callbacks=[throughput, MetricsLog(throughput), watch],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return watch.seconds, torch.nn.utils.parameters_to_vector(module.net.parameters()).detach()


def raw_turn(corpus: str, steps: int) -> tuple[float, torch.Tensor]:
    """Returns the seconds and final weights of a raw loop over the same batches."""
    from tinylm.data.batches import TrainingWindows, gather

    module, data = make(corpus)
    tokens = data.tokens["train"]
    windows = TrainingWindows(len(tokens), 64, 12, 0)
    net, config = module.net.train(), module.schedule
    optimizer = make_optimizer(net, module.optimizer, fused=True)
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 1e-3, config)
        batch = gather(tokens, windows.starts(step), 64, 12 * 64)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(batch.inputs).flatten(0, 1), batch.targets.flatten(), reduction="sum")
        (loss / batch.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - started, torch.nn.utils.parameters_to_vector(net.parameters()).detach()


def main() -> None:
    """Runs both loops in turn and prints their times and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="tinyshakespeare")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps per turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="timed turns (%(default)s)")
    options = parser.parse_args()
    quiet_lightning()
    ratios, raws, trainers = [], [], []
    for turn in range(options.turns + 1):
        sides = [raw_turn, lightning_turn] if turn % 2 else [lightning_turn, raw_turn]
        found = {side.__name__: side(options.corpus, options.steps) for side in sides}
        (raw, raw_weights), (trainer, trainer_weights) = found["raw_turn"], found["lightning_turn"]
        assert torch.allclose(raw_weights, trainer_weights, atol=1e-5), "the two loops ended with different weights"
        if turn:  # the first turn is a warm-up
            raws.append(raw / options.steps * 1e3)
            trainers.append(trainer / options.steps * 1e3)
            ratios.append(trainer / raw)
    print(f"raw loop   {statistics.median(raws):.2f} ms a step")
    print(f"Trainer    {statistics.median(trainers):.2f} ms a step")
    print(
        f"ratio      {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} turns)"
    )


if __name__ == "__main__":
    main()
