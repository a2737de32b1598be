"""The decoding loop: read the prompt, then one token after the other, each from the logits of the last.

The keys and values of what was read stay in a cache, so a token costs one position. When the context is full the text
slides: the newer half of it is read again as a fresh start, which costs one prompt per half context and nothing else.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.generation.sampling import EXCLUDED, SamplingConfig, adjusted, choose
from tinylm.model import KVCache, TransformerLM
from tinylm.tokenizer import Tokenizer


class Generator:
    """Continues texts with a model.

    Args:
        model: the network; it is used as it is, so put it in evaluation mode (`tinylm.load` does)
        tokenizer: of the model
    """

    def __init__(self, model: TransformerLM, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

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
        truncate = options.pop("truncate", None)
        if truncate not in (None, "left"):
            raise ConfigError(f"truncate must be left, got {truncate!r}")
        known = [field.name for field in dataclasses.fields(SamplingConfig)]
        for name in options:
            if name not in known:
                raise ConfigError(f"{name}: no such option of generation{did_you_mean(name, known)}")
        config = SamplingConfig(**options)
        ids = self._prompt_ids(prompt, truncate)
        config.check_tokens(self.model.config.vocab_size)
        pieces = self.tokenizer.decode_stream(self.stream_ids(ids, config))
        return until(pieces, config.stop) if config.stop else pieces

    def stream_ids(self, prompt: list[int], config: SamplingConfig) -> Iterator[int]:
        """The ids that follow `prompt`, which is not empty and fits the context; ends at the end-of-text token."""
        generator = torch.Generator()
        if config.seed is not None:
            generator.manual_seed(config.seed)
        else:
            generator.seed()
        for token in self._decode(prompt, config, generator):
            if token == self.tokenizer.end_of_text:
                return
            yield token

    @torch.inference_mode()
    def _decode(self, prompt: list[int], config: SamplingConfig, generator: torch.Generator) -> Iterator[int]:
        context = self.model.config.max_seq_len
        weight = self.model.embedding.weight
        cache = KVCache(self.model.config, batch_size=1, dtype=weight.dtype, device=weight.device)
        text, unread, slid = list(prompt), list(prompt), False
        read = torch.bincount(torch.tensor(prompt, device=weight.device), minlength=self.model.config.vocab_size)[None]
        said = torch.zeros_like(read)  # how often each token was in the prompt, and since, (1, V)
        adjusts = config.adjusts
        for number in range(config.max_new_tokens):
            if cache.length + len(unread) > context:
                if not slid:
                    notice(f"beyond {context} tokens the text slides: its newer half is read again, the rest forgotten")
                slid = True
                cache.clear()
                unread = text[-max(context // 2, 1) :]
            ids = torch.tensor([unread], device=weight.device)
            last = self.model.hidden(ids, cache=cache)[:, -1]  # (1, D)
            logits = self.model.head(last)
            if adjusts:
                logits = adjusted(logits, read, said, config)
            if number < config.min_new_tokens and self.tokenizer.end_of_text is not None:
                logits[:, self.tokenizer.end_of_text] = EXCLUDED
            token = int(choose(logits, config, generator))
            yield token
            text.append(token)
            if adjusts:
                said[0, token] += 1
            unread = [token]

    def _prompt_ids(self, prompt: str, truncate: Literal["left"] | None) -> list[int]:
        ids = self.tokenizer.encode(prompt)
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


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces of a text up to the first of some strings, wherever pieces end.

    What may be the beginning of such a string is kept back until it is known.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [place for place in map(held.find, stops) if place >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        longest = max(len(stop) for stop in stops) - 1
        begun = (n for n in range(min(longest, len(held)), 0, -1) if any(stop.startswith(held[-n:]) for stop in stops))
        safe = len(held) - next(begun, 0)
        if safe:
            yield held[:safe]
        held = held[safe:]
    if held:
        yield held
