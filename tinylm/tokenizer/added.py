"""Added tokens: strings with ids of their own, found in a text before it is normalized and split."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import regex

_WORD = regex.compile(r"\w")
_SPACES_BEFORE, _SPACES_AFTER = regex.compile(r"(?r)\s*"), regex.compile(r"\s*")


@dataclass(frozen=True)
class AddedToken:
    """A string with an id of its own.

    Attributes:
        content: the string
        id: its id
        special: whether it is a special token; its string is plain text unless special tokens are allowed
        normalized: whether the string is normalized too, and found in the normalized text
        lstrip: whether the token includes the white space before it
        rstrip: whether the token includes the white space after it
        single_word: whether matches next to a letter, digit or underscore are ignored
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokens:
    """Finds added tokens in a text: the leftmost match first, and the longest at each position.

    Args:
        tokens: the tokens to find
        normalize: applied to their strings
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] = str) -> None:
        self.tokens = {normalize(token.content): token for token in tokens if normalize(token.content)}
        names = sorted(self.tokens, key=len, reverse=True)
        first = "|".join(sorted({re.escape(name[:2]) for name in names}))  # a quick test that fails at most positions
        self._expression = re.compile(f"(?={first})(?:{'|'.join(map(re.escape, names))})") if names else None
        self._strips = any(token.lstrip or token.rstrip for token in self.tokens.values())

    def split(self, text: str, special: bool) -> Iterator[tuple[int, int, AddedToken | None]]:
        """The parts of a text in order: (begin, end, added token or None).

        Unless `special`, names of special tokens are plain text, and no token is found inside them.
        """
        done = 0
        for match in self._expression.finditer(text) if self._expression else ():
            token, (begin, end) = self.tokens[match[0]], match.span()
            if (token.special and not special) or (token.single_word and _touches_word(text, begin, end)):
                continue
            if token.lstrip and (found := _SPACES_BEFORE.match(text, 0, begin)):
                begin = max(done, found.start())
            if token.rstrip and (found := _SPACES_AFTER.match(text, end)):
                end = found.end()
            if done < begin:
                yield done, begin, None
            yield begin, end, token
            done = end
        if done < len(text):
            yield done, len(text), None

    def may_cut(self, text: str, cut: int) -> bool:
        """Whether a text can be cut here without changing the tokens found: no string contains the cut or ends at it.

        A string that begins at the cut is also found in the second part, unless it must be a single word.
        """
        if self._strips and text[cut - 1].isspace():
            return False
        for name, token in self.tokens.items():
            place = text.find(name, max(cut - len(name), 0), cut + len(name))
            while 0 <= place < cut or (place == cut and token.single_word):
                if place + len(name) >= cut:
                    return False
                place = text.find(name, place + 1, cut + len(name))
        return True


def _touches_word(text: str, begin: int, end: int) -> bool:
    """Whether a letter, digit or underscore is directly before or after a range of a text."""
    return bool((begin and _WORD.match(text, begin - 1)) or _WORD.match(text, end))
