"""The race of gpu.py: nanoGPT's Shakespeare recipe and ours, to the loss that nanoGPT's README names.

The loss is the mean over the whole validation split, the last tenth of the text. A run's time is its number of steps
times the median time of a step: without compilation, which both do, and without validation.
"""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from scripts.bench.gpu_steps import Recipe, nanogpt_model, nanogpt_optimizer, run_fit, synchronize
from tinylm.data import TextDataModule
from tinylm.data.batches import gather
from tinylm.data.evaluation_rows import gather_rows, window_rows
from tinylm.optim.schedule import learning_rate
from tinylm.training import ScheduleConfig

TARGET = 1.4697  # nats per character
STEPS, EVERY, RATE = 5000, 250, 1e-3  # of nanoGPT
MOST = 2500  # steps of nanoGPT, after which its loss rises


class Race(NamedTuple):
    """The end of a run: whether it reached the target, its loss, steps and seconds there (else at its end)."""

    reached: bool
    loss: float
    steps: int
    seconds: float


def by_nanogpt(folder: Path, corpus: str, recipe: Recipe, device: str, tiny: bool) -> Race:
    """nanoGPT's recipe with its model and optimizer, until the target is reached."""
    config, rows = recipe.config, recipe.rows
    data = TextDataModule(corpus, max_seq_len=config.max_seq_len)
    train, val = (np.asarray(data.tokens[split]) for split in ("train", "val"))
    shape = config.max_seq_len, data.vocab_size, config.num_layers, config.num_heads, config.d_model
    model = nanogpt_model(folder, shape, device, 0.2)
    optimizer = nanogpt_optimizer(model, device, 0.1, RATE, (0.9, 0.99))
    compiled, schedule = torch.compile(model), ScheduleConfig(name="cosine", warmup_steps=100, min_lr=RATE / 10)
    every, most = (2, 4) if tiny else (EVERY, MOST)
    times: list[float] = []
    loss = float("nan")
    for step in range(1, most + 1):
        synchronize()
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, STEPS, RATE, schedule)
        starts = np.random.default_rng(step).integers(len(train) - config.max_seq_len, size=rows)
        batch = gather(train, starts, config.max_seq_len, rows * config.max_seq_len)
        with torch.autocast(device, torch.bfloat16):
            found = compiled(batch.inputs.contiguous().to(device), batch.targets.contiguous().to(device))[1]
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        times.append(time.perf_counter() - started)
        if step % every == 0:
            loss = _loss(model, val, config.max_seq_len, device)
            if loss <= TARGET:
                break
    return Race(loss <= TARGET, loss, len(times), len(times) * statistics.median(times))


@torch.no_grad()
def _loss(model: torch.nn.Module, tokens: np.ndarray, context: int, device: str) -> float:
    windows, nats, count = window_rows(len(tokens), context), 0.0, 0
    model.eval()
    for first in range(0, len(windows.begins), 64):
        batch = gather_rows(tokens, windows, slice(first, first + 64))
        targets = batch.targets.contiguous().to(device)
        with torch.autocast(device, torch.bfloat16):
            logits, _ = model(batch.inputs.contiguous().to(device), targets.clamp(min=0))  # all positions with targets
        nats += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += batch.num_targets
    model.train()
    return nats / count


def by_us(corpus: str, recipe: Recipe, device: str, folder: Path, tiny: bool) -> Race:
    """`tinylm fit` with our recipe, whose learning rate ends at zero."""
    steps, every = (4, 2) if tiny else (800, 100)
    trainer = dict(max_steps=steps, log_every_n_steps=every, val_check_interval=every, num_sanity_val_steps=0)
    rows = run_fit(recipe, device, folder, {"corpus": corpus, "split": [0.9, 0.1]}, trainer)
    seconds = statistics.median(float(row["perf/step_seconds"]) for row in rows if row.get("perf/step_seconds"))
    losses = [(float(row["val/loss"]), int(row["step"])) for row in rows if row.get("val/loss")]
    loss, step = next((each for each in losses if each[0] <= TARGET), losses[-1])
    return Race(loss <= TARGET, loss, step, step * seconds)
