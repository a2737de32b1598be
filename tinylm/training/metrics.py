"""Metrics of language models as torchmetrics: sums over tokens, exact for any batches and number of processes.

Every token counts once, however the text is divided into batches. The sums are float64 and are added over processes,
never averaged. MPS has no float64; keep a metric on the CPU there.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from tinylm.data import IGNORE
from tinylm.evaluation.log_probs import token_nats


class TokenMetrics(Metric):
    """Loss in nats per token, perplexity and accuracy."""

    full_state_update = False
    higher_is_better = None
    nats: Tensor
    tokens: Tensor
    hits: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("nats", "tokens", "hits"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (B, T, V)
            targets: token ids, (B, T); -100 does not count
        """
        self.nats += token_nats(logits, targets).to(self.nats).sum()
        self.tokens += (targets != IGNORE).sum().to(self.tokens)
        self.hits += (logits.argmax(dim=-1) == targets).sum().to(self.hits)

    def compute(self) -> dict[str, float]:
        """`loss`, `perplexity` and `accuracy` of everything added."""
        tokens = max(self.tokens.item(), 1)
        loss = self.nats.item() / tokens
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "accuracy": self.hits.item() / tokens}


class TextMetrics(TokenMetrics):
    """`TokenMetrics`, bits per byte of the raw text and, where they are known, loss floor and loss of each source.

    Args:
        byte_lengths: bytes of each token id, (V,)
        sources: names of the sources of a mixture
    """

    num_bytes: Tensor
    best: Tensor
    by_source: Tensor

    def __init__(self, byte_lengths: Tensor, sources: Iterable[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.byte_lengths, self.sources = byte_lengths, list(sources)
        zeros = torch.zeros((len(self.sources), 2), dtype=torch.float64)  # nats and tokens of each
        self.add_state("by_source", zeros, dist_reduce_fx="sum")
        for name in ("num_bytes", "best"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, log_prob: float | None = None, source: str | None = None) -> None:
        """Adds a batch.

        Args:
            logits: (B, T, V)
            targets: token ids, (B, T); -100 does not count
            log_prob: true log probability of the batch in nats. None: unknown
            source: source of the batch in a mixture
        """
        nats, tokens = self.nats.clone(), self.tokens.clone()
        super().update(logits, targets)
        if source is not None:
            self.by_source[self.sources.index(source)] += torch.stack([self.nats - nats, self.tokens - tokens])
        self.num_bytes += self.byte_lengths[targets[targets != IGNORE].cpu()].sum().to(self.num_bytes)
        self.best -= math.nan if log_prob is None else log_prob

    def compute(self) -> dict[str, float]:
        """`loss`, `perplexity`, `bpb`, `accuracy` and, where known, `floor`, `excess` and `loss_SOURCE` of each source.

        The floor is known if every log probability is.
        """
        found, nats, best = super().compute(), self.nats.item(), self.best.item()
        accuracy = found.pop("accuracy")
        found |= {"bpb": nats / math.log(2) / max(self.num_bytes.item(), 1), "accuracy": accuracy}
        if math.isfinite(best):
            found |= {"floor": best / self.tokens.item(), "excess": nats / best - 1}
        for source, (nats, tokens) in zip(self.sources, self.by_source.tolist(), strict=True):
            found[f"loss_{source}"] = nats / max(tokens, 1)
        return found
