"""LitTransformerLM: the network as a LightningModule. What a step computes is here; the loop is Lightning's."""

import hashlib
import math
import os
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from tinylm.adapt import FreezeConfig, LoRAConfig, add_lora
from tinylm.adapt import freeze as freeze_weights
from tinylm.bundle import checkpoint_entry
from tinylm.checks import require
from tinylm.data import IGNORE, Batch, Template, TextDataModule
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import document_numbers
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.model.known import unknown_part
from tinylm.model.tuned import tune_for_training
from tinylm.tokenizer import Tokenizer
from tinylm.training.optim import OptimizerConfig, check_finite, make_optimizer
from tinylm.training.schedule import ScheduleConfig, learning_rate
from tinylm.training.start import Start


class LitTransformerLM(pl.LightningModule):
    """A transformer to be trained on next tokens.

    Attributes:
        net: the network, a `TransformerLM`
        train_loss: nats per target token of the last optimizer step, over all devices and micro-batches
        grad_norm: of the last optimizer step, before clipping
        lr: learning rate of the last optimizer step
        stop_wanted: whether this process was asked to stop: by the user, by the system
        stop_agreed: whether any process had been, as of the last optimizer step
    """

    def __init__(
        self,
        network: ModelConfig,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        compile: bool = False,
        init_from: str | None = None,
        lora: LoRAConfig | None = None,
        freeze: FreezeConfig | None = None,
    ) -> None:
        """A training run's model.

        Args:
            network: The architecture
            optimizer: The optimizer and its settings
            schedule: The learning rate over the run
            compile: Train by torch.compile, which takes a minute at the start
            init_from: Start from a trained model: a run folder, model folder or checkpoint
            lora: Train LoRA adapters only; the model's weights are frozen
            freeze: Which parameters are frozen
        """
        super().__init__()
        if schedule.min_lr > optimizer.lr:
            raise ConfigError(f"min_lr must not exceed lr, got min_lr={schedule.min_lr} and lr={optimizer.lr}")
        if lora is not None and freeze is not None:
            raise ConfigError("model.lora: all weights but the adapters are frozen already; leave out model.freeze")
        self.network, self.optimizer, self.schedule, self.lora = network, optimizer, schedule, lora
        plain = {"network": network.to_dict(), "optimizer": vars(optimizer), "schedule": vars(schedule)}
        self.save_hyperparameters(plain)  # plain values: a checkpoint must load with weights_only=True
        self.start = None if init_from is None else Start(init_from)
        self.net = TransformerLM(network) if self.start is None else self.start.network(network)
        tune_for_training(self.net)
        if freeze is not None:
            freeze_weights(self.net, freeze)
        if lora is not None:
            add_lora(self.net, lora)
        # no submodule, so that the weights keep their names; evaluation, which has other shapes, is not compiled
        self._compiled = torch.compile(self.net.forward) if compile else None
        self.train_loss = self.grad_norm = torch.tensor(math.nan)
        self.lr = 0.0
        self.stop_wanted: tuple[bool, bool] = (False, False)
        self.stop_agreed = self.stop_wanted
        self._step_nll: Tensor | float = 0.0
        self._changed: str | None = None
        self._settings: list[dict[str, Any]] = []  # of the optimizer's groups, as the config has them
        self._totals = torch.zeros(5, dtype=torch.float64)

    @property
    def tokenizer(self) -> Tokenizer:
        """The data module's tokenizer."""
        return self._datamodule.tokenizer

    @property
    def template(self) -> Template | None:
        """The template of the data module's pairs; None: it has a text."""
        return self._datamodule.template if self._datamodule.pairs is not None else None

    @property
    def _datamodule(self) -> TextDataModule:
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, TextDataModule):
            raise ConfigError("the trainer needs a TextDataModule, whose tokenizer goes into every checkpoint")
        return datamodule

    def setup(self, stage: str) -> None:
        """Checks that the tokens are the network's."""
        size = self.tokenizer.vocab_size
        require(size == self.network.vocab_size, f"vocab_size: tokenizer {size}, model {self.network.vocab_size}")
        if self.start is not None:
            self.start.check_tokenizer(self.tokenizer)
        if self._datamodule.packing:
            require(self.network.document_mask, "data.packing: needs model.network.document_mask to keep pairs apart")

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Logits of the next tokens, (B, T) -> (B, T, V).

        Args:
            ids: token ids, (B, T)
            documents: where the network keeps documents apart, the number of each token's, (B, T); None: by separators
        """
        forward = self._compiled if self._compiled is not None and self.training else self.net
        if not self.network.document_mask:
            documents = None
        elif documents is None:
            documents = self._documents(ids)
        return forward(ids, documents=documents)

    def _documents(self, ids: Tensor) -> Tensor | None:
        """The number of the document that each token is in, by separators."""
        return document_numbers(ids, self.tokenizer.end_of_text)

    def configure_model(self) -> None:
        """Shards the weights where the strategy says so (overlays/fsdp.yaml): each block gathers its own to compute."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or isinstance(self.net, FSDPModule):
            return
        self._changed = self.changed
        muon = self.optimizer.name == "muon"
        require(not muon, "optimizer.name: muon needs whole matrices, and fsdp shards them; take adamw")
        assert self.device_mesh is not None
        for part in (*self.net.blocks, self.net):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])

    # --- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a micro-batch, scaled so that every target token of the optimizer step counts the same."""
        if self.network.dropout > 0 or (self.lora is not None and self.lora.dropout > 0):
            self._reseed(batch_idx)
        logits = self(batch.inputs, batch.documents)
        nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
        share = nll / batch.num_targets
        self._step_nll = self._step_nll + share.detach()
        # Lightning divides by the number of micro-batches and averages over devices; the share needs neither
        return share * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def _reseed(self, batch_idx: int) -> None:
        """Makes dropout a function of (seed, step, micro-step, rank), so that a resumed run draws the same masks."""
        place = (os.environ.get("PL_GLOBAL_SEED", 0), self.trainer.global_step, batch_idx, self.trainer.global_rank)
        seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=7).digest(), "big")
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Just before the optimizer moves: measures the step, refuses one that is not finite, and clips."""
        self._share_among_processes()
        self.lr = optimizer.param_groups[0]["lr"]
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        values = {"loss": self.train_loss, "gradient norm": self.grad_norm}
        if str(self.trainer.precision) == "16-mixed":
            del values["gradient norm"]  # its loss scaler meets infinite gradients by design, and skips them
        check_finite(self.trainer.global_step + 1, **values)
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(self.net.parameters(), gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _share_among_processes(self) -> None:
        """The loss of the whole step, and whether to stop after it: one exchange for both, so that all agree."""
        assert isinstance(self._step_nll, Tensor)
        self.train_loss, self._step_nll, self.stop_agreed = self._step_nll, 0.0, self.stop_wanted
        if self.trainer.world_size > 1:
            mine = torch.stack([self.train_loss, *self.train_loss.new_tensor(self.stop_wanted)])
            self.train_loss, *wanted = self.trainer.strategy.reduce(mine, reduce_op="sum")
            self.stop_agreed = (bool(wanted[0]), bool(wanted[1]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and, stepped with it, the schedule."""
        fused = "mixed" not in str(self.trainer.precision)  # Lightning refuses fused kernels with clipping there
        optimizer = make_optimizer(self.net, self.optimizer, fused=fused)
        total, lr = int(self.trainer.estimated_stepping_batches), self.optimizer.lr

        def factor(step: int) -> float:
            return learning_rate(step, total, lr, self.schedule) / lr

        scheduler = LambdaLR(optimizer, factor)
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """A resumed run goes on with today's learning rate, weight decay ... and not with the checkpoint's."""
        if not self._settings:  # a subclass has an optimizer of its own
            return
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer) and isinstance(scheduler, LambdaLR)
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._settings]
        for group, settings, factor in zip(optimizer.param_groups, self._settings, scheduler.lr_lambdas, strict=True):
            group.update(settings, lr=settings["initial_lr"] * factor(scheduler.last_epoch))

    # --- evaluation: exact sums over the whole part, every token once

    def on_validation_epoch_start(self) -> None:
        """Starts the totals."""
        self._totals = torch.zeros(5, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the totals."""
        self._totals += self._sums(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs loss, perplexity, bits per byte, accuracy and, where it is known, the floor."""
        self._log_totals("val")

    def on_test_epoch_start(self) -> None:
        """Starts the totals."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the totals."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs loss, perplexity, bits per byte, accuracy and, where it is known, the floor."""
        self._log_totals("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The targets of a batch in order, (n,), and their log probabilities in nats, (n,)."""
        log_probs = -F.cross_entropy(
            self(batch.inputs, batch.documents).transpose(1, 2), batch.targets, reduction="none"
        )
        counts = batch.targets != IGNORE
        return batch.targets[counts], log_probs[counts]

    def _sums(self, batch: Batch) -> Tensor:
        """Nats, targets, correct guesses, bytes and the best possible nats of a batch, float64 (5,) on the CPU."""
        logits = self(batch.inputs, batch.documents)  # (B, T, V)
        counts = batch.targets != IGNORE
        nats = F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORE, reduction="none")
        correct = (logits.argmax(dim=-1) == batch.targets).sum()
        lengths = torch.from_numpy(self.tokenizer.byte_lengths)
        sums = [nats.sum(dtype=torch.float64 if nats.device.type != "mps" else None), counts.sum(), correct]
        num_bytes = lengths[batch.targets[counts].cpu()].sum()
        best = -batch.log_prob if batch.log_prob is not None else math.nan
        return torch.tensor([*(float(value) for value in sums), float(num_bytes), best], dtype=torch.float64)

    def _log_totals(self, part: str) -> None:
        totals = self._totals
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals.to(self.device), reduce_op="sum").cpu()
        nats, tokens, correct, num_bytes, best = totals.tolist()
        loss = nats / max(tokens, 1)
        metrics = {
            f"{part}/loss": loss,
            f"{part}/perplexity": math.exp(min(loss, 700)),
            f"{part}/bpb": nats / math.log(2) / max(num_bytes, 1),
            f"{part}/accuracy": correct / max(tokens, 1),
            "step": float(self.trainer.global_step),  # Lightning takes it as the row's step
        }
        if math.isfinite(best):
            metrics |= {f"{part}/floor": best / tokens, f"{part}/excess": nats / best - 1}
        self.log_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()})

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `tinylm.load` needs: the architecture and the tokenizer."""
        checkpoint["tinylm"] = checkpoint_entry(self.network, self.tokenizer, self._adapters, self.changed)

    @property
    def changed(self) -> str | None:
        """A part of the network that its config does not describe, in words, hooks left out; None: there is none."""
        if not isinstance(self.net, FSDPModule):  # whose classes are FSDP's; it was looked at before
            self._changed = unknown_part(self.net, hooks=False)
        return self._changed

    @property
    def _adapters(self) -> dict[str, float]:
        return {} if self.lora is None else {"default": self.lora.alpha / self.lora.rank}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another architecture, tokenizer or kind of optimizer, before any weight is touched."""
        entry = checkpoint.get("tinylm")
        if entry is None:
            raise ConfigError("the checkpoint is not of tinylm: it names no architecture")
        ours = self.network.to_dict()
        for name, theirs in entry["model"].items():
            if name not in WITHOUT_WEIGHTS:
                require(ours.get(name) == theirs, f"{name}: checkpoint {theirs}, config {ours.get(name)}")
        require(
            entry["tokenizer"]["sha256"] == self.tokenizer.sha256,
            "tokenizer: the checkpoint's differs from the config's (SHA-256 "
            f"{entry['tokenizer']['sha256'][:12]} and {self.tokenizer.sha256[:12]})",
        )
        theirs = entry.get("adapters", {})
        require(theirs == self._adapters, f"lora: checkpoint has adapters {theirs}, config {self._adapters}")
        theirs, ours = (each or "nothing" for each in (entry.get("changed"), self.changed))
        require(theirs == ours, f"what the config does not describe: checkpoint {theirs}; this network {ours}")
        if self.trainer.state.fn == "fit":
            theirs = checkpoint["hyper_parameters"]["optimizer"]["name"]
            require(theirs == self.optimizer.name, f"optimizer.name: checkpoint {theirs}, config {self.optimizer.name}")
            rescale_progress(checkpoint, self.trainer.accumulate_grad_batches)


def rescale_progress(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Lightning counts micro-batches. A run that goes on with more or fewer of them in a step counts on in its own.

    Args:
        checkpoint: of a whole optimizer step; its count of micro-batches is changed
        accumulate: micro-batches in a step from now on
    """
    steps, progress = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    before = progress["total"]["ready"] // max(steps, 1)
    for counts in (progress["total"], progress["current"]) if before not in (0, accumulate) else ():
        more = counts["ready"] // before * accumulate - counts["ready"]
        counts.update({name: count + more for name, count in counts.items()})
