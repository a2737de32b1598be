"""Base class of decoders with a key/value cache: checks the model and reads prompts.

Prompts, and several tokens of one text, are read by the modules of the model. Subclasses read single tokens.
"""

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tinylm.errors import ConfigError
from tinylm.known import check_deterministic, mixed_part, unknown_part
from tinylm.model import RingKVCache, TransformerLM

_optimizer_steps = 0  # of all optimizers in this process


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


def unsuited_part(model: nn.Module) -> str | None:
    """Describes the part of a model that a cached decoder does not support; None if there is none."""
    return unknown_part(model) or mixed_part(model)


def on_cuda(model: TransformerLM) -> bool:
    """Whether a model is on an NVIDIA GPU."""
    return model.embedding.weight.device.type == "cuda"


class CachedDecoder:
    """Reads tokens with a key/value cache. Subclasses define `step`.

    Args:
        model: the model, in evaluation mode

    Attributes:
        end: id of the token that ends a document, for models with `document_mask`: later tokens do not see it or
            anything before it. None: each text is one document. Set by `Generator`

    Raises:
        ConfigError: for a model that is not standard, or has dropout and is in training mode.
    """

    fixed_rows: ClassVar = False  # whether changing the number of rows is expensive
    unsuited_part = staticmethod(unsuited_part)  # describes what this kind of decoder does not support

    def __init__(self, model: TransformerLM) -> None:
        self.model = model
        self.end: int | None = None
        self._weights, self._versions = self._snapshot()
        self.check()

    def check(self) -> None:
        """Raises ConfigError if this decoder does not, or no longer, fit its model."""
        check_deterministic(self.model)
        reason, name = self.unsuited_part(self.model), type(self).__name__
        if reason is not None:
            raise ConfigError(f"{name} cannot read this model: {reason}; use an UncachedDecoder")
        if not self.is_current:
            raise ConfigError(f"{name} holds copies of weights that have changed since; make a new one")

    @property
    def is_current(self) -> bool:
        """Whether the weights are unchanged since the decoder was made.

        Writing into `weight.data` goes unnoticed. A step of any optimizer counts as a change, because fused optimizers
        do not increment a tensor's version.
        """
        weights, versions = self._snapshot()
        return versions == self._versions and all(map(operator.is_, weights, self._weights))

    def _snapshot(self) -> tuple[list[Tensor], list[Any]]:
        """The tensors of the model; their addresses, types and versions, and the number of optimizer steps so far."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        versions = [(t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors]
        return tensors, [*versions, _optimizer_steps]

    def make_cache(self, rows: int, spare: int = 0) -> RingKVCache:
        """An empty cache; `spare` is the number of positions that can be truncated."""
        return self.model.make_cache(rows, spare)

    def prefill(self, parts: Sequence[Sequence[int]], cache: RingKVCache, row: int | None = None) -> None:
        """Reads the beginning of each row's text and replaces what the row held.

        Args:
            parts: token ids of each row, or of the one row; may be empty
            cache: of all rows
            row: the only row to read. None: all
        """
        begins = [self._last_document(part) for part in parts]  # earlier documents will not be visible
        if len(set(begins)) > 1:
            for index, part in enumerate(parts):
                self.prefill([part], cache, index)
            return
        for index, begin in enumerate(begins) if row is None else [(row, begins[0])]:
            cache.restart(index, begin)
        counts = [len(part) - begin for part, begin in zip(parts, begins, strict=True)]
        width = max(counts, default=0)
        if not width:
            return
        padded = [[*part[begin:], *[0] * width][:width] for part, begin in zip(parts, begins, strict=True)]
        target = cache if row is None else cache.rows(row)
        target.expect(counts)
        self.model(torch.tensor(padded, device=cache.keys[0].device), cache=target, skip=width)
        if row is not None:
            cache.lengths[row] = len(parts[0])

    def start(self, ids: Sequence[int], cache: RingKVCache) -> int:
        """Forgets a row, whose text begins with `ids`; returns the position from which `extend` must read them."""
        cache.restart(0, self._last_document(ids))
        return cache.lengths[0]

    def extend(self, ids: Sequence[int], cache: RingKVCache) -> None:
        """Reads further tokens of one row, within a document."""
        self.model(torch.tensor([ids], device=cache.keys[0].device), cache=cache, skip=len(ids))

    @property
    def separator(self) -> int | None:
        """Id of the token that ends a document, for models with `document_mask`."""
        return self.end if self.model.config.document_mask else None

    def _last_document(self, ids: Sequence[int]) -> int:
        """Position where the document of the next token begins."""
        if self.separator is None or self.separator not in ids:
            return 0
        return len(ids) - list(ids)[::-1].index(self.separator)

    def steps(self, ids: Sequence[int], cache: RingKVCache, count: int) -> Tensor:
        """Reads the next tokens of one text and returns the logits after each of the last `count`, (count, V)."""
        documents, separator = [list(ids)], self.separator
        while separator is not None and separator in documents[-1][:-1]:
            end = documents[-1].index(separator) + 1
            documents[-1:] = [documents[-1][:end], documents[-1][end:]]
        logits, skip = [], len(ids) - count
        for document in documents:
            new = torch.tensor([document], device=cache.keys[0].device)
            logits.append(self.model(new, cache=cache, skip=min(skip, len(document)))[0])
            skip = max(skip - len(document), 0)
            if document[-1] == separator:
                cache.begin_document(0)
        return torch.cat(logits)

    def _end_documents(self, ids: Tensor, cache: RingKVCache) -> None:
        """Begins a new document in each row whose last token, (B,), ended one."""
        if self.separator is not None:
            for row, token in enumerate(ids.tolist()):
                if token == self.separator:
                    cache.begin_document(row)
