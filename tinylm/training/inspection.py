"""Looking inside while training, by choice: gradients, attention, activations to the loggers; and dropout that fades.

They are listed under `trainer.callbacks` (configs/overlays/inspect.yaml), and change nothing of what a run computes but
for `DropoutAnnealing`, which is there to. What a look costs is said of each, in steps of `small.yaml` (16 x 128 tokens,
one core of an AMD EPYC server); divided by `every_n_steps` it is the share of the training's time.
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
from tinylm.model.attention import Attention
from tinylm.training.checkpoint import finished_step
from tinylm.training.module import LitTransformerLM


def log(trainer: pl.Trainer, step: int, values: dict[str, float]) -> None:
    """Gives figures of an optimizer step to all loggers."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)


class GradientNorms(Callback):
    """Logs `gradients/<part>`: the norm of the gradient of every part of the network, before clipping.

    A look costs a five-hundredth of a step.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        """Gradient norms.

        Args:
            every_n_steps: optimizer steps between two looks
        """
        require(every_n_steps >= 1, f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._found: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: LitTransformerLM, optimizer: Any) -> None:
        """Looks, where the step that is about to end is one of those."""
        if (trainer.global_step + 1) % self.every_n_steps == 0:
            norms = gradient_norms(pl_module.net)  # in pieces where the weights are: every process must add its own
            whole = {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in norms.items()}
            self._found = {f"gradients/{name}": norm.item() for name, norm in whole.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs what was found: not before the step has ended, for loggers may look at the gradients themselves."""
        if self._found:
            log(trainer, trainer.global_step, self._found)
            self._found = {}


class Look(Callback):
    """What looks at the network reading have in common: some sequences of the step's batch are read once more.

    That happens after the step, in evaluation mode, by rank 0 alone, and draws no random number.
    """

    def __init__(self, every_n_steps: int = 100, rows: int = 4) -> None:
        """A look.

        Args:
            every_n_steps: optimizer steps between two looks
            rows: sequences that are read for it
        """
        for name, value in (("every_n_steps", every_n_steps), ("rows", rows)):
            require(value >= 1, f"{name} must be at least 1, got {value}")
        self.every_n_steps, self.rows = every_n_steps, rows

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Refuses weights in pieces."""
        name = type(self).__name__
        require(
            not isinstance(pl_module.net, FSDPModule),
            f"{name}: needs whole weights, and fsdp shards them; leave it out",
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Looks, where it is time to."""
        due = finished_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0
        if due and trainer.is_global_zero:
            ids, documents = batch.inputs[: self.rows], None
            if pl_module.network.document_mask:
                known = batch.documents
                documents = pl_module._documents(ids) if known is None else known[: self.rows]
            log(trainer, trainer.global_step, self.look(pl_module, ids, documents))

    def look(self, pl_module: LitTransformerLM, ids: Tensor, documents: Tensor | None) -> dict[str, float]:
        """What is to be logged."""
        raise NotImplementedError


class AttentionEntropy(Look):
    """Logs `attention/blocks.<n>.entropy`, the mean over heads in nats, and `.sharpest`, that of the head of the least.

    A head whose entropy falls to nothing early has stopped learning where to look, and its scores tend to grow without
    bound. A look costs a tenth of a step.
    """

    def look(self, pl_module: LitTransformerLM, ids: Tensor, documents: Tensor | None) -> dict[str, float]:
        """The entropies of every layer."""
        found = {}
        for layer, entropies in enumerate(head_scores(pl_module.net, ids, documents).entropy):
            found[f"attention/blocks.{layer}.entropy"] = entropies.mean().item()
            found[f"attention/blocks.{layer}.sharpest"] = entropies.min().item()
        return found


class ActivationStatistics(Look):
    """Logs of every block the standard deviation of what flows, how far out it goes, and which units are dead.

    `activations/blocks.<n>.<attention|feedforward|units|stream>.std`, `.stream.largest` (in standard deviations) and
    `.units.dead` (a share); `activations/embedding.std`. A look costs a ninth of a step.
    """

    def look(self, pl_module: LitTransformerLM, ids: Tensor, documents: Tensor | None) -> dict[str, float]:
        """The figures of every place."""
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
    """Takes dropout from the config's to another value in a straight line, and logs it as `dropout`.

    It is a function of the step alone, so a resumed run has the same. It costs nothing that could be measured.
    """

    def __init__(self, final: float = 0.0, begin: float = 0.0, end: float = 1.0) -> None:
        """Dropout over the run.

        Args:
            final: the dropout at the end
            begin: the share of the run's steps after which it begins to change
            end: the share after which it is final
        """
        require(0 <= final < 1, f"final must be in [0, 1), got {final}")
        require(0 <= begin < end <= 1, f"begin and end must be in order and in [0, 1], got {begin} and {end}")
        self.final, self.begin, self.end = final, begin, end
        self.now = final

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Refuses what could not work."""
        require(
            pl_module.network.dropout > 0, "DropoutAnnealing: model.network.dropout is 0; give the one to begin with"
        )
        require(pl_module._compiled is None, "DropoutAnnealing: would compile every step anew; set model.compile=false")

    def dropout(self, start: float, done: float) -> float:
        """The dropout when a share of the run's steps is done.

        Args:
            start: the config's
            done: the share
        """
        way = min(max((done - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return start + (self.final - start) * way

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, batch: Any, batch_idx: int
    ) -> None:
        """Sets it for the step."""
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
        """Logs what the step had."""
        every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if finished_step(trainer, batch_idx) and trainer.global_step % every == 0:
            log(trainer, trainer.global_step, {"dropout": self.now})
