"""The floor: the best loss that any model could reach on texts whose probabilities are known.

No model can tell what a fair die will show. Where a grammar wrote the text, the log probability of each document under
the grammar is exact, and its negative, summed over the documents, is what the best predictor would pay on average
(Shannon 1948). A model may fall below it on a few documents by luck; over n of them the luck is told by the standard
error.
"""

import math
from dataclasses import dataclass

import numpy as np

from tinylm.data.batches import document_begins, document_lengths


@dataclass(frozen=True)
class Floor:
    """The best possible loss on one part of a corpus.

    Attributes:
        log_probs: of the documents, in nats, float64 (documents,)
        begins: where the separators before the documents are in the tokens, int64 (documents,)
        num_tokens: all targets, the separators after the documents included
        num_bytes: of the documents' text
        standard_error: of `nats_per_token`, from the spread of the documents
    """

    log_probs: np.ndarray
    begins: np.ndarray
    num_tokens: int
    num_bytes: int
    standard_error: float

    @classmethod
    def of(cls, tokens: np.ndarray, separator: int, byte_lengths: np.ndarray, log_probs: np.ndarray) -> "Floor":
        """The floor of encoded documents.

        Args:
            tokens: the documents one after the other, each with a separator behind it, (tokens,)
            separator: its id
            byte_lengths: bytes of text behind each id
            log_probs: of the documents, in nats
        """
        begins = document_begins(tokens, separator)
        counts = document_lengths(begins, len(tokens))
        # the ratio of two sums, nats and tokens: its error comes from what the ratio leaves unexplained
        residuals = -log_probs + log_probs.sum() / len(tokens) * counts
        error = math.sqrt(float((residuals**2).sum())) / len(tokens)
        num_bytes = int(byte_lengths[tokens].sum())
        return cls(log_probs, begins, len(tokens), num_bytes, error)

    @property
    def nats_per_token(self) -> float:
        """In the unit of the loss."""
        return -float(self.log_probs.sum()) / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Whatever the tokenizer."""
        return -float(self.log_probs.sum()) / math.log(2) / self.num_bytes
