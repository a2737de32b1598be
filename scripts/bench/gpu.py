"""Times training and generation on a GPU, beside nanoGPT and transformers, in under five minutes.

    git clone https://github.com/karpathy/nanoGPT
    python scripts/bench/gpu.py --nanogpt nanoGPT --corpus tinyshakespeare.txt

Every line is printed as soon as it is known, and the targets at the end. GPT-2 124M (16 x 1024 tokens, bf16 autocast)
against nanoGPT as its bench.py takes a step; `small`; nanoGPT's Shakespeare recipe (10.7M parameters, 64 x 256); masks
of documents against plain causal attention; Muon's update; decoding at batch 1, 16 and 128. "fit" is `tinylm fit` on a
random text, with the time of a step from its metrics.csv; "raw" is a plain loop around the same network and optimizer.

Without CUDA everything runs in miniature on the processor, where torch.compile traces but does not compile; this shows
that the script works, not what is fast. A part that fails says so, the others continue, and the exit code is 1.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the parts beside this file

import torch

from scripts.bench import gpu_kernels, gpu_recipe, gpu_steps
from scripts.bench.gpu_steps import Measured, Recipe
from tinylm.training.throughput import measure_peak_flops

MUON = {"name": "muon", "lr": 0.006, "weight_decay": 0.1, "momentum": 0.9}
PARTS = ("gpt2", "small", "shakespeare", "masks", "muon", "generation", "race")  # the longest last
BATCHES = (1, 16, 128)
TARGETS: tuple[tuple[str, Callable[[dict[str, float]], float], str, float], ...] = (
    ("GPT-2 124M by fit, compiled, AdamW: x nanoGPT", lambda r: r["gpt2 nanoGPT"] / r["gpt2 fit"], ">=", 1.0),
    ("    peak memory, GiB", lambda r: r["gpt2 fit, GiB"], "<=", 9.0),
    ("    Muon instead of AdamW, more ms a step", lambda r: r["gpt2 fit, Muon"] - r["gpt2 fit"], "<=", 5.0),
    ("`small` by fit, ms a step", lambda r: r["small fit"], "<=", 2.0),
    ("Shakespeare, 10.7M, by fit, ms a step", lambda r: r["shakespeare fit"], "<=", 8.0),
    (f"    to {gpu_recipe.TARGET}: nanoGPT's time, x ours", lambda r: r["race nanoGPT"] / r["race fit"], ">=", 5.0),
    ("document masks: ms a step, x plain causal", lambda r: r["masks documents"] / r["masks causal"], "<=", 1.1),
    ("generation, batch 1: x transformers compiled", lambda r: r["generation 1, x transformers"], ">=", 3.0),
    ("    batch 16, tokens/s", lambda r: r["generation 16"], ">=", 20_000),
    ("    batch 128, tokens/s", lambda r: r["generation 128"], ">=", 60_000),
)


class Table:
    """Prints a line for each measurement, and keeps them.

    Attributes:
        found: figures by name: ms a step, tokens/s, GiB
        failed: whether a measurement failed
    """

    def __init__(self, device: str, tiny: bool, seconds: float) -> None:
        self.device, self.tiny, self.end = device, tiny, time.perf_counter() + seconds
        self.found: dict[str, float] = {}
        self.failed = False
        self.peak = measure_peak_flops(torch.device(device), torch.bfloat16, *([64, 0.05] if tiny else []))
        self.steps = 2 if tiny else 20
        name = torch.cuda.get_device_name() if device == "cuda" else "processor, in miniature"
        say(
            f"{name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, "
            f"measured bf16 peak {self.peak / 1e12:,.2f} TFLOP/s"
        )

    def measure(self, name: str, call: Callable[[], Any], show: Callable[[Any], str]) -> None:
        """Prints the result of a call as formatted by `show`, or why it failed."""
        if time.perf_counter() > self.end:
            say(f"{name:32} left out: the time is up (--seconds)")
            return
        gpu_steps.forget()
        try:
            say(f"{name:32} {show(call())}")
        except Exception as error:
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"{name:32} FAILED {type(error).__name__}: {reason[:200]}")

    def step(self, name: str, recipe: Recipe, call: Callable[[], Measured], peer: str | None = None) -> None:
        """Measures a training step."""

        def show(measured: Measured) -> str:
            ms, rate = measured.seconds * 1e3, recipe.tokens / measured.seconds
            self.found |= {name: ms, f"{name}, GiB": measured.memory}
            line = f"{ms:8.2f} ms a step {rate:10,.0f} tokens/s  MFU {recipe.flops / measured.seconds / self.peak:4.0%}"
            line += "" if math.isnan(measured.memory) else f"  {measured.memory:5.1f} GiB"
            line += f"  {self.found[peer] / ms:.2f} x nanoGPT" if peer in self.found else ""
            return f"{line}  (start {measured.start:.0f} s)"

        self.measure(name, call, show)

    def seconds(self, name: str, call: Callable[[], float]) -> None:
        """Measures anything else that takes time."""

        def show(seconds: float) -> str:
            self.found[name] = seconds * 1e3
            return f"{seconds * 1e3:8.3f} ms"

        self.measure(name, call, show)

    def targets(self) -> None:
        """Compares with the targets."""
        say("\ntargets" + (" (in miniature they mean nothing)" if self.tiny else ""))
        for name, figure, relation, bound in TARGETS:
            try:
                value = figure(self.found)
            except KeyError:
                value = math.nan
            if math.isnan(value):
                say(f"{name:48} not measured")
                continue
            reached = value >= bound if relation == ">=" else value <= bound
            verdict = "" if self.tiny else "pass" if reached else "MISSED"
            say(f"{name:48} {value:10,.2f} {relation} {bound:,.2f}  {verdict}".rstrip())


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def training(part: str, table: Table, folder: Path, nanogpt: Path | None) -> None:
    """The steps of a model: nanoGPT's, raw, under Lightning."""
    recipe = {
        "gpt2": lambda: Recipe.read("gpt2", 16, 50_257),
        "small": lambda: Recipe.read("small", 16, 1486),
        "shakespeare": shakespeare,
    }[part]()
    recipe, steps, peer = recipe.tiny() if table.tiny else recipe, table.steps, f"{part} nanoGPT"

    def raw(recipe: Recipe, compiled: bool = True) -> Measured:
        return gpu_steps.timed(gpu_steps.raw_step(recipe, table.device, compiled), steps // 2, steps)

    def fit(recipe: Recipe, compiled: bool = True, times: int = 1) -> Measured:
        return gpu_steps.fit(recipe, table.device, folder, times * steps, compiled)

    if part != "small" and nanogpt is not None:
        step = partial(gpu_steps.nanogpt_step, nanogpt, recipe, table.device, recipe.config.dropout)
        table.step(peer, recipe, lambda: gpu_steps.timed(step(), steps // 2, steps))
    elif part != "small":
        say(f"{peer:32} left out: no --nanogpt")
    table.step(f"{part} raw", recipe, partial(raw, recipe), peer)
    table.step(f"{part} fit", recipe, partial(fit, recipe, times=1 if table.tiny or part == "gpt2" else 5), peer)
    if part == "gpt2":
        table.step(f"{part} fit, Muon", recipe, partial(fit, recipe.with_optimizer(MUON)), peer)
        table.step(f"{part} raw, Muon", recipe, partial(raw, recipe.with_optimizer(MUON)), peer)
        table.step(f"{part} fit, eager", recipe, partial(fit, recipe, False), peer)


def masks(table: Table) -> None:
    """Document masks against plain causal attention: a layer's attention by kernel, and whole steps."""
    recipe = Recipe.read("gpt2", 16, 50_257)
    recipe = recipe.tiny() if table.tiny else recipe
    for name, call in gpu_kernels.attention_kernels(recipe, table.device):
        table.seconds(f"masks {name}", call)
    for name, documents in (("masks causal", False), ("masks documents", True)):
        step = partial(gpu_steps.raw_step, recipe, table.device, documents=documents)
        table.step(name, recipe, lambda step=step: gpu_steps.timed(step(), table.steps // 2, table.steps))


def muon(table: Table) -> None:
    """The optimizers alone, on GPT-2's matrices."""
    recipe = Recipe.read("gpt2", 16, 50_257)
    recipe = recipe.tiny() if table.tiny else recipe
    table.seconds("muon Newton-Schulz", lambda: gpu_kernels.newton_schulz(recipe, table.device, table.steps))
    table.seconds(
        "muon step", lambda: gpu_kernels.optimizer_step(recipe.with_optimizer(MUON), table.device, table.steps)
    )
    table.seconds("adamw step", lambda: gpu_kernels.optimizer_step(recipe, table.device, table.steps))


def generation(table: Table) -> None:
    """GPT-2 beside transformers with a static cache, compiled (generation.py)."""
    try:
        from scripts.bench.generation import decode_rates
    except ImportError as error:
        say(f"{'generation':32} left out: {error}")
        return

    def show(batch: int, rows: list[dict[str, Any]]) -> str:
        ours = max((row for row in rows if row["side"].startswith("tinylm")), key=lambda row: row["tokens_per_s"])
        table.found |= {f"generation {batch}": ours["tokens_per_s"]}
        table.found |= {f"generation {batch}, x transformers": ours["ratio"]}
        lines = [
            f"{row['ms']:8.2f} ms a step {row['tokens_per_s']:10,.0f} tokens/s  {row['ratio']:.2f} x transformers  "
            + row["side"]
            for row in rows
        ]
        return f"\n{'':33}".join(lines)

    for batch in BATCHES:
        rates = partial(decode_rates, table.device, [min(batch, 4) if table.tiny else batch], turns=1)
        table.measure(f"generation, batch {batch}", rates, partial(show, batch))


def race(table: Table, folder: Path, nanogpt: Path | None, corpus: str | None) -> None:
    """nanoGPT's recipe and ours, to the loss that its README names."""
    if nanogpt is None or corpus is None:
        say(f"{'race':32} left out: needs --nanogpt and --corpus")
        return
    recipe = shakespeare()
    recipe = recipe.tiny() if table.tiny else recipe

    def show(name: str, run: gpu_recipe.Race) -> str:
        if run.reached or name == "race nanoGPT":
            table.found[name] = run.seconds
        missed = "" if run.reached else "  (target not reached)"
        return f"{run.seconds:8.2f} s, {run.steps} steps to a loss of {run.loss:.4f}{missed}"

    ours = partial(gpu_recipe.by_us, corpus, recipe, table.device, folder, table.tiny)
    theirs = partial(gpu_recipe.by_nanogpt, nanogpt, corpus, recipe, table.device, table.tiny)
    for name, call in (("race fit", ours), ("race nanoGPT", theirs)):
        table.measure(name, call, partial(show, name))


def shakespeare() -> Recipe:
    """nanoGPT's Shakespeare recipe with our optimizer."""
    return Recipe.read("shakespeare_large", 64, 65)


def trace_only() -> None:
    """Lets torch.compile trace programs without compiling them, which takes minutes on a processor."""
    compile = torch.compile

    def traced(model: Any = None, *, backend: str = "", mode: str = "", options: Any = None, **others: Any) -> Any:
        return compile(model, backend="aot_eager", **others)

    torch.compile = traced  # pyright: ignore


def main() -> int:
    """Prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT clone; without it nanoGPT is left out")
    parser.add_argument("--corpus", help="tinyshakespeare.txt; without it the race to a loss is left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts (default: all)")
    parser.add_argument("--seconds", type=float, default=290, help="time after which no part begins (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="in miniature, as without CUDA")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = options.tiny or device == "cpu"
    gpu_kernels.quiet()
    if device == "cpu":
        trace_only()
    table = Table(device, tiny, options.seconds)
    with tempfile.TemporaryDirectory() as name:
        for part in options.only:
            match part:
                case "masks":
                    masks(table)
                case "muon":
                    muon(table)
                case "generation":
                    generation(table)
                case "race":
                    race(table, Path(name), options.nanogpt, options.corpus)
                case _:
                    training(part, table, Path(name), options.nanogpt)
    table.targets()
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main())
