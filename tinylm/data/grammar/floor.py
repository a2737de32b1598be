"""The loss floor: the best loss that any model could reach on texts of known probability.

No model can predict a fair die. Where a grammar generated the text, the log probability of each document is exact, and
its negative, summed over documents, is the expected loss of the best possible predictor (Shannon 1948). On few
documents a model may fall below the floor by chance; the standard error measures how far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinylm.data.evaluation_rows import document_begins, document_lengths
from tinylm.data.token_array import Tokens, pieces_of


@dataclass(frozen=True)
class Floor:
    """The best possible loss on one part of a corpus.

    Attributes:
        log_probs: log probabilities of the documents, in nats, float64 (documents,)
        begins: positions of the separators before the documents, int64 (documents,)
        num_tokens: number of targets, the separators after the documents included
        num_bytes: size of the documents' text
        standard_error: standard error of `nats_per_token`, from the spread over documents
    """

    log_probs: np.ndarray
    begins: np.ndarray
    num_tokens: int
    num_bytes: int
    standard_error: float

    @classmethod
    def of(cls, tokens: Tokens, separator: int, byte_lengths: np.ndarray, log_probs: np.ndarray) -> "Floor":
        """The floor of documents that each end with `separator`; `byte_lengths` are the bytes of each id, (V,)."""
        begins = document_begins(tokens, separator)
        counts = document_lengths(begins, len(tokens))
        # Ratio estimator: the error of sum(nats) / sum(tokens) comes from the residuals around that ratio.
        residuals = -log_probs + log_probs.sum() / len(tokens) * counts
        error = math.sqrt(float((residuals**2).sum())) / len(tokens)
        num_bytes = sum(int(byte_lengths[piece].sum()) for piece in pieces_of(tokens))
        return cls(log_probs, begins, len(tokens), num_bytes, error)

    @classmethod
    def joined(cls, floors: Sequence["Floor"]) -> "Floor":
        """The floor of several texts together. Their errors are independent, and `begins` counts in each text."""
        num_tokens = sum(floor.num_tokens for floor in floors)
        error = math.hypot(*(floor.standard_error * floor.num_tokens for floor in floors)) / num_tokens
        log_probs, begins = (
            np.concatenate([getattr(floor, name) for floor in floors]) for name in ("log_probs", "begins")
        )
        return cls(log_probs, begins, num_tokens, sum(floor.num_bytes for floor in floors), error)

    @property
    def nats_per_token(self) -> float:
        """The floor in the unit of the loss."""
        return -float(self.log_probs.sum()) / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """The floor in bits per byte, which does not depend on the tokenizer."""
        return -float(self.log_probs.sum()) / math.log(2) / self.num_bytes
