"""Custom losses: the contract of `model.objective`, and losses that modules of the network add."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tinylm.checks import require
from tinylm.data import IGNORE, Batch
from tinylm.data.division import data_ranks
from tinylm.data.run_data import RunData
from tinylm.errors import ConfigError
from tinylm.plugins import Part

FIELD = "model.objective"
AUXILIARY = "auxiliary_loss"
TAKEN = ("grad_norm", AUXILIARY)  # names of other metrics under train/


class Objective(Protocol):
    """A loss: an instance of a class that the config names with its `init_args`, or a function.

    Every value that it returns is a SUM over the target tokens of its micro-batch. The trainer divides it by
    `batch.num_targets`, the targets of the whole optimizer step over all micro-batches and devices, and adds up. So
    every target counts the same, however the batch is divided, and a resumed run is exact. Random numbers may be drawn
    from PyTorch's default generator, which is seeded before every micro-batch.

    An objective may be an `nn.Module`, with a teacher inside for example. It is moved to the device. Parameters that
    require gradients are trained by the run's optimizer and saved in checkpoints. Frozen ones are not saved: the
    constructor must recreate them.

    In a validation `val/loss` is always the cross-entropy of the next token. An objective may also have

    - `prepare(network)`, called before training or evaluation and before a checkpoint is restored;
    - `evaluate(network, batch)`, which returns values of the sequences of an evaluation batch by name, (n,) each: their
      mean over the split is logged as val/NAME;
    - `monitor`, a metric and `min` or `max`, by which `best.ckpt` is chosen instead of `val/loss`;
    - `num_tokens(batch)`, the tokens that a micro-batch computes, if they are not those of `batch.inputs`;
    - `preferences = True`, if it reads `batch.rejected`;
    - `plugins`, the parts that it has loaded, to be recorded with the run.
    """

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Computes the loss of a micro-batch.

        Args:
            network: the LitTransformerLM; `network(batch.inputs, batch.documents)` gives the logits, (B, T, V), with
                the documents kept apart where the config asks for it; `network.net` is the TransformerLM
            batch: token ids, `batch.inputs` and `batch.targets`, (B, T) each; targets that are IGNORE do not count

        Returns:
            scalars by name: `loss` is minimized and logged as train/loss; every other NAME is logged as train/NAME
        """
        ...


def make_objective(given: Any) -> Callable[[Any, Batch], dict[str, Tensor]] | None:
    """The objective of a config, or one that was passed in Python; None for the cross-entropy."""
    if given is None or not isinstance(given, Part | dict | str | type):
        return given
    return Part.of(given, FIELD).make_function("network", "batch", field=FIELD)


def checked_losses(found: Any, name: str) -> dict[str, Tensor]:
    """The losses that an objective has returned, `loss` first.

    Raises:
        ConfigError: if it is not a dict of scalars with a `loss` that has a gradient.
    """
    where = f"{FIELD}: {name}"
    require(isinstance(found, dict) and "loss" in found, f"{where} must return a dict with loss, got {kind_of(found)}")
    for key, value in found.items():
        scalar = isinstance(value, Tensor) and value.ndim == 0
        require(scalar, f"{where}: {key} must be a scalar tensor, the sum over the targets, got {kind_of(value)}")
        require(key not in TAKEN, f"{where}: train/{key} is already another metric; choose another name")
    require(found["loss"].requires_grad, f"{where}: loss has no gradient; compute it from network(batch.inputs, ...)")
    return {"loss": found["loss"]} | {key: value.detach() for key, value in found.items() if key != "loss"}


def per_sequence(network: Any, batch: Batch, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the sequences of a micro-batch, scaled so that the trainer's division gives the mean over the step."""
    sequences = len(batch.inputs) * network.trainer.accumulate_grad_batches * data_ranks(network.trainer)[0]
    return {name: value * (batch.num_targets / sequences) for name, value in sums.items()}


def check_preferences(objective: Any, data: RunData) -> None:
    """Refuses preferences without an objective that reads them, and such an objective without preferences.

    Raises:
        ConfigError: naming the remedy.
    """
    reads = getattr(objective, "preferences", False)
    remedy = "set model.objective to tinylm.training.DPO, or data.fields to [prompt,chosen] to ignore the rejected ones"
    require(reads or not data.preferences, f"data.pairs: {data.source} holds preferences; {remedy}")
    needs = "give a file whose records have prompt, chosen and rejected as data.pairs"
    require(data.preferences or not reads, f"{FIELD}: {type(objective).__name__} learns from preferences; {needs}")


def kind_of(value: Any) -> str:
    """`a tensor of shape (2, 3)`, or the type of another value."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class AuxiliaryLosses:
    """Losses that modules of the network add to the objective, such as the load balance of experts.

    A module with the attribute `auxiliary_loss`, None at first, may set it in its forward pass in training mode, to a
    scalar in nats per token: a mean over the tokens of the micro-batch.

    Args:
        net: the network
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.modules: list[Any] = [module for module in net.modules() if hasattr(module, AUXILIARY)]
        self._checked = False

    def clear(self) -> None:
        """Forgets the losses of earlier forward passes."""
        for module in self.modules:
            module.auxiliary_loss = None

    def total(self, batch: Batch) -> Tensor | None:
        """The sum over modules, times the targets of this micro-batch; None if no module has set one."""
        if not self._checked:
            self._checked = True
            for name in self._undeclared():
                raise ConfigError(f"{name}: sets {AUXILIARY} in forward; declare it in its class: {AUXILIARY} = None")
        losses = [loss for module in self.modules if (loss := getattr(module, AUXILIARY)) is not None]
        return torch.stack(losses).sum() * (batch.targets != IGNORE).sum() if losses else None

    def _undeclared(self) -> Iterator[str]:
        known = set(self.modules)
        return (name for name, each in self.net.named_modules() if hasattr(each, AUXILIARY) and each not in known)
