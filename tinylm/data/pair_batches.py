"""Which pairs make up step s, and how they lie in a batch: padded, or packed into rows of the whole context.

As with texts (batches.py) nothing is stored between steps: an epoch is a seeded permutation of the rows, the epochs
form one endless sequence, and step s takes the `batch_size` rows from s * batch_size on. So a run that goes on, on any
number of processes, sees the same pairs in the same order.

Padded, a row is one pair, and a batch is as wide as its longest; what fills the others stands at the right end, where
causality hides it. Packed, a row is as many pairs as fit, side by side, and document numbers keep them apart: that
needs a network with `document_mask`. Positions are not restarted in a row, so only relative ones (rotary) make a packed
pair the same as one alone; a network with learned or sinusoidal positions learns pairs wherever they happen to stand.

What shares a row does not matter then, so rows are packed once, and well: longest first, each into the row that it
leaves the least room in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from tinylm.data.batches import IGNORE, Batch, shuffle
from tinylm.data.template import Example


@dataclass(frozen=True)
class PairRows:
    """Pairs as the rows of batches.

    Attributes:
        examples: the pairs, encoded
        rows: of each row, the indices of its pairs
        pad: the token that fills rows up; any will do, since nothing sees it
        width: inputs in a row; None: as many as the longest of a batch has
    """

    examples: Sequence[Example]
    rows: Sequence[Sequence[int]]
    pad: int
    width: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def num_targets(self) -> np.ndarray:
        """How many tokens are to be predicted in each row, int64 (rows,)."""
        counted = [int(example.counts[1:].sum()) for example in self.examples]
        return np.array([sum(counted[i] for i in row) for row in self.rows], dtype=np.int64)

    def batch(self, numbers: Sequence[int] | np.ndarray, num_targets: int | None = None) -> Batch:
        """The batch of some rows.

        Args:
            numbers: of the rows
            num_targets: in the whole optimizer step; None: in these rows

        Returns:
            the batch, in which document numbers are 0, 1, ... for the pairs of a row and the next for what fills it up
        """
        rows = [[self.examples[i] for i in self.rows[number]] for number in numbers]
        width = self.width or max(sum(example.num_inputs for example in row) for row in rows)
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
        if num_targets is None:
            num_targets = int(self.num_targets[list(numbers)].sum())
        as_tensor = torch.from_numpy
        return Batch(as_tensor(inputs), as_tensor(targets), num_targets, documents=as_tensor(documents))


def pad_rows(examples: Sequence[Example], pad: int) -> PairRows:
    """Each pair in a row of its own."""
    return PairRows(examples, [(number,) for number in range(len(examples))], pad)


def pack_rows(examples: Sequence[Example], context: int, pad: int) -> PairRows:
    """Pairs side by side in rows of the context, none longer than it: best-fit decreasing."""
    rooms: list[list[list[int]]] = [[] for _ in range(context + 1)]  # by how much room is left: rows
    rows = []
    for number in sorted(range(len(examples)), key=lambda i: -examples[i].num_inputs):
        length = examples[number].num_inputs
        room = next((room for room in range(length, context + 1) if rooms[room]), None)
        if room is None:
            rows.append([])
        row = rows[-1] if room is None else rooms[room].pop()
        row.append(number)
        rooms[(context if room is None else room) - length].append(row)
    return PairRows(examples, rows, pad, width=context)


@dataclass(frozen=True)
class RowOrder:
    """The order in which a run reads rows.

    Args:
        num_rows: how many there are
        batch_size: rows in an optimizer step, over all devices
        seed: of the order
    """

    num_rows: int
    batch_size: int
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every row is read once, rounded down."""
        return max(1, self.num_rows // self.batch_size)

    def rows(self, step: int) -> np.ndarray:
        """The numbers of a step's rows, int64 (batch_size,)."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(samples, self.num_rows)
        orders = {epoch: shuffle(self.seed, epoch, self.num_rows)[0] for epoch in set(epochs.tolist())}
        return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])


def split_examples(examples: Sequence[Example], split: Sequence[float], seed: int) -> list[list[Example]]:
    """Pairs in parts, by a seeded permutation; those with one prompt stay together, so that no two parts share any.

    Args:
        examples: the pairs, encoded
        split: the fractions of the parts
        seed: of the permutation

    Returns:
        the parts, each in the given order
    """
    prompts = [example.ids[~example.counts].tobytes() for example in examples]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    groups = np.array([numbers[prompt] for prompt in prompts])
    sizes = np.bincount(groups)
    order = shuffle(seed, 0, len(sizes))[0]
    middles = np.empty(len(sizes))
    middles[order] = np.cumsum(sizes[order]) - sizes[order] / 2  # of each group, in the permuted sequence of pairs
    homes = np.searchsorted(np.cumsum(split)[:-1] * len(examples), middles)[groups]
    return [[each for each, home in zip(examples, homes, strict=True) if home == part] for part in range(len(split))]
