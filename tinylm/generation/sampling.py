"""From logits to one token: one pure function per idea.

Each filter takes logits (..., V) and gives logits of the same shape in which what it excludes is -inf, so filters
compose in any order; the usual one, temperature, top-k, top-p, min-p, is `filtered`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.errors import ConfigError, NumericError
from tinylm.model.config import check_types

EXCLUDED = float("-inf")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen.

    Raises:
        ConfigError: for a value without meaning.
    """

    max_new_tokens: int = 500
    """The most tokens to generate."""
    temperature: float = 1.0
    """Divides the logits: below 1 the likely becomes likelier, 0 is greedy."""
    top_k: int | None = None
    """Keep the k likeliest tokens. Above the vocabulary: all."""
    top_p: float | None = None
    """Keep the likeliest tokens that together have probability p (nucleus sampling)."""
    min_p: float | None = None
    """Keep tokens at least this fraction as likely as the likeliest."""
    seed: int | None = None
    """The same text for the same seed. Empty: another one each time."""

    def __post_init__(self) -> None:
        check_types(self)
        _require(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        _require(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", "a 64-bit integer", self.seed)
        _require(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or positive", self.temperature)
        _require(self.top_k is None or self.top_k >= 1, "top_k", "at least 1", self.top_k)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 1, name, "in (0, 1]", value)


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{name} must be {rule}, got {value}")


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest (and what equals the k-th)."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, EXCLUDED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of likeliest tokens whose probability is at least p (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of all likelier tokens; 0 for the first, which stays
    excluded = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(excluded, EXCLUDED)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens whose probability is at least p times the largest one."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), EXCLUDED)


def filtered(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, then the filters that the config asks for. The temperature must not be 0."""
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature  # a tiny temperature never overflows
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    return logits


def choose(logits: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Draws one token for each row of logits.

    Args:
        logits: (B, V)
        config: how
        generator: of the random numbers, on the CPU, where the rest is computed too, in float64: a seed then gives the
            same text on every device, and no temperature is too small

    Returns:
        token ids, int64 (B,), on the logits' device

    Raises:
        NumericError: if a logit is NaN.
    """
    if torch.isnan(logits).any():
        raise NumericError("the model's logits are not finite numbers: its weights are ruined; use another checkpoint")
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered(logits.cpu().double(), config).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1).to(logits.device)
