"""The rows of an evaluation: every token is a target exactly once."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from tinylm.data.batches import Batch
from tinylm.data.token_array import Tokens, positions_of
from tinylm.model.loss import IGNORE


class Rows(NamedTuple):
    """The rows of an evaluation.

    Attributes:
        begins: position of each row's first input, int64 (rows,); -1 is the last token, which is a separator too
        ends: position of each row's last target, int64 (rows,)
        log_probs: exact log probability of each row's targets, in nats, (rows,); None if unknown
    """

    begins: np.ndarray
    ends: np.ndarray
    log_probs: np.ndarray | None = None


def window_rows(num_tokens: int, context: int) -> Rows:
    """Adjacent windows: every token but the first is a target once."""
    begins = np.arange(0, max(num_tokens - 1, 0), context)
    return Rows(begins, np.minimum(begins + context, num_tokens - 1))


def spaced_window_rows(num_tokens: int, context: int, max_tokens: int | None) -> Rows:
    """Adjacent windows, or evenly spaced ones with about `max_tokens` in all."""
    rows = window_rows(num_tokens, context)
    chosen = evenly_spaced(len(rows.begins), num_tokens, num_tokens if max_tokens is None else max_tokens)
    return Rows(rows.begins[chosen], rows.ends[chosen])


def document_rows(
    begins: np.ndarray,
    num_tokens: int,
    context: int,
    log_probs: np.ndarray | None = None,
    documents: np.ndarray | slice = slice(None),
) -> Rows:
    """Each document from its start, its separator included, in as many rows as the context requires.

    The documents begin at `document_begins`. Their log probabilities are counted in each document's first row.
    `documents` selects some of them.
    """
    lengths = document_lengths(begins, num_tokens)[documents]
    begins, log_probs = begins[documents], None if log_probs is None else log_probs[documents]
    pieces = -(-lengths // context)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of the row in its document
    starts = np.repeat(begins, pieces) + number * context
    stops = np.minimum(starts + context, np.repeat(begins + lengths, pieces))
    return Rows(starts, stops, None if log_probs is None else np.where(number == 0, np.repeat(log_probs, pieces), 0.0))


def evenly_spaced(count: int, num_tokens: int, max_tokens: int) -> np.ndarray | slice:
    """Indices of evenly spaced rows or documents that have about `max_tokens` of the `num_tokens` of all `count`."""
    if num_tokens <= max_tokens:
        return slice(None)
    return np.linspace(0, count - 1, max(1, count * max_tokens // num_tokens)).round().astype(np.int64)


def document_begins(tokens: Tokens, separator: int) -> np.ndarray:
    """Positions of the separators before the documents, int64 (documents,); -1 for the first document."""
    return np.append(-1, positions_of(tokens, separator)[:-1])


def document_lengths(begins: np.ndarray, num_tokens: int) -> np.ndarray:
    """Tokens of each document, its separator included, int64 (documents,)."""
    return np.diff(np.append(begins, num_tokens - 1))


def gather_rows(tokens: Tokens, rows: Rows, part: slice) -> Batch:
    """The batch of some rows, each padded with IGNORE to the longest of all rows."""
    begins, ends = rows.begins[part, None], rows.ends[part, None]
    width = int((rows.ends - rows.begins).max())
    positions = begins + np.arange(width + 1)
    windows = np.asarray(tokens[np.minimum(positions, ends)]).astype(np.int64)
    targets = torch.from_numpy(np.where(positions <= ends, windows, IGNORE)[:, 1:])
    log_prob = None if rows.log_probs is None else float(rows.log_probs[part].sum())
    return Batch(torch.from_numpy(windows[:, :-1]), targets, int((ends - begins).sum()), log_prob)


def without_targets(batch: Batch) -> Batch:
    """The batch with nothing to predict."""
    log_prob = None if batch.log_prob is None else 0.0
    return batch._replace(targets=torch.full_like(batch.targets, IGNORE), num_targets=0, log_prob=log_prob)


@dataclass(frozen=True)
class EvaluationBatches(Dataset[Batch]):
    """Item i is this process's i-th batch of evaluation rows.

    All processes have equally many batches, because processes that shard one model compute together. A process whose
    rows have run out gets a batch without targets.
    """

    tokens: Tokens
    rows: Rows
    batch_size: int
    world_size: int
    rank: int

    def __len__(self) -> int:
        return -(-len(self.rows.begins) // (self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        first = (index * self.world_size + self.rank) * self.batch_size
        if first < len(self.rows.begins):
            return gather_rows(self.tokens, self.rows, slice(first, first + self.batch_size))
        return without_targets(gather_rows(self.tokens, self.rows, slice(1)))
