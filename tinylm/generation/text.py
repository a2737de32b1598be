"""What the decoding loop works on and gives: a text as it grows, what became of it, and where it stops."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Text:
    """A prompt and what follows it, as it grows.

    Attributes:
        prompt: token ids, at least one
        ids: those that were generated
        log_probs: of each of these, what the model gave it before any temperature or filter; in nats
        finished: why it ended: "end" (the end-of-text token, which is not in `ids`), "length", "stop" (a stop string,
            of which a part may be in `ids`); empty as long as it grows. Whoever reads it may end it.
    """

    prompt: list[int]
    seed: int | None = None
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: str = ""

    def __post_init__(self) -> None:
        self.random = torch.Generator()
        if self.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(self.seed)


@dataclass(frozen=True)
class Completion:
    """What was generated after a prompt.

    Attributes:
        prompt: the text that it follows
        text: it, without the prompt
        ids: its tokens
        log_probs: of each token, in nats, as in `Text`
        finished: as in `Text`
    """

    prompt: str
    text: str
    ids: list[int]
    log_probs: list[float]
    finished: str


@dataclass
class Stats:
    """What a generator did so far.

    Attributes:
        prompt_tokens: read many at once: prompts, and texts that slid
        prompt_seconds: for these
        new_tokens: generated
        decode_seconds: for these, one after the other, from logits to tokens included
        cache_bytes: of the last cache
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0
    cache_bytes: int = 0


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces of a text up to the first of some strings, wherever pieces end.

    What may be the beginning of such a string is kept back until it is known.
    """
    held = ""
    if not stops:
        yield from pieces
        return
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
