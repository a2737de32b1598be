"""Accelerators by name: peak operations per second, memory and its bandwidth, as stated by the makers.

Peaks are for dense products; the larger figures in data sheets are for sparse ones. Sources: docs/estimate.md.
"""

from dataclasses import dataclass, replace

import torch

from tinylm.errors import ConfigError, did_you_mean
from tinylm.training.memory_check import device_memory
from tinylm.training.precision import device_kind

HERE = "this machine"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, or the processor of this machine.

    Attributes:
        name: name in the table, or `HERE`
        low: peak FLOP/s in bfloat16, or in float16 where there is no bfloat16. None: measured
        single: peak FLOP/s of float32 matrices, in TF32 where there is TF32
        memory: bytes
        bandwidth: bytes per second
        bfloat16: whether `fit` chooses bf16-mixed on it
        on_cpu: whether it is a processor, whose memory the program shares
    """

    name: str
    low: float | None = None
    single: float | None = None
    memory: int | None = None
    bandwidth: float | None = None
    bfloat16: bool = True
    on_cpu: bool = False

    def peak(self, precision: str) -> float | None:
        """Peak FLOP/s in the trainer's precision; None if it is to be measured."""
        return self.low if precision.startswith(("bf16", "16")) else self.single


def _table(*rows: tuple[str, float, float, int, float, bool]) -> dict[str, Device]:
    return {
        name: Device(
            name=name,
            low=low * 1e12,
            single=single * 1e12,
            memory=memory * 10**9,
            bandwidth=bandwidth * 1e9,
            bfloat16=bfloat16,
        )
        for name, low, single, memory, bandwidth, bfloat16 in rows
    }


DEVICES = _table(  # 16 bits and float32 in TFLOP/s, memory in GB, bandwidth in GB/s, bfloat16
    ("b200", 2250, 1100, 180, 8000, True),
    ("h200", 989, 494, 141, 4800, True),
    ("h100", 989, 494, 80, 3350, True),
    ("a100-80", 312, 156, 80, 2039, True),
    ("a100-40", 312, 156, 40, 1555, True),
    ("mi300x", 1307, 653, 192, 5300, True),
    ("l40s", 362, 183, 48, 864, True),
    ("l4", 121, 60, 24, 300, True),
    ("a10", 125, 62, 24, 600, True),
    ("rtx4090", 165, 82, 24, 1008, True),
    ("rtx3090", 71, 35, 24, 936, True),
    ("v100", 125, 15.7, 32, 900, False),
    ("t4", 65, 8.1, 16, 320, False),
)


def find_device(name: str | None, peak_flops: float | None = None, memory: float | None = None) -> Device:
    """A device by name; given figures replace those of the table.

    Args:
        name: a name of the table, or cpu, cuda, mps or auto: this machine's own. None: auto, or, with a peak and a
            memory, a device that the table lacks
        peak_flops: peak FLOP/s in the precision of the run
        memory: GB

    Raises:
        ConfigError: if there is no such device, or a figure is not positive.
    """
    for option, value in (("--peak-flops", peak_flops), ("--memory", memory)):
        if value is not None and value <= 0:
            raise ConfigError(f"{option} must be positive, got {value}")
    if name is None and peak_flops is not None and memory is not None:
        device = Device(name="the given device")
    elif name is None or name in ("auto", "cpu", "cuda", "mps"):
        device = this_machine(name or "auto")
    else:
        device = DEVICES.get(name.lower().replace("_", "-"))
        if device is None:
            raise ConfigError(f"--device: no {name} in the table{_hint(name)}; or give --peak-flops and --memory")
    if peak_flops is not None:
        device = replace(device, low=peak_flops, single=peak_flops)
    return device if memory is None else replace(device, memory=int(memory * 1e9))


def _hint(name: str) -> str:
    similar = [known for known in DEVICES if known.startswith(name.lower())]
    if similar:
        return f", did you mean {' or '.join(map(repr, similar))}?"
    return did_you_mean(name.lower(), DEVICES) or f", which has {', '.join(DEVICES)}"


def this_machine(name: str) -> Device:
    """The device of this machine that `fit` would use, or the one of this kind."""
    kind = device_kind(name)
    if kind != "cpu" and not {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind):
        raise ConfigError(f"--device {name}: this machine has none; use cpu, or one of {', '.join(DEVICES)}")
    return Device(name=HERE, memory=device_memory(torch.device(kind)), on_cpu=kind == "cpu")
