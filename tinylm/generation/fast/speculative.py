"""Speculative decoding (Leviathan et al. 2023, Chen et al. 2023): several tokens for one pass of the model.

What costs a pass is bringing the weights from memory, so one over five tokens takes little longer than one over a
single token. Something cheap drafts the next tokens, from probabilities q; the model reads them all at once, which
gives its own probabilities p of each; a drafted x is accepted with probability min(1, p(x) / q(x)). The first that is
not is replaced by a draw from max(0, p - q), normalized, and ends the round. What is said has exactly p's distribution:

    drafted and accepted     q(x) min(1, p(x) / q(x)) = min(p(x), q(x))
    drawn after a rejection  Σ q - min(p, q) = Σ max(0, p - q) is how often, so max(0, p(x) - q(x)) for x
    together                 min(p(x), q(x)) + max(0, p(x) - q(x)) = p(x)

This holds for any q: drafts decide the speed, never the text. p and q are what plain decoding would draw from, after
penalties, temperature and filters, each for the text with the drafted tokens before it.

Two ways of drafting: a small model with the same tokenizer, or looking up the last tokens earlier in the text and
drafting what followed there (Saxena 2023), which is certain of itself: q(x) = 1.

Left out: batches, of which each row would accept another number of tokens; and trees of drafts.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.console import check_interrupt
from tinylm.errors import ConfigError
from tinylm.generation.fast.decoder import Decoder, make_decoder
from tinylm.generation.generate import Generator, announce_sliding
from tinylm.generation.sampling import SamplingConfig, probabilities
from tinylm.generation.text import Completion, Text
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer

# --- the rule


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """How likely each token is accepted if it was drafted: min(1, p / q).

    Args:
        p: the model's probabilities, (V,)
        q: the draft's, (V,)
    """
    return torch.where(p < q, p / q, 1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is drawn from after a rejection, (V,): max(0, p - q), normalized. Arguments as `acceptance`'s."""
    rest = (p - q).clamp(min=0)
    return rest / rest.sum() if rest.any() else p  # where p = q only rounding rejects, and leaves nothing


def verify(draft: Sequence[int], p: Tensor, q: Sequence[Tensor], random: torch.Generator) -> list[int]:
    """The accepted beginning of a draft and one token more.

    Args:
        draft: k tokens, each drawn from its q
        p: the model's probabilities of each and of what follows them all, (k + 1, V)
        q: the draft's of each, k times (V,)
        random: of the draws

    Returns:
        token ids, 1 to k + 1
    """
    for i, token in enumerate(draft):
        if torch.rand((), dtype=p.dtype, generator=random) >= acceptance(p[i], q[i])[token]:
            return [*draft[:i], _draw(residual(p[i], q[i]), random)]
    return [*draft, _draw(p[-1], random)]


def _draw(probabilities: Tensor, random: torch.Generator) -> int:
    return int(torch.multinomial(probabilities, 1, generator=random))


# --- what reads and what drafts


