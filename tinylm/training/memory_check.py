"""Whether a training step fits into the memory of the device, checked before the first one."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from tinylm.adapt import trainable_share
from tinylm.errors import ConfigError, notice
from tinylm.model import ModelConfig
from tinylm.training.memory import allocator_bytes, fake_copy, step_memory
from tinylm.training.module import LitTransformerLM

NEAR = 0.8  # share of the memory; a step that takes more, with its allocator's reserve, gets a notice
BEYOND = 1.1  # share of the memory; a step whose tensors alone take more is refused


def check_memory(trainer: Any, module: LitTransformerLM, rows: int, context: int, *, accumulates: bool) -> None:
    """Estimates the memory of a step, and remarks on an estimate near what there is.

    Args:
        trainer: the trainer
        module: the module, not yet on its device
        rows: sequences of a micro-batch
        context: tokens of a sequence
        accumulates: whether a step has several micro-batches

    Raises:
        ConfigError: if the tensors of the step do not fit.
    """
    device = trainer.strategy.root_device
    there = device_memory(device)
    if there is None or isinstance(trainer.strategy, ModelParallelStrategy):  # shards the weights
        return
    on_cpu = device.type == "cpu"
    processes = trainer.world_size // trainer.num_nodes if on_cpu else 1
    summed = isinstance(trainer.strategy, DDPStrategy)
    tensors = processes * step_bytes(
        module, str(trainer.precision), rows, context, there, accumulates=accumulates, summed=summed
    )
    need = tensors + allocator_bytes(tensors, on_cpu=on_cpu, recomputed=module.network.activation_checkpointing)
    if need < NEAR * there:
        return
    figures = f"a step takes about {need / 1e9:,.1f} GB, and {_place(device)} has {there / 1e9:,.1f} GB"
    remedy = f"set data.micro_batch_size below {rows}" if rows > 1 else "lower model.network.max_seq_len or d_model"
    if tensors > BEYOND * there:
        raise ConfigError(f"data.batch_size: {figures}; {remedy}")
    notice(f"{figures}; if it does not fit, {remedy}")


def _place(device: torch.device) -> str:
    return "this machine" if device.type == "cpu" else f"the device {device}"


def device_memory(device: torch.device) -> int | None:
    """Memory of a device in bytes, or of this machine as far as its control groups allow; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    try:
        return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *control_group_limits()])
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def control_group_limits(root: Path = Path("/")) -> list[int]:
    """Memory limits of the control groups of this process, versions 1 and 2, in bytes."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                top = root / "sys/fs/cgroup" / controllers
                group = top / path.lstrip("/")
                for folder in (group, *group.parents):
                    with contextlib.suppress(OSError, ValueError):  # "max"
                        limits.append(int((folder / name).read_text(encoding="utf-8")))
                    if folder == top:
                        break
    return limits


def step_bytes(
    module: LitTransformerLM,
    precision: str,
    rows: int,
    context: int,
    there: int,
    *,
    accumulates: bool = False,
    summed: bool = False,
) -> int:
    """Bytes of the tensors that exist at the peak of a training step, estimated.

    A step is run on tensors without values (memory.py), unless it certainly needs little beside `there`.

    Args:
        module: the module, with its weights on the CPU in float32
        precision: the trainer's
        rows: sequences of a micro-batch
        context: tokens of a sequence
        there: bytes of the device's memory
        accumulates: whether gradients of earlier micro-batches exist beside the activations
        summed: whether DDP sums the gradients over processes, in buckets that hold a copy of them
    """
    net, config = module.net, module.network
    size = {"16-true": 2, "bf16-true": 2, "64-true": 8}.get(precision, 4)  # bytes of a weight
    trainable, weights = trainable_share(net)
    states = size * (weights + (4 if summed else 3) * trainable)  # gradient, two moments, the bucket
    tokens = rows * context
    at_once = min(tokens, net.loss_rows or tokens)  # tokens whose logits exist at a time
    logits = 4 * at_once * config.vocab_size
    rough = rows * rough_bytes(config, context) - 8 * (tokens - at_once) * config.vocab_size
    guess = states + rough + 2 * logits
    if states + rough < there / 4 or rough > 100 * there:
        return guess
    with contextlib.suppress(ConfigError):  # a plug-in that needs values
        step = step_memory(
            lambda: fake_copy(net),
            module.optimizer,
            rows=rows,
            context=context,
            precision=precision,
            accumulates=accumulates,
        )
        return step.total + (step.buckets if summed else 0)
    return guess


def rough_bytes(config: ModelConfig, context: int) -> int:
    """Bytes that autograd keeps of one sequence, roughly: in float32, without dropout and checkpointing."""
    widths = 6 * config.d_model + 6 * config.num_heads * config.head_dim
    per_token = config.num_layers * (widths + 5 * config.ff_width) + 2 * config.vocab_size
    scores = 0 if config.attention_kernel == "fused" else 3 * config.num_layers * config.num_heads * context
    return 4 * context * (per_token + scores)
