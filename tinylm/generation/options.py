"""Options of sampling and of beam search, with their checks. They are read without importing PyTorch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from tinylm.checks import check_types
from tinylm.errors import ConfigError, did_you_mean


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
    def penalizes(self) -> bool:
        """Whether a penalty is on."""
        return any((self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty))

    @property
    def adjusts(self) -> bool:
        """Whether `adjusted` changes anything."""
        return any((self.penalizes, self.logit_bias, self.banned_tokens))

    def check_tokens(self, vocab_size: int, stops: Iterable[int]) -> None:
        """Raises ConfigError for a biased or banned token outside the vocabulary, or if no token is left.

        `stops` are the tokens at which generation ends.
        """
        for token in self.logit_bias or {}:
            check_rule(0 <= token < vocab_size, "logit_bias", f"of ids below {vocab_size}", token)
        check_banned(self.banned_tokens, vocab_size, stops if self.min_new_tokens else ())


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Options of beam search. Invalid values raise ConfigError."""

    num_beams: int = 4
    """Number of texts kept at each step. 1, with early_stop, is greedy decoding."""
    num_return: int = 1
    """Number of best texts to return, at most num_beams."""
    max_new_tokens: int = 100
    """Most tokens to generate; with the prompt they must fit the context."""
    min_new_tokens: int = 0
    """Fewest tokens to generate before the end-of-text token or a stop string may end a text."""
    banned_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings to be completed; the longest, if several end together."""
    length_penalty: float = 1.0
    """Exponent of the length that divides a score, -10 to 10. 0 ranks by probability; more favours long texts."""
    early_stop: bool = False
    """Stop as soon as num_beams texts have ended. Otherwise stop when no running text can still be returned."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_beams", "num_return"):
            check_rule(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        check_ends(self.max_new_tokens, self.min_new_tokens, self.stop)
        rule = f"at most num_beams, {self.num_beams}"
        check_rule(self.num_return <= self.num_beams, "num_return", rule, self.num_return)
        check_rule(abs(self.length_penalty) <= 10, "length_penalty", "from -10 to 10", self.length_penalty)


def check_ends(most: int, least: int, stop: Sequence[str]) -> None:
    """Raises ConfigError for invalid options that end a text."""
    check_rule(most >= 1, "max_new_tokens", "at least 1", most)
    check_rule(least >= 0, "min_new_tokens", "at least 0", least)
    check_rule(least <= most, "min_new_tokens", f"at most max_new_tokens, {most}", least)
    check_rule("" not in stop, "stop", "strings that are not empty", list(stop))


def check_banned(banned: Iterable[int], vocab_size: int, stops: Iterable[int]) -> None:
    """Raises ConfigError for a token outside the vocabulary, or if all tokens but `stops` are banned."""
    for token in banned:
        check_rule(0 <= token < vocab_size, "banned_tokens", f"of ids below {vocab_size}", token)
    stops = set(stops)
    rule = "fewer than all tokens" + " but the end-of-text token, which min_new_tokens excludes" * bool(stops)
    check_rule(len({*banned, *stops}) < vocab_size, "banned_tokens", rule, "all")


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
