"""The share of each process: its micro-batches of every training step, and its batches of an evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from tinylm.data.batches import Batch, Rows, TrainingWindows, gather, gather_rows, without_targets
from tinylm.data.pair_batches import PairRows, RowOrder


class MicroSteps(Sampler[int]):
    """The indices of an epoch's micro-batches, counted from the run's first, from the current position on."""

    def __init__(self, per_epoch: int, position) -> None:
        self.per_epoch, self.position = per_epoch, position

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self.position()
        return iter(range(start, (start // self.per_epoch + 1) * self.per_epoch))


# --- text


@dataclass(frozen=True)
class TrainingBatches(Dataset[Batch]):
    """Item i is this process's share of micro-batch i % accumulate of step i // accumulate."""

    tokens: np.ndarray
    windows: TrainingWindows
    accumulate: int
    world_size: int
    rank: int

    def __getitem__(self, index: int) -> Batch:
        step, micro_step = divmod(index, self.accumulate)
        shares = self.windows.starts(step).reshape(self.world_size, self.accumulate, -1)
        num_targets = self.windows.batch_size * self.windows.context
        return gather(self.tokens, shares[self.rank, micro_step], self.windows.context, num_targets)


@dataclass(frozen=True)
class EvaluationBatches(Dataset[Batch]):
    """Item i is this process's i-th batch of evaluation rows.

    All processes have equally many batches, because processes that shard one model compute together. A process whose
    rows have run out gets a batch without targets.
    """

    tokens: np.ndarray
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


# --- pairs


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
