"""Cutting a text into words, before anything is merged: no token of a BPE reaches over the edge of such a word.

A word takes the space before it along (" cat"), so that spaces cost no tokens of their own. Which characters make up a
word is a regular expression; GPT-2's, GPT-4's and that of `WordTokenizer` are known by name.

A regular expression takes about 80 nanoseconds for a byte of text. These two ask so little of a character (letter,
digit, white space or other sign?) that the same cuts can be found by NumPy for a whole text at once, in 5: a word
begins where the kind changes, and the exceptions are mended. `word_starts_gpt2` and `word_starts_gpt4` do that, and
tests hold them to the expressions.
"""

import sys
from functools import cache

import numpy as np
import regex

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.fast.blocks import SEPARATOR, Block, utf8

PATTERNS = {
    # contractions | letters | digits | other signs | white space, the last of it only where no word follows
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # cl100k: contractions in capitals too, numbers three digits at a time, line ends apart from other white space
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # letters and digits with their marks and inner apostrophes | any other sign for itself | white space as in gpt2
    "words": (
        r" ?[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:['\u2019][\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*| ?[^\s\p{L}\p{N}]"
        r"|\s+(?!\S)|\s+"
    ),
}

WHITE, LETTER, DIGIT, OTHER, EDGE = range(5)  # kinds of characters; EDGE stands between two texts
SPACE, APOSTROPHE, BETWEEN = ord(" "), ord("'"), SEPARATOR[0]
SHORT = [ord(letter) for letter in "sdmt"]  # what follows the apostrophe of a contraction
LONG = [ord(first) << 8 | ord(second) for first, second in ("ll", "ve", "re")]
SHORT_ANY = [ord(letter) for letter in "sdmtSDMT"]
LONG_ANY = [
    ord(a) << 8 | ord(b) for first, second in (("lL", "lL"), ("vV", "eE"), ("rR", "eE")) for a in first for b in second
]
LONG_ANY.append(0xC5BF)  # the long s, which is an s in another case


