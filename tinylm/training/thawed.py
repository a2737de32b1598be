"""ThawedParameters: what Lightning leaves out when a callback unfreezes parameters, as its BaseFinetuning does."""

from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from tinylm.training.restoring import trained_names

KEY = "tinylm_trainable"  # the entry in a checkpoint: names of the parameters that are trained at its step


class ThawedParameters(Callback):
    """Lets a resumed run train what the checkpoint's run trained, and averages the gradients that DDP leaves out.

    DDP knows only the parameters that are trainable when it is set up.
    """

    def __init__(self) -> None:
        self._saved: list[str] | None = None
        self._first: set[nn.Parameter] = set()  # trainable at the start

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the names."""
        checkpoint[KEY] = trained_names(pl_module)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Reads the names."""
        self._saved = checkpoint.get(KEY)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Notes what is trainable before a callback changes it."""
        self._first = {each for each in pl_module.parameters() if each.requires_grad}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Restores what is trainable in a resumed run."""
        for name, parameter in pl_module.named_parameters() if self._saved is not None else ():
            parameter.requires_grad_(name in self._saved)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Averages the gradients of unfrozen parameters over the processes of DDP."""
        if isinstance(trainer.strategy, DDPStrategy):
            for parameter in pl_module.parameters():
                if parameter.grad is not None and parameter not in self._first:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= trainer.world_size
