"""A whole training step as one CUDA graph, for models whose kernels take longer to launch than to run.

The capture covers Lightning's optimizer step: forward and backward of all micro-batches, gradient norm, clipping,
optimizer. A graph repeats the same kernels on the same memory, so it computes the step as long as all that
changes lies in that memory: the batches and their number of targets, copied in before each replay; the learning rates,
which the optimizer reads from the device; weights and optimizer state. Dropout reads CUDA's generator, which is seeded
before each replay as before each step. Everything else is part of a `signature`, and each signature has its own
graph. The first steps of a signature run on the same path without a graph, for compilation, and count as usual.

Python code within a step would run only once, during the capture. Where that could matter, steps run as usual, and one
printed line says why. Counters, schedule, checkpoints, and callbacks between the steps are the trainer's own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from tinylm.data import Batch
from tinylm.errors import first_line, notice
from tinylm.optim.late import reads_found_inf
from tinylm.optim.optimizer import base_rate
from tinylm.training.profiling import StepProfile
from tinylm.training.ranks import RankWatch

WARMUP = 2  # steps of a signature before its capture; a run's first step, without optimizer state, has its own
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
        """Records the kernels of a function without running them, and returns a function that runs them."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):  # loaders have threads
            function()
        return graph.replay


@dataclass
class Captured:
    """A graph and its memory: batches, gradients, and the results (loss, gradient norm, last micro-batch's loss)."""

    replay: Callable[[], None]
    batches: list[Tensor]
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    results: tuple[Tensor, Tensor, Tensor]


