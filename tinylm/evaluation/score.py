"""Scores of a model on texts: loss, perplexity, bits per byte."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from tinylm.errors import DataError
from tinylm.evaluation.log_probs import document_ids, token_log_probs
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """The loss of a model on a text."""

    nats: float  # -log p of all predicted tokens together
    tokens: int  # number of predicted tokens
    bytes: int  # length of the text that these tokens stand for

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinity where that exceeds the largest float, e^709."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss in a unit that does not depend on the tokenizer. DataError if no token stands for text."""
        if not self.bytes:
            raise DataError("no token stands for a byte of the text, as with unknown words only; give another text")
        return self.nats / math.log(2) / self.bytes


def score_text(
    model: TransformerLM,
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    *,
    stride: int | None = None,
    batch_size: int = 8,
) -> Score:
    """The score of one text, or of several together. Each is one document, whose separator is not counted.

    Args:
        model: the network
        tokenizer: the model's
        text: the text to predict; if the tokenizer has no token that begins a text, all but the first token
        stride: as for `token_log_probs`
        batch_size: windows read at once

    Raises:
        ConfigError: for a stride or batch size out of range.
        DataError: for a text without a token to predict, or that the tokenizer cannot encode.
    """
    texts, before = [text] if isinstance(text, str) else text, len(tokenizer.opening)
    rows = [document_ids(tokenizer, each) for each in texts]
    found = token_log_probs(model, rows, separator=tokenizer.end_of_text, stride=stride, batch_size=batch_size)
    score = total_score(tokenizer, [ids[1:] for ids in rows], [each.log_probs for each in found])
    pairs = zip(texts, rows, strict=True)
    return replace(score, bytes=sum(tokenizer.bytes_from(each, ids[before:], 1 - before) for each, ids in pairs))


def total_score(tokenizer: Tokenizer, ids: Sequence[np.ndarray], log_probs: Iterable[Tensor]) -> Score:
    """The score of predicted tokens: their ids, (n,) each, and their log probabilities in nats, (n,) each."""
    nats = -math.fsum(float(each.sum()) for each in log_probs)
    return Score(nats, sum(map(len, ids)), sum(int(tokenizer.byte_lengths[each].sum()) for each in ids))
