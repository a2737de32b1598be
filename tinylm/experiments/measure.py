"""Seconds of a training step on this machine, measured on random tokens."""

import time
from collections.abc import Callable
from statistics import fmean

import torch

from tinylm.experiments.workload import Workload
from tinylm.kernels.block_masks import use_block_masks
from tinylm.kernels.compiled import CompiledNetwork
from tinylm.kernels.heap import keep_freed_memory
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.optim.optimizer import make_optimizer
from tinylm.training.memory import MIXED_TYPES, TRUE_TYPES

LOOP = 0.0012  # mean seconds that Lightning's loop, the batch and the log add to a step; measured
FASTEST = 0.75  # share of the steps that are averaged: the others were disturbed


def step_seconds(workload: Workload, kind: str, precision: str, seconds: float = 3.0) -> float:
    """Seconds of an optimizer step on one device of this machine.

    Args:
        workload: the run; all micro-batches of one device are computed
        kind: cpu, cuda or mps
        precision: the trainer's
        seconds: time to spend, after two warm-up steps
    """
    step = training_step(workload, kind, precision)
    for _ in range(2):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    times.sort()
    return fmean(times[: max(1, round(FASTEST * len(times)))]) + LOOP


def training_step(workload: Workload, kind: str, precision: str) -> Callable[[], None]:
    """Makes a training step of one device, which waits for the device at its end."""
    net = workload.make_net().to(device=kind, dtype=TRUE_TYPES.get(precision)).train()
    tune_for_training(net)
    keep_freed_memory()
    use_block_masks(net)
    optimizer = make_optimizer(net, workload.optimizer, fused=True)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    forward = CompiledNetwork(net) if workload.compiled else net
    shape, low = (workload.rows, workload.context), MIXED_TYPES.get(precision)
    ids = torch.randint(workload.network.vocab_size, shape, device=kind)
    documents = torch.zeros_like(ids) if workload.network.document_mask else None

    def step() -> None:
        for _ in range(workload.micro_steps):
            with torch.autocast(kind, low or torch.bfloat16, enabled=low is not None):
                loss = forward(ids, documents=documents, targets=ids) / ids.numel()
            loss.backward()
        norm = torch.nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
        norm.item()  # waits for the device
        torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad()

    return step
