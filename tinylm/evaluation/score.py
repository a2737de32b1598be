"""How well a model predicts a text that it is given: nats, perplexity, bits per byte.

A text longer than the context is read in windows that overlap: each begins `stride` tokens after the one before (the
last one where it ends with the text), and counts only the tokens that the one before did not reach. So every token is
counted once, and all but the first window's are predicted from at least `context - stride` tokens before them: a small
stride is fair to the model, and slow.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from tinylm.errors import ConfigError, DataError
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    Attributes:
        nats: -log p of all counted tokens together
        tokens: how many were counted
        bytes: of the text that they stand for
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Of a token: e to the mean loss."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """The loss in a unit that does not depend on the tokenizer."""
        return self.nats / math.log(2) / self.bytes


@torch.inference_mode()
def score_text(
    model: TransformerLM, tokenizer: Tokenizer, text: str, *, stride: int | None = None, batch_size: int = 8
) -> Score:
    """The score of a text, read as one document: the end-of-text token, if there is one, stands before it.

    Args:
        model: the network, in evaluation mode
        tokenizer: of the model
        text: what is predicted; without an end-of-text token its first token is not
        stride: tokens between the beginnings of windows, 1 to the context; None: half the context
        batch_size: windows at once

    Raises:
        ConfigError: for a stride or batch size out of range.
        DataError: for a text without a token to predict, or that the tokenizer has no ids for.
    """
    context = model.config.max_seq_len
    stride = max(context // 2, 1) if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(f"stride must be from 1 to the context, {context}, got {stride}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    ids = tokenizer.encode_array(text)
    before = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    ids = np.concatenate([np.array(before, dtype=np.int64), ids])
    if len(ids) < 2:
        raise DataError("the text has no token to predict; give a longer one")
    nats = math.fsum(_window_nats(model, ids, stride, batch_size, tokenizer.end_of_text))
    num_bytes = int(tokenizer.byte_lengths[ids[1:]].sum())
    return Score(nats, len(ids) - 1, num_bytes)


def _window_nats(
    model: TransformerLM, ids: np.ndarray, stride: int, batch_size: int, separator: int | None
) -> list[float]:
    """The nats of batches of windows."""
    context, device = model.config.max_seq_len, model.embedding.weight.device
    last = max(len(ids) - 1 - context, 0)  # where the last window begins, at the latest
    begins = [*range(0, last, stride), last]
    counted = [min(begin + context, len(ids) - 1) for begin in begins]  # targets up to here are counted then
    fresh = [end - before for end, before in zip(counted, [0, *counted], strict=False)]
    found = []
    for i in range(0, len(begins), batch_size):
        rows = np.stack([ids[begin : begin + context + 1] for begin in begins[i : i + batch_size]])
        rows = torch.from_numpy(rows).to(device)  # (B, T + 1)
        documents = documents_apart(model.config, rows[:, :-1], separator)
        log_probs = model(rows[:, :-1], documents=documents).double().log_softmax(dim=-1)
        losses = F.nll_loss(log_probs.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(rows[:, 1:].shape)
        for row, new in zip(losses, fresh[i : i + batch_size], strict=True):
            found.append(float(row[len(row) - new :].sum()))
    return found
