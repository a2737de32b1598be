"""Compares the speed of a training step of tinylm with nanoGPT's, at the same shape, batch, precision and optimizer.

    git clone https://github.com/karpathy/nanoGPT
    python scripts/bench/train_step.py --nanogpt nanoGPT --shape cpu --compile

The shapes are nanoGPT's CPU recipe (4 layers, width 128, context 64, batch 12) and `mid` (6 layers, width 256, 8 heads,
context 256, batch 32). tinylm is timed with GPT-2's architecture, where both compute the same, and with that of its
presets; `--compile` adds a compiled network on both sides. The steps of all models are interleaved. `--cpu-time` counts
the processor time of the process instead of the seconds, for a machine that others use too, with OMP_NUM_THREADS=1.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tinylm.kernels.heap import keep_freed_memory
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.optimizer import make_optimizer
from tinylm.training import OptimizerConfig
from tinylm.training.precision import time_beside_float32

SHAPES = {"cpu": (4, 4, 128, 64, 12), "mid": (6, 8, 256, 256, 32)}  # layers, heads, width, context, batch


def nanogpt_step(
    folder: Path, shape: tuple[int, ...], autocast: Callable, *, compiled: bool = False
) -> Callable[[], None]:
    """Makes a training step of nanoGPT's model and optimizer."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    layers, heads, width, context, batch = shape
    config = nanogpt.GPTConfig(context, 65, layers, heads, width, dropout=0.0, bias=False)
    with contextlib.redirect_stdout(io.StringIO()):
        model = nanogpt.GPT(config)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    ids = torch.randint(0, 65, (batch, context + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with autocast():
            _, loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def tinylm_step(
    shape: tuple[int, ...], autocast: Callable, settings: OptimizerConfig, *, compiled: bool = False, **network
) -> Callable[[], None]:
    """Makes a training step of tinylm; a compiled network keeps the norms that the compiler fuses by itself."""
    keep_freed_memory()  # as `fit` does; nanoGPT, in the same process, has it too
    layers, heads, width, context, batch = shape
    sizes = {"num_layers": layers, "num_heads": heads, "d_model": width, "max_seq_len": context}
    model = TransformerLM(ModelConfig(vocab_size=65, **sizes, **network))
    if not compiled:
        tune_for_training(model)
    forward = torch.compile(model) if compiled else model
    optimizer = make_optimizer(model, settings, fused=True)
    ids = torch.randint(0, 65, (batch, context + 1))

    def step() -> None:
        with autocast():
            loss = forward(ids[:, :-1], targets=ids[:, 1:]) / (batch * context)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Prints the tokens/s of each model and the ratio to nanoGPT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="folder of a nanoGPT clone")
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--turns", type=int, default=9, help="timed turns (%(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, with one thread")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, on both sides")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    shape, count = SHAPES[options.shape], 20 if options.shape == "cpu" else 1

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")

    adamw, muon = OptimizerConfig(), OptimizerConfig(name="muon")
    ns_dtype = "bfloat16" if time_beside_float32(torch.bfloat16) < 1 else "float32"
    cheaper = OptimizerConfig(name="muon", ns_dtype=ns_dtype, ns_coefficients="polar_express", ns_steps=3)
    gpt2 = dict(positional_encoding="learned", norm="layernorm", activation="gelu", qk_norm=False)
    steps = {
        "nanoGPT, AdamW": nanogpt_step(options.nanogpt, shape, autocast),
        "tinylm as GPT-2, AdamW": tinylm_step(shape, autocast, adamw, **gpt2),
        "tinylm as its presets, AdamW": tinylm_step(shape, autocast, adamw),
        "tinylm as its presets, Muon": tinylm_step(shape, autocast, muon),
        "presets, Muon, cheaper": tinylm_step(shape, autocast, cheaper),
    }
    if options.compile:
        steps["nanoGPT, AdamW, compiled"] = nanogpt_step(options.nanogpt, shape, autocast, compiled=True)
        steps["presets, AdamW, compiled"] = tinylm_step(shape, autocast, adamw, compiled=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.turns + 1):
        for name, step in steps.items():
            started = clock()
            for _ in range(count):
                step()
            if turn:
                times[name].append((clock() - started) / count)
    tokens = shape[3] * shape[4]
    base = times["nanoGPT, AdamW"]
    for name, seconds in times.items():
        ratio = statistics.median(peer / ours for peer, ours in zip(base, seconds, strict=True))
        middle = statistics.median(seconds)
        print(f"{name:32} {middle * 1e3:8.1f} ms a step  {tokens / middle:8,.0f} tokens/s  {ratio:.2f} x nanoGPT")
    for name in ("tinylm as its presets, Muon", "presets, Muon, cheaper"):
        pairs = zip(times["tinylm as its presets, AdamW"], times[name], strict=True)
        share = statistics.median(1 - one / other for one, other in pairs)
        print(f"{name}: {share:.0%} of its step more than AdamW")


if __name__ == "__main__":
    main()