class CapturedSteps(_AutomaticOptimization):
    """Lightning's loop over the micro-batches of a step, but deferred: the last micro-batch runs all of them."""

    def __init__(self, trainer: pl.Trainer, module: Any, graphs: CUDAGraphs) -> None:
        super().__init__(trainer)
        self.optim_progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        self.module, self.graphs, self.parts = module, graphs, list(module.net.modules())
        self.rates = torch.zeros(0, dtype=RATE, device=module.device)
        self._batches: list[Batch] = []
        self._first = 0  # index of the first one
        self._captured: dict[Any, Captured] = {}
        self._seen: Counter[Any] = Counter()
        self._loss = self.rates
        self._reason = ""  # why graphs are no longer used

    def run(self, optimizer: Any, batch_idx: int, kwargs: Any) -> dict[str, Tensor]:
        """Takes a micro-batch; the last of a step runs the step. Counts as Lightning's own loop does."""
        if self.trainer.lightning_module is not self.module:  # the trainer's next fit
            return super().run(optimizer, batch_idx, kwargs)
        progress = self.optim_progress.optimizer
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._batches, self._first = [], batch_idx
            progress.zero_grad.increment_ready()
            progress.zero_grad.increment_started()
            progress.zero_grad.increment_completed()
        batch = kwargs["batch"]
        count = torch.full((), batch.num_targets, dtype=torch.int64, device=batch.inputs.device)
        self._batches.append(batch._replace(num_targets=count))
        if self.trainer.fit_loop._should_accumulate():
            return {}
        progress.step.increment_ready()
        self._step(optimizer)
        progress.step.increment_completed()
        return {"loss": self._loss.clone()}

    def _step(self, optimizer: Any) -> None:
        """Runs an optimizer step by its graph, or without where it has none."""
        if self.module.has_dropout or self.module.own_code:
            self.module._reseed(self._first)
        if len(self.rates) != len(optimizer.param_groups):
            self.rates = self.rates.new_zeros(len(optimizer.param_groups))
        for rate, group in zip(self.rates, optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if hooked(self.parts):
            self._leave("there are hooks on the network")
        captured = None if self._reason else self._find(optimizer)
        if captured is None:
            self.graphs.run(self._program(optimizer, self._batches))
        else:
            for parameter, gradient in captured.gradients:
                parameter.grad = gradient  # None after a validation
            torch._foreach_copy_(captured.batches, _tensors(self._batches))
            captured.replay()
            self.module.train_loss, self.module.grad_norm, self._loss = captured.results
            self.module.agree_to_stop(self.module.train_loss)  # which on_before_optimizer_step does on the host
        self.module.step_lr = base_rate(optimizer)  # not the tensor that the optimizer read

    def _find(self, optimizer: Any) -> Captured | None:
        """The graph of the signature of this step, captured now if it is due."""
        signature = self._signature(optimizer)
        self._seen[signature] += 1
        if signature not in self._captured and self._seen[signature] > WARMUP:
            if len(self._captured) < MAX_GRAPHS:
                self._capture(optimizer, signature)
            elif self._seen["more"] == 0:
                self._seen["more"] = 1
                tell(f"the batches have more than {MAX_GRAPHS} shapes; only the first of them have a graph")
        return self._captured.get(signature)

    def _signature(self, optimizer: Any) -> Any:
        """Everything that a graph fixes: shapes, settings, and the addresses of weights and optimizer state."""
        settings = [
            each for group in optimizer.param_groups for each in group.items() if each[0] not in ("params", "lr")
        ]
        states = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
        weights = [(each.data_ptr(), each.requires_grad) for each in self.module.net.parameters()]
        trainer = self.trainer
        fixed = (trainer.accumulate_grad_batches, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        shapes = [each.shape for each in _tensors(self._batches)]
        return (*shapes, *settings, *map(Tensor.data_ptr, states), *weights, *fixed, self.module.net.training)

    def _program(self, optimizer: Any, batches: list[Batch], **settings: bool) -> Callable[[], None]:
        """An optimizer step as Lightning runs it, hook by hook."""
        strategy, accumulate = self.trainer.strategy, self.trainer.accumulate_grad_batches

        def closure() -> None:
            for index, batch in enumerate(batches, self._first):
                loss: Any = strategy.training_step(batch, index)
                loss = loss / accumulate
                if index == self._first:
                    optimizer.zero_grad()
                strategy.backward(loss, optimizer)
                self._loss = loss.detach()

        def program() -> None:
            with _changed(optimizer, self.rates, settings):
                strategy.optimizer_step(optimizer, closure)

        return program

    def _capture(self, optimizer: Any, signature: Any) -> None:
        batches = [
            batch._make(each.clone() if torch.is_tensor(each) else each for each in batch) for batch in self._batches
        ]
        try:
            replay = self.graphs.capture(self._program(optimizer, batches, capturable=True))
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture that failed raises another error
            self._leave(first_line(cause))
            self.module._step_losses = {}  # of the step that was cut off
            return
        gradients = [(parameter, parameter.grad) for parameter in self.module.net.parameters()]
        results = self.module.train_loss, self.module.grad_norm, self._loss
        self._captured[signature] = Captured(replay, _tensors(batches), gradients, results)

    def _leave(self, reason: str) -> None:
        """Continues without graphs, and says why."""
        if not self._reason:
            tell(reason)
        self._reason = reason


def _tensors(batches: list[Batch]) -> list[Tensor]:
    return [each for batch in batches for each in batch if isinstance(each, Tensor)]


@contextmanager
def _changed(optimizer: Any, rates: Tensor, settings: dict[str, bool]) -> Iterator[None]:
    """Lets the optimizer read its learning rates from the device, with other settings where a group has them."""
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
    """The means to capture on this device; None where there are no CUDA graphs."""
    return CUDAGraphs() if device.type == "cuda" else None


def capture_steps(trainer: pl.Trainer, module: Any) -> None:
    """Lets a trainer run each step of a compiled module as one CUDA graph, on a device that has such graphs."""
    if (graphs := make_graphs(module.device)) is None:
        return
    if reason := why_not_captured(trainer, module):
        tell(reason)
    else:
        trainer.fit_loop.epoch_loop.automatic_optimization = CapturedSteps(trainer, module, graphs)


# --- what cannot be captured

PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-true")  # with 16-mixed the host decides on steps
WITHIN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
OF_MODULE = (*WITHIN, "forward", "training_step", "summed_loss", "backward", "optimizer_step", "optimizer_zero_grad",
             "configure_gradient_clipping", "agree_to_stop")  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(parts: Iterable[nn.Module]) -> bool:
    """Whether any of these modules has forward or backward hooks."""
    return any(getattr(part, name) for part in parts for name in HOOKS)


def why_not_captured(trainer: Any, module: Any) -> str | None:
    """The first reason for which a LitTransformerLM's steps cannot be captured; None if they can."""
    optimizer: Any = trainer.optimizers[0]
    several = trainer.accumulate_grad_batches > 1
    base = next(each for each in type(module).__mro__ if each.__module__ == "tinylm.training.module")
    own = next((name for name in OF_MODULE if getattr(type(module), name) is not getattr(base, name)), None)
    within = next(filter(None, (_hook_within(each, several) for each in trainer.callbacks)), None)
    on_weights = any(each._backward_hooks or each._post_accumulate_grad_hooks for each in module.net.parameters())
    reasons = {
        f"the strategy is {type(trainer.strategy).__name__}": type(trainer.strategy) is not SingleDeviceStrategy,
        f"trainer.precision is {trainer.precision}": str(trainer.precision) not in PRECISIONS,
        f"the optimizer is {type(optimizer).__name__}, without a fused step": not reads_found_inf(optimizer),
        "the optimizer has hooks": bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks),
        "there are hooks on the network": hooked(module.net.modules()) or on_weights,
        f"{type(module).__name__} has its own {own}": own is not None,
        "model.objective computes the loss": module.objective is not None,
        "modules of the network add losses": bool(module._auxiliary.modules),
        f"{within} runs within a step": within is not None,
        "trainer.profiler measures within a step": type(trainer.profiler) is not PassThroughProfiler,
        "trainer.detect_anomaly reads every result": torch.is_anomaly_enabled(),
        "dropout differs between micro-batches; raise data.micro_batch_size": module.has_dropout and several,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _hook_within(callback: Callback, several: bool) -> str | None:
    """A hook of a callback within a step; an unknown hook may change the network, or read each micro-batch's loss."""
    ours = type(callback).__module__.startswith(("tinylm.", "lightning."))
    stranger = not ours or isinstance(callback, LambdaCallback | StepProfile)
    others = {"on_train_batch_start": stranger, "on_train_batch_end": stranger and several}
    names = [*WITHIN, *(name for name, counts in others.items() if counts)]
    for name in () if isinstance(callback, RankWatch) else names:  # which does nothing in one process
        if getattr(getattr(callback, name), "__func__", None) is not getattr(Callback, name):
            return f"{type(callback).__name__}.{name}"
    return None
