"""The log probability of each token of a text. Every score, loss and table of this package is computed from it.

A sequence longer than the context is read in overlapping windows. Each window begins `stride` tokens after the one
before, the last one where it ends with the sequence, and predicts only the tokens that the one before did not reach.
So every token is predicted once, and after the first window always from at least `context - stride` tokens: a small
stride is fair to the model, and slow.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tinylm.checks import require
from tinylm.errors import DataError
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.tokenizer import Tokenizer


class Predictions(NamedTuple):
    """A model's predictions of all tokens of a sequence but the first.

    Attributes:
        log_probs: log probability of each token in nats, float64 (n - 1,)
        likeliest: the most probable token in its place, (n - 1,)
    """

    log_probs: Tensor
    likeliest: Tensor


class Window(NamedTuple):
    """A part of a sequence that is read at once: `ids[begin:end]` predicts `ids[begin + 1 : end + 1]`.

    Attributes:
        row: number of the sequence
        known: the last token that the window before predicted
    """

    row: int
    begin: int
    known: int
    end: int


def token_log_probs(
    model: TransformerLM,
    sequences: Sequence[np.ndarray],
    *,
    separator: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> list[Predictions]:
    """Predicts every token of some sequences from those before it.

    Args:
        model: the network; its mode is restored afterwards
        sequences: token ids, (n,) each; the first token of each is context only
        separator: the end-of-text token, where documents within a sequence are kept apart as in training
        stride: tokens between the beginnings of windows, 1 to the context. Default: half the context
        batch_size: windows read at once

    Raises:
        ConfigError: for a stride or batch size out of range.
        DataError: for a sequence without a token to predict.
    """
    context = model.config.max_seq_len
    stride = max(context // 2, 1) if stride is None else stride
    require(1 <= stride <= context, f"stride must be from 1 to the context, {context}, got {stride}")
    require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    rows = [torch.as_tensor(ids, dtype=torch.long) for ids in sequences]
    if any(len(ids) < 2 for ids in rows):
        raise DataError("the text has no token to predict; give a longer one")
    found = [Predictions(torch.empty(len(ids) - 1, dtype=torch.float64), torch.empty_like(ids[1:])) for ids in rows]
    windows = [window for row, ids in enumerate(rows) for window in _windows(row, len(ids), context, stride)]
    for i in range(0, len(windows), batch_size):
        batch = windows[i : i + batch_size]
        predictions = _predict(model, [rows[window.row][window.begin : window.end + 1] for window in batch], separator)
        for window, *columns in zip(batch, *predictions, strict=True):
            for whole, column in zip(found[window.row], columns, strict=True):
                whole[window.known : window.end] = column[window.known - window.begin : window.end - window.begin]
    return found


def _windows(row: int, length: int, context: int, stride: int) -> Iterator[Window]:
    last, known = max(length - 1 - context, 0), 0
    for begin in [*range(0, last, stride), last]:
        end = min(begin + context, length - 1)
        yield Window(row, begin, known, end)
        known = end


def _predict(model: TransformerLM, windows: list[Tensor], separator: int | None) -> Predictions:
    """Reads windows, (T + 1,) each, as one batch; shorter ones are padded at the end, where causality hides it."""
    ids = pad_sequence(windows, batch_first=True).to(model.embedding.weight.device)  # (B, T + 1)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with evaluating(model):
        logits = model(inputs, documents=documents_apart(model.config, inputs, separator))
        return Predictions(-token_nats(double(logits), targets).cpu(), logits.argmax(dim=-1).cpu())


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each token in nats, -log softmax(logits)[target]; 0 for targets of -100, which do not count.

    Args:
        logits: (B, T, V)
        targets: token ids, (B, T)

    Returns:
        (B, T)
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 on Apple's GPUs, which have no float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def document_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text read as one document: the end-of-text token, if the tokenizer has one, and the text's."""
    before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    return np.concatenate([np.array(before, dtype=np.int64), tokenizer.encode_array(text)])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, inside a `with` block; afterwards the model is in its earlier mode again.

    It is not PyTorch's inference mode: tables of positions created there could not be used in training later.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
