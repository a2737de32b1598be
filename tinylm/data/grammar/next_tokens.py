"""The tokens that can follow a text of a grammar: with any of them the grammar can still generate the whole."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tinylm.data.grammar.parse import Grammar

SPACE = re.compile(rb"[\s\x1c-\x1f\xc2\xe1-\xe3]")  # a byte with which white space can begin in UTF-8


class Place:
    """A boundary of words in a text.

    Attributes:
        words: the possible next words, with the states of the grammar after each; `b""` if the text can end here
        beginnings: all prefixes of these words
    """

    def __init__(self, grammar: Grammar, states: list[Any]) -> None:
        self._grammar = grammar
        self.words = {word.encode(): after for word, after in grammar.next_words(states).items()}
        self.beginnings = {word[:length] for word in self.words for length in range(len(word) + 1)}
        self._after: dict[bytes, Place] = {}

    def after(self, word: bytes) -> "Place | None":
        """The boundary after a possible word; None if there is no such word."""
        if word and word in self.words and word not in self._after:
            self._after[word] = Place(self._grammar, self.words[word])
        return self._after.get(word)


class NextTokens:
    """All tokens that do not make a text impossible.

    A token is possible if it continues one of the words that the grammar allows, or begins the next word where one may
    end. Texts are read as bytes, since a token may hold a part of a character.

    Args:
        grammar: the Grammar
        token_bytes: the bytes of each id; those of special tokens are not read
        specials: ids of special tokens
        end: id of the special token that ends a text
    """

    def __init__(self, grammar: Grammar, token_bytes: Sequence[bytes], specials: Iterable[int], end: int) -> None:
        self.grammar, self.end = grammar, end
        self.token_bytes, hidden = token_bytes, {*specials, end}
        self._ids: dict[bytes, list[int]] = {}
        for number, written in enumerate(token_bytes):
            if written and number not in hidden:
                self._ids.setdefault(written, []).append(number)
        self._several = [written for written in self._ids if SPACE.search(written, 1)]  # may go beyond a word

    def along(self, prompt: str, ids: Iterable[int]) -> list[list[int]]:
        """The possible tokens at each place of a completion.

        Args:
            prompt: the text before the completion
            ids: tokens of the completion

        Returns:
            for each token, up to the first impossible one, the ids that are possible in its place; none if the prompt
            itself is impossible
        """
        found: list[list[int]] = []
        position = self._read((Place(self.grammar, self.grammar.start_states()), b""), prompt.encode())
        for number in ids:
            found.append(self._possible(*position) if position else [])
            if position is None or number == self.end or number not in found[-1]:
                break
            position = self._read(position, self.token_bytes[number])
        return found

    def _read(self, position: tuple[Place, bytes], written: bytes) -> tuple[Place, bytes] | None:
        """The last boundary and the part of the next word read so far, after more bytes; None if impossible."""
        place, word = position
        for byte in written:
            longer = word + bytes([byte])
            if longer not in place.beginnings:  # the word must end here
                following, longer = place.after(word), bytes([byte])
                if following is None or longer not in following.beginnings:
                    return None
                place = following
            word = longer
        return place, word

    def _possible(self, place: Place, word: bytes) -> list[int]:
        """The ids that are possible after a part of a word."""
        found = self._continuing(place, word)
        boundary = place
        if word:
            boundary = place.after(word)
            found += self._continuing(boundary, b"") if boundary else []
        if boundary and b"" in boundary.words:
            found.append(self.end)
        for written in self._several:
            if self._read((place, word), written) is not None:
                found += self._ids[written]
        return found

    def _continuing(self, place: Place, word: bytes) -> list[int]:
        rests = (each[len(word) :] for each in place.beginnings if each.startswith(word))
        return [number for rest in rests for number in self._ids.get(rest, ())]
