"""The decoding loop: read the prompts, then one token of each text after the other, each from the logits of the last.

The keys and values of what was read stay in a cache, so a token costs one position. When the context is full a text
slides: its newer half is read again as a fresh start, which costs one prompt per half context and nothing else.

Texts that are written together share the work of bringing the weights from memory. Each has a row of the cache, a
length and random numbers of its own, so what else is in the batch changes its logits by rounding alone; where one ends,
the next that waits takes its row.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from tinylm.console import check_interrupt
from tinylm.errors import ConfigError, notice
from tinylm.generation.fast.cached import CachedDecoder
from tinylm.generation.fast.decoder import CompiledDecoder, Decoder, make_decoder
from tinylm.generation.sampling import EXCLUDED, SamplingConfig, adjusted, check_names, check_truncate, choose
from tinylm.generation.text import Completion, Stats, StopStrings, Text, until
from tinylm.generation.uncached import TokenRows, UncachedDecoder
from tinylm.model import KVCache, TransformerLM
from tinylm.tokenizer import Tokenizer


class Generator:
    """Continues texts with a model.

    Args:
        model: the network, in evaluation mode (`tinylm.load` does that)
        tokenizer: of the model
        decoder: what reads the texts; None: what `make_decoder` makes of the model

    Attributes:
        stats: counts and times of all its texts
        before: ids that stand before every prompt, such as the token of a chat's user
        after: ids that stand behind it
        conversation: whether prompts are those of pairs or chats, which training read as one document with its answer
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        decoder: Decoder | CompiledDecoder | UncachedDecoder | None = None,
    ) -> None:
        self.model, self.tokenizer, self._chosen = model, tokenizer, decoder
        self.decoder: Any = make_decoder(model) if decoder is None else decoder
        self.stats = Stats()
        self.before: Sequence[int] = ()
        self.after: Sequence[int] = ()
        self.conversation = False

    def generate(self, prompt: str, **options: Any) -> str:
        """The continuation of a prompt, without the prompt.

        Args:
            prompt: where the text begins; the end-of-text token, if the tokenizer has one, is put before it
            options: fields of `SamplingConfig`, and `truncate="left"` to cut a prompt that is too long

        Raises:
            ConfigError: for an option without meaning, a prompt that is empty or longer than the context.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """As `generate`, piece by piece; never half a character."""
        return self.begin(prompt, log_probs=False, **options)[1]

    def begin(self, prompt: str, *, log_probs: bool = True, **options: Any) -> tuple[Text, Iterator[str]]:
        """As `stream`, with the text that grows while its pieces are taken, and notes log probabilities."""
        config, truncate = self.check_options(options)
        text = Text(self.prompt_ids(prompt, truncate), config.seed)
        return text, self._pieces(text, config, log_probs)

    def complete(
        self, prompts: Sequence[str], *, num_samples: int = 1, batch_size: int = 16, **options: Any
    ) -> list[Completion]:
        """The continuations of many prompts, several of them at a time.

        Args:
            prompts: where texts begin
            num_samples: how many for each prompt; the i-th, from 0, is drawn with the seed + i
            batch_size: how many texts at a time
            options: as `generate`'s

        Returns:
            the samples of the first prompt, then those of the second, and so on
        """
        config, truncate = self.check_options(options)
        for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        seeds = [None if config.seed is None else config.seed + i for i in range(num_samples)]
        texts = [Text(ids, seed) for ids in [self.prompt_ids(p, truncate) for p in prompts] for seed in seeds]
        readers = {text: (self.tokenizer.piece_decoder(), StopStrings(config.stop)) for text in texts}
        for text in self.decode(texts, config, batch_size, log_probs=True):
            piece_of, stops = readers[text]
            if config.stop and text.finished != "end":
                stops.read(piece_of(text.ids[-1]))
                text.finished = "stop" if stops.found else text.finished
        said = ["".join(self._until([self.tokenizer.decode(text.ids)], text, config)) for text in texts]
        return [self.completion(prompts[i // num_samples], text, said[i]) for i, text in enumerate(texts)]

    def completion(self, prompt: str, text: Text, said: str) -> Completion:
        """What became of a prompt."""
        return Completion(prompt, said, text.ids, text.log_probs, text.finished)

    def _pieces(self, text: Text, config: SamplingConfig, log_probs: bool) -> Iterator[str]:
        """The pieces of one text as they come; it is finished when they end."""
        ids = self._new_ids(text, config, log_probs)
        yield from self._until(self.tokenizer.decode_stream(ids), text, config)

    def _until(self, pieces: Iterable[str], text: Text, config: SamplingConfig) -> Iterator[str]:
        """The pieces of a text up to the first stop string, by which it is finished."""
        stops = StopStrings(config.stop)
        yield from until(pieces, stops)
        text.finished = "stop" if stops.found else text.finished

    def _new_ids(self, text: Text, config: SamplingConfig, log_probs: bool) -> Iterator[int]:
        for _ in self.decode([text], config, log_probs=log_probs):
            if text.finished != "end":
                yield text.ids[-1]

    def stream_ids(self, prompt: list[int], config: SamplingConfig) -> Iterator[int]:
        """The ids that follow `prompt`, which is not empty and fits the context; ends at the end-of-text token."""
        return self._new_ids(Text(prompt, config.seed), config, log_probs=False)

    # --- the loop

    def look_at_model(self) -> None:
        """Before anything is read: takes another decoder where the model was changed since.

        For a network that keeps documents apart the end-of-text token ends a document, but not in a conversation.

        Raises:
            ConfigError: if the caller chose the decoder, and it is not right for the model any more.
        """
        if self._chosen is None:
            self.decoder = make_decoder(self.model, self.decoder)
        elif isinstance(self._chosen, CachedDecoder):
            self._chosen.check()
        conversation = self.conversation or bool(self.before or self.after)
        self.decoder.end = self.tokenizer.end_of_text if not conversation else None

    @torch.inference_mode()
    def decode(
        self, texts: Iterable[Text], config: SamplingConfig, batch_size: int = 1, *, log_probs: bool = False
    ) -> Iterator[Text]:
        """Lets texts grow until they are finished, some of them at a time.

        Args:
            texts: with prompts that fit the context
            config: how tokens are chosen; its seed and its stop strings are the caller's affair
            batch_size: how many texts at a time
            log_probs: whether to note those, too

        Yields:
            each text when it has one more token, or has ended; the caller may set `finished`
        """
        self.look_at_model()
        waiting, slid = iter(texts), False
        rows = list(islice(waiting, batch_size))
        device, context = next(self.model.parameters()).device, self.model.config.max_seq_len
        cache = self.decoder.make_cache(len(rows))
        self.stats.cache_bytes = cache.num_bytes
        self._read(cache, [text.prompt[:-1] for text in rows])
        while rows:
            check_interrupt()
            growing = [text for text in rows if not text.finished]
            last = torch.tensor([(text.ids or text.prompt)[-1] for text in rows], device=device)
            started = time.perf_counter()
            logits = self.decoder.step(last, cache)
            self._extend(rows, logits, config, log_probs)
            self.stats.decode_seconds += time.perf_counter() - started
            self.stats.new_tokens += len(growing)
            yield from growing
            for row, text in enumerate(rows):
                following = next(waiting, None) if text.finished else None
                if following is not None:
                    rows[row] = following
                    self._read(cache, [following.prompt[:-1]], row)
                elif cache.lengths[row] == context and not text.finished:
                    if not slid:
                        announce_sliding(context)
                    slid = True
                    self._read(cache, [[*text.prompt, *text.ids][-max(context // 2, 1) : -1]], row)
            going = [row for row, text in enumerate(rows) if not text.finished]
            if going and self.decoder.fixed_rows:
                cache.truncate([n if row in going else 0 for row, n in enumerate(cache.lengths)])  # the others idle
            elif len(going) < len(rows):
                rows = [rows[row] for row in going]
                cache.select(going)

    def _read(self, cache: KVCache | TokenRows, parts: list[list[int]], row: int | None = None) -> None:
        """Reads the beginning of each text, or of one in a row, in place of what the cache held."""
        started = time.perf_counter()
        self.decoder.prefill(parts, cache, row)
        if count := sum(map(len, parts)):
            self.stats.prompt_tokens += count
            self.stats.prompt_seconds += time.perf_counter() - started

    def _extend(self, rows: list[Text], logits: Tensor, config: SamplingConfig, log_probs: bool) -> None:
        """Chooses the next token of each text."""
        scores = self._scores(logits, [text.prompt for text in rows], [text.ids for text in rows], config)
        tokens = choose(scores, config, [text.random for text in rows])
        found = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist() if log_probs else []
        for i, (text, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if not text.finished:
                self._say(text, token, found[i : i + 1], config)

    def _scores(self, logits: Tensor, read: list[list[int]], said: list[list[int]], config: SamplingConfig) -> Tensor:
        """The logits (B, V) after what depends on each prompt and what was said since, before any temperature."""
        scores, end = logits, self.tokenizer.end_of_text
        if config.adjusts:
            scores = adjusted(logits, _counts(read, logits), _counts(said, logits), config)
        if config.min_new_tokens and end is not None:
            short = torch.tensor([len(ids) < config.min_new_tokens for ids in said], device=logits.device)
            scores = scores.clone()
            scores[short, end] = EXCLUDED
        return scores

    def _say(self, text: Text, token: int, log_probs: list[float], config: SamplingConfig) -> None:
        """Adds a token, with its log probability or none, to a text, which may end by it."""
        if token == self.tokenizer.end_of_text:
            text.finished = "end"
            return
        text.ids.append(token)
        text.log_probs.extend(log_probs)
        if len(text.ids) == config.max_new_tokens:
            text.finished = "length"

    # --- what is asked for

    def check_options(self, options: dict[str, Any]) -> tuple[SamplingConfig, Literal["left"] | None]:
        """The options of `generate`, checked, and `truncate`.

        Raises:
            ConfigError: for one without meaning.
        """
        options = dict(options)
        truncate = options.pop("truncate", None)
        check_truncate(truncate)
        check_names(options, SamplingConfig, "generation")
        config = SamplingConfig(**options)
        config.check_tokens(self.model.config.vocab_size)
        return config, truncate

    def prompt_ids(self, prompt: str, truncate: Literal["left"] | None = None) -> list[int]:
        """The ids of a prompt and what stands around it, after the end-of-text token. Errors as `generate`'s."""
        ids = [*self.before, *self.tokenizer.encode(prompt), *self.after]
        if self.tokenizer.end_of_text is not None:
            ids = [self.tokenizer.end_of_text, *ids]  # it stands before every document that the model has read
        if not ids:
            raise ConfigError(
                "the prompt is empty, and this tokenizer has no token to begin a text with; give a prompt"
            )
        context = self.model.config.max_seq_len
        if len(ids) > context:
            if truncate != "left":
                raise ConfigError(f"the prompt has {len(ids)} tokens, the context holds {context}; use --truncate left")
            notice(f"the prompt has {len(ids)} tokens: only the last {context} are read")
            ids = ids[-context:]
        return ids


def announce_sliding(context: int) -> None:
    """Says once what becomes of a text that is longer than the context."""
    notice(f"beyond {context} tokens, generation keeps the newest half of the context and continues")


def _counts(lists: Sequence[list[int]], logits: Tensor) -> Tensor:
    """How often each token is in each list, int64 like logits, (B, V)."""
    counts = [torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=logits.shape[1]) for ids in lists]
    return torch.stack(counts).to(logits.device)
