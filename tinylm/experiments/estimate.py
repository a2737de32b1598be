"""The cost of a training run before it starts: parameters, operations, memory, time and money.

Parameters are counted. The memory of a step is found by running it on tensors without values (training/memory.py).
Operations are counted by `flops_per_token`. Seconds are measured on this machine; for another device they follow from
its peak and an assumed MFU, or from its memory bandwidth or kernel launches if these take longer.
"""

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from tinylm.experiments.devices import HERE, Device
from tinylm.experiments.measure import step_seconds
from tinylm.experiments.workload import Workload, count_by_part, matrices
from tinylm.model import flops_per_token, parameter_count
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.training.memory import PARTS, StepMemory, allocator_bytes, step_memory
from tinylm.training.precision import MIXED, TRUE, choose_precision, device_kind

MFU = 0.35  # share of the peak that a step is assumed to use
LAUNCH = 6e-6  # seconds between two kernels launched by Python, without compilation
CONTEXT = 600_000_000  # bytes of CUDA's context and of its libraries
LIBRARIES = 40_000_000  # bytes that the processor's libraries load in the first steps; measured
FILLED = 0.95  # share of a device's memory that a run may fill


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a run.

    Attributes:
        parameters: numbers by part of the network; tied weights count once
        trained: parameters that are trained
        token_flops: operations of a token, forward and backward, as `flops_per_token` counts them
        recomputed_flops: operations of a token that `activation_checkpointing` adds
        step_flops: operations of an optimizer step, Muon's iterations included
        run_flops: operations of the run
        precision: the trainer's
        memory: bytes of one device at the peak of a step, by part, for each strategy
        resident: bytes of this process, without a model
        largest_rows: most sequences that fit on a device, for each strategy; None if its memory is unknown
        seconds: of a step
        bound: what limits the speed
        mfu: share of the peak in use, counting `token_flops` alone; None if the peak is unknown
        tokens: of the run
        hours: of the run, without validation
        cost: of all devices; None without a price
    """

    parameters: dict[str, int]
    trained: int
    token_flops: int
    recomputed_flops: int
    step_flops: int
    run_flops: int
    precision: str
    memory: dict[str, dict[str, int]]
    resident: int
    largest_rows: dict[str, int] | None
    seconds: float
    bound: str
    mfu: float | None
    tokens_per_second: float
    tokens: int
    hours: float
    cost: float | None


def estimate(
    workload: Workload, device: Device, *, mfu: float | None = None, price: float | None = None, measuring: float = 3.0
) -> Estimate:
    """Estimates the cost of a run.

    Args:
        workload: the run
        device: the device; the run uses `workload.devices` of them
        mfu: share of the peak in use. None: measured on this machine, elsewhere `MFU`
        price: of one device for an hour
        measuring: seconds to measure for, on this machine
    """
    resident = resident_bytes()
    process = resident + LIBRARIES if device.on_cpu else CONTEXT
    precision = workload.precision or default_precision(device, workload)
    parameters, trained = count_by_part(workload)
    token_flops = training_flops(workload, sum(parameters.values()), trained)
    step_tokens = workload.batch_size * workload.context
    step = simulate(workload, precision)
    again = recomputed_flops(workload, token_flops)
    step_flops = step_tokens * (token_flops + again) + muon_flops(workload)
    seconds, bound = _seconds(workload, device, precision, step, step_flops, mfu, measuring)
    peak = device.peak(precision)
    hours = seconds * workload.steps / 3600
    memory = {name: by_part(step, name, workload, device, process) for name in strategies(workload)}
    fits = None if device.memory is None else largest_rows(workload, device, precision, step, process)
    return Estimate(
        parameters=parameters,
        trained=trained,
        token_flops=token_flops,
        recomputed_flops=again,
        step_flops=step_flops,
        run_flops=step_flops * workload.steps,
        precision=precision,
        memory=memory,
        resident=resident,
        largest_rows=fits,
        seconds=seconds,
        bound=bound,
        mfu=peak and token_flops * step_tokens / seconds / peak / workload.devices,
        tokens_per_second=step_tokens / seconds,
        tokens=step_tokens * workload.steps,
        hours=hours,
        cost=None if price is None else price * hours * workload.devices,
    )


def default_precision(device: Device, workload: Workload) -> str:
    """The precision that `fit` chooses on a device."""
    if device.name == HERE:
        kind = "cpu" if device.on_cpu else device_kind("auto")
        return choose_precision(kind, 1, workload.network.d_model)[0]
    return MIXED if device.bfloat16 else TRUE


# --- operations


def training_flops(workload: Workload, parameters: int, trained: int) -> int:
    """Operations per token: `flops_per_token`, with adapters, and without the gradients of frozen weights."""
    network = replace(workload.network, max_seq_len=workload.context)
    return flops_per_token(network) + 6 * (parameters - parameter_count(workload.network)) - 2 * (parameters - trained)


def recomputed_flops(workload: Workload, token_flops: int) -> int:
    """Operations per token that `activation_checkpointing` adds: the blocks run forward twice, up to their last layer.

    The result of the last layer of a block, `feedforward.output`, is not needed again.
    """
    network = workload.network
    head = 6 * network.vocab_size * network.d_model
    last = 2 * network.num_layers * network.ff_width * network.d_model
    return (token_flops - head) // 3 - last if network.activation_checkpointing else 0


def muon_flops(workload: Workload) -> int:
    """Operations of Muon's iterations in a step: three products of each matrix, of m rows and n ≥ m columns."""
    steps = workload.optimizer.ns_steps if isinstance(workload.optimizer, OptimizerConfig) else 0
    return sum(steps * (4 * m * m * n + 2 * m**3) for m, n in matrices(workload))


