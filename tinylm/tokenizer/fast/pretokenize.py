"""Pre-tokenizer: splits text into words; BPE never merges across a word boundary.

A word includes the space before it (" cat"), so spaces need no tokens of their own. A regular expression defines the
words; the expressions of GPT-2, GPT-4 and `WordTokenizer` have names.

Matching a regular expression takes about 80 ns per byte. GPT-2's and GPT-4's depend on little more than the kind of
each character (letter, digit, white space or other), so NumPy finds the same boundaries in about 5 ns per byte: a word
begins wherever the kind changes, and the exceptions are corrected afterwards. `word_starts_gpt2` and `word_starts_gpt4`
are tested against the expressions.
"""

import itertools
import math
import sys
from functools import cache

import numpy as np
import regex

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.fast.blocks import SEPARATOR, Block, utf8

PATTERNS = {
    # contractions | letters | digits | other characters | white space, without its last character before a word
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # cl100k: contractions in any case, digits in groups of three, line ends separate from other white space
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # letters and digits with their marks and inner apostrophes | any other single character | white space as in gpt2
    "words": (
        r" ?[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:['\u2019][\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*| ?[^\s\p{L}\p{N}]"
        r"|\s+(?!\S)|\s+"
    ),
}
# SmolLM's pattern: digits are split off first, then GPT-2's, so white space before a digit is one word
DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# Qwen2's pattern: GPT-4's, but every digit is a word
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTTABLE = {*PATTERNS, DIGITS, QWEN2}  # patterns whose words never have a space after another character

LARGEST = 1e6  # custom pattern, unrolled
LEAST_SECONDS, SECONDS_PER_CHARACTER = 0.5, 1e-5  # for a custom pattern; an ordinary one takes 1e-7 per character

WHITE, LETTER, DIGIT, OTHER, EDGE = range(5)  # kinds of characters; EDGE is the separator between two texts
SPACE, APOSTROPHE, BETWEEN = ord(" "), ord("'"), SEPARATOR[0]
SHORT = [ord(letter) for letter in "sdmt"]  # the letters after the apostrophe of a contraction
LONG = [ord(first) << 8 | ord(second) for first, second in ("ll", "ve", "re")]
SHORT_ANY = [ord(letter) for letter in "sdmtSDMT"]
LONG_ANY = [
    ord(a) << 8 | ord(b) for first, second in (("lL", "lL"), ("vV", "eE"), ("rR", "eE")) for a in first for b in second
]
LONG_ANY.append(0xC5BF)  # U+017F, the long s: a case variant of s


