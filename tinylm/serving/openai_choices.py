"""The choices of an answer of OpenAI's API: texts with the log probabilities of their tokens, in both of its forms.

Completions list log probabilities in columns, with the offset of each token in the text; chats have an object for each
token. A token that does not consist of whole characters is spelled by its bytes, `\\xe2\\x82`, in completions after
`bytes:`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tinylm.serving.engine import Piece
from tinylm.serving.openai_fields import Asked
from tinylm.serving.openai_prompts import Prompt
from tinylm.serving.scoring import Scored
from tinylm.tokenizer import Tokenizer

REASONS = {"stop": "stop", "end": "stop", "length": "length", "": None}  # the API's words for why a text ends
LOWEST = -9999.0  # stands for minus infinity, which JSON does not have


class Spelling:
    """The texts of single tokens.

    Args:
        tokenizer: the model's
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.of = lru_cache(maxsize=1 << 16)(self._spell)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.tokenizer.token_bytes[token]

    def _spell(self, token: int, prefix: str = "") -> str:
        try:
            return self.bytes_of(token).decode()
        except UnicodeDecodeError:
            return prefix + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(token))


class Offsets:
    """The offset of each token in a text, in characters; a token within a character has the character's offset."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode, self.length = tokenizer.piece_decoder(), 0

    def next(self, token: int) -> int:
        """The offset of the next token."""
        offset = self.length
        self.length += len(self._decode(token))
        return offset


class TextChoice:
    """A choice of `/v1/completions`.

    Args:
        index: its number in the answer
        spelling: of the model's tokens
        prompt: the prompt
        asked: the request
    """

    def __init__(self, index: int, spelling: Spelling, prompt: Prompt, asked: Asked) -> None:
        self.index, self.spelling, self.prompt = index, spelling, prompt
        self.echo, self.logprobs = asked.echo, asked.alternatives is not None
        self.echoed: list[Scored] = []
        self.offsets = Offsets(spelling.tokenizer)
        for token in prompt.ids[prompt.hidden :] if self.logprobs and not self.echo else ():
            self.offsets.next(token)

    def echo_tokens(self, scored: Sequence[Scored]) -> None:
        """Takes the tokens of the prompt; in the API the first token of a text has no log probability."""
        shown = scored[self.prompt.hidden :]
        self.echoed = [token._replace(log_prob=None) for token in shown[:1]] + list(shown[1:])

    def beginning(self) -> dict[str, Any] | None:
        """The first event of a stream: the prompt, if it is echoed."""
        return self._choice(self.prompt.text, self.echoed, "") if self.echo else None

    def part(self, piece: Piece) -> dict[str, Any] | None:
        """The event of a piece; None if it says nothing."""
        if not (piece.text or piece.finished or self.logprobs):
            return None
        return self._choice(piece.text, _scored([piece]), piece.finished)

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The choice of a whole text."""
        text = "".join(piece.text for piece in pieces)
        finished = pieces[-1].finished if pieces else "length"
        return self._choice(self.prompt.text * self.echo + text, [*self.echoed, *_scored(pieces)], finished)

    def _choice(self, text: str, tokens: Sequence[Scored], finished: str) -> dict[str, Any]:
        logprobs = self._columns(tokens) if self.logprobs else None
        return {"text": text, "index": self.index, "logprobs": logprobs, "finish_reason": REASONS[finished]}

    def _columns(self, tokens: Sequence[Scored]) -> dict[str, list[Any]]:
        """The log probabilities; the token itself is always listed among the most likely ones."""
        spell, tops = self.spelling.of, []
        for token, log_prob, alternatives in tokens:
            likeliest: dict[str, float] = {}
            for each, value in () if log_prob is None else (*alternatives, (token, log_prob)):
                likeliest.setdefault(spell(each, "bytes:"), _finite(value))
            tops.append(likeliest or None)
        return {
            "tokens": [spell(each.token, "bytes:") for each in tokens],
            "token_logprobs": [None if each.log_prob is None else _finite(each.log_prob) for each in tokens],
            "top_logprobs": tops,
            "text_offset": [self.offsets.next(each.token) for each in tokens],
        }


class ChatChoice:
    """A choice of `/v1/chat/completions`.

    Args:
        index: its number in the answer
        spelling: of the model's tokens
        asked: the request
    """

    def __init__(self, index: int, spelling: Spelling, asked: Asked) -> None:
        self.index, self.spelling, self.logprobs = index, spelling, asked.alternatives is not None

    def beginning(self) -> dict[str, Any]:
        """The first event of a stream."""
        return self._event({"role": "assistant", "content": "", "refusal": None}, None, "")

    def part(self, piece: Piece) -> dict[str, Any] | None:
        """The event of a piece; None if it says nothing."""
        if not (piece.text or piece.finished or self.logprobs):
            return None
        delta = {"content": piece.text} if piece.text or piece.token is not None else {}
        return self._event(delta, self._objects(_scored([piece])), piece.finished)

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The choice of a whole text."""
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        reason = REASONS[pieces[-1].finished]
        logprobs = self._objects(_scored(pieces))
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _event(self, delta: dict[str, Any], logprobs: dict[str, Any] | None, finished: str) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": REASONS[finished]}

    def _objects(self, tokens: Sequence[Scored]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            self._object(each.token, each.log_prob or 0.0)
            | {"top_logprobs": [self._object(*other) for other in each.alternatives]}
            for each in tokens
        ]
        return {"content": content, "refusal": None}

    def _object(self, token: int, log_prob: float) -> dict[str, Any]:
        spelt = self.spelling.of(token)
        return {"token": spelt, "logprob": _finite(log_prob), "bytes": list(self.spelling.bytes_of(token))}


def _scored(pieces: Sequence[Piece]) -> list[Scored]:
    """The tokens of pieces."""
    return [Scored(piece.token, piece.log_prob, piece.alternatives) for piece in pieces if piece.token is not None]


def _finite(log_prob: float) -> float:
    return log_prob if math.isfinite(log_prob) else LOWEST
