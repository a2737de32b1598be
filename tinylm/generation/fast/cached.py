"""What all decoders with a cache of keys and values have in common: for which networks they are right, and prompts.

Prompts, and several tokens of one text, are read by the network's modules; single tokens are a subclass's affair.
"""

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tinylm.errors import ConfigError
from tinylm.model import KVCache, TransformerLM
from tinylm.model.known import check_deterministic, mixed_part, unknown_part

_optimizer_steps = 0  # of all optimizers in this process


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


def unsuited_part(model: nn.Module) -> str | None:
    """Why a `Decoder` or a `CompiledDecoder` would be wrong for a network; None: they are right."""
    return unknown_part(model) or mixed_part(model)


class CachedDecoder:
    """A network with a cache of keys and values; its prompts are read by its modules.

    Args:
        model: the network, in evaluation mode

    Attributes:
        end: the token that ends a document, for networks with `document_mask`: what is behind it does not see it, nor
            what is before it. None: each text is one document. A `Generator` sets it.

    Raises:
        ConfigError: for a network that is not exactly its config's, or in training mode with dropout.
    """

    fixed_rows: ClassVar = False  # whether another number of rows would cost much

    def __init__(self, model: TransformerLM) -> None:
        self.model = model
        self.end: int | None = None
        self._weights, self._versions = self._look()
        self.check()

    def check(self) -> None:
        """Raises where the network is not, or not any more, one that this decoder is right for."""
        check_deterministic(self.model)
        reason, name = unsuited_part(self.model), type(self).__name__
        if reason is not None:
            raise ConfigError(f"{name} cannot read this network: {reason}; take an UncachedDecoder")
        if not self.is_current:
            raise ConfigError(f"{name} has copies of weights that were changed since; make a new one")

    @property
    def is_current(self) -> bool:
        """Whether the network has the weights that it had when the decoder was made.

        Writing into `weight.data` is not noticed. A step of any optimizer counts as a change: the fused ones do not
        raise a tensor's version.
        """
        weights, versions = self._look()
        return versions == self._versions and all(map(operator.is_, weights, self._weights))

    def _look(self) -> tuple[list[Tensor], list[Any]]:
        """The network's tensors; where each lies, its type and how often it was written to; steps of optimizers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        versions = [(t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors]
        return tensors, [*versions, _optimizer_steps]

    def make_cache(self, rows: int, spare: int = 0) -> KVCache:
        """An empty cache; arguments as `TransformerLM.make_cache`'s."""
        return self.model.make_cache(rows, spare)

    def prefill(self, parts: Sequence[Sequence[int]], cache: KVCache, row: int | None = None) -> None:
        """Reads the beginning of each row's text in place of what the row had read.

        Args:
            parts: token ids, maybe none, of each row, or of the one row
            cache: of all rows
            row: which one; None: all
        """
        begins = [self._last_document(part) for part in parts]  # what is before will not be seen
        if len(set(begins)) > 1:
            for place, part in enumerate(parts):
                self.prefill([part], cache, place)
            return
        for place, begin in enumerate(begins) if row is None else [(row, begins[0])]:
            cache.restart(place, begin)
        counts = [len(part) - begin for part, begin in zip(parts, begins, strict=True)]
        width = max(counts, default=0)
        if not width:
            return
        padded = [[*part[begin:], *[0] * width][:width] for part, begin in zip(parts, begins, strict=True)]
        target = cache if row is None else cache.row(row)
        self.model.hidden(torch.tensor(padded, device=cache.keys[0].device), cache=target, counts=counts)
        if row is not None:
            cache.lengths[row] = len(parts[0])

    @property
    def separator(self) -> int | None:
        """The token that ends a document, where this network keeps documents apart."""
        return self.end if self.model.config.document_mask else None

    def _last_document(self, ids: Sequence[int]) -> int:
        """Where the document begins that what follows some tokens is in."""
        if self.separator is None or self.separator not in ids:
            return 0
        return len(ids) - list(ids)[::-1].index(self.separator)

    def steps(self, ids: Sequence[int], cache: KVCache, count: int) -> Tensor:
        """Reads several tokens of one text.

        Args:
            ids: the next tokens, (T,)
            cache: of one row; the tokens are added to it
            count: of how many of the last tokens to give the logits

        Returns:
            the logits of what follows each, (count, V)
        """
        documents, separator = [list(ids)], self.separator
        while separator is not None and separator in documents[-1][:-1]:
            end = documents[-1].index(separator) + 1
            documents[-1:] = [documents[-1][:end], documents[-1][end:]]
        hidden = []
        for document in documents:
            new = torch.tensor([document], device=cache.keys[0].device)
            hidden.append(self.model.hidden(new, cache=cache)[0])
            if document[-1] == separator:
                cache.begin_document(0)
        return self.model.logits(torch.cat(hidden)[-count:])

    def _end_documents(self, ids: Tensor, cache: KVCache) -> None:
        """After a step: where the token just read ends a document, another one begins."""
        if self.separator is not None:
            for row, token in enumerate(ids.tolist()):
                if token == self.separator:
                    cache.begin_document(row)
