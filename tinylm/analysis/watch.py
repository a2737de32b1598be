"""Looking into a network while it computes, and leaving it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tinylm.model import Block, TransformerLM


def blocks_of(model: TransformerLM) -> list[Block]:
    """The blocks, by their type."""
    return [block for block in model.blocks if isinstance(block, Block)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode that was comes back.

    Not PyTorch's inference mode: the tables of positions that are made in it could not be trained with afterwards.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    """Hooks that are there for a while."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
