"""Optional callbacks that log gradients, attention and activations during training, and dropout annealing.

They are listed under `trainer.callbacks` (configs/overlays/inspect.yaml). Only DropoutAnnealing changes training. Costs
are given in training steps of `small.yaml` (16 x 128 tokens, one core of an AMD EPYC server); divided by
`every_n_steps` they are the share of the training time.
"""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.attention import head_scores
from tinylm.analysis.gradients import gradient_norms
from tinylm.checks import require
from tinylm.data import Batch
from tinylm.model.attention import Attention, documents_apart
from tinylm.training.checkpoint import finished_step
from tinylm.training.module import LitTransformerLM
from tinylm.training.rows import row_is_due


def log(trainer: pl.Trainer, step: int, values: dict[str, float]) -> None:
    """Sends the metrics of an optimizer step to all loggers."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)


class GradientNorms(Callback):
    """Logs `gradients/<part>`, the gradient norm of every part of the network before clipping.

    Costs 1/500 of a step.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Creates the callback.

        Args:
            every_n_steps: Optimizer steps between measurements
        """
        require(every_n_steps >= 1, f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._found: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: LitTransformerLM, optimizer: Any) -> None:
        """Measures if this step is due."""
        if (trainer.global_step + 1) % self.every_n_steps == 0:
            norms = gradient_norms(pl_module.net)  # sharded like the weights: every process must add its own
            whole = {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in norms.items()}
            self._found = {f"gradients/{name}": norm.item() for name, norm in whole.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs after the step, since loggers may read the gradients themselves."""
        if self._found:
            log(trainer, trainer.global_step, self._found)
            self._found = {}


class Inspection(Callback):
    """Base class of callbacks that re-run part of a batch.

    This happens after the step, in evaluation mode, on rank 0 alone, and draws no random numbers.
    """

    def __init__(self, every_n_steps: int = 100, rows: int = 4) -> None:
        """Creates the callback.

        Args:
            every_n_steps: Optimizer steps between measurements
            rows: Sequences of the batch to run again
        """
        for name, value in (("every_n_steps", every_n_steps), ("rows", rows)):
            require(value >= 1, f"{name} must be at least 1, got {value}")
        self.every_n_steps, self.rows = every_n_steps, rows

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Refuses sharded weights."""
        name = type(self).__name__
        require(
            not isinstance(pl_module.net, FSDPModule),
            f"{name}: needs whole weights, and fsdp shards them; leave it out",
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measures and logs if this step is due."""
        due = finished_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0
        if due and trainer.is_global_zero:
            ids = batch.inputs[: self.rows]
            known = None if batch.documents is None else batch.documents[: self.rows]
            documents = documents_apart(pl_module.network, ids, pl_module.tokenizer.end_of_text, known)
            log(trainer, trainer.global_step, self.inspect(pl_module, ids, documents))

    def inspect(self, pl_module: LitTransformerLM, ids: Tensor, documents: Tensor | None) -> dict[str, float]:
        """Computes the metrics to log."""
        raise NotImplementedError


class AttentionEntropy(Inspection):
    """Logs `attention/blocks.<n>.entropy`, the mean over heads in nats, and `.sharpest`, the lowest of a head.

    If the entropy of a head collapses early, it has stopped learning where to attend, and its scores tend to grow
    without bound. Costs 1/10 of a step.
    """

    def inspect(self, pl_module: LitTransformerLM, ids: Tensor, documents: Tensor | None) -> dict[str, float]:
        """The attention entropies of every layer."""
        found = {}
        for layer, entropies in enumerate(head_scores(pl_module.net, ids, documents).entropy):
            found[f"attention/blocks.{layer}.entropy"] = entropies.mean().item()
            found[f"attention/blocks.{layer}.sharpest"] = entropies.min().item()
        return found


class ActivationStatistics(Inspection):
    """Logs the standard deviation of activations, their largest value, and the share of dead units, for every block.

    `activations/blocks.<n>.<attention|feedforward|units|stream>.std`, `.stream.largest` (in standard deviations) and
    `.units.dead` (a fraction); `activations/embedding.std`. Costs 1/9 of a step.
    """

    def inspect(self, pl_module: LitTransformerLM, ids: Tensor, documents: Tensor | None) -> dict[str, float]:
        """The statistics of every place."""
        found = {}
        for each in activation_statistics(pl_module.net, ids, documents):
            name = "activations/" + (each.place if each.layer < 0 else f"blocks.{each.layer}.{each.place}")
            found[f"{name}.std"] = each.std
            if each.place == "stream":
                found[f"{name}.largest"] = each.largest
            if each.place == "units":
                found[f"{name}.dead"] = each.dead
        return found


class DropoutAnnealing(Callback):
    """Changes dropout linearly from the config's value to another, and logs it as `dropout`.

    It is a function of the step alone, so a resumed run is unaffected. Its cost is not measurable.
    """

    def __init__(self, final: float = 0.0, begin: float = 0.0, end: float = 1.0) -> None:
        """Creates the callback.

        Args:
            final: Dropout at the end
            begin: Fraction of the run at which the change begins
            end: Fraction of the run at which it ends
        """
        require(0 <= final < 1, f"final must be in [0, 1), got {final}")
        require(0 <= begin < end <= 1, f"begin and end must be in order and in [0, 1], got {begin} and {end}")
        self.final, self.begin, self.end = final, begin, end
        self.now = final

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Refuses a model without dropout, and compilation."""
        require(pl_module.network.dropout > 0, "DropoutAnnealing: model.network.dropout is 0; set the initial dropout")
        require(pl_module._compiled is None, "DropoutAnnealing: would recompile every step; set model.compile=false")

    def dropout(self, start: float, done: float) -> float:
        """The dropout at some point of the run.

        Args:
            start: initial dropout
            done: fraction of the steps that are done
        """
        progress = min(max((done - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return start + (self.final - start) * progress

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, batch: Any, batch_idx: int
    ) -> None:
        """Sets the dropout of the step."""
        done = trainer.global_step / max(int(trainer.estimated_stepping_batches), 1)
        self.now = self.dropout(pl_module.network.dropout, done)
        for module in pl_module.net.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.now
            elif isinstance(module, Attention):
                module.dropout = self.now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the dropout of the step."""
        if finished_step(trainer, batch_idx) and row_is_due(trainer, trainer.global_step):
            log(trainer, trainer.global_step, {"dropout": self.now})
