"""Memory of a training step, part by part, found by running it on tensors without values.

PyTorch's fake tensors have a shape, a type and a storage whose size is known, but no memory. A whole step runs on them,
forward, backward and optimizer, in a second or two whatever the size of the model, and each storage is counted from the
operation that creates it until nothing refers to it. The result is therefore the exact peak of the program. An
allocator reserves more than it is asked for: `allocator_bytes`.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinylm.errors import ConfigError, first_line
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.model import TransformerLM
from tinylm.optim.optimizer import OptimizerConfig, make_optimizer
from tinylm.plugins import Part

TRUE_TYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
MIXED_TYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")

ON_CPU, ON_CUDA = 0.5, 0.08  # shares that an allocator reserves beyond the existing tensors: measured, assumed
RECOMPUTED = 1.6  # the same on a processor with `activation_checkpointing`: short-lived tensors leave gaps


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes at the peak of a step, by part, and the operations of the step.

    Attributes:
        weights: parameters
        gradients: gradients that exist at the peak
        optimizer: states of the optimizer
        activations: kept for the backward pass, and the work space of the operation at the peak
        logits: tensors with an entry for each token and word of the vocabulary
        buffers: tables of positions, and other tensors that outlive a step
        operations: operations that write memory, each of which is a kernel where nothing is compiled
        buckets: a copy of all gradients, which DDP keeps beside these parts to sum them over processes
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    operations: int
    buckets: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(getattr(self, name) for name in PARTS)


def allocator_bytes(existing: int, *, on_cpu: bool, recomputed: bool) -> int:
    """Bytes that an allocator reserves beyond the tensors that exist at the peak of a step.

    Args:
        existing: bytes of these tensors
        on_cpu: whether the step runs on a processor
        recomputed: whether `activation_checkpointing` recomputes activations
    """
    share = (RECOMPUTED if recomputed else ON_CPU) if on_cpu else ON_CUDA
    return int(share * existing)


def fake_copy(net: TransformerLM) -> TransformerLM:
    """A copy of a network on tensors without values, within the mode of `step_memory`."""
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeCopyMode

    mode = detect_fake_mode()
    assert mode is not None
    with FakeCopyMode(mode):
        return copy.deepcopy(net)


def step_memory(
    make_net: Callable[[], TransformerLM],
    optimizer: OptimizerConfig | Part,
    *,
    rows: int,
    context: int,
    precision: str = "32-true",
    accumulates: bool = False,
) -> StepMemory:
    """The memory of a training step.

    Args:
        make_net: creates the network, or copies it by `fake_copy`
        optimizer: the optimizer and its settings
        rows: sequences of a micro-batch
        context: tokens of a sequence
        precision: the trainer's
        accumulates: whether the gradients of several micro-batches are summed, so that they outlive the backward pass

    Raises:
        ConfigError: if a part of the network needs values, which fake tensors lack.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), _Storages() as storages:
        net = make_net().train()
        _convert(net, TRUE_TYPES.get(precision, torch.float32))
        tune_for_training(net)
        storages.tag("weights", net.parameters())
        rule = make_optimizer(net, optimizer, fused=True)
        storages.vocabulary, storages.targets = (
            net.config.vocab_size,
            min(rows * context, net.loss_rows or rows * context),
        )
        step = _Step(net, rule, rows, context, MIXED_TYPES.get(precision), accumulates)
        try:
            step.run(storages)  # creates the states of the optimizer, and tables
            storages.begin()
            step.run(storages)
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"model.network: its memory cannot be estimated: {first_line(error)}") from error
    buckets = sum(parameter.nbytes for parameter in net.parameters() if parameter.requires_grad)
    return StepMemory(**{name: storages.peak[name] for name in PARTS}, operations=storages.operations, buckets=buckets)


def _convert(net: nn.Module, dtype: torch.dtype) -> None:
    """Gives all parameters a type; `net.to(dtype)` does not take fake ones."""
    converted = {
        parameter: nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
        for parameter in net.parameters()
        if parameter.dtype != dtype and parameter.is_floating_point()
    }
    for module in net.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = converted.get(parameter, parameter)  # pyright: ignore


@dataclass
class _Step:
    """A step in Lightning's order: the gradients of the previous step are freed after the forward pass."""

    net: TransformerLM
    optimizer: torch.optim.Optimizer
    rows: int
    context: int
    low: torch.dtype | None
    accumulates: bool

    def run(self, storages: "_Storages") -> None:
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        ids = torch.zeros(self.rows, self.context, dtype=torch.long)
        documents = ids if self.net.config.document_mask else None
        with torch.autocast("cpu", self.low or torch.bfloat16, enabled=self.low is not None):
            loss = self.net(ids, documents=documents, targets=ids)
        if not self.accumulates:
            self.optimizer.zero_grad()
        loss.backward()
        del loss
        storages.tag("gradients", (parameter.grad for parameter in trained if parameter.grad is not None))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        states = (value for state in self.optimizer.state.values() for value in state.values())
        storages.tag("optimizer", (value for value in states if isinstance(value, Tensor)))


class _Storages(TorchDispatchMode):
    """Counts the bytes of all storages that exist, by part, and keeps the counts of the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = self.targets = 0
        self.known: dict[int, tuple[str, int]] = {}  # part and size of a storage
        self.now: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        """Forgets the peak so far; whatever exists and belongs to no other part outlives a step."""
        for key, (part, _) in list(self.known.items()):
            if part in ("activations", "logits"):
                self._move(key, "buffers")
        self.peak, self.operations = Counter(self.now), 0

    def tag(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Counts storages for a part."""
        for tensor in tensors:
            if (key := tensor.untyped_storage()._cdata) in self.known:
                self._move(key, part)

    def _move(self, key: int, part: str) -> None:
        before, size = self.known[key]
        self.now[before] -= size
        self.now[part] += size
        self.known[key] = part, size

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        new = [self._add(tensor) for tensor in made]
        self.operations += any(new) or func._schema.is_mutable
        return result

    def _add(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return False
        part = "logits" if self._is_logits(tensor) else "activations"
        self.known[key] = part, size
        self.now[part] += size
        weakref.finalize(storage, self._drop, key)
        if self.now.total() > self.peak.total():
            self.peak = Counter(self.now)
        return True

    def _is_logits(self, tensor: Tensor) -> bool:
        return tensor.shape[-1:] == (self.vocabulary,) and tensor.numel() == self.vocabulary * self.targets

    def _drop(self, key: int) -> None:
        part, size = self.known.pop(key)
        self.now[part] -= size
