"""BERT's normalizer and its splitting into words (Devlin et al. 2019), as in Hugging Face's `tokenizers`.

    "Héllo\\tWorld!"  >  clean up, strip accents, lower case  >  "hello world!"  >  split  >  "hello" "world" "!"

Almost every character is changed independently of its neighbours, so one table from characters to strings does all
steps at once. The table is filled as characters occur. Only marks that are kept may be reordered.
"""

import re
import unicodedata

import numpy as np

from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.bert_tables import (
    ALSO_MARKS,
    ALSO_PUNCTUATION,
    KEPT,
    KEPT_MARKS,
    NO_PUNCTUATION,
    ORDERED,
    SMALL,
    WHOLE,
)

WHITE = frozenset(
    [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
)
HAN = (  # blocks of Chinese characters
    range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00), range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B820), range(0x2B920, 0x2CEB0), range(0x2F800, 0x2FA20),
)  # fmt: skip
ASCII_PUNCTUATION = frozenset(map(ord, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))


def _any_of(points: frozenset[int]) -> re.Pattern[str]:
    return re.compile(f"([{''.join(map(re.escape, map(chr, sorted(points))))}])")


_ORDERED, _WHOLE = _any_of(ORDERED), _any_of(WHOLE)


class BertNormalizer(Normalizer):
    """Cleans up a text, and strips accents and case if asked.

    Args:
        clean_text: whether control characters are removed and white space becomes spaces
        handle_chinese_chars: whether spaces are put around Chinese characters
        strip_accents: whether letters are decomposed (NFD) and their marks removed. None: as `lowercase`
        lowercase: whether letters become lower case, each by itself (a final sigma becomes σ)
    """

    kind = "bert"

    def __init__(
        self,
        clean_text: bool = True,
        handle_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        lowercase: bool = True,
    ) -> None:
        self.clean_text, self.handle_chinese_chars = clean_text, handle_chinese_chars
        self.strip_accents, self.lowercase = strip_accents, lowercase
        strips = lowercase if strip_accents is None else strip_accents
        self._table = _Table(clean_text, handle_chinese_chars, strips, lowercase)
        self._before = _Table(clean_text, handle_chinese_chars, False, False)
        self._after = _Table(False, False, strips, lowercase)

    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The normalized text."""
        if text.isascii() or not (self._after.strips and _ORDERED.search(text)):
            return text.translate(self._table)
        parts = _WHOLE.split(text.translate(self._before))
        parts = [part if _WHOLE.fullmatch(part) else unicodedata.normalize("NFD", part) for part in parts]
        return "".join(parts).translate(self._after)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets in a text where each character of the normalized text begins and ends, int64 (n,) each.

        A space beside a Chinese character has the offsets of that character. Offsets ignore the reordering of marks.
        """
        counts = [len(self._table[ord(character)] or "") for character in text]
        begins = np.repeat(np.arange(len(text), dtype=np.int64), counts)
        return begins, begins + 1

    def may_cut(self, text: str, cut: int) -> bool:
        """Text may be cut before any character but a mark, which may be reordered with the marks before it."""
        return not unicodedata.combining(text[cut]) and ord(text[cut]) not in ORDERED

    def options(self) -> dict[str, bool | None]:
        """The arguments of `__init__`."""
        return {
            "clean_text": self.clean_text,
            "handle_chinese_chars": self.handle_chinese_chars,
            "strip_accents": self.strip_accents,
            "lowercase": self.lowercase,
        }


class _Table(dict[int, str | None]):
    """Code point -> its replacement, or None if it is removed, for `str.translate`; filled on demand."""

    def __init__(self, cleans: bool, spaces: bool, strips: bool, lowers: bool) -> None:
        self.cleans, self.spaces, self.strips, self.lowers = cleans, spaces, strips, lowers

    def __missing__(self, point: int) -> str | None:
        self[point] = result = self._result(point) or None  # translate is faster with None than with ""
        return result

    def _result(self, point: int) -> str:
        if self.cleans and _removed(point):
            return ""
        if self.cleans and point in WHITE:
            return " "
        text = chr(point)
        if self.strips:
            decomposed = text if point in WHOLE else unicodedata.normalize("NFD", text)
            text = "".join(each for each in decomposed if not _is_mark(each))
        if self.lowers:
            text = "".join(chr(SMALL[ord(each)]) if ord(each) in SMALL else each.lower() for each in text)
        return f" {text} " if self.spaces and is_han(point) else text


def _removed(point: int) -> bool:
    if point in (0, 0xFFFD):
        return True
    return point not in (9, 10, 13) and point not in KEPT and unicodedata.category(chr(point)) in ("Cc", "Cf", "Co")


def _is_mark(character: str) -> bool:
    point = ord(character)
    return point in ALSO_MARKS or (unicodedata.category(character) == "Mn" and point not in KEPT_MARKS)


def is_han(point: int) -> bool:
    """Whether BERT's normalizer puts spaces around a character."""
    return any(point in block for block in HAN)


def is_punctuation(point: int) -> bool:
    """Whether a character is a word by itself in BERT."""
    if point in ASCII_PUNCTUATION or point in ALSO_PUNCTUATION:
        return True
    return unicodedata.category(chr(point)).startswith("P") and point not in NO_PUNCTUATION


class _Spaced(dict[int, str]):
    """Code point -> a space for white space, punctuation between spaces, and any other character itself."""

    def __missing__(self, point: int) -> str:
        text = " " if point in WHITE else chr(point)
        self[point] = result = f" {text} " if is_punctuation(point) else text
        return result


_SPACED = _Spaced()


def bert_words(text: str) -> list[str]:
    """The words of a text: split at white space, every punctuation character by itself.

    >>> bert_words("hello  world!")
    ['hello', 'world', '!']
    """
    return [word for word in text.translate(_SPACED).split(" ") if word]
