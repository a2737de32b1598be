"""The training loop: batches of token ids in, a better model out.

    for step in train(model, optimizer, batches, rate):
        ...                                             # log, validate, save

What a step needs is all here: gradients, clipping, the optimizer. What happens between two steps (which text, what is
printed, when a checkpoint is written) is the caller's: see tinylm train-numpy.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinylm.reference.functions import Array
from tinylm.reference.optim import Optimizer, clip_gradients
from tinylm.reference.transformer import Grads, NumpyTransformerLM


class Batch(NamedTuple):
    """What is computed at once: a step's whole batch, or a part of it where memory is short.

    Attributes:
        inputs: token ids, (B, T)
        targets: the ids that follow, (B, T); -100 where nothing is to be predicted
        num_targets: how many targets count in the whole step
        documents: for `document_mask`: the document of each token, (B, T)
    """

    inputs: Array
    targets: Array
    num_targets: int
    documents: Array | None = None


class Step(NamedTuple):
    """What a step was like.

    Attributes:
        number: steps done, this one included
        loss: nats per target, before the step
        grad_norm: of all gradients together, before clipping
        lr: the learning rate
        tokens: how many were read
    """

    number: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int


def train(
    model: NumpyTransformerLM,
    optimizer: Optimizer,
    batches: Iterable[Sequence[Batch]],
    rate: Callable[[int], float],
    *,
    max_norm: float | None = None,
    first: int = 0,
    seed: int = 0,
) -> Iterator[Step]:
    """Takes a step for each of some batches. It is done when it is yielded.

    Args:
        model: what learns
        optimizer: over the model's parameters
        batches: of each step the parts, which count as one batch
        rate: the learning rate of a step, numbered from 0
        max_norm: the largest norm of a step's gradients; None: they are not clipped
        first: steps done before these
        seed: of dropout, whose masks are a function of (seed, step, part): a run that goes on draws the same

    Raises:
        FloatingPointError: if loss or gradients are no finite numbers. The weights are as before the step then.
    """
    for step, parts in enumerate(batches, start=first):
        with np.errstate(all="ignore"):  # what overflows is found below
            loss, grads = gradients(model, parts, (seed, step))
            norm = clip_gradients(grads, max_norm)
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step + 1}: the {name} is {value}; the weights are as before this step")
        lr = rate(step)
        optimizer.step(grads, lr)
        yield Step(step + 1, loss, norm, lr, sum(part.inputs.size for part in parts))


def gradients(model: NumpyTransformerLM, parts: Sequence[Batch], seed: tuple[int, ...]) -> tuple[float, Grads]:
    """The loss of a batch in parts, and its gradients: each part's targets are divided by the number of all.

    Args:
        model: the network
        parts: of the batch
        seed: of dropout
    """
    loss, grads = 0.0, {}
    for number, (inputs, targets, num_targets, documents) in enumerate(parts):
        random = np.random.default_rng([*seed, number]) if model.config.dropout > 0 else None
        share, found = model.loss_and_grads(
            inputs, targets, documents=documents, num_targets=num_targets, dropout=random
        )
        loss += share
        grads = {name: grads[name] + gradient for name, gradient in found.items()} if grads else found
    return loss, grads


# --- evaluation


@dataclass
class Score:
    """How well some targets were predicted.

    Attributes:
        nats: Σ -log p over all targets
        tokens: how many targets
        right: how many of them were the likeliest token
    """

    nats: float = 0.0
    tokens: int = 0
    right: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.right + other.right)

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely tokens such a loss would be a choice."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """The fraction of targets that were the likeliest token."""
        return self.right / max(self.tokens, 1)


def evaluate(model: NumpyTransformerLM, batches: Iterable[Batch]) -> Score:
    """The score of all targets of some batches together; every one counts the same, however batches are cut."""

    def score(batch: Batch) -> Score:
        return Score(*model.evaluate(batch.inputs, batch.targets, batch.documents))

    with ThreadPoolExecutor(model.threads) as pool:
        return sum(pool.map(score, batches), Score())
