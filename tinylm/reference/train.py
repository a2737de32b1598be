"""The training loop: takes batches of token ids and improves the model.

    for step in train(model, optimizer, batches, rate):
        ...                                             # log, validate, save

A step is gradients, clipping, and the optimizer. What happens between steps (choosing the text, logging, writing
checkpoints) is the caller's: see `tinylm train-numpy`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinylm.reference.functions import Array
from tinylm.reference.optim import Optimizer, clip_gradients
from tinylm.reference.transformer import Grads, NumpyTransformerLM


class Batch(NamedTuple):
    """A micro-batch: the part of a step's batch that is computed at once.

    Attributes:
        inputs: token ids, (B, T)
        targets: the ids that follow, (B, T); -100 where nothing is to be predicted
        num_targets: the number of targets in the whole step
        documents: for `document_mask`: the document of each token, (B, T)
    """

    inputs: Array
    targets: Array
    num_targets: int
    documents: Array | None = None


class Step(NamedTuple):
    """The figures of one step.

    Attributes:
        number: steps done, this one included
        loss: nats per target, before the step
        grad_norm: the norm of all gradients together, before clipping
        lr: the learning rate
        tokens: input tokens in the batch
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
    """Takes one step for each batch, and yields it when it is done.

    Args:
        model: the model to train
        optimizer: over the model's parameters
        batches: for each step its micro-batches, which count as one batch
        rate: the learning rate of a step, numbered from 0
        max_norm: the largest norm of a step's gradients. Default: no clipping
        first: steps done before these
        seed: of dropout; its masks depend on (seed, step, micro-batch) only, so a resumed run draws the same ones

    Raises:
        FloatingPointError: if loss or gradients are not finite. The weights are then as before the step.
    """
    for step, parts in enumerate(batches, start=first):
        with np.errstate(all="ignore"):  # overflow is detected below
            loss, grads = gradients(model, parts, (seed, step))
            norm = clip_gradients(grads, max_norm)
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step + 1}: the {name} is {value}; the weights are as before this step")
        lr = rate(step)
        optimizer.step(grads, lr)
        yield Step(step + 1, loss, norm, lr, sum(part.inputs.size for part in parts))


def gradients(model: NumpyTransformerLM, parts: Sequence[Batch], seed: tuple[int, ...]) -> tuple[float, Grads]:
    """The loss and the gradients of a batch in parts: sums, as every part divides by the targets of the whole batch."""
    loss, grads = 0.0, {}
    for number, (inputs, targets, num_targets, documents) in enumerate(parts):
        random = np.random.default_rng([*seed, number]) if model.config.dropout > 0 else None
        share, found = model.loss_and_grads(
            inputs, targets, documents=documents, num_targets=num_targets, dropout=random
        )
        loss += share
        grads = {name: grads[name] + gradient for name, gradient in found.items()} if grads else found
    return loss, grads


class Score(NamedTuple):
    """Quality of predictions, as sums over targets.

    Attributes:
        nats: Σ -log p over all targets
        tokens: the number of targets
        right: how many of them were the most likely token
    """

    nats: float
    tokens: int
    right: int

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """exp(loss): a uniform choice among this many tokens has the same loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """The fraction of targets that were the most likely token."""
        return self.right / max(self.tokens, 1)


def evaluate(model: NumpyTransformerLM, batches: Iterable[Batch]) -> Score:
    """The score over all targets of some batches; every target counts the same, however the batches are cut."""
    scores = [model.evaluate(batch.inputs, batch.targets, batch.documents) for batch in batches]
    return Score(*(sum(column) for column in zip(*scores, strict=True)))