# --- memory


def simulate(workload: Workload, precision: str, rows: int | None = None) -> StepMemory:
    """The memory of a step of one device."""
    return step_memory(
        workload.make_net,
        workload.optimizer,
        rows=workload.rows if rows is None else rows,
        context=workload.context,
        precision=precision,
        accumulates=workload.micro_steps > 1,
    )


def strategies(workload: Workload) -> tuple[str, ...]:
    """The strategies by which the devices may share the run."""
    return ("one device",) if workload.devices == 1 else ("ddp", "fsdp")


def by_part(step: StepMemory, strategy: str, workload: Workload, device: Device, process: int) -> dict[str, int]:
    """Bytes of one device, by part.

    DDP keeps a second copy of the gradients. FSDP keeps a share of weights, gradients and states; the weights outside
    the blocks and of two blocks, and the gradients of one block, exist whole at a time.
    """
    parts = {name: getattr(step, name) for name in PARTS}
    if strategy == "ddp":
        parts["buffers"] += step.buckets
    elif strategy == "fsdp":
        for name in ("weights", "gradients", "optimizer"):
            parts[name] = -(-parts[name] // workload.devices)
        counts, _ = count_by_part(workload)
        everything, layers = sum(counts.values()), workload.network.num_layers
        outside = sum(size for name, size in counts.items() if name in ("embedding", "positions", "head"))
        whole = outside + 3 * (everything - outside) // layers
        parts["buffers"] += step.weights * whole // everything
    recomputed = workload.network.activation_checkpointing
    parts["allocator"] = allocator_bytes(sum(parts.values()), on_cpu=device.on_cpu, recomputed=recomputed)
    parts["libraries"] = process
    return parts


def largest_rows(workload: Workload, device: Device, precision: str, step: StepMemory, process: int) -> dict[str, int]:
    """The most sequences that a device can take at once.

    Memory is linear in the sequences: the line through two simulated steps gives a first result, which a second line
    corrects.
    """
    assert device.memory is not None
    found, simulated = {}, cache(partial(simulate, workload, precision))
    for name in strategies(workload):
        rows, other, fitting = workload.rows, 2 * workload.rows, 0
        for _ in range(2):
            totals = [sum(by_part(each, name, workload, device, process).values()) for each in (step, simulated(other))]
            slope = max((totals[1] - totals[0]) / (other - rows), 1)
            fitting = max(0, int(rows + (FILLED * device.memory - totals[0]) / slope))
            if fitting in (0, rows, other):
                break
            other = fitting
        found[name] = fitting
    return found


def resident_bytes() -> int:
    """Memory of this process: Python, PyTorch and Lightning, as in a run."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():  # not Linux
        return 420_000_000
    return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- time


def _seconds(
    workload: Workload, device: Device, precision: str, step: StepMemory, flops: int, mfu: float | None, spend: float
) -> tuple[float, str]:
    """Seconds of a step, and the resource that limits its speed."""
    peak = device.peak(precision)
    if device.name == HERE and peak is None:
        kind = "cpu" if device.on_cpu else device_kind("auto")
        processes = workload.devices if device.on_cpu else 1  # all processes share the processor
        return step_seconds(workload, kind, precision, spend) * processes, "measured here"
    assert peak is not None
    share = MFU if mfu is None else mfu
    bounds = {f"arithmetic at an MFU of {share:.0%}": flops / (peak * share * workload.devices)}
    if device.bandwidth is not None:  # every byte is written and read once, forward and backward
        moved = workload.micro_steps * 2 * (step.activations + step.logits) + 3 * (step.weights + step.optimizer)
        bounds["memory bandwidth"] = moved / device.bandwidth
    if not workload.compiled:
        bounds["kernel launches (model.compile removes them)"] = LAUNCH * step.operations * workload.micro_steps
    bound = max(bounds, key=lambda name: bounds[name])
    return bounds[bound], bound
