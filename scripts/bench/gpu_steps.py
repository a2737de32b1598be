"""The training steps that gpu.py times: nanoGPT's, ours in a raw loop, and ours by `tinylm fit`."""

import contextlib
import csv
import importlib.util
import io
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from tinylm.commands import main as tinylm
from tinylm.kernels.block_masks import use_block_masks
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.locate import find_config
from tinylm.model import ModelConfig, TransformerLM, flops_per_token
from tinylm.model.positional import PositionTable
from tinylm.optim.optimizer import make_optimizer
from tinylm.runs.folder import RUN_FOLDER
from tinylm.tokenizer import CharTokenizer
from tinylm.training import OptimizerConfig


@dataclass(frozen=True)
class Recipe:
    """Network, batch and optimizer of a training step.

    Attributes:
        model: the section `model` of a config: network, optimizer, schedule, ...
        rows: sequences in a batch
        vocab_size: tokens in the vocabulary
        precision: of the trainer; None: its default
    """

    model: dict[str, Any]
    rows: int
    vocab_size: int
    precision: str | None

    @classmethod
    def read(cls, name: str, rows: int, vocab_size: int) -> "Recipe":
        """Reads `configs/NAME.yaml`; the numbers of rows and of tokens in the vocabulary are given."""
        config = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
        return cls(config["model"], rows, vocab_size, config["trainer"].get("precision"))

    def tiny(self) -> "Recipe":
        """In miniature, for a processor."""
        network = self.model["network"] | dict(d_model=32, num_layers=1, num_heads=2, max_seq_len=32)
        return replace(self, model=self.model | {"network": network}, rows=2, vocab_size=min(self.vocab_size, 300))

    def with_optimizer(self, optimizer: dict[str, Any]) -> "Recipe":
        """With another optimizer."""
        return replace(self, model=self.model | {"optimizer": optimizer})

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer and its settings."""
        return OptimizerConfig(**self.model["optimizer"])

    @property
    def config(self) -> ModelConfig:
        """The network's config, with the rows of the vocabulary that the model has."""
        multiple = self.model.get("vocab_multiple") or 1
        return ModelConfig(**self.model["network"] | dict(vocab_size=-(-self.vocab_size // multiple) * multiple))

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.rows * self.config.max_seq_len

    @property
    def flops(self) -> int:
        """Floating-point operations of a step."""
        return self.tokens * flops_per_token(self.config)


@dataclass(frozen=True)
class Measured:
    """A step: its seconds, the most memory allocated in GiB (NaN without a GPU), and the seconds before it repeats."""

    seconds: float
    memory: float
    start: float


def synchronize() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget() -> None:
    """Frees what earlier measurements left behind, and resets the peak of the memory."""
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float:
    """GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")


def timed(step: Callable[[], Any], warm: int, steps: int) -> Measured:
    """Runs a step `warm` times, then times it."""
    began = time.perf_counter()
    for _ in range(warm):
        step()
    synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return Measured((time.perf_counter() - started) / steps, peak_memory(), started - began)


def nanogpt_model(folder: Path, shape: tuple[int, ...], device: str, dropout: float = 0.0) -> torch.nn.Module:
    """nanoGPT's model of a shape: context, vocabulary, layers, heads, width."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    with contextlib.redirect_stdout(io.StringIO()):
        return nanogpt.GPT(nanogpt.GPTConfig(*shape, dropout=dropout, bias=False)).to(device)


def nanogpt_optimizer(model: Any, device: str, *settings: Any) -> torch.optim.Optimizer:
    """nanoGPT's optimizer: weight decay, learning rate, betas."""
    with contextlib.redirect_stdout(io.StringIO()):
        return model.configure_optimizers(*settings, device)


def nanogpt_step(folder: Path, recipe: Recipe, device: str, dropout: float = 0.0) -> Callable[[], None]:
    """A training step of nanoGPT as its bench.py takes it: no clipping, and the loss fetched after every step."""
    config, vocab_size = recipe.config, -(-recipe.vocab_size // 64) * 64
    shape = config.max_seq_len, vocab_size, config.num_layers, config.num_heads, config.d_model
    model = nanogpt_model(folder, shape, device, dropout)
    optimizer = nanogpt_optimizer(model, device, 1e-2, 1e-4, (0.9, 0.95))
    inputs, targets = torch.randint(recipe.vocab_size, (2, recipe.rows, config.max_seq_len), device=device)
    compiled = torch.compile(model)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            _, loss = compiled(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def documents_of(rows: int, length: int, device: str) -> torch.Tensor:
    """Numbers of documents of 300 tokens on average, (rows, length)."""
    return (torch.rand(rows, length, device=device) < 1 / min(300, length // 4)).cumsum(1)


def raw_step(recipe: Recipe, device: str, compiled: bool = True, documents: bool = False) -> Callable[[], None]:
    """A training step of ours without Lightning: forward, backward, clipping, optimizer."""
    model = TransformerLM(replace(recipe.config, document_mask=documents)).to(device).train()
    tune_for_training(model)
    use_block_masks(model)
    optimizer = make_optimizer(model, recipe.optimizer, fused=True)
    inputs, targets = torch.randint(recipe.vocab_size, (2, recipe.rows, recipe.config.max_seq_len), device=device)
    numbers = documents_of(*inputs.shape, device) if documents else None
    if isinstance(model.positions, PositionTable):
        model.positions(model.embedding.weight)  # a table cast by the first step would have the second compile again
    forward = torch.compile(model.forward) if compiled else model.forward

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = forward(inputs, documents=numbers, targets=targets) / targets.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def synthetic(folder: Path, vocab_size: int, tokens: int) -> tuple[Path, Path]:
    """A random text, and a tokenizer with a token for each of its characters."""
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + vocab_size))) if vocab_size < 20_000 else _many(vocab_size)
    text, tokenizer = folder / f"text{vocab_size}.txt", folder / f"tokenizer{vocab_size}"
    if not text.exists():
        draw = random.Random(0)
        text.write_text("".join(draw.choices(characters, k=tokens)), encoding="utf-8")
        CharTokenizer(characters).save(tokenizer)
    return text, tokenizer


def _many(count: int) -> str:
    points = [point for point in range(0x100, 0x20000) if not 0xD800 <= point < 0xE000]
    return "".join(map(chr, points[:count]))


def fit(recipe: Recipe, device: str, folder: Path, steps: int, compiled: bool = True) -> Measured:
    """Steps of `tinylm fit`, whose metrics.csv has their time; the last two thirds are timed."""
    text, tokenizer = synthetic(folder, recipe.vocab_size, max(20_000, 4 * recipe.tokens))
    data = {"corpus": str(text), "tokenizer": str(tokenizer), "split": [1.0]}
    began = time.perf_counter()
    trainer = dict(max_steps=3 * steps, log_every_n_steps=steps, limit_val_batches=0)
    rows = run_fit(recipe, device, folder, data, trainer, compiled)
    seconds = time.perf_counter() - began
    step = min(float(row["perf/step_seconds"]) for row in rows[1:] if row.get("perf/step_seconds"))
    return Measured(step, peak_memory(), seconds - 2 * steps * step)


def run_fit(
    recipe: Recipe, device: str, folder: Path, data: dict[str, Any], trainer: dict[str, Any], compiled: bool = True
) -> list[dict[str, str]]:
    """Runs `tinylm fit` in this process.

    Args:
        recipe: model and batch
        device: cpu or cuda
        folder: of the runs
        data: more settings of the data
        trainer: more settings of the trainer
        compiled: model.compile

    Returns:
        the rows of its metrics.csv

    Raises:
        RuntimeError: with the message of a run that failed.
    """
    name = f"run{len(list(folder.glob('run*.yaml')))}"
    trainer = trainer | dict(
        gradient_clip_val=1.0, devices=1, accelerator="gpu" if device == "cuda" else "cpu", enable_progress_bar=False,
        enable_checkpointing=False, check_val_every_n_epoch=None,
    )  # fmt: skip
    config = {
        "model": recipe.model | {"compile": compiled},
        "data": data | {"batch_size": recipe.rows, "cache_dir": str(folder / "cache")},
        "run": {"name": name, "dir": str(folder), "prompts": [], "peak_flops": 1e12},
        "trainer": trainer | ({} if recipe.precision is None else {"precision": recipe.precision}),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    os.environ.pop(RUN_FOLDER, None)  # of the run before
    words = io.StringIO()
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        code = tinylm(["fit", "-c", str(path)])
    if code:
        raise RuntimeError(words.getvalue().strip().splitlines()[-1])
    return list(csv.DictReader((folder / name / "metrics.csv").open(encoding="utf-8")))
