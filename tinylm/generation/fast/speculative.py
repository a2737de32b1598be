"""Speculative decoding (Leviathan et al. 2023, Chen et al. 2023): several tokens per pass of the model.

A pass spends most of its time loading the weights, so a pass over five tokens takes little longer than over one. A
cheap drafter proposes the next tokens. The model reads all of them in one pass, which gives its own probabilities p at
each position, and draws its own token there with the random numbers of that position. As long as drafts and tokens
agree, the next draft was made for the right text; the first different token replaces its draft and ends the round.

A seed therefore gives the text of plain decoding, barring ties decided by rounding. Drafts affect the speed, never the
text.
The probabilities are taken after penalties, temperature and filters.

A drafter draws from its own probabilities q by the same random numbers (sampling.py, `draw`), so that both tokens are
equal wherever q is like p (Daliri et al. 2024). Accepting x with probability min(1, p(x) / q(x)) accepts somewhat more
drafts, but needs additional random numbers, and thus gives a different text from plain decoding.

There are two drafters: a small model with the same tokenizer (the draft model), and prompt lookup, which finds the last
tokens earlier in the text and drafts what followed them there (Saxena 2023).

Left out: batches, in which rows accept different numbers of tokens, and trees of drafts.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tinylm.console import check_interrupt
from tinylm.errors import ConfigError
from tinylm.generation.fast.choice import AnyDecoder, make_decoder
from tinylm.generation.generate import Generator
from tinylm.generation.options import SamplingConfig
from tinylm.generation.sampling import Random, draw, probabilities
from tinylm.generation.text import Completion, Text, announce_sliding
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer

# --- the rule


class RandomTimes:
    """The random numbers of the next tokens of a text, drawn in the order of plain decoding.

    Args:
        vocab_size: number of tokens, V
        random: random numbers of the text
        drawn: number of tokens drawn already
    """

    def __init__(self, vocab_size: int, random: Random, drawn: int = 0) -> None:
        self._size, self._random, self._next, self._drawn = vocab_size, random, deque(), drawn

    def __getitem__(self, ahead: int) -> Tensor:
        """The random numbers of the token `ahead` places after the next one, float64 (V,)."""
        while len(self._next) <= ahead:
            self._next.append(self._random.times(self._drawn + len(self._next), self._size))
        return self._next[ahead]

    def advance(self, count: int) -> None:
        """Drops the random numbers of the next `count` tokens, which have been drawn."""
        for _ in range(count):
            self._next.popleft()
        self._drawn += count


def verify(draft: Sequence[int], p: Tensor, times: RandomTimes) -> list[int]:
    """Returns the accepted beginning of a draft, and one more token.

    Args:
        draft: k tokens
        p: probabilities of the model at each of them and after the last, (k + 1, V)
        times: random numbers of these k + 1 tokens

    Returns:
        token ids, 1 to k + 1
    """
    tokens = []
    for i, row in enumerate(p):
        tokens.append(int(draw(row, times[i])))
        if tokens[i:] != list(draft[i : i + 1]):
            break
    return tokens


# --- reading and drafting


class _Reader:
    """A model and its cache of one text, from position `start` on. `keep` can drop up to `spare` tokens."""

    def __init__(self, model: TransformerLM, decoder: AnyDecoder, spare: int) -> None:
        self.decoder: Any = decoder
        self.context, self.start, self.device = model.config.max_seq_len, 0, next(model.parameters()).device
        self.cache = self.decoder.make_cache(1, spare)

    def restart(self, start: int = 0) -> None:
        """Forgets everything. The next tokens begin at position `start` of the text."""
        self.start = start
        self.cache.clear()

    def make_room(self, length: int) -> int:
        """Number of free positions after the first `length` tokens of the text; slides if these do not fit."""
        if length - self.start > self.context:
            self.restart(length - max(self.context // 2, 1))
        return self.context - (length - self.start)

    def read(self, ids: list[int], count: int) -> Tensor:
        """Reads the new tokens of a text and returns the logits after each of the last `count`, (count, V)."""
        new = ids[self.start + self.cache.lengths[0] :]
        if len(new) == 1:
            return self.decoder.step(torch.tensor(new, device=self.device), self.cache)
        return self.decoder.steps(new, self.cache, count)

    def keep(self, length: int) -> None:
        """Drops all but the first `length` tokens of the text."""
        self.cache.truncate([min(self.cache.lengths[0], length - self.start)])


class _DraftModel(_Reader):
    """Drafts with the draft model of a generator."""

    def __init__(self, generator: "SpeculativeGenerator", config: SamplingConfig) -> None:
        assert generator.draft is not None and generator.draft_decoder is not None
        super().__init__(generator.draft, generator.draft_decoder, generator.num_draft + 1)
        self.generator, self.config = generator, config

    def draft(self, text: Text, times: RandomTimes, limit: int, stops: Sequence[int]) -> list[int]:
        """Drafts at most `limit` tokens, up to the end of the text."""
        ids, tokens = [*text.prompt, *text.ids], []
        room = self.make_room(len(ids))  # the last drafted token is not read
        while len(tokens) < min(limit, room + 1) and (not tokens or tokens[-1] not in stops):
            logits = self.read(ids + tokens, 1)[:, : self.generator.tokenizer.vocab_size]
            q = self.generator.probabilities(logits, text, [tokens], self.config)[0]
            tokens.append(int(draw(q, times[len(tokens)])))
        return tokens


class _Lookup:
    """Prompt lookup: drafts the tokens that followed the latest earlier occurrence of the last n tokens."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.restart()

    def restart(self) -> None:
        """Forgets the text."""
        self.indexed = self.n  # number of tokens in the index
        self.after: dict[tuple[int, ...], int] = {}  # n tokens -> position after their latest occurrence

    def draft(self, text: Text, times: RandomTimes, limit: int, stops: Sequence[int]) -> list[int]:
        """Drafts like `_DraftModel.draft`. A draft may extend itself: `abcabc` is continued by `abcabc`."""
        ids = [*text.prompt, *text.ids]
        for position in range(self.indexed, len(ids)):
            self.after[tuple(ids[position - self.n : position])] = position
        self.indexed, length = max(self.indexed, len(ids)), len(ids)
        position = self.after.get(tuple(ids[-self.n :]))
        while position is not None and len(ids) < length + limit and not any(i in stops for i in ids[length:]):
            ids.append(ids[position])
            position += 1
        return ids[length:]

    def keep(self, length: int) -> None:
        """Does nothing: drafts are not recorded."""


