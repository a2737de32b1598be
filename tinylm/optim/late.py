"""The check that a step is finite, made on the device; the host reads its result one step later, without waiting.

A step whose loss or gradient norm is not finite changes nothing, nor does any after it: the optimizer reads `found_inf`
on the device, as under PyTorch's GradScaler. Weights and optimizer state stay those of the last good step until the
host raises. It reads a step's result after it has launched the next, and at once before a checkpoint, a validation, a
row of metrics, and at the end. Therefore no checkpoint counts a step that did nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tinylm.optim.muon import Muon
from tinylm.optim.optimizer import check_finite


def reads_found_inf(optimizer: Any) -> bool:
    """Whether an optimizer leaves weights and state unchanged where its attribute `found_inf` is 1."""
    fused = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and all(g["fused"] for g in optimizer.param_groups)
    sharded = any(isinstance(each, DTensor) for group in optimizer.param_groups for each in group["params"])
    return (fused or type(optimizer) is Muon) and not sharded


def late_check(optimizer: Any, device: torch.device, precision: str) -> "LateCheck | None":
    """The check of a run; None where the host checks each step itself: off CUDA, and with a loss scaler."""
    late = device.type == "cuda" and precision != "16-mixed" and reads_found_inf(optimizer)
    return LateCheck(optimizer, device, precision) if late else None


class LateCheck:
    """Checks loss and gradient norm of every optimizer step on the device.

    Args:
        optimizer: one for which `reads_found_inf` is true
        device: the device of the weights
        precision: the trainer's, for the message
    """

    def __init__(self, optimizer: Any, device: torch.device, precision: str) -> None:
        self.precision = precision
        self.found = optimizer.found_inf = torch.zeros((), device=device)  # 1 from the first bad step on
        self.report = torch.zeros(3, dtype=torch.float64, device=device)  # found, and this step's loss and norm
        self._sent: tuple[int, Tensor, Any] | None = None  # step, report, and on CUDA the event of its copy

    def judge(self, loss: Tensor, norm: Tensor) -> None:
        """Marks a step that is not finite, before the optimizer runs, by its loss and gradient norm, two scalars."""
        values = torch.stack([loss.double(), norm.double()])
        self.found.copy_(torch.maximum(self.found, 1 - torch.isfinite(values).all().float()))
        self.report.copy_(torch.cat([self.found.double()[None], values]))

    def send(self, step: int) -> None:
        """Starts to copy the result of a step to the host, and reads that of the step before.

        Raises:
            NumericError: naming the step before, if that was not finite.
        """
        before, report = self._sent, self.report.to("cpu", non_blocking=True, copy=True)  # into pinned memory
        self._sent = step, report, torch.cuda.current_stream().record_event() if self.found.is_cuda else None
        if before is not None:
            self._read(*before)

    def settle(self, step: int) -> None:
        """Waits for the device, and raises NumericError for the first step up to this one that was not finite."""
        self.send(step)
        assert self._sent is not None
        self._read(*self._sent)

    def _read(self, step: int, report: Tensor, copied: Any) -> None:
        if copied is not None:
            copied.synchronize()
        if report[0]:
            check_finite(step, self.precision, loss=report[1], **{"gradient norm": report[2]})