class WordSplitter:
    """Splits text into words; concatenated, they give back the text.

    Args:
        pattern: `gpt2`, `gpt4`, `words`, or a regular expression of the `regex` package that matches one word

    Raises:
        ConfigError: if the pattern is not a valid regular expression, or has capturing groups.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern, self.named = pattern, pattern in PATTERNS
        if (size := _unrolled(pattern)) > LARGEST:
            raise ConfigError(f"pattern: {pattern[:80]!r} has {size:.0e} parts, repetitions written out; shorten it")
        try:
            compiled = regex.compile(PATTERNS.get(pattern, pattern))
        except (regex.error, RecursionError) as error:
            raise ConfigError(
                f"pattern: {pattern[:80]!r} is neither {' nor '.join(PATTERNS)} nor a regular expression ({error})"
            ) from error
        if compiled.groups:
            raise ConfigError(f"pattern: {pattern!r} has groups; write (?:...) instead of (...)")
        self._expression = compiled

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return WordSplitter, (self.pattern,)

    def words(self, text: str) -> list[str]:
        """Returns the words of a text.

        Raises:
            DataError: if a custom pattern does not match all of the text, or takes too long.
        """
        if self.named:
            return self._expression.findall(text)
        seconds = LEAST_SECONDS + len(text) * SECONDS_PER_CHARACTER
        try:
            words = self._expression.findall(text, timeout=seconds)
        except TimeoutError as error:
            raise DataError(
                f"pattern: {self.pattern[:80]!r} takes over {seconds:.1f} s for {len(text):,} characters; write it "
                "without repetitions inside repetitions, such as (?:a+)+"
            ) from error
        if sum(map(len, words)) < len(text):
            raise DataError("pattern: does not match all of the text; let it end with |[\\s\\S]")
        return [*filter(None, words)]  # a custom pattern may match the empty string

    def word_starts(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Splits all texts of a block, each independently.

        Returns:
            the block's UTF-8 bytes, uint8 (bytes,), and the offsets at which words begin, int64 (words,); separators
            count as words

        Raises:
            DataError: if a text has a lone surrogate, or a custom pattern does not match all of it.
        """
        data = np.frombuffer(block.data, dtype=np.uint8)
        if self.pattern in WORD_STARTS:
            return data, WORD_STARTS[self.pattern](data)
        lengths = [0]
        for text in block.texts:
            lengths += [len(word) if word.isascii() else len(utf8(word)) for word in self.words(text)]
            lengths.append(1)  # the separator
        return data, np.cumsum(lengths[:-2], dtype=np.int64)

    def safe_cut(self, text: str) -> int:
        """Returns a late offset where a cut changes no word, whatever text follows; 0 if there is none.

        The cut is before a space that follows a character other than white space: no pattern of `CUTTABLE` matches, or
        looks, across that boundary. In text without such a space (Chinese), at least four words remain after the cut:
        what follows can change at most the last three words (white space) or two (a contraction). Nothing is known
        about other patterns, so the result is 0 for them.
        """
        if self.pattern not in CUTTABLE:
            return 0
        cut = text.rfind(" ")
        while cut > 0 and text[cut - 1].isspace():
            cut = text.rfind(" ", 0, cut)
        if cut > 0:
            return cut
        data, starts = self.word_starts(Block([text]))
        for start in starts[-4:0:-1].tolist() if len(starts) > 4 else []:
            cut = len(data[:start].tobytes().decode())
            if not text[cut - 1].isspace():  # trailing white space would be split differently
                return cut
        return 0


def _unrolled(pattern: str) -> float:
    """An upper bound of a compiled pattern's size; `regex` writes out counted repetitions such as a{1000}."""
    counts = itertools.chain(*regex.findall(r"\{(\d+)(?:,(\d*))?\}", pattern))
    return len(pattern) * math.prod(max(float(count or 1), 1.0) for count in counts)


def word_starts_gpt2(data: np.ndarray) -> np.ndarray:
    """Finds where the words of GPT-2's pattern begin.

    Args:
        data: UTF-8, uint8 (n,), with `SEPARATOR` between texts

    Returns:
        offsets, int64 (words,)
    """
    kinds = character_kinds(data)
    changes = kinds[1:] != kinds[:-1]
    starts = kinds == EDGE
    starts[:1] = True
    # a word is a run of one kind, with the one space before it
    starts[1:] |= changes & ((data[:-1] != SPACE) | (kinds[1:] == EDGE))
    # the last character of white space before a word begins a new word: alone, or as that one space
    last_white = changes & (kinds[:-1] == WHITE) & (kinds[1:] != EDGE)
    starts[:-1] |= last_white
    wide = np.flatnonzero(last_white & (data[:-1] >= 0x80))  # of a multi-byte character, this is the last byte
    starts[wide] = False
    starts[_first_bytes(data, wide)] = True
    _join_contractions(data, starts)
    return np.flatnonzero(starts)


