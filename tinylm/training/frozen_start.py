"""FrozenStart: base of objectives that compare the network with a frozen model, by default the start of the run."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

import tinylm
from tinylm.checks import require
from tinylm.data import Batch
from tinylm.evaluation.log_probs import evaluating, token_nats
from tinylm.files import sha256_bytes, sha256_json
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.model.lora import LoRALinear


class FrozenStart(nn.Module):
    """An objective with a frozen reference model.

    The reference is a copy of the network before the first step, so the run needs `model.init_from`. With LoRA it is
    the network without its adapters, and costs no memory. Checkpoints do not contain it.

    Args:
        reference: a run, model folder or checkpoint with the same tokenizer. None: the start of the run
    """

    def __init__(self, reference: str | None = None) -> None:
        super().__init__()
        self.path = reference
        self.reference: TransformerLM | None = None
        self._prepared = False

    def check_strategy(self, strategy: Any) -> None:
        """Refuses a strategy of Lightning's that shards the weights."""
        sharded = isinstance(strategy, ModelParallelStrategy)
        require(not sharded, f"model.objective: {type(self).__name__} needs whole weights, not shards; take ddp")

    def prepare(self, network: Any) -> None:
        """Keeps the reference, before a checkpoint is restored.

        Raises:
            ConfigError: if there is none, its tokenizer is another, or the strategy shards the weights.
        """
        if self._prepared:
            return
        self.check_strategy(network.trainer.strategy)
        self._prepared, tokenizer = True, network.tokenizer
        if self.path is not None:
            self.reference, tokenizer = tinylm.load(self.path)
        elif network.lora is None:
            self.reference = copy.deepcopy(network.net)
        ours = network.tokenizer.token_bytes == tokenizer.token_bytes
        require(ours, f"model.objective: reference: {self.path} has another tokenizer; give a model with the run's")
        started = self.path is not None or network.start is not None
        require(started, "model.objective: compares with a trained model; set model.init_from, or reference")
        if self.reference is not None:
            self.reference.eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the reference; empty with LoRA, whose checkpoints contain the frozen weights."""
        if self.reference is None:
            return ""
        weights = self.reference.state_dict().items()
        hashes = {
            name: sha256_bytes(each.cpu().contiguous().view(torch.uint8).numpy().tobytes()) for name, each in weights
        }
        return sha256_json(hashes)

    def train(self, mode: bool = True) -> "FrozenStart":
        """Sets the mode of all but the reference."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    @torch.no_grad()
    def reference_log_probs(self, network: Any, batch: Batch) -> Tensor:
        """Log probability of each target under the reference, in nats, and 0 where none counts: (B, T)."""
        net = network.net if self.reference is None else self.reference
        end = network.tokenizer.end_of_text
        documents = documents_apart(net.config, batch.inputs, end, batch.documents)
        with evaluating(net), without_adapters(network.net):
            return -token_nats(net(batch.inputs, documents=documents), batch.targets)


def log_probs(network: Any, batch: Batch) -> Tensor:
    """Log probability of each target under the network, in nats, and 0 where none counts: (B, T)."""
    return -token_nats(network(batch.inputs, batch.documents), batch.targets)


@contextmanager
def without_adapters(net: nn.Module) -> Iterator[None]:
    """Switches LoRA adapters off."""
    active = {layer: layer.active for layer in net.modules() if isinstance(layer, LoRALinear)}
    for layer in active:
        layer.active = ()
    try:
        yield
    finally:
        for layer, names in active.items():
            layer.active = names