class _Reader:
    """A model and what it has read of one text: the part from `start` on that its cache holds.

    Args:
        model: the network, in evaluation mode
        decoder: of the model
        spare: how many tokens it may have to take back
    """

    def __init__(self, model: TransformerLM, decoder: Decoder | UncachedDecoder, spare: int) -> None:
        self.decoder: Any = decoder
        self.context, self.start, self.device = model.config.max_seq_len, 0, next(model.parameters()).device
        self.cache = self.decoder.make_cache(1, spare)

    def restart(self, start: int = 0) -> None:
        """Forgets everything; the next text, or the rest of this one, begins at `start`."""
        self.start = start
        self.cache.clear()

    def make_room(self, length: int) -> int:
        """How many tokens more than the first so many of the text the context holds; slides if it holds not even
        these."""
        if length - self.start > self.context:
            self.restart(length - max(self.context // 2, 1))
        return self.context - (length - self.start)

    def read(self, ids: list[int], count: int) -> Tensor:
        """Reads what is new of a text: the logits of what follows each of its last `count` tokens, (count, V)."""
        new = ids[self.start + self.cache.lengths[0] :]
        if len(new) == 1:
            return self.decoder.step(torch.tensor(new, device=self.device), self.cache)
        return self.decoder.steps(new, self.cache, count)

    def keep(self, length: int) -> None:
        """Takes back what it has read beyond the first so many tokens of the text."""
        self.cache.truncate([min(self.cache.lengths[0], length - self.start)])


class _DraftModel(_Reader):
    """Drafts by the small model of a generator."""

    def __init__(self, generator: "SpeculativeGenerator", config: SamplingConfig) -> None:
        assert generator.draft is not None and generator.draft_decoder is not None
        super().__init__(generator.draft, generator.draft_decoder, generator.num_draft + 1)
        self.generator, self.config = generator, config

    def draft(self, text: Text, limit: int, end: int | None) -> tuple[list[int], list[Tensor]]:
        """At most `limit` tokens, up to the end of text, and the probabilities (V,) that each was drawn from."""
        ids, tokens, q = [*text.prompt, *text.ids], [], []
        room = self.make_room(len(ids))  # a draft ends where the context does; its last token is not read
        while len(tokens) < min(limit, room + 1) and end not in tokens[-1:]:
            logits = self.read(ids + tokens, 1)
            q.append(self.generator.probabilities(logits, text, [tokens], self.config)[0])
            tokens.append(_draw(q[-1], text.random))
        return tokens, q


class _Lookup:
    """Drafts by looking up where the last n tokens of a text stood before.

    Args:
        n: how many
        vocab_size: V
    """

    def __init__(self, n: int, vocab_size: int) -> None:
        self.n, self.vocab_size = n, vocab_size
        self.restart()

    def restart(self) -> None:
        """Forgets the text."""
        self.known, self.after = self.n, dict[tuple[int, ...], int]()  # n tokens -> the place after the latest of them

    def draft(self, text: Text, limit: int, end: int | None) -> tuple[list[int], list[Tensor]]:
        """As `_DraftModel.draft`. What is drafted counts as text: `abcabc` goes on with `abcabc`."""
        ids = [*text.prompt, *text.ids]
        for place in range(self.known, len(ids)):  # the last n themselves wait until something follows them
            self.after[tuple(ids[place - self.n : place])] = place
        self.known, length = max(self.known, len(ids)), len(ids)
        place = self.after.get(tuple(ids[-self.n :]))
        while place is not None and len(ids) < length + limit and end not in ids[length:]:
            ids.append(ids[place])
            place += 1
        tokens = ids[length:]
        return tokens, list(F.one_hot(torch.tensor(tokens, dtype=torch.long), self.vocab_size).double())

    def keep(self, length: int) -> None:
        """Nothing that was drafted was noted."""


# --- the whole


class SpeculativeGenerator(Generator):
    """Continues one text at a time, as `Generator` does, for fewer passes of the model.

    Args:
        model: as `Generator`'s
        tokenizer: of the model, and of the draft
        draft: a smaller network, in evaluation mode; its context may be shorter, it slides by itself. None: lookup
        num_draft: how many tokens are drafted at a time, at most
        lookup: how many of the last tokens are looked up, where no network drafts

    Attributes:
        drafted: how many tokens were drafted so far
        accepted: how many of these were accepted

    Raises:
        ConfigError: for a number below 1, or a draft of another vocabulary.
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
        if own != other:
            raise ConfigError(
                f"the draft must have the model's vocabulary, got {other} tokens for the model's {own}; "
                "use one that was trained with the same tokenizer"
            )
        super().__init__(model, tokenizer)
        self.draft, self.num_draft, self.lookup = draft, num_draft, lookup
        self.draft_decoder = None if draft is None else make_decoder(draft)
        self.drafted = self.accepted = 0

    def complete(
        self, prompts: Sequence[str], *, num_samples: int = 1, batch_size: int = 1, **options: Any
    ) -> list[Completion]:
        """As `Generator.complete`, one text after the other."""
        return super().complete(prompts, num_samples=num_samples, batch_size=batch_size, **options)

    def look_at_model(self) -> None:
        """As `Generator.look_at_model`, for the draft too."""
        super().look_at_model()
        if self.draft is not None:
            self.draft_decoder = make_decoder(self.draft, self.draft_decoder)
            self.draft_decoder.end = self.decoder.end

    @torch.inference_mode()
    def decode(
        self, texts: Iterable[Text], config: SamplingConfig, batch_size: int = 1, *, log_probs: bool = False
    ) -> Iterator[Text]:
        """As `Generator.decode`, one text after the other.

        Raises:
            ConfigError: for a batch_size above 1.
        """
        if batch_size > 1:
            raise ConfigError(f"speculative decoding writes one text at a time, got batch_size={batch_size}; use 1")
        self.look_at_model()
        reader, slid = _Reader(self.model, self.decoder, self.num_draft + 1), False
        self.stats.cache_bytes = reader.cache.num_bytes
        lookup = _Lookup(self.lookup, self.model.config.vocab_size)
        drafter = lookup if self.draft is None else _DraftModel(self, config)
        for text in texts:
            reader.restart()
            drafter.restart()
            while not text.finished:
                check_interrupt()
                room = reader.make_room(len(text.prompt) + len(text.ids))
                if reader.start and not slid:
                    announce_sliding(reader.context)
                    slid = True
                limit = min(self.num_draft, room, config.max_new_tokens - len(text.ids) - 1)
                started = time.perf_counter()
                tokens, logits = self._round(text, reader, drafter, limit, config)
                self.stats.decode_seconds += time.perf_counter() - started
                self.stats.new_tokens += len(tokens)
                found = logits.log_softmax(dim=-1)[range(len(tokens)), tokens].tolist() if log_probs else []
                for i, token in enumerate(tokens):
                    self._say(text, token, found[i : i + 1], config)
                    yield text
                    if text.finished:
                        break

    def _round(
        self, text: Text, reader: _Reader, drafter: _DraftModel | _Lookup, limit: int, config: SamplingConfig
    ) -> tuple[list[int], Tensor]:
        """One pass of the model: the next tokens of a text, at most limit + 1, and the logits of each, (tokens, V)."""
        ids = [*text.prompt, *text.ids]
        draft, q = drafter.draft(text, limit, self.tokenizer.end_of_text)
        logits = reader.read(ids + draft, len(draft) + 1)  # (k + 1, V)
        p = self.probabilities(logits, text, [draft[:i] for i in range(len(draft) + 1)], config)
        tokens = verify(draft, p, q, text.random)
        for each in (reader, drafter):
            each.keep(len(ids) + len(tokens) - 1)  # the last one is read in the next round
        self.drafted, self.accepted = self.drafted + len(draft), self.accepted + len(tokens) - 1
        return tokens, logits[: len(tokens)]

    def probabilities(self, logits: Tensor, text: Text, drafts: list[list[int]], config: SamplingConfig) -> Tensor:
        """What plain decoding would draw from, (B, V), where each row of logits follows a text and a draft."""
        said = [text.ids + draft for draft in drafts]
        return probabilities(self._scores(logits, [text.prompt] * len(said), said, config), config)
