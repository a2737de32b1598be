"""Beam search: approximates the most likely completion of a prompt by extending several texts at once.

Greedy decoding takes the most likely token each time, which may miss the most likely text:

    a 0.6 ── c 0.5     "ac" 0.30: greedy, since a is more likely than b
    b 0.4 ── d 0.9     "bd" 0.36: found with two beams, which keep both a and b

Each step extends every running text, or beam, by every token and keeps the `num_beams` most likely results. These have
the same length, so sums of log probabilities rank them. Texts that have ended differ in length, and are ranked by

    score = sum of log p / length ** length_penalty

where the length counts generated tokens, and both sum and length include the end-of-text token if there is one, and the
tokens of a stop string. The search leaves out banned tokens; the probabilities of the others are the model's.

The search is exact only if no text is ever dropped. The most likely text need not be the best: it is often short or
repetitive (Holtzman et al. 2020). Left out: several prompts at once, sampling, penalties, diverse groups, sliding.

Source: Lowerre 1976; for neural networks Sutskever et al. 2014; for the score Wu et al. 2016, equation 14, in the
simpler form of transformers (whose early_stopping="never" is early_stop=False here).
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tinylm.console import check_interrupt
from tinylm.errors import ConfigError, notice
from tinylm.generation.generate import Generator
from tinylm.generation.options import BeamConfig, check_banned, check_names, check_truncate
from tinylm.generation.sampling import EXCLUDED, check_numbers
from tinylm.generation.text import Completion, Reader, Text


@dataclass(frozen=True)
class ScoredCompletion(Completion):
    """A completion with its score. The score includes the end-of-text token, `log_probs` do not."""

    score: float


@dataclass(frozen=True)
class Beam:
    """A text being extended.

    Attributes:
        row: row of the cache that holds all tokens but the last
        ids: generated token ids, the end-of-text token included
        log_probs: log probability of each, in nats
        finished: why the text ended, as in `Text`; empty while it grows
    """

    row: int
    ids: list[int]
    log_probs: list[float]
    finished: str = ""

    @property
    def log_prob(self) -> float:
        """Log probability of the text, in nats."""
        return math.fsum(self.log_probs)

    def score(self, length_penalty: float) -> float:
        """The score that ranks texts of different lengths."""
        return self.log_prob / len(self.ids) ** length_penalty


def beam_search(
    generator: Generator,
    prompt: str,
    config: BeamConfig | None = None,
    *,
    truncate: Literal["left"] | None = None,
    **options: Any,
) -> list[ScoredCompletion]:
    """Returns the best completions found for a prompt, best first.

    Args:
        generator: the model, its tokenizer and its decoder
        prompt: the beginning of the text. The token that begins a text (`Marks.begin`) is inserted before it
        config: the options. None: the defaults
        truncate: "left" shortens a prompt that leaves no room for the new tokens
        options: fields of `BeamConfig`, which override the config

    Returns:
        at most `num_return` completions of different tokens, some of which may spell the same text

    Raises:
        ConfigError: for an invalid option, a prompt that is empty or does not fit the context.
        NumericError: if a logit is NaN or infinity.
    """
    check_names(options, BeamConfig, "beam search")
    config = dataclasses.replace(config or BeamConfig(), **options)
    stops = generator.tokenizer.marks.stops if config.min_new_tokens else ()
    check_banned(config.banned_tokens, generator.tokenizer.vocab_size, stops)
    ids = _prompt_ids(generator, prompt, config, truncate)
    if not (beams := _search(generator, ids, config)):
        raise ConfigError("banned_tokens and min_new_tokens leave no token to choose from; lower or remove one of them")
    beams.sort(key=lambda beam: beam.score(config.length_penalty), reverse=True)
    return [_completion(generator, prompt, beam, config) for beam in beams[: config.num_return]]


@torch.inference_mode()
def _search(generator: Generator, prompt: list[int], config: BeamConfig) -> list[Beam]:
    """All texts that have ended or reached their full length, unordered."""
    generator.refresh_decoder()
    device, stats = next(generator.model.parameters()).device, generator.stats
    cache = generator.decoder.make_cache(1)
    generator.prefill(cache, [prompt[:-1]])
    running, ended = [Beam(0, [], [])], []  # the beams share one row until they differ
    for _ in range(config.max_new_tokens):
        check_interrupt()
        if _is_over(running, ended, config):
            return ended
        last = torch.tensor([(beam.ids or prompt)[-1] for beam in running], device=device)
        started = time.perf_counter()
        log_probs = _log_probs(generator, generator.decoder.step(last, cache), len(running[0].ids), config)
        # At most one continuation of each beam for each stop ends it, so at least num_beams of these do not.
        count = (1 + max(1, len(generator.tokenizer.marks.stops))) * config.num_beams
        best = [_ended(generator, beam, config) for beam in _continuations(running, log_probs, count)]
        # Only the best num_beams may end; otherwise unlikely short texts would stop the search.
        ended += [beam for beam in best[: config.num_beams] if beam.finished]
        running = [beam for beam in best if not beam.finished][: config.num_beams]
        cache.select([beam.row for beam in running])
        stats.new_tokens, stats.cache_bytes = stats.new_tokens + len(last), cache.num_bytes
        stats.decode_seconds += time.perf_counter() - started
    return ended + running


def _log_probs(generator: Generator, logits: Tensor, length: int, config: BeamConfig) -> Tensor:
    """Log probabilities (B, V) of the tokens after texts of a length; -inf for those that must not follow."""
    logits = logits[:, : generator.tokenizer.vocab_size]
    check_numbers(logits)
    log_probs, stops = logits.log_softmax(dim=-1), list(generator.tokenizer.marks.stops)
    if config.banned_tokens:
        log_probs[:, list(config.banned_tokens)] = EXCLUDED
    if length < config.min_new_tokens:
        log_probs[:, stops] = EXCLUDED
    return log_probs


def _continuations(beams: list[Beam], log_probs: Tensor, count: int) -> list[Beam]:
    """The `count` most likely texts that are one token longer, best first; log_probs are (B, V)."""
    sums = log_probs + log_probs.new_tensor([beam.log_prob for beam in beams])[:, None]  # (B, V)
    best = sums.flatten().topk(min(count, sums.numel())).indices
    rows, tokens = (best // sums.shape[1]).tolist(), (best % sums.shape[1]).tolist()
    found = zip(rows, tokens, log_probs.flatten()[best].tolist(), strict=True)
    return [
        Beam(row, [*beams[row].ids, token], [*beams[row].log_probs, new])
        for row, token, new in found
        if new != EXCLUDED
    ]


def _ended(generator: Generator, beam: Beam, config: BeamConfig) -> Beam:
    """The beam, marked as finished if its last token ends it."""
    if beam.ids[-1] in generator.tokenizer.marks.stops:
        return dataclasses.replace(beam, finished="end")
    finished = _spell(generator, beam.ids, config)[0].text.finished if config.stop else ""
    return dataclasses.replace(beam, finished=finished)


def _spell(generator: Generator, ids: list[int], config: BeamConfig) -> tuple[Reader, list[str]]:
    """The reader of a text, and the pieces that its tokens add."""
    text, pieces = Text([], seed=0), []
    reader = Reader(text, generator.tokenizer.piece_decoder(), config.stop, config.min_new_tokens)
    for token in ids:
        text.ids.append(token)
        pieces.append(reader.read())
    return reader, pieces


def _is_over(running: list[Beam], ended: list[Beam], config: BeamConfig) -> bool:
    """Whether no running text can change the result.

    The sum S <= 0 of a running text can only fall, and S / length ** penalty is monotonic in the length. So its final
    score is at most S / length ** penalty at one end of the lengths still possible: the next one if the penalty is
    negative, `max_new_tokens` if it is positive. The first running text has the largest S.
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
    count = len(beam.ids) - (beam.finished == "end")
    reader, pieces = _spell(generator, beam.ids[:count], config)
    text, finished = "".join([*pieces, reader.rest()]), reader.text.finished or beam.finished or "length"
    score = beam.score(config.length_penalty)
    return ScoredCompletion(prompt, text, beam.ids[:count], beam.log_probs[:count], finished, score)


def _prompt_ids(generator: Generator, prompt: str, config: BeamConfig, truncate: Literal["left"] | None) -> list[int]:
    """The ids of a prompt, which must leave room for the new tokens."""
    check_truncate(truncate)
    ids = generator.prompt_ids(prompt, truncate)
    context, new = generator.model.config.max_seq_len, config.max_new_tokens
    if len(ids) + new <= context:
        return ids
    if truncate is None or new >= context:
        raise ConfigError(
            f"with beams, the prompt and max_new_tokens together must fit the context of {context} tokens, "
            f"got {len(ids)} and {new}; lower max_new_tokens" + (" or use --truncate left" if new < context else "")
        )
    notice(f"the prompt has {len(ids)} tokens: only the last {context - new} are read, to leave room for {new} more")
    return ids[new - context :]
