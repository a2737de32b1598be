"""Beam search: the likeliest continuation of a prompt, sought along several texts at once.

Greedy decoding takes the likeliest token each time, and may so miss the likeliest text:

    a 0.6 ── c 0.5     "ac" 0.30: greedy, since a is likelier than b
    b 0.4 ── d 0.9     "bd" 0.36: found with two beams, which keep a and b until it shows what follows

Each step extends every running text, or beam, by every token and keeps the `num_beams` likeliest of all. These are of
one length, so sums of log probabilities rank them. Texts that have ended are not, and are ranked by

    score = sum of log p / length ** length_penalty

where length counts the generated tokens, the end-of-text token included if it came (so is its log p in the sum).

The search is exact only if no text is ever dropped, and the likeliest text need not be the best: it is often short, or
repeats itself (Holtzman et al. 2020). Left out: many prompts at once, sampling, diverse groups, contexts that slide.

Source: Lowerre 1976; for networks Sutskever et al. 2014; for the score Wu et al. 2016, equation 14, in the simpler form
that transformers has (whose early_stopping="never" is our early_stop=False).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tinylm.checks import check_types
from tinylm.console import check_interrupt
from tinylm.errors import ConfigError, notice
from tinylm.generation.generate import Generator
from tinylm.generation.sampling import check_names, check_numbers, check_rule, check_truncate
from tinylm.generation.text import Completion


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How the likeliest texts are sought.

    Raises:
        ConfigError: for a value without meaning.
    """

    num_beams: int = 4
    """How many texts are kept at each step. 1, with early_stop, is greedy."""
    num_return: int = 1
    """How many texts to return, the best ones; at most num_beams."""
    max_new_tokens: int = 100
    """The most tokens to generate; together with the prompt they fit the context."""
    length_penalty: float = 1.0
    """The power of the length that divides a score, -10 to 10: 0 ranks by probability, more favours long texts."""
    early_stop: bool = False
    """Stop as soon as num_beams texts have ended. Otherwise: when no running text can become one of the returned."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_beams", "num_return", "max_new_tokens"):
            check_rule(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        rule = f"at most num_beams, {self.num_beams}"
        check_rule(self.num_return <= self.num_beams, "num_return", rule, self.num_return)
        check_rule(abs(self.length_penalty) <= 10, "length_penalty", "from -10 to 10", self.length_penalty)


@dataclass(frozen=True)
class ScoredCompletion(Completion):
    """A completion and its rank among others.

    Attributes:
        score: as above; where the text has ended, the sum has one term more than `log_probs`, the end-of-text token's
    """

    score: float


@dataclass(frozen=True)
class Beam:
    """A text as it grows.

    Attributes:
        row: of the cache, where all tokens but the last are
        ids: those that were generated, the end-of-text token included
        log_probs: of each of these, in nats
    """

    row: int
    ids: list[int]
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """Of the whole text, in nats."""
        return math.fsum(self.log_probs)

    def score(self, length_penalty: float) -> float:
        """By which texts of different lengths are ranked."""
        return self.log_prob / len(self.ids) ** length_penalty


def beam_search(
    generator: Generator,
    prompt: str,
    config: BeamConfig | None = None,
    *,
    truncate: Literal["left"] | None = None,
    **options: Any,
) -> list[ScoredCompletion]:
    """The likeliest continuations of a prompt that were found, best first.

    Args:
        generator: the model, its tokenizer and its decoder
        prompt: where the text begins; the end-of-text token, if the tokenizer has one, is put before it
        config: how to search; None: the defaults
        truncate: "left" cuts a prompt that leaves no room for the new tokens
        options: fields of `BeamConfig`, in place of the config's

    Returns:
        `num_return` completions of different tokens (of which some may spell the same text), fewer if there are no more

    Raises:
        ConfigError: for an option without meaning, a prompt that is empty or does not fit the context.
        NumericError: if a probability is NaN.
    """
    config = _checked(config or BeamConfig(), options)
    ids = _prompt_ids(generator, prompt, config, truncate)
    beams = _search(generator, ids, config)
    beams.sort(key=lambda beam: beam.score(config.length_penalty), reverse=True)
    return [_completion(generator, prompt, beam, config) for beam in beams[: config.num_return]]


@torch.inference_mode()
def _search(generator: Generator, prompt: list[int], config: BeamConfig) -> list[Beam]:
    """All texts that have ended, or grown to their full length, in no order."""
    generator.look_at_model()
    end, device = generator.tokenizer.end_of_text, next(generator.model.parameters()).device
    cache = generator.decoder.make_cache(1)
    generator.decoder.prefill([prompt[:-1]], cache)
    running, ended = [Beam(0, [], [])], []  # one row reads the prompt for all
    for _ in range(config.max_new_tokens):
        check_interrupt()
        if _is_over(running, ended, config):
            return ended
        last = torch.tensor([(beam.ids or prompt)[-1] for beam in running], device=device)
        logits = generator.decoder.step(last, cache)
        # Of each beam at most one continuation ends, so of twice as many as are kept enough go on.
        best = _continuations(running, logits, 2 * config.num_beams)
        # A text may end only where it would be kept, or unlikely short ones would stop the search.
        ended += [beam for beam in best[: config.num_beams] if beam.ids[-1] == end]
        running = [beam for beam in best if beam.ids[-1] != end][: config.num_beams]
        cache.select([beam.row for beam in running])
    return ended + running


def _continuations(beams: list[Beam], logits: Tensor, count: int) -> list[Beam]:
    """The likeliest texts that are one token longer, best first.

    Args:
        beams: of equal length
        logits: of what follows each, (B, V)
        count: how many, if B * V are as many
    """
    log_probs = logits.log_softmax(dim=-1)
    check_numbers(log_probs)
    sums = log_probs + log_probs.new_tensor([beam.log_prob for beam in beams])[:, None]  # (B, V)
    places = sums.flatten().topk(min(count, sums.numel())).indices
    rows, tokens = (places // sums.shape[1]).tolist(), (places % sums.shape[1]).tolist()
    found = zip(rows, tokens, log_probs.flatten()[places].tolist(), strict=True)
    return [Beam(row, [*beams[row].ids, token], [*beams[row].log_probs, new]) for row, token, new in found]


def _is_over(running: list[Beam], ended: list[Beam], config: BeamConfig) -> bool:
    """Whether no text is left, or none that the result could still depend on.

    The sum S <= 0 of a running text can only fall, and S / length ** penalty is monotonic in the length. So its score
    will be at most S / length ** penalty at one of the two ends of the lengths still open to it: the next one if the
    penalty is negative, `max_new_tokens` if it is positive. The first of the running texts has the largest S.
    """
    if not running:
        return True
    if config.early_stop:
        return len(ended) >= config.num_beams
    if len(ended) < config.num_return:
        return False
    best, penalty = running[0], config.length_penalty
    bound = max(best.log_prob / length**penalty for length in (len(best.ids) + 1, config.max_new_tokens))
    return sum(beam.score(penalty) >= bound for beam in ended) >= config.num_return


def _completion(generator: Generator, prompt: str, beam: Beam, config: BeamConfig) -> ScoredCompletion:
    has_end = beam.ids[-1] == generator.tokenizer.end_of_text
    count = len(beam.ids) - has_end
    ids, finished = beam.ids[:count], "end" if has_end else "length"
    text, score = generator.tokenizer.decode(ids), beam.score(config.length_penalty)
    return ScoredCompletion(prompt, text, ids, beam.log_probs[:count], finished, score)


def _checked(config: BeamConfig, options: dict[str, Any]) -> BeamConfig:
    """The config with options in place of some fields."""
    check_names(options, BeamConfig, "beam search")
    return dataclasses.replace(config, **options)


def _prompt_ids(generator: Generator, prompt: str, config: BeamConfig, truncate: Literal["left"] | None) -> list[int]:
    """The ids of a prompt that leaves room in the context."""
    check_truncate(truncate)
    ids = generator.prompt_ids(prompt, truncate)
    context, new = generator.model.config.max_seq_len, config.max_new_tokens
    if len(ids) + new <= context:
        return ids
    if truncate is None or new >= context:
        raise ConfigError(
            f"the prompt and max_new_tokens must fit the context of {context} tokens together, for beams do not slide, "
            f"got {len(ids)} and {new}; lower max_new_tokens" + (" or use --truncate left" if new < context else "")
        )
    notice(f"the prompt has {len(ids)} tokens: only the last {context - new} are read, to leave room for {new} more")
    return ids[new - context :]
