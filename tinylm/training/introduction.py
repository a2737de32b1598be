"""The lines that say what is about to be trained, on which data and devices."""

import math
from typing import Any

import torch

from tinylm.adapt import trainable_share
from tinylm.console import duration, plural
from tinylm.data.run_data import RunData
from tinylm.errors import notice
from tinylm.training.precision import warn_of_slow_types
from tinylm.training.remarks import check_warmup, epochs
from tinylm.training.time_budget import TimeBudget


def introduce(trainer: Any, module: Any, data: RunData, precision_reason: str | None) -> None:
    """Prints what `tinylm fit` is about to train.

    Args:
        trainer: the Trainer
        module: the LitTransformerLM
        data: its data, set up
        precision_reason: why this precision was chosen. None: the user chose it
    """
    if module.start is not None:
        notice(f"base model: {module.start.path}")
    rows = "" if module.network.vocab_size == data.vocab_size else f" (padded to {module.network.vocab_size:,} rows)"
    describe_model(module.net.num_parameters(), data, rows)
    if "val" in data.floors:
        floor = data.floors["val"]
        notice(
            f"best possible: {floor.nats_per_token:.4f} nats per token ({floor.bits_per_byte:.4f} bits per byte), "
            f"standard error {floor.standard_error:.4f}: exact for the {len(floor.log_probs):,} validation texts"
        )
    trainable, weights = trainable_share(module.net)
    if trainable < weights:
        notice(f"trainable: {trainable:,} of {weights:,} parameters ({trainable / weights:.1%})")
    seconds = next((each.seconds for each in trainer.callbacks if isinstance(each, TimeBudget)), None)
    describe_training(data, module.optimizer_name, f"{_devices(trainer)}, precision {trainer.precision}", seconds)
    if precision_reason is not None:
        notice(f"precision: {trainer.precision} ({precision_reason}); trainer.precision sets another")
    ns_dtype = getattr(module.optimizer, "ns_dtype", "auto")
    warn_of_slow_types(trainer.strategy.root_device.type, str(trainer.precision), ns_dtype)
    if seconds is None:
        check_warmup(data, module.schedule, getattr(module.optimizer, "lr", math.nan))
    if data.validation_tokens is not None:
        every = f"{data.validation_tokens:,} of {data.content.num_tokens('val'):,} tokens, evenly spaced"
        notice(f"validation: {every} (data.max_val_tokens); the best model on all of them at the end")


def _devices(trainer: Any) -> str:
    """`CPU (2 threads)`, `CUDA` or `4 x CUDA`."""
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    if trainer.world_size > 1:
        return f"{trainer.world_size} x {kind}"
    return f"CPU ({plural(torch.get_num_threads(), 'thread')})" if kind == "CPU" else kind


def describe_model(parameters: int, data: RunData, rows: str = "") -> None:
    """Prints the size of the model and of its text; `rows` follows the size of the vocabulary."""
    tokens = data.content.num_tokens("train")
    notice(
        f"model: {parameters:,} parameters; text: {data.source}, {data.tokenizer.kind} tokenizer, "
        f"{data.vocab_size:,} tokens in the vocabulary{rows}" + (f", {tokens:,} to train on" if tokens else "")
    )


def describe_training(data: RunData, optimizer: str, machine: str, seconds: float | None = None) -> None:
    """Prints the steps of the run, or the time that decides on them, the name of its optimizer, and what computes."""
    steps = f"{data.total_steps:,} steps of {data.step_size} ({epochs(data)})"
    if seconds is not None:
        steps = f"as many steps of {data.step_size} as fit into {duration(seconds)}"
    notice(f"training: {steps}, {optimizer}, {machine}")
