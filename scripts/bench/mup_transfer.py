"""Measures how the best learning rate moves with the width, with and without muP, and draws it.

    python scripts/bench/mup_transfer.py --optimizer adamw --out runs/mup.jsonl
    python scripts/bench/mup_transfer.py --optimizer adamw --corpus input.txt --tokenizer char --steps 800 \
        --batch-size 4 --first 6 --out runs/mup-text.jsonl
    python scripts/bench/mup_transfer.py --out runs/mup-text.jsonl --draw docs/mup.png

Each run is a network of 2 layers with heads of 32 and a context of 64 tokens. The loss is the mean over 14,336
validation tokens. Rates are √2 apart; the search begins with the best rate of the previous width and continues until
two rates on either side of the best are measured. The vertex of a parabola in log(lr) through these five is the best
rate. Every run is a line of the output file, which is for one text and length, and runs that it has are not repeated.
At the base width both parametrizations are the same run.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylm.data import TextDataModule
from tinylm.data.batches import TrainingWindows, gather
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim import OptimizerConfig, ScheduleConfig, learning_rate, make_optimizer
from tinylm.runs.axes import scale_axis
from tinylm.runs.plots import save_figure
from tinylm.runs.style import new_figure, style

WIDTHS, BASE, HEAD, LAYERS = (64, 128, 256, 512), 128, 32, 2
CONTEXT = 64
OPTIMIZERS = ("adamw", "muon")
KINDS = {True: "muP", False: "standard"}


def rate(number: int) -> float:
    """The learning rate with the number n: 2^(n/2) / 4096."""
    return 2 ** (number / 2) / 4096


def train(data: TextDataModule, optimizer: str, width: int, mup: bool, lr: float, seed: int, steps: int) -> float:
    """The validation loss of a run in nats per token."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=data.vocab_size, d_model=width, num_layers=LAYERS, num_heads=width // HEAD, max_seq_len=CONTEXT,
        d_ff=3 * width, mup_base_width=BASE if mup else None,
    )  # fmt: skip
    net, schedule = TransformerLM(config), ScheduleConfig(name="linear", warmup_steps=max(20, steps // 20))
    opt = make_optimizer(net, OptimizerConfig(name=optimizer, lr=lr, momentum=0.9), fused=True)
    windows = TrainingWindows(len(data.tokens["train"]), CONTEXT, data.batch_size, seed)
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = learning_rate(step, steps, lr, schedule) * group.get("lr_factor", 1.0)
        batch = gather(data.tokens["train"], windows.starts(step), CONTEXT, data.batch_size * CONTEXT)
        opt.zero_grad()
        (net(batch.inputs, targets=batch.targets) / batch.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
    batch = gather(data.tokens["val"], np.arange(224) * CONTEXT, CONTEXT, 224 * CONTEXT)
    pairs = zip(batch.inputs.split(32), batch.targets.split(32), strict=True)
    with torch.no_grad():
        return sum(net(inputs, targets=targets).item() for inputs, targets in pairs) / batch.num_targets


def vertex(losses: dict[int, float]) -> tuple[float, float]:
    """The best rate, by a parabola through the five numbers around the best one, and its loss."""
    best = min(losses, key=losses.__getitem__)
    near = [number for number in range(best - 2, best + 3) if number in losses]
    a, b, c = np.polyfit(near, [losses[number] for number in near], 2)
    at = float(np.clip(-b / (2 * a), near[0], near[-1]))
    return rate(at), float(a * at * at + b * at + c)  # pyright: ignore[reportArgumentType]


def search(measure: Callable[[int], float], first: int) -> dict[int, float]:
    """Measures numbers until two on either side of the best one are known."""
    losses = {first: measure(first)}
    while True:
        best = min(losses, key=losses.__getitem__)
        missing = [n for n in (best - 1, best + 1, best - 2, best + 2) if n not in losses]
        if not missing:
            return losses
        losses[missing[0]] = measure(missing[0])


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(runs: list[dict[str, Any]], optimizer: str, seed: int) -> dict[tuple[bool, int], dict[int, float]]:
    """The losses by number of each parametrization and width."""
    found: dict[tuple[bool, int], dict[int, float]] = {}
    for run in runs:
        if (run["optimizer"], run["seed"]) == (optimizer, seed):
            for mup in (True, False) if run["width"] == BASE else (run["mup"],):
                found.setdefault((mup, run["width"]), {})[run["number"]] = run["loss"]
    return found


def report(runs: list[dict[str, Any]]) -> None:
    """Prints the best rates of each optimizer and seed, and the largest factor between widths."""
    for optimizer, seed in sorted({(run["optimizer"], run["seed"]) for run in runs}):
        cells = table(runs, optimizer, seed)
        for mup, name in KINDS.items():
            best = {width: vertex(cells[mup, width]) for width in WIDTHS if len(cells.get((mup, width), ())) >= 5}
            words = [f"{width}: {lr:.4g} ({loss:.3f})" for width, (lr, loss) in best.items()]
            rates = [lr for lr, _ in best.values()]
            spread = f"factor {max(rates) / min(rates):.2f}" if rates else ""
            print(f"{optimizer:5}  seed {seed}  {name:8}  {'  '.join(words)}  {spread}")


@style()
def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws loss against learning rate, a column for each optimizer and a row for each parametrization."""
    from matplotlib import colormaps

    optimizers = sorted({run["optimizer"] for run in runs})
    figure = new_figure(5 * len(optimizers), 6)
    axes = figure.subplots(2, len(optimizers), squeeze=False, sharex=True, sharey="col")
    for column, optimizer in enumerate(optimizers):
        cells = table(runs, optimizer, 0)
        for row, (mup, name) in enumerate(KINDS.items()):
            axis = axes[row, column]
            for number, width in enumerate(WIDTHS):
                found = dict(sorted(cells.get((mup, width), {}).items()))
                color = colormaps["viridis"](number / (len(WIDTHS) - 0.5))
                axis.plot([rate(each) for each in found], [*found.values()], "o-", ms=3, color=color, label=width)
                if len(found) >= 5:
                    axis.plot(*vertex(found), "*", ms=11, color=color)
            axis.set(xlabel="learning rate", ylabel="validation loss", title=f"{optimizer}, {name}")
            losses = [run["loss"] for run in runs if run["optimizer"] == optimizer]
            axis.set_ylim(min(losses) - 0.05, min(max(losses) + 0.05, min(losses) + 1.2))
            scale_axis(axis.xaxis, 5, logarithmic=True)
    axes[0, 0].legend(title="width")
    save_figure(figure, path)


def main() -> None:
    """Runs the requested search, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the runs, JSON lines")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="measure; otherwise only the table is printed")
    parser.add_argument("--widths", type=int, nargs="+", default=[*WIDTHS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", default="stories", help="as data.corpus")
    parser.add_argument("--tokenizer", default="bpe:2048", help="as data.tokenizer")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--first", type=int, default=12, help="number of the first rate: it is 2^(n/2) / 4096")
    parser.add_argument("--draw", type=Path, help="the picture to write")
    options = parser.parse_args()
    if options.optimizer is not None:
        data = TextDataModule(
            options.corpus, tokenizer=options.tokenizer, split=(0.95, 0.04, 0.01), max_seq_len=CONTEXT,
            batch_size=options.batch_size,
        )  # fmt: skip
        for mup in KINDS:
            first = options.first
            for width in options.widths:

                def measure(number: int, mup: bool = mup, width: int = width) -> float:
                    known = table(read(options.out), options.optimizer, options.seed).get((mup, width), {})
                    if number in known:
                        return known[number]
                    started = time.perf_counter()
                    loss = train(data, options.optimizer, width, mup, rate(number), options.seed, options.steps)
                    loss = loss if math.isfinite(loss) else 99.0
                    found = {"optimizer": options.optimizer, "width": width, "mup": mup, "number": number,
                             "seed": options.seed, "loss": loss, "seconds": time.perf_counter() - started}  # fmt: skip
                    with options.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
                    print(f"{options.optimizer} {width} {KINDS[mup]} {rate(number):.5f}: {loss:.4f}", flush=True)
                    return loss

                losses = search(measure, first)
                first = min(losses, key=losses.__getitem__)
    runs = read(options.out)
    report(runs)
    if options.draw is not None:
        draw(runs, options.draw)


if __name__ == "__main__":
    main()
