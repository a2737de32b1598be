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
        finished: why it ended: "stop" (`ids` contain a stop string, which may be complete only with the last token
            allowed), "end" (the end-of-text token, which is not in `ids`) or "length"; empty as long as it grows.
            Its reader may end it.
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


class StopStrings:
    """Passes a text on, piece by piece, up to the first stop string.

    The text ends at the first character that completes a stop string; if it completes several, the longest of them is
    cut off. What follows is never looked at, and how the text is divided into pieces makes no difference: with the
    stop strings "b" and "aba", "aba" ends after "a", at the "b", although "aba" begins earlier.

    Attributes:
        found: whether the text has ended
        held: the end of the text that is kept back, since a stop string may begin with it
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self.found, self.held = False, ""

    def read(self, piece: str) -> str:
        """What can be passed on after one more piece of the text."""
        if self.found or not self._stops:
            return "" if self.found else piece
        for character in piece:
            self.held += character
            if stop := next(filter(self.held.endswith, self._stops), ""):
                said, self.held, self.found = self.held.removesuffix(stop), "", True
                return said
        sizes = range(min(len(self._stops[0]) - 1, len(self.held)), 0, -1)
        begun = next((n for n in sizes if any(stop.startswith(self.held[-n:]) for stop in self._stops)), 0)
        said = self.held[: len(self.held) - begun]
        self.held = self.held[len(said) :]
        return said


def until(pieces: Iterable[str], stops: StopStrings) -> Iterator[str]:
    """The pieces of a text up to the first stop string, wherever pieces end; none is taken after it."""
    for piece in pieces:
        if said := stops.read(piece):
            yield said
        if stops.found:
            return
    if stops.held:
        yield stops.held
