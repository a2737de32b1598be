"""The precision of a run whose config leaves `trainer.precision` out.

It follows from the device and the model alone, not from a measurement, so that all runs of one seed and all ranks of
a job compute alike. config.yaml records it, and a resumed run reads it there.
"""

import time
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tinylm.checks import require
from tinylm.errors import notice
from tinylm.safe_yaml import read_yaml
from tinylm.training.memory import MIXED_TYPES, TRUE_TYPES
from tinylm.training.preflight import chosen_devices

TRUE, MIXED = "32-true", "bf16-mixed"
AMPERE = (8, 0)  # the first compute capability that multiplies in bfloat16, and in TF32
INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # of a processor that multiplies in bfloat16
WIDTH = 192  # d_model from which bfloat16 trains faster; measured


def set_precision(config: Any, folder: Path) -> str | None:
    """Fills in an unset `trainer.precision`: from the resumed run, else by `choose_precision`.

    Args:
        config: options of `fit`, changed in place
        folder: the run folder

    Returns:
        the reason for a choice other than 32-true
    """
    trainer, reason, path = config.trainer, None, folder / "config.yaml"
    kind = device_kind(trainer.accelerator)
    if trainer.precision is None and config.resume and path.is_file():
        trainer.precision = (read_yaml(path).get("trainer") or {}).get("precision")
    elif trainer.precision is None and not trainer.plugins:  # a plugin may set the precision
        trainer.precision, reason = choose_precision(kind, trainer.devices, config.model.network.d_model)
    if kind == "cuda" and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")  # products of float32 matrices in TF32
    return reason


def choose_precision(kind: str, devices: Any, d_model: int) -> tuple[str, str | None]:
    """The precision for a kind of device, and the reason if it is not 32-true.

    Args:
        kind: cuda, cpu, ...
        devices: `trainer.devices`
        d_model: width of the model
    """
    if kind == "cuda":
        numbers = chosen_devices(devices, on_cpu=False) or range(torch.cuda.device_count())
        major, minor = min(map(torch.cuda.get_device_capability, numbers))
        return (MIXED, f"compute capability {major}.{minor}") if (major, minor) >= AMPERE else (TRUE, None)
    found = [each for each in INSTRUCTIONS if torch.cpu.get_capabilities().get(each)] if kind == "cpu" else []
    return (MIXED, f"{found[0]}, d_model of at least {WIDTH}") if found and d_model >= WIDTH else (TRUE, None)


def device_kind(accelerator: Any) -> str:
    """The kind of device that `trainer.accelerator` means: cpu, cuda, mps, or another by its name."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator in ("auto", "gpu"):
        return next((kind for kind in usable if usable[kind]), "cpu")
    return str(accelerator)


def product_type(precision: str) -> torch.dtype:
    """The type of the matrix products in a precision of Lightning's, such as `bf16-mixed`."""
    return (TRUE_TYPES | MIXED_TYPES).get(precision, torch.float32)


def warn_of_slow_types(kind: str, precision: str, ns_dtype: str = "auto") -> None:
    """Says so if a processor multiplies faster in float32 than in the types of 16 bits that the options ask for.

    Args:
        kind: kind of the device; only cpu is measured
        precision: the trainer's
        ns_dtype: `model.optimizer.ns_dtype`
    """
    chosen = (
        ("trainer.precision", precision, product_type(precision), "32-true"),
        ("model.optimizer.ns_dtype", ns_dtype, getattr(torch, ns_dtype, torch.float32), "float32"),
    )
    for option, value, dtype, faster in chosen:
        if kind == "cpu" and dtype.itemsize == 2 and (times := time_beside_float32(dtype)) >= 2:
            slow = f"{option} is {value}, but this processor multiplies {times:,.0f} times faster in float32"
            notice(f"{slow}: set {faster}")


@cache
def time_beside_float32(dtype: torch.dtype, size: int = 256) -> float:
    """The time of a square matrix product in a type, as a multiple of its time in float32, on the processor."""
    seconds = {torch.float32: float("inf"), dtype: float("inf")}
    for each in seconds:
        matrix = torch.ones(size, size, dtype=each)  # not random: the numbers of the run stay
        for _ in range(4):  # the first is slower
            started = time.perf_counter()
            torch.matmul(matrix, matrix)
            seconds[each] = min(seconds[each], time.perf_counter() - started)
    return seconds[dtype] / seconds[torch.float32]


class SamePrecision(Callback):
    """Refuses ranks whose machines have chosen different precisions."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares the precision with that of the first rank."""
        ours, first = trainer.precision, trainer.strategy.broadcast(trainer.precision)
        chosen = f"rank 0 has chosen {first}, rank {trainer.global_rank} {ours}"
        require(ours == first, f"trainer.precision: {chosen}: the machines differ; set trainer.precision")
