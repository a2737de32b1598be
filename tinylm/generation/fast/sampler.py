"""Sampler: draws tokens on the device, for `GraphDecoder`, by tensors alone.

The functions are those of sampling.py; Python lists there are tensors here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.generation.options import SamplingConfig
from tinylm.generation.sampling import EXCLUDED, draw, filtered, penalized, random_times
from tinylm.generation.text import Text

OK, NOT_FINITE, NO_CHOICE = 0, 1, 2  # faults: none; in the model's logits; no token left by bans, biases and penalties
OF_THE_HOST = ("max_new_tokens", "stop", "seed")  # options that a step does not depend on


class Sampler:
    """Draws the next token of each row.

    Args:
        config: how tokens are chosen
        vocab_size: number of tokens that may be generated, V; further logits are ignored
        stops: ids of the tokens that end a text, which `min_new_tokens` excludes
        log_probs: whether to compute log probabilities
        rows: number of rows, B
        like: a weight of the model; logits have its type, or float32 if that is wider

    Attributes:
        key: equal for samplers that draw in the same way
        changed: tensors that a step changes
    """

    def __init__(
        self, config: SamplingConfig, vocab_size: int, stops: Sequence[int], log_probs: bool, rows: int, like: Tensor
    ) -> None:
        self.config, self.vocab_size, self.log_probs = config, vocab_size, log_probs
        device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
        options = [repr(value) for name, value in vars(config).items() if name not in OF_THE_HOST]
        self.key = (*options, vocab_size, tuple(stops), log_probs, rows)
        self.draw, self.changed = self.drawn, []
        self.tokens = torch.arange(vocab_size, device=device)  # torch.compile multiplies an arange inside it wrongly
        self.penalizes = config.penalizes
        if self.penalizes:
            self.counts = torch.zeros(2, rows, vocab_size, dtype=torch.long, device=device)  # prompt, generated
            self.changed = [self.counts]
        self.bias, self.ends = None, None
        if config.logit_bias or config.banned_tokens:
            bias = torch.zeros(vocab_size, dtype=dtype)
            biases = config.logit_bias or {}
            bias[list(biases)] = torch.tensor(list(biases.values()), dtype=dtype)
            bias[list(config.banned_tokens)] = EXCLUDED
            self.bias = bias.to(device)
        if config.min_new_tokens and stops:
            self.ends = torch.isin(torch.arange(vocab_size), torch.tensor(list(stops))).to(device)

    def begin(self, row: int, text: Text) -> None:
        """Counts the tokens of a text that begins or continues in a row."""
        if self.penalizes:
            counted = [torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=self.vocab_size)
                       for ids in (text.prompt, text.ids)]  # fmt: skip
            self.counts[:, row].copy_(torch.stack(counted)[:, : self.vocab_size])

    def count(self, tokens: Tensor) -> None:
        """Counts one generated token of each row, (B,)."""
        if self.penalizes:
            self.counts[1].scatter_add_(1, tokens[:, None], torch.ones_like(tokens)[:, None])

    def compile(self) -> None:
        """Compiles `draw`; the compiler runs at the first call."""
        self.draw = torch.compile(self.drawn, dynamic=False)

    def drawn(self, logits: Tensor, keys: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one token of each row.

        Args:
            logits: of the model, (B, V or more)
            keys: of the random numbers, int64 (B,)
            made: number of tokens generated so far, int64 (B,)

        Returns:
            the tokens, int64 (B,), and with their log probabilities and faults, float64 (B, 3)
        """
        logits = logits[:, : self.vocab_size]
        scores = penalized(logits, self.counts[0], self.counts[1], self.config) if self.penalizes else logits
        scores = scores if self.bias is None else scores + self.bias
        if self.ends is not None:
            scores = scores.masked_fill((made < self.config.min_new_tokens)[:, None] & self.ends, EXCLUDED)
        if self.config.temperature == 0:
            tokens = scores.argmax(dim=-1)
        else:
            p = filtered(scores.double(), self.config).softmax(dim=-1)
            tokens = draw(p, random_times(keys, made, self.tokens))
        fault = ~scores.amax(dim=-1).isfinite() * NO_CHOICE
        fault = fault.masked_fill(~logits.amax(dim=-1).isfinite(), NOT_FINITE)
        found = torch.zeros_like(tokens, dtype=torch.float64)
        if self.log_probs:
            found = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].double()
        return tokens, torch.stack((tokens.double(), found, fault.double()), dim=1)
