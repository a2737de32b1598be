"""Measures the time and tokens to a validation loss of 1.88 on tinyshakespeare, beside nanoGPT's CPU recipe.

    git clone https://github.com/karpathy/nanoGPT
    python scripts/bench/speedrun.py --nanogpt nanoGPT --corpus tinyshakespeare.txt
    python scripts/bench/speedrun.py --nanogpt nanoGPT --corpus tinyshakespeare.txt --runs speedrun_char nanoGPT

Four runs for each seed: `speedrun_char.yaml`; `speedrun_char_long.yaml`, which reads nanoGPT's 1.54M tokens;
`nanogpt_char.yaml`; and nanoGPT's own model, optimizer and batches, of which only its folder's model.py is used.

All train on the first nine tenths of the text, with contexts of 64 characters. The loss is the mean over all 111,539
targets of the last tenth, in adjacent windows.

The four take turns, a fortieth of a run each, so other work on the machine slows all alike. The clock of a run covers
the model, the optimizer, the batches and the steps. Imports, tokenization and evaluation are outside it for both
projects; neither compiles. The loops are plain ones: under Lightning a step takes half a percent more
(scripts/bench/loop.py). A run that never reaches the loss counts with its whole time.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from tinylm.data import TextDataModule
from tinylm.data.batches import TrainingWindows, gather
from tinylm.data.evaluation_rows import gather_rows, window_rows
from tinylm.locate import find_config
from tinylm.model import ModelConfig
from tinylm.optim.optimizer import make_optimizer
from tinylm.optim.schedule import learning_rate
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig

RUNS = ("speedrun_char", "speedrun_char_long", "nanogpt_char", "nanoGPT")
CONTEXT, PARTS, EVALUATIONS = 64, 40, 20
STEPS, BATCH, RATE = 2000, 12, 1e-3  # of nanoGPT
Loss = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets) -> summed nats


class Point(NamedTuple):
    """An evaluation: training tokens and seconds until then, and the loss in nats per character."""

    tokens: int
    seconds: float
    loss: float


@dataclass
class Run:
    """A training run whose steps are taken by `advance`, and the losses measured so far."""

    net: nn.Module
    loss: Loss
    step: Callable[[int], None]
    steps: int
    batch: int
    seconds: float
    done: int = 0
    losses: list[Point] = field(default_factory=list)

    def advance(self, upto: int) -> None:
        """Takes the steps before step `upto`, on the clock."""
        started = time.perf_counter()
        for number in range(self.done, upto):
            self.step(number)
        self.seconds += time.perf_counter() - started
        self.done = upto

    def evaluate(self, tokens: np.ndarray) -> None:
        """Measures the loss on the whole validation split, off the clock."""
        rows, nats, count = window_rows(len(tokens), CONTEXT), 0.0, 0
        self.net.eval()
        with torch.no_grad():
            for first in range(0, len(rows.begins), 128):
                batch = gather_rows(tokens, rows, slice(first, first + 128))
                nats += self.loss(batch.inputs, batch.targets).item()
                count += batch.num_targets
        self.net.train()
        self.losses.append(Point(self.done * self.batch * CONTEXT, self.seconds, nats / count))

    def reached(self, target: float) -> Point:
        """The first evaluation at or below a loss, or the last."""
        return next((point for point in self.losses if point.loss <= target), self.losses[-1])


def tinylm_run(name: str, tokens: np.ndarray, vocab_size: int, seed: int) -> Run:
    """The run of a config."""
    started = time.perf_counter()
    config = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    network = ModelConfig(vocab_size=vocab_size, **config["model"]["network"])
    settings = OptimizerConfig(**config["model"]["optimizer"])
    schedule = ScheduleConfig(**config["model"]["schedule"])
    batch_size, clip = config["data"]["batch_size"], config["trainer"]["gradient_clip_val"]
    total = config["trainer"]["max_steps"]
    torch.manual_seed(seed)
    net = LitTransformerLM(network, settings, schedule).net.train()
    optimizer = make_optimizer(net, settings, fused=True)
    windows = TrainingWindows(len(tokens), CONTEXT, batch_size, seed)

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, total, settings.lr, schedule)
        batch = gather(tokens, windows.starts(number), CONTEXT, batch_size * CONTEXT)
        (net(batch.inputs, targets=batch.targets) / batch.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return net(inputs, targets=targets)

    return Run(net, loss, step, total, batch_size, time.perf_counter() - started)


def nanogpt_run(folder: Path, tokens: np.ndarray, vocab_size: int, seed: int) -> Run:
    """nanoGPT's CPU recipe with its model and optimizer: windows at random positions, a cosine schedule."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    started = time.perf_counter()
    torch.manual_seed(seed)
    config = nanogpt.GPTConfig(CONTEXT, vocab_size, 4, 4, 128, dropout=0.0, bias=False)
    with contextlib.redirect_stdout(io.StringIO()):
        net = nanogpt.GPT(config).train()
        optimizer = net.configure_optimizers(0.1, RATE, (0.9, 0.99), "cpu")
    schedule = ScheduleConfig(name="cosine", warmup_steps=100, min_lr=RATE / 10)
    positions = torch.Generator().manual_seed(seed)

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, STEPS, RATE, schedule)
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH,), generator=positions).numpy()
        batch = gather(tokens, starts, CONTEXT, BATCH * CONTEXT)
        net(batch.inputs.contiguous(), batch.targets.contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits, _ = net(inputs.contiguous(), targets.clamp(min=0).contiguous())  # all positions only with targets
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    return Run(net, loss, step, STEPS, BATCH, time.perf_counter() - started)


def make_run(name: str, options: argparse.Namespace, tokens: np.ndarray, vocab_size: int, seed: int) -> Run:
    """The run of this name, at its beginning."""
    if name == "nanoGPT":
        return nanogpt_run(options.nanogpt, tokens, vocab_size, seed)
    return tinylm_run(name, tokens, vocab_size, seed)


def take_turns(runs: dict[str, Run], validation: np.ndarray) -> Iterator[str]:
    """Trains all runs, a part of each in turn, and yields a line for each evaluation."""
    for part in range(1, PARTS + 1):
        for name, run in runs.items():
            run.advance(run.steps * part // PARTS)
            if part % (PARTS // EVALUATIONS) == 0:
                run.evaluate(validation)
                point = run.losses[-1]
                progress = f"{run.done:5} steps {point.tokens:9,} tokens {point.seconds:7.1f} s"
                yield f"  {name:28} {progress}  loss {point.loss:.4f}"


def report(finished: list[dict[str, Run]], target: float) -> Iterator[str]:
    """The lines of the result: medians over the seeds, and ratios to nanoGPT's if it ran."""
    peers = [runs["nanoGPT"].reached(target).seconds for runs in finished if "nanoGPT" in runs]
    for name in finished[0]:
        points = [runs[name].reached(target) for runs in finished]
        seconds, tokens = (
            statistics.median(getattr(point, each) for point in points) for each in ("seconds", "tokens")
        )
        missed = sum(point.loss > target for point in points)
        ratio = f": 1/{statistics.median(peers) / seconds:.2f} of nanoGPT's time" if peers else ""
        yield f"{name:28} {seconds:7.1f} s, {tokens:9,.0f} tokens to {target}{ratio}"
        if missed:
            yield f"{'':28} not reached in {missed} of {len(points)} runs, whose whole time counts"
        read, finals = finished[0][name].losses[-1].tokens, [runs[name].losses[-1].loss for runs in finished]
        each = ", ".join(f"{loss:.4f}" for loss in finals)
        yield f"{'':28} loss {statistics.median(finals):.4f} after {read:,} tokens ({each})"


def main() -> None:
    """Prints each evaluation as it is made, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT clone")
    parser.add_argument("--corpus", default="tinyshakespeare", help="tinyshakespeare.txt, or download it")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (%(default)s)")
    parser.add_argument("--target", type=float, default=1.88, help="loss to reach (%(default)s)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, metavar="NAME", help="of %(choices)s (all)")
    options = parser.parse_args()
    if "nanoGPT" in options.runs and not options.nanogpt:
        parser.error("nanoGPT needs --nanogpt FOLDER; or leave it out of --runs")
    data = TextDataModule(options.corpus, max_seq_len=CONTEXT)
    tokens, validation = (np.asarray(data.tokens[split]) for split in ("train", "val"))
    print(f"{len(tokens):,} training and {len(validation):,} validation characters, {torch.get_num_threads()} threads")
    finished = []
    for seed in range(options.seeds):
        runs = {name: make_run(name, options, tokens, data.vocab_size, seed) for name in options.runs}
        for line in take_turns(runs, validation):
            print(f"seed {seed}{line}", flush=True)
        finished.append(runs)
    for line in report(finished, options.target):
        print(line)


if __name__ == "__main__":
    main()