def word_starts_gpt4(data: np.ndarray) -> np.ndarray:
    """Finds where the words of GPT-4's pattern begin. Arguments and result as in `word_starts_gpt2`."""
    kinds = character_kinds(data)
    starts = kinds == EDGE
    starts[:1] = True
    starts[1:] |= kinds[1:] != kinds[:-1]
    _cut_white_space(data, kinds, starts)
    # letters join a single other character that begins a word
    letters = np.flatnonzero((kinds[1:] == LETTER) & (kinds[:-1] == OTHER)) + 1
    others = _first_bytes(data, letters - 1)
    starts[letters[starts[others]]] = False
    _join_contractions(data, starts, any_case=True)
    # digits come in groups of three
    digits = np.flatnonzero((kinds == DIGIT) & ((data & 0xC0) != 0x80))
    index = np.arange(len(digits))
    in_run = index - np.maximum.accumulate(np.where(starts[digits], index, 0))
    starts[digits] = in_run % 3 == 0
    return np.flatnonzero(starts)


def _cut_white_space(data: np.ndarray, kinds: np.ndarray, starts: np.ndarray) -> None:
    """Splits runs of white space like GPT-4's pattern; modifies `starts`, bool (n,).

    A run is split after its last line end and before its last character. That character joins the letters after it;
    if it is a space, it joins other characters too.
    """
    white = np.concatenate([[False], kinds == WHITE, [False]])
    begins, ends = np.flatnonzero(white[1:] > white[:-1]), np.flatnonzero(white[1:] < white[:-1])
    line_end = (data == 10) | (data == 13)
    # line ends join other characters before them
    taken = np.flatnonzero(line_end[begins] & (begins > 0) & (kinds[begins - 1] == OTHER))
    starts[begins[taken]] = False
    others = np.append(np.flatnonzero(~line_end), len(data))
    begins[taken] = np.minimum(others[np.searchsorted(others, begins[taken])], ends[taken])
    starts[begins[begins < ends]] = True
    # a word ends at the last line end
    last = np.append(-1, np.flatnonzero(line_end))[np.cumsum(line_end)[ends - 1]]
    tails = np.where(last >= begins, last + 1, begins)
    starts[tails[tails < ends]] = True
    # if anything follows, the last character begins a word, which may include what follows
    follows = (tails < ends) & (ends < len(data)) & (kinds.take(ends, mode="clip") != EDGE)
    ends = ends[follows]
    last = _first_bytes(data, ends - 1)
    starts[last] = True
    joined = (kinds[ends] == LETTER) | ((kinds[ends] == OTHER) & (data[last] == SPACE))
    starts[ends[joined]] = False


def _first_bytes(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Moves each position back to the first byte of its character, int64 (n,)."""
    while (inside := (data[positions] & 0xC0) == 0x80).any():
        positions = positions - inside
    return positions


def _join_contractions(data: np.ndarray, starts: np.ndarray, any_case: bool = False) -> None:
    """Makes 's 't 'd 'm 'll 've 're words if the apostrophe begins a word; modifies `starts`, bool (n,)."""
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
    """Returns for each byte the kind of the character it belongs to.

    Args:
        data: UTF-8, uint8 (n,), with `SEPARATOR` between texts

    Returns:
        kinds, uint8 (n,)
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
    """Table from code point to kind, taken from `regex`, uint8 (1,114,112,)."""
    kinds = np.full(sys.maxunicode + 1, OTHER, dtype=np.uint8)
    every_character = np.arange(len(kinds), dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for kind, pattern in ((WHITE, r"\s+"), (LETTER, r"\p{L}+"), (DIGIT, r"\p{N}+")):
        for run in regex.finditer(pattern, every_character):
            kinds[run.start() : run.end()] = kind
    return kinds


@cache
def _byte_kinds() -> bytes:
    """Table for `bytes.translate` from byte to kind: ASCII characters, and `SEPARATOR` as EDGE."""
    kinds = np.full(256, OTHER, dtype=np.uint8)
    kinds[:128] = _point_kinds()[:128]
    kinds[BETWEEN] = EDGE
    return kinds.tobytes()


WORD_STARTS = {"gpt2": word_starts_gpt2, "gpt4": word_starts_gpt4}
