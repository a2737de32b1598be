"""LitTransformerLM: the network as a LightningModule. It computes a training step; Lightning runs the loop."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tinylm.adapt import FreezeConfig, LoRAConfig, add_lora
from tinylm.adapt import freeze as freeze_weights
from tinylm.checks import require
from tinylm.data import IGNORE, Batch, ChatTemplate, Template
from tinylm.data.division import data_ranks
from tinylm.kernels.block_masks import use_block_masks
from tinylm.kernels.compiled import CompiledNetwork
from tinylm.kernels.heap import keep_freed_memory
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.known import unknown_part
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.optim.late import LateCheck, late_check
from tinylm.optim.optimizer import OptimizerConfig, base_rate, check_finite, make_optimizer
from tinylm.optim.schedule import ScheduleConfig
from tinylm.optim.scheduler import Rates, make_scheduler
from tinylm.plugins import Part
from tinylm.training.captured import capture_steps
from tinylm.training.checkpoint import check_validated, finished_step
from tinylm.training.evaluation import EvaluationSteps
from tinylm.training.module_options import (
    check_hooks,
    check_losses,
    check_options,
    learning_rate,
    named_optimizer,
    own_class,
    padded,
    plain_values,
    replaces,
    typed,
    with_learning_rate,
)
from tinylm.training.objective import AUXILIARY, AuxiliaryLosses, check_preferences, checked_losses, make_objective
from tinylm.training.restoring import accept, checkpoint_entries, frozen_parameters, trained_names
from tinylm.training.rows import number_rows
from tinylm.training.seeding import seed_micro_batch
from tinylm.training.sharding import shard_weights
from tinylm.training.start import Start


class LitTransformerLM(EvaluationSteps):
    """A transformer trained to predict the next token.

    Attributes:
        net: the network, a `TransformerLM`
        train_loss: nats per target token of the last optimizer step, over all devices and micro-batches
        other_losses: the other losses of the last optimizer step by name, of the objective and of the network
        grad_norm: gradient norm of the last optimizer step, before clipping
        step_lr: learning rate of the last optimizer step, without the factors of muP
        plugins: the user's classes and functions that take part in training, by name
        resumes: whether a checkpoint continues its own run, on the same text
        stop_wanted: whether this process was asked to stop, by the user and by the system
        stop_agreed: whether any process was, as of the last optimizer step
        logs_steps: whether the module logs loss, gradient norm and learning rate, as no callback (MetricsLog) does
    """

    def __init__(
        self,
        network: ModelConfig,
        optimizer: OptimizerConfig | Part = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig | Part = ScheduleConfig(),  # noqa: B008
        objective: Part | None = None,
        compile: bool = False,
        init_from: str | None = None,
        lora: LoRAConfig | None = None,
        freeze: FreezeConfig | None = None,
        loss_rows: int | None = None,
        vocab_multiple: int | None = None,
    ) -> None:
        """Creates the module.

        Args:
            network: The architecture
            optimizer: The optimizer and its settings, or a class as torch.optim has them
            schedule: The learning rate over the run, or a class or function (docs/extending-training.md)
            objective: A loss of your own, by class_path
            compile: Train by torch.compile; the first start takes a minute
            init_from: Initial model: run, folder, checkpoint, Hugging Face
            lora: Train LoRA adapters only; the model's weights are frozen
            freeze: Which parameters are frozen
            loss_rows: Tokens whose loss is computed at a time, to save memory. Default: all
            vocab_multiple: Pad the rows of the vocabulary to a multiple of this, for speed. Default: no padding
        """
        super().__init__()
        network, lora, freeze = typed(network, ModelConfig), typed(lora, LoRAConfig), typed(freeze, FreezeConfig)
        optimizer, schedule = typed(optimizer, OptimizerConfig), typed(schedule, ScheduleConfig)
        check_options(optimizer, schedule, objective, lora, freeze, loss_rows=loss_rows, vocab_multiple=vocab_multiple)
        self.start = None if init_from is None else Start(init_from)
        if self.start is not None:
            require(vocab_multiple is None, "model.vocab_multiple: a base model keeps its own rows; leave it out")
            network = self.start.with_rows(network)
        self._padded = self.start is not None or vocab_multiple is not None
        network = padded(network, vocab_multiple)
        self.network, self.optimizer, self.schedule, self.lora = network, optimizer, schedule, lora
        plain: dict[str, Any] = {
            "network": network.to_dict(),
            "optimizer": plain_values(optimizer),
            "schedule": plain_values(schedule),
            "objective": str(objective) if objective is not None else None,
            "lora": plain_values(lora),
            "freeze": plain_values(freeze),
            "vocab_multiple": 1 if self._padded else None,  # `network` has the rows already
        }
        self.save_hyperparameters(plain)  # plain values, for weights_only=True; `load_from_checkpoint` returns them
        self.net = self._build(freeze)
        self.objective = make_objective(objective)
        check_hooks(type(self), LitTransformerLM)
        check_losses(self, loss_rows, own_forward=self._overrides("forward"), own_loss=self._overrides("summed_loss"))
        self.net.loss_rows = loss_rows
        self.plugins = [part for part in (optimizer, schedule, objective) if isinstance(part, Part)]
        self.plugins += [*getattr(self.objective, "plugins", []), *own_class(self, LitTransformerLM)]
        # not a submodule, so that the weights keep their names; evaluation has other shapes and is not compiled
        self._compiled = CompiledNetwork(self.net) if compile else None
        self.train_loss = self.grad_norm = torch.tensor(math.nan)
        self.step_lr = 0.0
        self.logs_steps = True
        self.resumes = False
        self.stop_wanted: tuple[bool, bool] = (False, False)
        self.stop_agreed = self.stop_wanted
        self.other_losses: dict[str, Tensor] = {}
        self._auxiliary = AuxiliaryLosses(self.net)
        self._step_losses: dict[str, Tensor] = {}  # of the micro-batches of this step so far
        self._late: LateCheck | None = None
        self._changed: str | None = None
        self._settings: list[dict[str, Any]] = []  # of the optimizer's groups in the config
        self.trained_names: list[str] = []  # at the start; a callback may unfreeze others later
        self._metrics = []

    def _build(self, freeze: FreezeConfig | None) -> TransformerLM:
        """The network, new or with the weights of the base model, and with its adapters."""
        net = TransformerLM(self.network) if self.start is None else self.start.network(self.network)
        tune_for_training(net)
        use_block_masks(net)
        if freeze is not None:
            freeze_weights(net, freeze)
        if self.lora is not None:
            add_lora(net, self.lora)
        return net

    def _overrides(self, name: str) -> bool:
        """Whether a subclass overrides this method."""
        return getattr(type(self), name) is not getattr(LitTransformerLM, name)

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer, for the user. A subclass may have one of its own."""
        own = not isinstance(self.optimizer, Part) and self._overrides("configure_optimizers")
        return f"optimizer of {type(self).__name__}" if own else named_optimizer(self.optimizer)

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate in the config. Lightning's `Tuner.lr_find` sets it."""
        return learning_rate(self.optimizer, own=self.optimizer_name if self._overrides("configure_optimizers") else "")

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer = with_learning_rate(self.optimizer, value)
        check_options(self.optimizer, self.schedule)
        self.hparams["optimizer"] = plain_values(self.optimizer)

    @property
    def template(self) -> Template | ChatTemplate | None:
        """The template of the data module's pairs; None for a text."""
        return self._datamodule.template

    def setup(self, stage: str) -> None:
        """Checks that tokenizer and network match, and that what callbacks monitor is measured."""
        size = self.tokenizer.vocab_size
        fits = size <= self.network.vocab_size if self._padded else size == self.network.vocab_size
        require(fits, f"vocab_size: tokenizer {size}, model {self.network.vocab_size}")
        if self.start is not None:
            self.start.check_tokenizer(self.tokenizer)
        if stage == "fit":
            check_validated(self.trainer)
            number_rows(self.trainer)
        check_preferences(self.objective, self._datamodule)
        if hasattr(self.objective, "prepare"):
            self.objective.prepare(self)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if self._datamodule.packing:
            require(self.network.document_mask, "data.packing: needs model.network.document_mask to keep pairs apart")

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Computes the logits of the next tokens, (B, T) -> (B, T, V).

        Args:
            ids: token ids, (B, T)
            documents: document number of each token, (B, T), for `document_mask`. None: counted by separators
        """
        forward = self._compiled if self._compiled is not None and self.training else self.net
        return forward(ids, documents=self._documents(ids, documents))

    def _documents(self, ids: Tensor, known: Tensor | None) -> Tensor | None:
        """`documents_apart` by the data's separator, which only a network with `document_mask` needs a trainer for."""
        counted = self.network.document_mask and known is None
        return documents_apart(self.network, ids, self.tokenizer.end_of_text if counted else None, known)

    def configure_model(self) -> None:
        """Shards the weights if the strategy asks for it (overlays/fsdp.yaml, tensor_parallel.yaml), block by block."""
        strategy = None if self._trainer is None else self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy) or isinstance(self.net, FSDPModule):
            return
        self._changed = self.changed
        shard_weights(self)

    # --- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of a micro-batch, scaled so that all target tokens of the optimizer step count the same."""
        if self.has_dropout or self.own_code:
            self._reseed(batch_idx)
        losses = {name: loss / batch.num_targets for name, loss in self._losses(batch).items()}
        for name, loss in losses.items():
            self._step_losses[name] = self._step_losses.get(name, 0.0) + loss.detach()
        share = losses["loss"] + losses.get(AUXILIARY, 0.0)
        # undoes Lightning's division by micro-batches and its average over devices
        return share * (self.trainer.accumulate_grad_batches * data_ranks(self.trainer)[0])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Computes the gradient. A subclass with a training_step of its own has its loss recorded here."""
        if replaces(type(self), LitTransformerLM, "training_step"):  # Lightning averages over devices
            share = loss.detach() / data_ranks(self.trainer)[0]
            self._step_losses["loss"] = self._step_losses.get("loss", 0.0) + share
        super().backward(loss, *args, **kwargs)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the targets of a batch: the loss, the other losses of the objective, those of the network."""
        self._auxiliary.clear()
        if self.objective is None:
            losses = {"loss": self.summed_loss(batch)}
        else:
            losses = checked_losses(self.objective(self, batch), str(self.hparams["objective"]))
        auxiliary = self._auxiliary.total(batch)
        return losses if auxiliary is None else {**losses, AUXILIARY: auxiliary}

    def summed_loss(self, batch: Batch) -> Tensor:
        """Sum of -log p(target) in nats over the targets of a batch, by the compiled network if there is one."""
        if self._overrides("forward"):  # a subclass: its logits
            logits = self(batch.inputs, batch.documents).flatten(0, 1)
            return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
        documents = self._documents(batch.inputs, batch.documents)
        network = self.net if self._compiled is None else self._compiled
        return network(batch.inputs, documents=documents, targets=batch.targets)

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random numbers."""
        return self.network.dropout > 0 or (self.lora is not None and self.lora.dropout > 0)

    @property
    def own_code(self) -> bool:
        """Whether the user's code runs within a step and may draw random numbers."""
        return bool(self.plugins or self.network.parts or self.objective is not None)

    def _reseed(self, batch_idx: int) -> None:
        """Makes dropout a function of (seed, step, micro-step, rank)."""
        seed_micro_batch(self.trainer.global_step, batch_idx, self.trainer.global_rank, self.device)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Measures the step just before the optimizer changes the weights, and refuses one that is not finite."""
        self._synchronize()
        self.step_lr = base_rate(optimizer)
        gradients = [parameter.grad for parameter in self.trained.parameters() if parameter.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = self._norm.full_tensor() if isinstance(self._norm, DTensor) else self._norm
        if self._late is not None:
            self._late.judge(self.train_loss, self.grad_norm)
            return
        values = {"loss": self.train_loss, "gradient norm": self.grad_norm}
        if str(self.trainer.precision) == "16-mixed":
            del values["gradient norm"]  # the loss scaler skips infinite gradients by design
        check_finite(self.trainer.global_step + 1, str(self.trainer.precision), **values)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradient, by the norm that was measured."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(self.trained.parameters(), gradient_clip_val, self._norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the step where no callback does; reads, where the device checks the steps, if the last was finite."""
        if not finished_step(self.trainer, batch_idx):
            return
        if self.logs_steps:
            others = {f"train/{name}": loss for name, loss in self.other_losses.items()}
            self.log("train/loss", self.train_loss, prog_bar=True)
            self.log_dict(others | {"train/grad_norm": self.grad_norm, "lr": self.step_lr})
        if self._late is not None:
            self._late.send(self.trainer.global_step)

    def settle(self) -> None:
        """Refuses a step that was not finite, before the host uses its results."""
        if self._late is not None and self.trainer.state.fn == "fit":
            self._late.settle(self.trainer.global_step)

    on_validation_start = on_train_end = settle

    def _synchronize(self) -> None:
        """Sums the loss and the requests to stop over processes, in one exchange."""
        if not self._step_losses:  # the second of several optimizers
            return
        names, losses = [*self._step_losses], torch.stack([*self._step_losses.values()])
        self.train_loss, *others = self.agree_to_stop(losses).unbind()
        self.other_losses, self._step_losses = dict(zip(names[1:], others, strict=True)), {}

    def agree_to_stop(self, value: Tensor | None = None) -> Tensor:
        """Shares the requests to stop among all processes, and returns the sum of `value` over them."""
        total = torch.zeros((), device=self.device) if value is None else value
        self.stop_agreed = self.stop_wanted
        if self.trainer.world_size > 1:
            local = torch.cat([total.flatten(), total.new_tensor(self.stop_wanted)])
            reduced: Any = self.trainer.strategy.reduce(local, reduce_op="sum")
            self.stop_agreed = (bool(reduced[-2]), bool(reduced[-1]))
            same = self.trainer.world_size // data_ranks(self.trainer)[0]  # tensor-parallel devices count alike
            total = reduced[:-2].reshape(total.shape) / same
        return total

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer, and the schedule, which advances with every optimizer step."""
        optimizer = make_optimizer(self.trained, self.optimizer, fused=True)
        self.trained_names = trained_names(self.trained)
        scheduler = make_scheduler(optimizer, self.schedule, lambda: self._datamodule.total_steps)
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def trained(self) -> nn.Module:
        """The network, or the whole module if the objective has parameters to train."""
        theirs = self.objective.parameters() if isinstance(self.objective, nn.Module) else ()
        return self if any(parameter.requires_grad for parameter in theirs) else self.net

    def on_train_start(self) -> None:
        """Lets a resumed run use the config's learning rate, weight decay, ..., not those of the checkpoint."""
        if not self._settings:  # a subclass with its own optimizer
            return
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        if isinstance(scheduler, Rates):  # others keep a state, which on_load_checkpoint has checked
            for group, settings in zip(optimizer.param_groups, self._settings, strict=False):  # callbacks add groups
                group.update(settings, lr=settings["initial_lr"] * scheduler.factor())
        self._late = late_check(optimizer, self.device, str(self.trainer.precision))
        if self._compiled is not None:
            capture_steps(self.trainer, self)

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `tinylm.load` needs: the model's config and the tokenizer."""
        self.settle()
        for name in frozen_parameters(self.objective):
            del checkpoint["state_dict"][name]
        checkpoint.update(checkpoint_entries(self, self._datamodule))

    @property
    def all_plugins(self) -> list[Part]:
        """The plug-ins of network, training and data."""
        return [*self.network.parts.values(), *self.plugins, *self._datamodule.plugins]

    @property
    def changed(self) -> str | None:
        """Describes a part of the network that its config does not describe, without hooks; None if it is standard."""
        if not isinstance(self.net, FSDPModule):  # FSDP replaces the classes; the network was checked before
            self._changed = unknown_part(self.net, hooks=False, plugins=True)
        return self._changed

    @property
    def adapters(self) -> dict[str, float]:
        """The scale of each LoRA adapter, by name."""
        return {} if self.lora is None else {"default": self.lora.alpha / self.lora.rank}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another architecture, tokenizer or kind of optimizer before any weight is loaded."""
        if self._trainer is not None:  # without one, `load_from_checkpoint` has made the model by the checkpoint
            accept(checkpoint, self, self._datamodule)
