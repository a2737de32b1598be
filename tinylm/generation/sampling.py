"""Sampling: from logits to one token, by pure functions.

`adjusted` applies penalties and biases, `filtered` the temperature and the filters, and `choose` draws a token. Each
filter maps logits (..., V) to logits in which excluded tokens are -inf, so filters compose in any order; the usual one
is temperature, top-k, top-p, min-p, typical.
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
    """Options of sampling. Invalid values raise ConfigError."""

    max_new_tokens: int = 500
    """Most tokens to generate."""
    temperature: float = 1.0
    """Divides the logits: below 1 favours likely tokens, 0 is greedy."""
    top_k: int | None = None
    """Keep the k most likely tokens. Default: all."""
    top_p: float | None = None
    """Keep the most likely tokens that together have probability p (nucleus sampling). Default: all."""
    min_p: float | None = None
    """Keep tokens at least this fraction as likely as the most likely one. Default: all."""
    typical_p: float | None = None
    """Keep the tokens whose information is closest to the entropy, of total probability p. Default: all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens already present, prompt included, less likely; 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once per earlier occurrence."""
    logit_bias: dict[int, float] | None = None
    """Values added to logits, by token id."""
    banned_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated."""
    min_new_tokens: int = 0
    """Fewest tokens to generate before the end-of-text token or a stop string may end the text."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings to be completed; the longest, if several end together."""
    seed: int | None = None
    """Seed of the random numbers: the same seed gives the same text, barring ties decided by rounding. Default: random.
    """

    def __post_init__(self) -> None:
        check_types(self)
        check_ends(self.max_new_tokens, self.min_new_tokens, self.stop)
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

    @property
    def adjusts(self) -> bool:
        """Whether `adjusted` changes anything."""
        penalties = (self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty)
        return any((*penalties, self.logit_bias, self.banned_tokens))

    def check_tokens(self, vocab_size: int, end: int | None) -> None:
        """Raises ConfigError for a biased or banned token outside the vocabulary, or if no token is left.

        `end` is the end-of-text token.
        """
        for token in self.logit_bias or {}:
            check_rule(0 <= token < vocab_size, "logit_bias", f"of ids below {vocab_size}", token)
        check_banned(self.banned_tokens, vocab_size, end if self.min_new_tokens else None)


def check_ends(most: int, least: int, stop: Sequence[str]) -> None:
    """Raises ConfigError for invalid options that end a text."""
    check_rule(most >= 1, "max_new_tokens", "at least 1", most)
    check_rule(least >= 0, "min_new_tokens", "at least 0", least)
    check_rule(least <= most, "min_new_tokens", f"at most max_new_tokens, {most}", least)
    check_rule("" not in stop, "stop", "strings that are not empty", list(stop))


def check_banned(banned: Iterable[int], vocab_size: int, end: int | None) -> None:
    """Raises ConfigError for a token outside the vocabulary, or if all tokens but `end` are banned."""
    for token in banned:
        check_rule(0 <= token < vocab_size, "banned_tokens", f"of ids below {vocab_size}", token)
    rule = "fewer than all tokens" + " but the end-of-text token, which min_new_tokens excludes" * (end is not None)
    check_rule(len({*banned, end} - {None}) < vocab_size, "banned_tokens", rule, "all")


def check_rule(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ConfigError, with the rule and the value, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must be {rule}, got {value}")


def check_names(options: Iterable[str], config: type, purpose: str) -> None:
    """Raises ConfigError, with a suggestion, unless all options are fields of a dataclass."""
    known = [each.name for each in fields(config)]
    for name in options:
        if name not in known:
            raise ConfigError(f"{name}: no such option of {purpose}{did_you_mean(name, known)}")


def check_truncate(truncate: object) -> None:
    """Raises ConfigError unless `truncate` is "left" or None."""
    if truncate not in (None, "left"):
        raise ConfigError(f"truncate must be left, got {truncate!r}")


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest logits, and any that equal the k-th."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, EXCLUDED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most likely tokens whose total probability is at least p (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    return _first_of(logits, order, ordered.softmax(dim=-1), p)


def _first_of(logits: Tensor, order: Tensor, probabilities: Tensor, p: float) -> Tensor:
    """Keeps the first tokens of an order, up to total probability p; `probabilities` are in that order."""
    before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the first token, which is always kept
    excluded = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(excluded, EXCLUDED)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens whose probability is at least p times the largest one."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), EXCLUDED)


def typical(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most typical tokens whose total probability is at least p (Meister et al. 2023).

    A token is typical if its information, -log q, is close to the entropy.
    """
    probabilities = logits.softmax(dim=-1)
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    _, order = (-logits.log_softmax(dim=-1) - entropy).abs().sort(dim=-1, stable=True)
    return _first_of(logits, order, probabilities.gather(-1, order), p)


def adjusted(logits: Tensor, prompt: Tensor, generated: Tensor, config: SamplingConfig) -> Tensor:
    """Applies penalties, biases and bans: (B, V) -> (B, V).

    `prompt` and `generated` count each token in the prompt and in the generated text of each row, int64 (B, V).
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
    """Applies the temperature, which must not be 0, and then the filters."""
    # shifted to at most 0, so that a tiny temperature cannot overflow
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature
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
    """The probability of drawing each token: (..., V) -> (..., V). At temperature 0 the most likely one has 1.

    They are float64 on the CPU, so that a seed gives the same text on every device. Errors as in `check_numbers`.
    """
    check_numbers(logits)
    logits = logits.cpu().double()
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return filtered(logits, config).softmax(dim=-1)


def random_times(vocab_size: int, random: torch.Generator) -> Tensor:
    """The random numbers of one draw: exponentially distributed, float64 (V,)."""
    return torch.empty(vocab_size, dtype=torch.float64).exponential_(generator=random)


def draw(probabilities: Tensor, times: Tensor) -> int:
    """Draws a token with the given probabilities, (V,), by the random numbers of `random_times`, (V,).

    Token i happens at the time `times[i] / probabilities[i]`, and the first one is drawn. The first of independent
    exponential times is the i-th with probability proportional to its rate. As the random numbers do not depend on the
    probabilities, similar distributions mostly give the same token.
    """
    return int((probabilities / times).argmax())


def choose(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws one token for each row of logits: (B, V) -> int64 (B,). Errors as in `check_numbers`.

    `generators` are the random number generators of the rows, on the CPU.
    """
    if config.temperature == 0:
        check_numbers(logits)
        return logits.argmax(dim=-1)
    rows = probabilities(logits, config)
    drawn = [draw(row, random_times(len(row), each)) for row, each in zip(rows, generators, strict=True)]
    return torch.tensor(drawn, device=logits.device)


def is_possible(logits: Tensor) -> bool:
    """Whether each row of logits (..., V) has a finite maximum: neither NaN nor infinity, and not -inf alone."""
    return bool(logits.amax(dim=-1).isfinite().all())


def check_numbers(logits: Tensor) -> None:
    """Raises NumericError if a logit is NaN or infinity, or a row has none but -inf."""
    if not is_possible(logits):
        raise NumericError("the model's logits are not finite: its weights are corrupt; use another checkpoint")
