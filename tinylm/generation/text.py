"""Texts during generation, their results, and stop strings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinylm.errors import notice
from tinylm.generation.sampling import Random


@dataclass(eq=False)
class Text:
    """A prompt and the tokens generated after it so far.

    Attributes:
        prompt: token ids, at least one
        seed: of the random numbers. None: from the system
        ids: generated token ids
        log_probs: log probability of each, in nats, before temperature and filters
        finished: why the text ended: "stop" (`ids` contain a stop string), "end" (the end-of-text token, which is not
            in `ids`) or "length"; empty while it grows. The consumer of a text may set it
    """

    prompt: list[int]
    seed: int | None = None
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finished: str = ""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def window(self, context: int) -> list[int]:
        """The newest ids, which the model reads next. A text that exceeds the context keeps its newest half."""
        ids = [*self.prompt, *self.ids]
        step = context + 1 - max(context // 2, 1)
        return ids[max(len(ids) - context + step - 1, 0) // step * step :]

    def completion(self, prompt: str, generated: str) -> "Completion":
        """The result, given the prompt and the generated text as strings."""
        return Completion(prompt, generated, self.ids, self.log_probs, self.finished)


@dataclass(frozen=True)
class Completion:
    """A prompt and its completion. The last three fields are those of `Text`."""

    prompt: str
    text: str
    ids: list[int]
    log_probs: list[float]
    finished: str


@dataclass
class Stats:
    """Counts and times of a generator.

    Attributes:
        prompt_tokens: tokens read many at a time: prompts, and the context kept when a text slides
        prompt_seconds: time spent reading them
        new_tokens: generated tokens
        decode_seconds: time spent generating them
        cache_bytes: size of the last key/value cache
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0
    cache_bytes: int = 0


class StopStrings:
    """Passes on a text, piece by piece, up to the first stop string.

    The text ends at the first character that completes a stop string; if it completes several, the longest is cut off.
    The result depends neither on the division into pieces nor on later text: with the stop strings "b" and "aba", the
    text "aba" ends after "a", at the "b", although "aba" begins earlier.

    Attributes:
        found: whether a stop string has been completed
        held: the held-back end of the text, with which a stop string may begin
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self.found, self.held = False, ""

    def read(self, piece: str, may_stop: bool = True) -> str:
        """Takes one more piece of the text and returns what can be passed on.

        Unless `may_stop`, a stop string completed in this piece is plain text.
        """
        if self.found or not self._stops:
            return "" if self.found else piece
        for character in piece:
            self.held += character
            if may_stop and (stop := next(filter(self.held.endswith, self._stops), "")):
                passed, self.held, self.found = self.held.removesuffix(stop), "", True
                return passed
        sizes = range(min(len(self._stops[0]) - 1, len(self.held)), 0, -1)
        begun = next((n for n in sizes if any(stop.startswith(self.held[-n:]) for stop in self._stops)), 0)
        passed = self.held[: len(self.held) - begun]
        self.held = self.held[len(passed) :]
        return passed


class Reader:
    """Spells a text token by token, up to the first stop string, which finishes it.

    Args:
        text: grows between calls of `read`
        decode_piece: the tokenizer's `piece_decoder()`
        stops: the stop strings
        least: number of tokens before which no stop string ends the text
    """

    def __init__(self, text: Text, decode_piece: Callable[[int | None], str], stops: Sequence[str], least: int) -> None:
        self.text, self._decode, self._stops, self._least = text, decode_piece, StopStrings(stops), least

    def read(self) -> str:
        """The characters that the newest token adds; call it once for each token."""
        return "" if self.text.finished == "end" else self._read(self.text.ids[-1])

    def rest(self) -> str:
        """The characters held back until the text has ended."""
        return self._read(None) + self._stops.held

    def _read(self, token: int | None) -> str:
        passed = self._stops.read(self._decode(token), len(self.text.ids) >= self._least)
        if self._stops.found:
            self.text.finished = "stop"
        return passed


def announce_sliding(context: int) -> None:
    """Prints a notice that a text is longer than the context."""
    notice(f"beyond {context} tokens, generation keeps the newest half of the context and continues")