# --- the generator


class SpeculativeGenerator(Generator):
    """A `Generator` that needs fewer passes of the model, for one text at a time.

    Args:
        model: the model, in evaluation mode
        tokenizer: tokenizer of both models
        draft: a smaller model, in evaluation mode; its context may be shorter. None: prompt lookup
        num_draft: most tokens to draft at a time
        lookup: number of tokens to match in prompt lookup

    Attributes:
        drafted: number of tokens drafted so far
        accepted: number of these that were accepted

    Raises:
        ConfigError: for a number below 1, or a draft model of another vocabulary.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        draft: TransformerLM | None = None,
        *,
        num_draft: int = 4,
        lookup: int = 3,
    ) -> None:
        for name, value in (("num_draft", num_draft), ("lookup", lookup)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        own, other = model.config.vocab_size, model.config.vocab_size if draft is None else draft.config.vocab_size
        if own != other and min(own, other) < tokenizer.vocab_size:  # padded vocabularies may differ
            raise ConfigError(
                f"the draft model must have the model's vocabulary, got {other} tokens for the model's {own}; "
                "use one that was trained with the same tokenizer"
            )
        super().__init__(model, tokenizer)
        self.draft, self.num_draft, self.lookup = draft, num_draft, lookup
        self.draft_decoder = None if draft is None else make_decoder(draft)
        self.drafted = self.accepted = 0

    def complete(
        self, prompts: Sequence[str], *, num_samples: int = 1, batch_size: int = 1, **options: Any
    ) -> list[Completion]:
        """Returns the completions of many prompts, as `Generator.complete` does, one text after another."""
        return super().complete(prompts, num_samples=num_samples, batch_size=batch_size, **options)

    def refresh_decoder(self) -> None:
        """Replaces the decoders of both models if they have changed."""
        super().refresh_decoder()
        if self.draft is not None:
            self.draft_decoder = make_decoder(self.draft, self.draft_decoder)
            self.draft_decoder.end = self.decoder.end

    @torch.inference_mode()
    def decode(
        self, texts: Iterable[Text], config: SamplingConfig, batch_size: int = 1, *, log_probs: bool = False
    ) -> Iterator[Text]:
        """Extends texts until they are finished, as `Generator.decode` does, one text after another.

        Raises:
            ConfigError: for a batch_size above 1.
        """
        if batch_size > 1:
            raise ConfigError(f"speculative decoding generates one text at a time, got batch_size={batch_size}; use 1")
        self.refresh_decoder()
        reader, announced = _Reader(self.model, self.decoder, self.num_draft + 1), False
        self.stats.cache_bytes = reader.cache.num_bytes
        drafter = _Lookup(self.lookup) if self.draft is None else _DraftModel(self, config)
        for text in texts:
            reader.restart(len(text.prompt) + len(text.ids) - len(text.window(reader.context)))
            drafter.restart()
            times = RandomTimes(self.tokenizer.vocab_size, text.random, len(text.ids))
            while not text.finished:
                check_interrupt()
                room = reader.make_room(len(text.prompt) + len(text.ids))
                if reader.start and not announced:
                    announce_sliding(reader.context)
                    announced = True
                limit = min(self.num_draft, room, config.max_new_tokens - len(text.ids) - 1)
                started = time.perf_counter()
                tokens, logits = self._round(text, times, reader, drafter, limit, config)
                self.stats.decode_seconds += time.perf_counter() - started
                self.stats.new_tokens += len(tokens)
                found = logits.log_softmax(dim=-1)[range(len(tokens)), tokens].tolist() if log_probs else []
                for i, token in enumerate(tokens):
                    self.append(text, token, found[i : i + 1], config)
                    yield text
                    if text.finished:
                        break

    def _round(
        self,
        text: Text,
        times: RandomTimes,
        reader: _Reader,
        drafter: _DraftModel | _Lookup,
        limit: int,
        config: SamplingConfig,
    ) -> tuple[list[int], Tensor]:
        """One pass of the model: returns the next tokens, at most limit + 1, and the logits of each, (tokens, V)."""
        ids = [*text.prompt, *text.ids]
        draft = drafter.draft(text, times, limit, self.tokenizer.marks.stops)
        logits = reader.read(ids + draft, len(draft) + 1)[:, : self.tokenizer.vocab_size]  # (k + 1, V)
        p = self.probabilities(logits, text, [draft[:i] for i in range(len(draft) + 1)], config)
        tokens = verify(draft, p, times)
        times.advance(len(tokens))
        for each in (reader, drafter):
            each.keep(len(ids) + len(tokens) - 1)  # the last token is read in the next round
        self.drafted, self.accepted = self.drafted + len(draft), self.accepted + len(tokens) - 1
        return tokens, logits[: len(tokens)]

    def probabilities(self, logits: Tensor, text: Text, drafts: list[list[int]], config: SamplingConfig) -> Tensor:
        """The distribution that plain decoding would draw from, (B, V); row i follows the text and `drafts[i]`."""
        generated = [text.ids + draft for draft in drafts]
        return probabilities(self._scores(logits, [text.prompt] * len(generated), generated, config), config)
