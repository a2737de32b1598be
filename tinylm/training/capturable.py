"""Which training steps can be captured as a CUDA graph, and why others cannot.

A graph repeats kernels, not Python: whatever of the user's own code runs within a step would run once, at the capture.
"""

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from tinylm.training.late import reads_found_inf
from tinylm.training.profiling import StepProfile
from tinylm.training.ranks import RankWatch

PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")  # 16-mixed decides on the host whether to step
WITHIN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
OURS = ("tinylm.", "lightning.")  # whose callbacks change no network between micro-batches
MODULE_HOOKS = (
    *WITHIN, "forward", "training_step", "summed_loss", "backward", "optimizer_step", "optimizer_zero_grad",
    "configure_gradient_clipping", "configure_optimizers", "agree_to_stop", "on_train_batch_end",
)  # fmt: skip
MODULE_HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(parts: Iterable[nn.Module]) -> bool:
    """Whether any of these modules has forward or backward hooks."""
    return any(getattr(part, name) for part in parts for name in MODULE_HOOK_DICTS)


def why_not_captured(trainer: pl.Trainer, module: Any) -> str | None:
    """The first reason for which a run's steps cannot be captured; None if they can.

    Args:
        trainer: the trainer, which has set up the module
        module: the LitTransformerLM that it trains
    """
    optimizer: Any = trainer.optimizers[0]
    accumulates = trainer.accumulate_grad_batches > 1
    callbacks = [each for each in trainer.callbacks if not isinstance(each, RankWatch)]  # pyright: ignore[reportAttributeAccessIssue]
    parameters = list(module.net.parameters())
    post_hooks = any(each._backward_hooks or each._post_accumulate_grad_hooks for each in parameters)
    reasons = {
        f"the run has {trainer.world_size} processes": trainer.world_size > 1,
        f"the strategy is {type(trainer.strategy).__name__}": type(trainer.strategy) is not SingleDeviceStrategy,
        f"trainer.precision is {trainer.precision}": str(trainer.precision) not in PRECISIONS,
        f"the optimizer is {type(optimizer).__name__}, without a fused step": not reads_found_inf(optimizer),
        "the optimizer has hooks": bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks),
        "there are hooks on the network": hooked(module.net.modules()) or post_hooks,
        "trainer.profiler measures within a step": type(trainer.profiler) is not PassThroughProfiler,
        "trainer.detect_anomaly reads every result": torch.is_anomaly_enabled(),
        "dropout is drawn anew for each micro-batch; raise data.micro_batch_size": module.has_dropout and accumulates,
    }
    return (
        _of_subclass(type(module))
        or next((reason for reason, holds in reasons.items() if holds), None)
        or next(filter(None, (_of_callback(each, accumulates) for each in callbacks)), None)
    )


def _of_subclass(kind: type) -> str | None:
    """Names a hook that a subclass of the module overrides and that runs within a step."""
    base = next(each for each in kind.__mro__ if each.__module__ == "tinylm.training.module")
    changed = [name for name in MODULE_HOOKS if getattr(kind, name) is not getattr(base, name)]
    return f"{kind.__name__} has a {changed[0]} of its own" if changed else None


def _of_callback(callback: Callback, accumulates: bool) -> str | None:
    """Names a hook of a callback that runs within a step, or may change the network or read a micro-batch's loss."""
    foreign = not type(callback).__module__.startswith(OURS) or isinstance(callback, LambdaCallback | StepProfile)
    between = ("on_train_batch_start", *(["on_train_batch_end"] if accumulates else []))
    for name in (*WITHIN, *(between if foreign else ())):
        if getattr(getattr(callback, name), "__func__", None) is not getattr(Callback, name):
            return f"{type(callback).__name__}.{name} {'runs' if name in WITHIN else 'may run'} within a step"
    return None
