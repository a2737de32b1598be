"""Generator: continues many prompts at once, streams, slides over long texts, and stops at strings.

The loop is the one of textbook.py: read the prompts, then repeatedly choose the next token from the last logits.
Texts generated together share the cost of loading the weights. Each has its own cache row, length and random
numbers, so the rest of the batch affects its logits by rounding only. When a text ends, the next prompt takes its row.

When the context is full a text slides: its newest half is read again as a new context.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from tinylm.console import check_interrupt
from tinylm.errors import ConfigError, notice
from tinylm.generation.ahead import decode_ahead
from tinylm.generation.fast.cached import CachedDecoder
from tinylm.generation.fast.choice import make_decoder
from tinylm.generation.fast.graph import GraphDecoder
from tinylm.generation.options import SamplingConfig, check_names, check_truncate
from tinylm.generation.sampling import EXCLUDED, NO_TOKEN, adjusted, check_numbers, choose, is_possible, token_counts
from tinylm.generation.text import Completion, Reader, Stats, Text, announce_sliding
from tinylm.generation.uncached import TokenRows, UncachedDecoder
from tinylm.model import RingKVCache, TransformerLM
from tinylm.tokenizer import Tokenizer


class Generator:
    """Continues prompts with a model.

    Args:
        model: the model, in evaluation mode (`tinylm.load` sets it)
        tokenizer: the model's tokenizer; if the model has more rows than tokens, the extra rows are never generated
        decoder: reads the tokens. None: the best decoder for the model (`make_decoder`)

    Attributes:
        stats: counts and times of all texts so far
        before: ids inserted before every prompt, such as the user token of a chat
        after: ids appended to every prompt
        encode_prompt: prompt -> all ids that the model reads for it, replacing `before` and `after`. None: not used
        conversation: whether a prompt and its completion are one document in training, as pairs and chats are
    """

    def __init__(
        self, model: TransformerLM, tokenizer: Tokenizer, decoder: CachedDecoder | UncachedDecoder | None = None
    ) -> None:
        self.model, self.tokenizer, self._chosen = model, tokenizer, decoder
        self.decoder: Any = make_decoder(model) if decoder is None else decoder
        self.stats = Stats()
        self.before: Sequence[int] = ()
        self.after: Sequence[int] = ()
        self.encode_prompt: Callable[[str], list[int]] | None = None
        self.conversation = False

    def generate(self, prompt: str, **options: Any) -> str:
        """Returns the completion of a prompt, without the prompt.

        Args:
            prompt: the beginning of the text. The token that begins a text (`Marks.begin`) is inserted before it
            options: fields of `SamplingConfig`, and `truncate="left"`, which shortens a prompt that is too long

        Raises:
            ConfigError: for an invalid option, or a prompt that is empty or longer than the context.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yields the completion of a prompt in pieces of whole characters. Options and errors as for `generate`."""
        return self.begin(prompt, log_probs=False, **options)[1]

    def begin(self, prompt: str, *, log_probs: bool = True, **options: Any) -> tuple[Text, Iterator[str]]:
        """Returns a text and the pieces of its completion; the text grows as they are taken."""
        config, truncate = self.check_options(options)
        text = Text(self.prompt_ids(prompt, truncate), config.seed)
        return text, self._pieces(text, config, log_probs)

    def complete(
        self, prompts: Sequence[str], *, num_samples: int = 1, batch_size: int = 16, **options: Any
    ) -> list[Completion]:
        """Returns the completions of many prompts, generated in batches.

        Args:
            prompts: the beginnings of the texts
            num_samples: completions per prompt. Sample i, from 0, is drawn with the seed + i, modulo 2**64
            batch_size: texts generated at once
            options: as for `generate`

        Returns:
            the samples of the first prompt, then those of the second, and so on

        Raises:
            ConfigError: as `generate` does, and for prompts that are not a sequence of strings.
        """
        config, truncate = self.check_options(options)
        for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ConfigError(f"prompts must be a list of strings, got {prompts!r}; for a single one, [prompt]")
        seeds = [None if config.seed is None else _seed(config.seed + i) for i in range(num_samples)]
        texts = [Text(ids, seed) for ids in [self.prompt_ids(p, truncate) for p in prompts] for seed in seeds]
        readers = {text: self.reader(text, config) for text in texts}
        pieces = {text: [] for text in texts}
        for text in self.decode(texts, config, batch_size, log_probs=True):
            pieces[text].append(readers[text].read())
        for text, reader in readers.items():
            pieces[text].append(reader.rest())
        return [text.completion(prompts[i // num_samples], "".join(pieces[text])) for i, text in enumerate(texts)]

    def reader(self, text: Text, config: SamplingConfig) -> Reader:
        """Spells a text, token by token, up to the stop strings."""
        return Reader(text, self.tokenizer.piece_decoder(), config.stop, config.min_new_tokens)

    def _pieces(self, text: Text, config: SamplingConfig, log_probs: bool) -> Iterator[str]:
        reader = self.reader(text, config)
        for _ in self.decode([text], config, log_probs=log_probs):
            if piece := reader.read():
                yield piece
        if piece := reader.rest():
            yield piece

    def stream_ids(self, prompt: list[int], config: SamplingConfig) -> Iterator[int]:
        """Yields the ids that follow a prompt, which must fit the context, up to the end of the text or a stop string.

        The ids contain the stop string.
        """
        text = Text(prompt, config.seed)
        reader = self.reader(text, config)
        for _ in self.decode([text], config):
            reader.read()
            if text.finished != "end":
                yield text.ids[-1]

    # --- the loop

    def refresh_decoder(self) -> None:
        """Replaces the decoder if the model has changed since it was made.

        A decoder chosen by the caller raises ConfigError instead. With `document_mask` the end-of-text token ends a
        document, except in a conversation.
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
        """Extends texts until they are finished, a batch at a time.

        Args:
            texts: their prompts must fit the context; a text that already has tokens continues after them
            config: how tokens are chosen; its seed and stop strings are left to the caller
            batch_size: texts generated at once
            log_probs: whether to record log probabilities

        Yields:
            each text whenever it has one more token or has ended; the caller may set `finished`
        """
        self.refresh_decoder()
        waiting, announced = iter(texts), False
        rows = list(islice(waiting, batch_size))
        if rows and isinstance(self.decoder, GraphDecoder):
            yield from decode_ahead(self, rows, waiting, config, log_probs)
            return
        device, context = next(self.model.parameters()).device, self.model.config.max_seq_len
        cache = self.decoder.make_cache(len(rows))
        self.stats.cache_bytes = cache.num_bytes
        self.prefill(cache, [text.window(context)[:-1] for text in rows])
        while rows:
            check_interrupt()
            growing = [text for text in rows if not text.finished]
            last = torch.tensor([(text.ids or text.prompt)[-1] for text in rows], device=device)
            started = time.perf_counter()
            logits = self.decoder.step(last, cache)[:, : self.tokenizer.vocab_size]
            self._extend(rows, logits, config, log_probs)
            self.stats.decode_seconds += time.perf_counter() - started
            self.stats.new_tokens += len(growing)
            yield from growing
            for row, text in enumerate(rows):
                following = next(waiting, None) if text.finished else None
                if following is not None:
                    rows[row] = following
                    self.prefill(cache, [following.window(context)[:-1]], row)
                elif cache.lengths[row] == context and not text.finished:
                    if not announced:
                        announce_sliding(context)
                    announced = True
                    self.prefill(cache, [text.window(context)[:-1]], row)
            unfinished = [row for row, text in enumerate(rows) if not text.finished]
            if unfinished and self.decoder.fixed_rows:  # finished rows idle
                cache.truncate([length if row in unfinished else 0 for row, length in enumerate(cache.lengths)])
            elif len(unfinished) < len(rows):
                rows = [rows[row] for row in unfinished]
                cache.select(unfinished)

    def prefill(self, cache: RingKVCache | TokenRows, parts: list[list[int]], row: int | None = None) -> None:
        """Reads the beginning of every text, or of the one in `row`, and replaces what the cache held."""
        started = time.perf_counter()
        self.decoder.prefill(parts, cache, row)
        if count := sum(map(len, parts)):
            self.stats.prompt_tokens += count
            self.stats.prompt_seconds += time.perf_counter() - started

    def _extend(self, rows: list[Text], logits: Tensor, config: SamplingConfig, log_probs: bool) -> None:
        """Chooses the next token of each text."""
        scores = self._scores(logits, [text.prompt for text in rows], [text.ids for text in rows], config)
        tokens = choose(scores, config, [text.random for text in rows], [len(text.ids) for text in rows])
        found = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist() if log_probs else []
        for i, (text, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if not text.finished:
                self.append(text, token, found[i : i + 1], config)

    def _scores(
        self, logits: Tensor, prompts: list[list[int]], generated: list[list[int]], config: SamplingConfig
    ) -> Tensor:
        """`scores`; raises NumericError for logits that are not finite, ConfigError for a row without a choice."""
        check_numbers(logits)
        scores = self.scores(logits, prompts, generated, config)
        if scores is not logits and not is_possible(scores):
            raise ConfigError(NO_TOKEN)
        return scores

    def scores(
        self, logits: Tensor, prompts: list[list[int]], generated: list[list[int]], config: SamplingConfig
    ) -> Tensor:
        """Logits (B, V) after bias, bans, penalties and `min_new_tokens`, before temperature and filters."""
        scores, stops = logits, list(self.tokenizer.marks.stops)
        if config.adjusts:
            asked, made = (token_counts(ids, logits) if config.penalizes else logits for ids in (prompts, generated))
            scores = adjusted(logits, asked, made, config)
        if config.min_new_tokens and stops:
            short = [row for row, ids in enumerate(generated) if len(ids) < config.min_new_tokens]
            scores = scores.clone()
            scores[torch.tensor(short, dtype=torch.long, device=logits.device)[:, None], stops] = EXCLUDED
        return scores

    def append(self, text: Text, token: int, log_probs: list[float], config: SamplingConfig) -> None:
        """Appends a token to a text and finishes the text where it ends."""
        if token in self.tokenizer.marks.stops:
            text.finished = "end"
            return
        text.ids.append(token)
        text.log_probs.extend(log_probs)
        if len(text.ids) == config.max_new_tokens:
            text.finished = "length"

    # --- options and prompts

    def check_options(self, options: dict[str, Any]) -> tuple[SamplingConfig, Literal["left"] | None]:
        """Splits the options of `generate` into a `SamplingConfig` and `truncate`; invalid ones raise ConfigError."""
        options = dict(options)
        truncate = options.pop("truncate", None)
        check_truncate(truncate)
        check_names(options, SamplingConfig, "generation")
        config = SamplingConfig(**options)
        config.check_tokens(self.tokenizer.vocab_size, self.tokenizer.marks.stops)
        return config, truncate

    def prompt_ids(self, prompt: str, truncate: Literal["left"] | None = None) -> list[int]:
        """The ids that the model reads for a prompt: the token that begins a text, `before`, prompt, `after`.

        If there are none, it is the end-of-text token, after which a new text begins. Raises ConfigError if the prompt
        is not a string, or has no ids, or more than the context holds.
        """
        if not isinstance(prompt, str):
            raise ConfigError(f"a prompt must be a string, got {prompt!r}")
        ids = self.whole_prompt(prompt)
        if not ids:
            raise ConfigError("the prompt is empty, and this tokenizer has no end-of-text token; give a prompt")
        context = self.model.config.max_seq_len
        if len(ids) > context:
            if truncate != "left":
                raise ConfigError(f"the prompt has {len(ids)} tokens, the context holds {context}; use --truncate left")
            notice(f"the prompt has {len(ids)} tokens: only the last {context} are read")
            ids = ids[-context:]
        return ids

    def whole_prompt(self, prompt: str) -> list[int]:
        """The ids of a prompt and those around it, without a limit."""
        if self.encode_prompt is not None:
            return self.encode_prompt(prompt)
        ids = [*self.tokenizer.opening, *self.before, *self.tokenizer.encode(prompt), *self.after]
        if not ids and self.tokenizer.end_of_text is not None:
            ids = [self.tokenizer.end_of_text]  # another document follows
        return ids


def _seed(number: int) -> int:
    """A seed that PyTorch accepts: a number below 2**64 itself, a greater one modulo 2**64."""
    return number if number < 1 << 64 else number % (1 << 64)
