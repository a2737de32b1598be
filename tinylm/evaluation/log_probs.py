"""The log probability of each token of a text. Every score, loss and table of this package is computed from it.

A sequence longer than the context is read in overlapping windows. Each window begins `stride` tokens after the
previous one, except for the last, which ends with the sequence. A token counts in the first window that predicts it, so
that after the first window every token is predicted from at least `context - stride` tokens. A small stride gives
tokens more context but takes longer.
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
from tinylm.errors import DataError, NumericError
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.progress import ProgressBar
from tinylm.tokenizer import Tokenizer


class Predictions(NamedTuple):
    """A model's predictions of all tokens of a sequence but the first."""

    log_probs: Tensor  # log probability of each token in nats, float64 (n - 1,)
    likeliest: Tensor  # the most probable token in its place, (n - 1,)


def token_log_probs(
    model: TransformerLM,
    sequences: Sequence[np.ndarray],
    *,
    separator: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> list[Predictions]:
    """Predicts every token of each sequence from the tokens before it.

    Args:
        model: the network; it is run in evaluation mode
        sequences: token ids, (n,) each; the first token of each is context only
        separator: the end-of-text token, for a model that keeps documents within a sequence apart
        stride: tokens between the beginnings of windows, 1 to the context. Default: half the context
        batch_size: windows read at once

    Raises:
        ConfigError: for a stride or batch size out of range.
        DataError: for a sequence without a token to predict.
        NumericError: if a log probability is NaN or infinite.
    """
    context = model.config.max_seq_len
    stride = max(context // 2, 1) if stride is None else stride
    require(1 <= stride <= context, f"stride must be from 1 to the context, {context}, got {stride}")
    require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    if any(len(ids) < 2 for ids in sequences):
        raise DataError("the text has no token to predict; give a longer one")
    rows = [torch.as_tensor(ids, dtype=torch.long) for ids in sequences]
    found = [Predictions(torch.empty(len(ids) - 1, dtype=torch.float64), torch.empty_like(ids[1:])) for ids in rows]
    windows: list[tuple[int, int]] = []  # row, first token
    for row, ids in enumerate(rows):
        last = max(len(ids) - 1 - context, 0)
        windows += [(row, begin) for begin in (*range(0, last, stride), last)]
    windows.reverse()  # so that each token keeps the prediction of the first window that contains it
    with ProgressBar("predicting", len(windows), "windows") as bar:
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            parts = [rows[row][begin : begin + context + 1] for row, begin in batch]
            for (row, begin), part, *columns in zip(batch, parts, *_predict(model, parts, separator), strict=True):
                for whole, column in zip(found[row], columns, strict=True):
                    whole[begin : begin + len(part) - 1] = column[: len(part) - 1]
            bar.update(len(batch))
    return found


def _predict(model: TransformerLM, windows: list[Tensor], separator: int | None) -> Predictions:
    """Predictions of windows, (T + 1,) each, in one batch. Padding is at the end, where causality hides it."""
    ids = pad_sequence(windows, batch_first=True).to(model.embedding.weight.device)  # (B, T + 1)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with evaluating(model):
        logits = model(inputs, documents=documents_apart(model.config, inputs, separator))
        nats = token_nats(double(logits), targets).cpu()
    if not nats.isfinite().all():
        raise NumericError("the log probabilities are not finite: the weights are corrupt; use another checkpoint")
    return Predictions(-nats, logits.argmax(dim=-1).cpu())


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target in nats, and 0 for targets of -100, which do not count: (B, T, V), (B, T) -> (B, T)"""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 on Apple's GPUs, which have no float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def document_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text read as one document: the token that begins a text, if any, and the tokens of the text."""
    return np.concatenate([np.array(tokenizer.opening, dtype=np.int64), tokenizer.encode_array(text)])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, without gradients, for a `with` block.

    PyTorch's inference mode is not used: positional tables created in it could not be used in training later.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