class WordSplitter:
    """Cuts text into words that join to the text.

    Args:
        pattern: `gpt2`, `gpt4`, `words`, or a regular expression of the `regex` package that matches one word

    Raises:
        ConfigError: if the pattern is none, or has groups other than (?:...).
    """

    def __init__(self, pattern: str) -> None:
        self.pattern, self.named = pattern, pattern in PATTERNS
        try:
            compiled = regex.compile(PATTERNS.get(pattern, pattern))
        except regex.error as error:
            raise ConfigError(
                f"pattern: {pattern!r} is neither {' nor '.join(PATTERNS)} nor a regular expression ({error})"
            ) from error
        if compiled.groups:
            raise ConfigError(f"pattern: {pattern!r} has groups; write (?:...) instead of (...)")
        self._find_words = compiled.findall

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return WordSplitter, (self.pattern,)

    def words(self, text: str) -> list[str]:
        """The words of a text.

        Raises:
            DataError: if a pattern of one's own leaves a part of the text out.
        """
        words = self._find_words(text)
        if self.named:
            return words
        if sum(map(len, words)) < len(text):
            raise DataError("pattern: does not match all of the text; let it end with |[\\s\\S]")
        return [*filter(None, words)]  # a pattern may match nothing, too

    def word_starts(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """The words of many texts at once; each text is cut by itself.

        Returns:
            the UTF-8 of all texts, with `SEPARATOR` between them, uint8 (bytes,); and where words begin in it, int64
            (words,): those of `words`, and the separators

        Raises:
            DataError: for a lone surrogate; as `words`.
        """
        data = np.frombuffer(block.data, dtype=np.uint8)
        if self.pattern in WORD_STARTS:
            return data, WORD_STARTS[self.pattern](data)
        lengths = [0]
        for text in block.texts:
            lengths += [len(word) if word.isascii() else len(utf8(word)) for word in self.words(text)]
            lengths.append(1)  # of the separator
        return data, np.cumsum(lengths[:-2], dtype=np.int64)

    def safe_cut(self, text: str) -> int:
        """A late place where cutting a text changes none of its words, whatever follows; 0 if there is none.

        That is before a space that follows anything but white space: no named pattern has a word across such a place,
        or looks across it for what ends there. Where there is no such space (Chinese), it is before the last four
        words, since a pattern looks no further than that: white space makes three words, a contraction two.
        With a pattern of one's own nothing is known.
        """
        if not self.named:
            return 0
        cut = text.rfind(" ")
        while cut > 0 and text[cut - 1].isspace():
            cut = text.rfind(" ", 0, cut)
        if cut > 0:
            return cut
        data, starts = self.word_starts(Block([text]))
        for start in starts[-4:0:-1].tolist() if len(starts) > 4 else []:
            cut = len(data[:start].tobytes().decode())
            if not text[cut - 1].isspace():  # white space at the end of a text would be cut otherwise
                return cut
        return 0


def word_starts_gpt2(data: np.ndarray) -> np.ndarray:
    """Where the words of GPT-2's pattern begin.

    Args:
        data: UTF-8, uint8 (n,), with `SEPARATOR` between texts

    Returns:
        int64 (words,)
    """
    kinds = character_kinds(data)
    changes = kinds[1:] != kinds[:-1]
    starts = kinds == EDGE
    starts[:1] = True
    # a run of one kind is a word, and takes the one space before it along
    starts[1:] |= changes & ((data[:-1] != SPACE) | (kinds[1:] == EDGE))
    # of white space before a word the last character is apart: by itself, or it is that one space
    last_white = changes & (kinds[:-1] == WHITE) & (kinds[1:] != EDGE)
    starts[:-1] |= last_white
    wide = np.flatnonzero(last_white & (data[:-1] >= 0x80))  # its last byte was found: it begins earlier
    starts[wide] = False
    starts[_first_bytes(data, wide)] = True
    _join_contractions(data, starts)
    return np.flatnonzero(starts)


def word_starts_gpt4(data: np.ndarray) -> np.ndarray:
    """Where the words of GPT-4's pattern begin. Arguments as `word_starts_gpt2`'s."""
    kinds = character_kinds(data)
    starts = kinds == EDGE
    starts[:1] = True
    starts[1:] |= kinds[1:] != kinds[:-1]
    _cut_white_space(data, kinds, starts)
    # one sign that begins a word takes the letters after it along
    letters = np.flatnonzero((kinds[1:] == LETTER) & (kinds[:-1] == OTHER)) + 1
    signs = _first_bytes(data, letters - 1)
    starts[letters[starts[signs]]] = False
    _join_contractions(data, starts, any_case=True)
    # three digits are a word
    digits = np.flatnonzero((kinds == DIGIT) & ((data & 0xC0) != 0x80))
    index = np.arange(len(digits))
    in_run = index - np.maximum.accumulate(np.where(starts[digits], index, 0))
    starts[digits] = in_run % 3 == 0
    return np.flatnonzero(starts)


def _cut_white_space(data: np.ndarray, kinds: np.ndarray, starts: np.ndarray) -> None:
    """Cuts runs of white space as GPT-4's pattern does: up to the last line end, then up to the last character, which
    letters take along, and other signs too if it is a space. Changes `starts`, bool (n,)."""
    white = np.concatenate([[False], kinds == WHITE, [False]])
    begins, ends = np.flatnonzero(white[1:] > white[:-1]), np.flatnonzero(white[1:] < white[:-1])
    line_end = (data == 10) | (data == 13)
    # signs take the line ends after them along
    taken = np.flatnonzero(line_end[begins] & (begins > 0) & (kinds[begins - 1] == OTHER))
    starts[begins[taken]] = False
    others = np.append(np.flatnonzero(~line_end), len(data))
    begins[taken] = np.minimum(others[np.searchsorted(others, begins[taken])], ends[taken])
    starts[begins[begins < ends]] = True
    # a word ends with the last line end
    last = np.append(-1, np.flatnonzero(line_end))[np.cumsum(line_end)[ends - 1]]
    rest = np.where(last >= begins, last + 1, begins)
    starts[rest[rest < ends]] = True
    # the last character is apart where something follows, and may be joined by it
    follows = (rest < ends) & (ends < len(data)) & (kinds.take(ends, mode="clip") != EDGE)
    ends = ends[follows]
    last = _first_bytes(data, ends - 1)
    starts[last] = True
    joined = (kinds[ends] == LETTER) | ((kinds[ends] == OTHER) & (data[last] == SPACE))
    starts[ends[joined]] = False


def _first_bytes(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where the characters begin that have their bytes at some places, int64 (n,)."""
    while (inside := (data[places] & 0xC0) == 0x80).any():
        places = places - inside
    return places


def _join_contractions(data: np.ndarray, starts: np.ndarray, any_case: bool = False) -> None:
    """Makes 's 't 'd 'm 'll 've 're words, where the apostrophe begins one. Changes `starts`, bool (n,)."""
    short, long = (SHORT_ANY, LONG_ANY) if any_case else (SHORT, LONG)
    quotes = np.flatnonzero(data == APOSTROPHE)
    quotes = quotes[starts[quotes]]
    first, second = (data.take(quotes + i, mode="clip").astype(np.int64) for i in (1, 2))
    second[quotes + 2 >= len(data)] = 0
    for letters, size in ((np.isin(first, short), 2), (np.isin(first << 8 | second, long), 3)):
        found = quotes[letters]
        starts[found + 1] = False
        ends = found + size
        starts[ends[ends < len(data)]] = True


def character_kinds(data: np.ndarray) -> np.ndarray:
    """The kind of the character that each byte belongs to.

    Args:
        data: UTF-8, uint8 (n,), with `SEPARATOR` between texts

    Returns:
        uint8 (n,)
    """
    kinds = np.frombuffer(bytearray(data.tobytes().translate(_byte_kinds())), dtype=np.uint8)
    if not len(data) or data.max() < 0x80:
        return kinds
    of_point = _point_kinds()
    for size, low, high in ((2, 0xC0, 0xE0), (3, 0xE0, 0xF0), (4, 0xF0, 0xF8)):  # by the first byte
        leads = np.flatnonzero((data >= low) & (data < high))
        points = data[leads].astype(np.int32) & (0x7F >> size)
        for i in range(1, size):
            points = points << 6 | data[leads + i] & 0x3F
        for i in range(size):
            kinds[leads + i] = of_point[points]
    return kinds


@cache
def _point_kinds() -> np.ndarray:
    """Code point -> kind, as `regex` has them, uint8 (1,114,112,)."""
    kinds = np.full(sys.maxunicode + 1, OTHER, dtype=np.uint8)
    every_character = np.arange(len(kinds), dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for kind, pattern in ((WHITE, r"\s+"), (LETTER, r"\p{L}+"), (DIGIT, r"\p{N}+")):
        for run in regex.finditer(pattern, every_character):
            kinds[run.start() : run.end()] = kind
    return kinds


@cache
def _byte_kinds() -> bytes:
    """Byte -> kind of an ASCII character, or EDGE: for `bytes.translate`."""
    kinds = np.full(256, OTHER, dtype=np.uint8)
    kinds[:128] = _point_kinds()[:128]
    kinds[BETWEEN] = EDGE
    return kinds.tobytes()


WORD_STARTS = {"gpt2": word_starts_gpt2, "gpt4": word_starts_gpt4}
