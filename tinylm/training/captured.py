"""A whole training step as one CUDA graph, for models so small that launching its kernels takes longer than they run.

Captured is what Lightning does for an optimizer step: forward and backward of all micro-batches, gradient norm,
clipping, and the optimizer. A graph repeats the same kernels on the same memory, so it computes what the step would
compute as long as everything that changes from step to step lies in that memory:

- the batches, which are copied into the graph's own before each replay, with the number of targets;
- the learning rates, which the optimizer reads from the device;
- weights and optimizer state, whose addresses are compared before each replay;
- dropout, whose generator CUDA graphs read; it is seeded before each replay, as before each step.

Everything else is fixed in the graph, and part of its `signature`: another batch shape or weight decay gets a graph of
its own. The first steps of a signature run as they are, on the same path, for compilation and for the memory of the
optimizer; they are steps of the run. Steps that cannot be captured run without a graph, for a reason told in one line.

Weights, optimizer, counters, schedule, checkpoints and callbacks between the steps are the trainer's own, and see no
difference.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from torch import Tensor, nn

from tinylm.data import Batch
from tinylm.errors import notice
from tinylm.training.capturable import hooked, why_not_captured

WARMUP = 2  # steps of each signature before it is captured; the first of a run, without optimizer state, has its own
MAX_GRAPHS = 4  # each has memory of its own
RATE = torch.float32  # type of a learning rate on the device, as PyTorch's fused optimizers read it


class CUDAGraphs:
    """Runs and captures functions on a stream of its own, as CUDA requires."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def run(self, function: Callable[[], None]) -> None:
        """Runs a function that is to be captured later."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()
        current.wait_stream(self.stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Records the kernels of a function without running them, and returns what runs them."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):  # loaders have threads
            function()
        return graph.replay


@dataclass
class Captured:
    """A graph with its memory: batches, gradients, and the results (loss, gradient norm, last micro-batch's loss)."""

    replay: Callable[[], None]
    batches: list[Batch]
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    results: tuple[Tensor, Tensor, Tensor]


class CapturedSteps(_AutomaticOptimization):
    """Lightning's loop over the micro-batches of a step: they are kept until the last, then run at once.

    Args:
        trainer: the trainer, whose loop this one replaces
        module: the module that it trains
        graphs: captures functions
    """

    def __init__(self, trainer: pl.Trainer, module: Any, graphs: CUDAGraphs) -> None:
        super().__init__(trainer)
        self.optim_progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        self.module, self.graphs = module, graphs
        self.parts = list(module.net.modules())
        groups = trainer.optimizers[0].param_groups
        self.rates = torch.zeros(len(groups), dtype=RATE, device=module.device)
        self._batches: list[Batch] = []
        self._captured: dict[Any, Captured] = {}
        self._seen: Counter[Any] = Counter()
        self._loss = self.rates[0]
        self._off = False  # after a capture that failed

    def run(self, optimizer: Any, batch_idx: int, kwargs: Any) -> dict[str, Tensor]:
        """Takes a micro-batch; the last of a step runs the step. Counts as Lightning's own loop does."""
        if self.trainer.lightning_module is not self.module:  # the trainer's next fit
            return super().run(optimizer, batch_idx, kwargs)
        progress = self.optim_progress.optimizer
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._batches = []
            for count in (progress.zero_grad.increment_ready, progress.zero_grad.increment_started):
                count()
            progress.zero_grad.increment_completed()
        self._batches.append(kwargs["batch"])
        if self.trainer.fit_loop._should_accumulate():
            return {}
        progress.step.increment_ready()
        self._step(optimizer)
        progress.step.increment_completed()
        return {"loss": self._loss.clone()}

    def _step(self, optimizer: Any) -> None:
        """Runs an optimizer step: by its graph, or without where it has none yet."""
        if self.module.has_dropout:
            self.module._reseed(0)
        for rate, group in zip(self.rates, optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        signature = self._signature(optimizer)
        if hooked(self.parts):
            self._leave("there are hooks on the network")
        elif signature not in self._captured and not self._off and self._seen[signature] >= WARMUP:
            self._capture(optimizer, signature)
        self._seen[signature] += 1
        if signature in self._captured and not self._off:
            self._replay(optimizer, self._captured[signature])
        else:
            self.graphs.run(self._program(optimizer, [_on_device(batch) for batch in self._batches]))

    def _signature(self, optimizer: Any) -> Any:
        """Everything that a graph fixes: shapes, settings, and the addresses of weights and optimizer state."""
        shapes = [tuple(None if each is None else each.shape for each in _tensors(batch)) for batch in self._batches]
        settings = [
            value for group in optimizer.param_groups for name, value in group.items() if name not in ("params", "lr")
        ]
        states = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
        weights = [(parameter.data_ptr(), parameter.requires_grad) for parameter in self.module.net.parameters()]
        clipping = (self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)
        fixed = (self.trainer.accumulate_grad_batches, self.module.net.training, *clipping)
        return (*shapes, *settings, *map(Tensor.data_ptr, states), *weights, *fixed)

    def _program(self, optimizer: Any, batches: list[Batch], **settings: bool) -> Callable[[], None]:
        """What Lightning does in an optimizer step, hook by hook."""
        strategy, accumulate = self.trainer.strategy, self.trainer.accumulate_grad_batches

        def closure() -> None:
            for index, batch in enumerate(batches):
                loss = strategy.training_step(batch, index) / accumulate
                if index == 0:
                    optimizer.zero_grad()
                strategy.backward(loss, optimizer)
                self._loss = loss.detach()

        def program() -> None:
            with _changed(optimizer, self.rates, settings):
                strategy.optimizer_step(optimizer, closure)

        return program

    def _capture(self, optimizer: Any, signature: Any) -> None:
        if len(self._captured) == MAX_GRAPHS:
            self._leave(f"the batches have more than {MAX_GRAPHS} shapes", off=False)
            return
        batches = [_on_device(batch, copy=True) for batch in self._batches]
        try:
            replay = self.graphs.capture(self._program(optimizer, batches, capturable=True))
        except RuntimeError as error:
            self._leave(str(error).strip().split("\n")[0])
            self.module._step_nll = 0.0
            return
        gradients = [(parameter, parameter.grad) for parameter in self.module.net.parameters()]
        results = self.module.train_loss, self.module.grad_norm, self._loss
        self._captured[signature] = Captured(replay, batches, gradients, results)

    def _replay(self, optimizer: Any, captured: Captured) -> None:
        """Runs a graph on the step's batches, then does on the host what the module does there in a step."""
        for parameter, gradient in captured.gradients:
            parameter.grad = gradient  # None after a validation
        pairs = [
            (ours, each)
            for batch, now in zip(captured.batches, self._batches, strict=True)
            for ours, each in zip(_tensors(batch), _tensors(now), strict=True)
            if each is not None
        ]
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
        for batch, now in zip(captured.batches, self._batches, strict=True):
            batch.num_targets.fill_(now.num_targets)
        captured.replay()
        self.module.train_loss, self.module.grad_norm, self._loss = captured.results
        self.module.lr = optimizer.param_groups[0]["lr"]
        self.module.agree_to_stop(self.module.train_loss)

    def _leave(self, reason: str, off: bool = True) -> None:
        """Goes on without graphs, or without further ones, and says why, once."""
        if not self._off and self._told != reason:
            tell(reason)
        self._off, self._told = self._off or off, reason

    _told = ""


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    return batch.inputs, batch.targets, batch.documents


def _on_device(batch: Batch, copy: bool = False) -> Any:
    """A batch whose number of targets is on the device; a copy of it for a graph's own memory."""
    inputs, targets, documents = (each.clone() if copy and each is not None else each for each in _tensors(batch))
    count = torch.full((), batch.num_targets, dtype=torch.int64, device=batch.inputs.device)
    return batch._replace(inputs=inputs, targets=targets, documents=documents, num_targets=count)


@contextmanager
def _changed(optimizer: Any, rates: Tensor, settings: dict[str, bool]) -> Iterator[None]:
    """Lets the optimizer read the learning rates from the device, with other settings of its groups."""
    before = [dict(group) for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update({name: value for name, value in settings.items() if name in group}, lr=rate)
        yield
    finally:
        for group, old in zip(optimizer.param_groups, before, strict=True):
            group.update(old)


def tell(reason: str) -> None:
    """Says in one line why training steps run without a CUDA graph."""
    notice(f"training steps run without a CUDA graph: {reason}")


def make_graphs(device: torch.device) -> CUDAGraphs | None:
    """What captures on this device; None where there are no CUDA graphs."""
    return CUDAGraphs() if device.type == "cuda" else None


def capture_steps(trainer: pl.Trainer, module: Any) -> None:
    """Lets a trainer run each step of a compiled module as one CUDA graph, if there are such graphs on its device."""
    graphs = make_graphs(module.device)
    if graphs is None:
        return
    if reason := why_not_captured(trainer, module):
        tell(reason)
    else:
        loop = trainer.fit_loop.epoch_loop
        loop.automatic_optimization = CapturedSteps(trainer, module, graphs)
