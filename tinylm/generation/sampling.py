"""From logits to one token: one pure function per idea.

First logits are changed by what stands in the text already (`adjusted`), then come the temperature and the filters
(`filtered`), then a token is drawn (`choose`). Each filter takes logits (..., V) and gives logits of the same shape in
which what it excludes is -inf, so filters compose in any order; the usual one is temperature, top-k, top-p, min-p,
typical.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tinylm.checks import check_types
from tinylm.errors import ConfigError, NumericError, did_you_mean

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
    typical_p: float | None = None
    """Keep the tokens whose information is nearest to what is expected, that together have probability p."""
    repetition_penalty: float = 1.0
    """Divides the odds of what stands in the prompt or the text: above 1 it comes less often."""
    presence_penalty: float = 0.0
    """Is subtracted from the logits of what was generated already."""
    frequency_penalty: float = 0.0
    """Is subtracted for each time that it was generated."""
    logit_bias: dict[int, float] | None = None
    """Token id -> what is added to its logit."""
    banned_tokens: tuple[int, ...] = ()
    """Ids of tokens that never come."""
    min_new_tokens: int = 0
    """The text does not end before so many tokens."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings to be completed; the longest, if several end together."""
    seed: int | None = None
    """The same text for the same seed. Empty: another one each time."""

    def __post_init__(self) -> None:
        check_types(self)
        check_rule(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        check_rule(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", "a 64-bit integer", self.seed)
        check_rule(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or positive", self.temperature)
        check_rule(self.top_k is None or self.top_k >= 1, "top_k", "at least 1", self.top_k)
        for name in ("top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            check_rule(value is None or 0 < value <= 1, name, "in (0, 1]", value)
        check_rule(0 < self.repetition_penalty < math.inf, "repetition_penalty", "positive", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            check_rule(math.isfinite(getattr(self, name)), name, "a finite number", getattr(self, name))
        biases = (self.logit_bias or {}).items()
        finite = all(type(i) is int and type(bias) in (int, float) and math.isfinite(bias) for i, bias in biases)
        check_rule(finite, "logit_bias", "finite numbers by token id", self.logit_bias)
        check_rule(self.min_new_tokens >= 0, "min_new_tokens", "at least 0", self.min_new_tokens)
        rule = f"at most max_new_tokens, {self.max_new_tokens}"
        check_rule(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", rule, self.min_new_tokens)
        check_rule("" not in self.stop, "stop", "strings that are not empty", list(self.stop))

    @property
    def adjusts(self) -> bool:
        """Whether `adjusted` changes anything."""
        penalties = (self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty)
        return any((*penalties, self.logit_bias, self.banned_tokens))

    def check_tokens(self, vocab_size: int) -> None:
        """Checks the ids against a vocabulary.

        Raises:
            ConfigError: for an id outside of it, or if all are banned.
        """
        for name, ids in (("logit_bias", self.logit_bias or {}), ("banned_tokens", self.banned_tokens)):
            for token in ids:
                check_rule(0 <= token < vocab_size, name, f"of ids below {vocab_size}", token)
        check_rule(len(set(self.banned_tokens)) < vocab_size, "banned_tokens", "fewer than all tokens", "all")


def check_rule(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ConfigError with the rule and the value unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must be {rule}, got {value}")


def check_names(options: Iterable[str], config: type, what: str) -> None:
    """Raises ConfigError, with the name that was probably meant, unless the options are fields of a dataclass."""
    known = [each.name for each in fields(config)]
    for name in options:
        if name not in known:
            raise ConfigError(f"{name}: no such option of {what}{did_you_mean(name, known)}")


def check_truncate(truncate: object) -> None:
    """Raises ConfigError unless it is a way to cut a prompt, or None."""
    if truncate not in (None, "left"):
        raise ConfigError(f"truncate must be left, got {truncate!r}")


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest (and what equals the k-th)."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, EXCLUDED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of likeliest tokens whose probability is at least p (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    return _first_of(logits, order, ordered.softmax(dim=-1), p)


def _first_of(logits: Tensor, order: Tensor, probabilities: Tensor, p: float) -> Tensor:
    """Keeps the first tokens of an order that together have probability p; `probabilities` are in that order."""
    before = probabilities.cumsum(dim=-1) - probabilities  # of all earlier tokens; 0 for the first, which stays
    excluded = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(excluded, EXCLUDED)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens whose probability is at least p times the largest one."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), EXCLUDED)


def typical(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of typical tokens whose probability is at least p (Meister et al. 2023).

    How typical a token is: how near its information -log q is to the mean one, the entropy.
    """
    probabilities = logits.softmax(dim=-1)
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    _, order = (-logits.log_softmax(dim=-1) - entropy).abs().sort(dim=-1, stable=True)
    return _first_of(logits, order, probabilities.gather(-1, order), p)


def adjusted(logits: Tensor, prompt: Tensor, generated: Tensor, config: SamplingConfig) -> Tensor:
    """Bias, bans and the penalties for what stands in the text, before any temperature.

    Args:
        logits: (B, V)
        prompt: how often each token is in the prompt, int64 (B, V)
        generated: and in what was generated, int64 (B, V)
        config: how
    """
    if config.repetition_penalty != 1:  # Keskar et al. 2019: a positive logit is divided, a negative one multiplied
        penalized = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(prompt + generated > 0, penalized, logits)
    times = generated.to(logits.dtype)
    logits = logits - config.presence_penalty * times.clamp(max=1) - config.frequency_penalty * times
    if config.logit_bias:
        logits[:, list(config.logit_bias)] += logits.new_tensor(list(config.logit_bias.values()))
    logits[:, list(config.banned_tokens)] = EXCLUDED
    return logits


def filtered(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, then the filters that the config asks for. The temperature must not be 0."""
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature  # a tiny temperature never overflows
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    if config.typical_p is not None:
        logits = typical(logits, config.typical_p)
    return logits


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """How likely each token is to be drawn; at temperature 0 the likeliest is certain.

    Args:
        logits: (..., V)
        config: how

    Returns:
        (..., V), on the CPU and in float64: a seed then gives the same text on every device, and no temperature is too
        small

    Raises:
        NumericError: if a logit is NaN.
    """
    check_numbers(logits)
    logits = logits.cpu().double()
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return filtered(logits, config).softmax(dim=-1)


def choose(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws one token for each row of logits.

    Args:
        logits: (B, V)
        config: how
        generators: of each row's random numbers, on the CPU

    Returns:
        token ids, int64 (B,), on the logits' device

    Raises:
        NumericError: if a logit is NaN.
    """
    if config.temperature == 0:
        check_numbers(logits)
        return logits.argmax(dim=-1)
    rows = probabilities(logits, config)
    drawn = [torch.multinomial(row, 1, generator=each) for row, each in zip(rows, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)


def check_numbers(logits: Tensor) -> None:
    """Raises NumericError if a logit is NaN."""
    if torch.isnan(logits).any():
        raise NumericError("the model's logits are not finite numbers: its weights are ruined; use another checkpoint")
