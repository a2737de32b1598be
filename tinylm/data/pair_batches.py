"""Batches of prompt/response pairs: the order of training, padding and packing.

As with text (batches.py), the pairs of step s are a pure function of (seed, s): an epoch is a seeded permutation of the
rows, and the epochs form one endless sequence.

Padded, a row holds one pair, and a batch is as wide as its longest row. Padding is at the right, where causality
hides it. Packed, a row holds as many pairs as fit, and document numbers keep them apart; this requires a model with
`document_mask`. Positions continue through a row, so a packed pair equals a single one only with relative positions
(rotary); a model with learned or sinusoidal positions sees pairs at varying positions.

With document masks it does not matter which pairs share a row, so rows are packed once, by best-fit decreasing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from tinylm.data.batches import Batch, shuffle, shuffled
from tinylm.data.evaluation_rows import without_targets
from tinylm.data.template import Example, Preferred
from tinylm.model.loss import IGNORE
from tinylm.stages import Stages, as_stages


@dataclass(frozen=True)
class PairRows:
    """Pairs arranged in rows.

    Attributes:
        examples: the encoded pairs
        rows: indices of the pairs in each row
        pad: the padding token; any id will do, since no target depends on it
        width: inputs in a row. None: as many as in the longest row of the batch
    """

    examples: Sequence[Example]
    rows: Sequence[Sequence[int]]
    pad: int
    width: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def num_targets(self) -> np.ndarray:
        """Number of targets in each row, int64 (rows,)."""
        counted = [int(example.counts[1:].sum()) for example in self.examples]
        return np.array([sum(counted[i] for i in row) for row in self.rows], dtype=np.int64)

    def batch(self, numbers: Sequence[int] | np.ndarray, num_targets: int | None = None) -> Batch:
        """The batch of some rows of an optimizer step with `num_targets` targets (default: the targets of these rows).

        Document numbers are 0, 1, ... for the pairs of a row, and the next number for padding.
        """
        rows = [[self.examples[i] for i in self.rows[number]] for number in numbers]
        width = self.width or max(sum(example.num_inputs for example in row) for row in rows)
        if num_targets is None:
            num_targets = int(self.num_targets[list(numbers)].sum())
        rejected = [[example.rejected for example in row if isinstance(example, Preferred)] for row in rows]
        other = self._filled(rejected, width, num_targets) if rejected[0] else None
        return self._filled(rows, width, num_targets)._replace(rejected=other)

    def _filled(self, rows: Sequence[Sequence[Example]], width: int, num_targets: int) -> Batch:
        """The batch of the pairs of each row."""
        inputs = np.full((len(rows), width), self.pad, dtype=np.int64)
        targets = np.full_like(inputs, IGNORE)
        documents = np.empty_like(inputs)
        for number, row in enumerate(rows):
            begin = 0
            for document, (ids, counts) in enumerate(row):
                end = begin + len(ids) - 1
                inputs[number, begin:end] = ids[:-1]
                targets[number, begin:end] = np.where(counts[1:], ids[1:], IGNORE)
                documents[number, begin:end] = document
                begin = end
            documents[number, begin:] = len(row)
        inputs, targets, documents = map(torch.from_numpy, (inputs, targets, documents))
        return Batch(inputs, targets, num_targets, documents=documents)


def pad_rows(examples: Sequence[Example], pad: int) -> PairRows:
    """One pair in each row."""
    return PairRows(examples, [(number,) for number in range(len(examples))], pad)


def pack_rows(examples: Sequence[Example], context: int, pad: int) -> PairRows:
    """Several pairs in each row of one context, by best-fit decreasing: longest first, each into the tightest row."""
    by_space: list[list[list[int]]] = [[] for _ in range(context + 1)]  # free space -> rows
    rows = []
    for number in sorted(range(len(examples)), key=lambda i: -examples[i].num_inputs):
        length = examples[number].num_inputs
        space = next((space for space in range(length, context + 1) if by_space[space]), None)
        if space is None:
            rows.append([])
        row = rows[-1] if space is None else by_space[space].pop()
        row.append(number)
        by_space[(context if space is None else space) - length].append(row)
    return PairRows(examples, rows, pad, width=context)


@dataclass(frozen=True)
class RowOrder:
    """The rows of each training step.

    Args:
        num_rows: number of rows
        batch_size: rows in an optimizer step, over all devices; `Stages` if it grows
        seed: seed of the order
    """

    version: ClassVar[int] = 1  # of the order

    num_rows: int
    batch_size: int | Stages
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, rounded down, and at least one."""
        return max(1, self.num_rows // as_stages(self.batch_size).final)

    def rows(self, step: int) -> np.ndarray:
        """Indices of the rows of a step, int64 (batch_size,)."""
        return shuffled(as_stages(self.batch_size).range(step), self.seed, self.num_rows)[0]


def split_examples(examples: Sequence[Example], split: Sequence[float], seed: int) -> list[list[Example]]:
    """Divides pairs into parts by a seeded permutation, and keeps the order within a part.

    Pairs with equal prompts stay together, so parts share no prompt.
    """
    prompts = [example.ids[~example.counts].tobytes() for example in examples]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    groups = np.array([numbers[prompt] for prompt in prompts])
    sizes = np.bincount(groups)
    order = shuffle(seed, 0, len(sizes))[0]
    middles = np.empty(len(sizes))  # of each group, in the permuted sequence of pairs
    middles[order] = np.cumsum(sizes[order]) - sizes[order] / 2
    parts = np.searchsorted(np.cumsum(split)[:-1] * len(examples), middles)[groups]
    return [[each for each, found in zip(examples, parts, strict=True) if found == part] for part in range(len(split))]


# --- the share of each process


@dataclass(frozen=True)
class PairTrainingBatches(Dataset[Batch]):
    """Item i is this process's share of micro-batch i % accumulate of step i // accumulate."""

    rows: PairRows
    order: RowOrder
    accumulate: int
    world_size: int
    rank: int

    def __getitem__(self, index: int) -> Batch:
        step, micro_step = divmod(index, self.accumulate)
        numbers = self.order.rows(step)
        shares = numbers.reshape(self.world_size, self.accumulate, -1)
        return self.rows.batch(shares[self.rank, micro_step], int(self.rows.num_targets[numbers].sum()))


@dataclass(frozen=True)
class PairEvaluationBatches(Dataset[Batch]):
    """Item i is this process's i-th batch of rows; as in `EvaluationBatches`, all processes have equally many."""

    rows: PairRows
    batch_size: int
    world_size: int
    rank: int

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        first = (index * self.world_size + self.rank) * self.batch_size
        if first < len(self.rows):
            return self.rows.batch(range(first, min(first + self.batch_size, len(self.rows))))
        return without_targets(self.rows.batch([0]))
