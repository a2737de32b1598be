"""Splits text into chunks that WordPiece encodes independently, each distinct chunk once.

There are two kinds. Whole words keep every character, so that decoding gives back the text:

    "a cat\n"       ->  "a" " cat" "\n"

Spaced words are normalized, and the white space between them is lost. A chunk is a part of the text before
normalization, often a word, and becomes any number of words:

    "Día  (two)\n"  ->  "Día" "(" "two" ")"    ->  "dia" "(" "two" ")"
"""

import re
from functools import cached_property
from itertools import chain

import numpy as np
import regex

from tinylm.errors import ConfigError
from tinylm.tokenizer.fast.blocks import SEPARATOR, Block
from tinylm.tokenizer.fast.pretokenize import WordSplitter
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.bert import BertNormalizer, bert_words, is_punctuation
from tinylm.tokenizer.normalizers.sequence import Rewriting

# letters, digits and underscores, as \w in `tokenizers`, which has Unicode 16; here `regex` decides the version
WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d"
PATTERNS = {  # of spaced words, as in the pre-tokenizers of `tokenizers`
    "bert": r"\S",  # bert_words
    "whitespace": rf"[{WORD}]+|[^{WORD}\p{{White_Space}}]+",
    "spaces": r"\P{White_Space}+",
}
STEPS = {"NFD", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt"}  # NFC joins a mark with the ASCII character before
TAIL = 1 << 12  # characters; before them, cuts are sought at spaces and line ends only
_SPACES, _PUNCTUATION = b" \t\n\r", bytes(filter(is_punctuation, range(128)))
_WHITE, _ALONE = 1, 2  # kinds of bytes, besides 0


def _kinds(alone: bytes) -> bytes:
    """Table for `bytes.translate` from byte to kind."""
    return bytes(_WHITE if byte in _SPACES else _ALONE if byte in alone else 0 for byte in range(256))


_KINDS, _KINDS_OF_BERT = _kinds(SEPARATOR), _kinds(SEPARATOR + _PUNCTUATION)


class WholeWords:
    """The words of a pattern of `WordSplitter`, cut so that every word can be spelled.

    Args:
        pattern: as in `WordSplitter`
        mark: the prefix of continuing pieces. Its first character is a word by itself, so that no word looks like a
            continuing piece.
        longest: the most characters of a word; longer words are cut

    Attributes:
        separator: the string between words in decoded text

    Raises:
        ConfigError: if the pattern is invalid, or the mark does not begin with an ASCII character.
    """

    separator = ""

    def __init__(self, pattern: str, mark: str, longest: int) -> None:
        if not mark[:1].isascii() or mark[:1].isspace():
            raise ConfigError(f"mark must begin with an ASCII character, got {mark!r}")
        self._arguments = pattern, mark, longest
        self._splitter, self._first, self._longest = WordSplitter(pattern), mark[0].encode(), longest
        first = re.escape(mark[0])
        self._parts = re.compile(f"{first}|[^{first}]{{1,{longest}}}")

    def __reduce__(self) -> tuple[type, tuple]:
        return WholeWords, self._arguments

    def chunks(self, text: str) -> list[str]:
        """The words of a text, which concatenate to it."""
        words = self._splitter.words(text)
        if self._first.decode() not in text and max(map(len, words), default=0) <= self._longest:
            return words
        return [*chain.from_iterable(map(self._parts.findall, words))]

    def words(self, chunk: str) -> list[str]:
        """The chunk itself."""
        return [chunk]

    def word_starts(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """The words of a block, as in `WordSplitter.word_starts`."""
        data, starts = self._splitter.word_starts(block)
        long = np.flatnonzero(np.diff(starts, append=len(data)) > self._longest)
        if not len(long) and self._first not in block.data:
            return data, starts
        marks = np.zeros(len(data) + 1, dtype=bool)
        marks[starts] = True
        alone = np.flatnonzero(data == self._first[0])
        marks[alone] = marks[alone + 1] = True
        edges = np.append(np.flatnonzero(marks[:-1]), len(data))
        for i in np.flatnonzero(np.diff(edges) > self._longest).tolist():
            marks[self._cuts(data, edges[i], edges[i + 1])] = True
        return data, np.flatnonzero(marks[:-1])

    def _cuts(self, data: np.ndarray, begin: int, end: int) -> np.ndarray:
        """The offsets within a long word at which its further parts begin."""
        characters = np.flatnonzero((data[begin:end] & 0xC0) != 0x80)
        return begin + characters[self._longest :: self._longest]

    def safe_cut(self, text: str) -> int:
        """The position of `WordSplitter.safe_cut`."""
        return self._splitter.safe_cut(text)


class SpacedWords:
    """Normalized words, separated by white space.

    Args:
        pattern: `bert`: every punctuation character is a word. `whitespace`: runs of letters, digits and underscores
            are words, and so are runs of other characters. `spaces`: only white space separates words.
        normalizer: applied first: BERT's, or steps that never join an ASCII character with a neighbour

    Attributes:
        separator: the string between words in decoded text

    Raises:
        ConfigError: if the normalizer is of another kind.
    """

    separator = " "

    def __init__(self, pattern: str, normalizer: Normalizer | None) -> None:
        if isinstance(normalizer, Rewriting):
            if others := {step["type"] for step in normalizer.steps} - STEPS:
                raise ConfigError(f"normalizer: WordPiece has steps of {', '.join(sorted(STEPS))}, got {min(others)}")
        elif not isinstance(normalizer, BertNormalizer | None):
            raise ConfigError(f"normalizer: WordPiece has the kind bert, rewriting or none, got {normalizer.kind}")
        self._pattern, self._normalizer = pattern, normalizer
        self._han = pattern == "bert" and isinstance(normalizer, BertNormalizer) and normalizer.handle_chinese_chars
        self._expression = regex.compile(PATTERNS[pattern])

    def __reduce__(self) -> tuple[type, tuple]:
        return SpacedWords, (self._pattern, self._normalizer)

    def normalize(self, text: str) -> str:
        """The normalized text."""
        return text if self._normalizer is None else self._normalizer.normalize(text)

    @cached_property
    def _alone(self) -> str:
        """The characters that are chunks by themselves, as part of a regular expression."""
        found = regex.escape(_PUNCTUATION.decode()) if self._pattern == "bert" else ""
        return found + ("\u5000-\u9fff" if self._han else "")

    @cached_property
    def _cut(self) -> regex.Pattern[str]:
        return regex.compile(rf"[^ \t\n\r{self._alone}]+" + (f"|[{self._alone}]" if self._alone else ""))

    def chunks(self, text: str) -> list[str]:
        """The chunks of a text. Neither normalization nor splitting looks across their borders."""
        return self._cut.findall(text)

    def words(self, chunk: str) -> list[str]:
        """The normalized words of a chunk."""
        text = self.normalize(chunk)
        return bert_words(text) if self._pattern == "bert" else self._expression.findall(text)

    def word_starts(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """The chunks of a block without the white space between them, as in `WordSplitter.word_starts`."""
        data = np.frombuffer(block.data, dtype=np.uint8)
        table = _KINDS_OF_BERT if self._pattern == "bert" else _KINDS
        kinds = np.frombuffer(block.data.translate(table), dtype=np.uint8)
        starts, kept = kinds == _ALONE, kinds != _WHITE
        starts[1:] |= kinds[:-1] > 0
        starts[:1] = True
        del kinds  # a megabyte
        if self._han:
            han = np.flatnonzero((data >= 0xE5) & (data <= 0xE9))  # the first of three bytes, U+5000 to U+9FFF
            starts[han] = True
            starts[han[han + 3 < len(data)] + 3] = True
        data, starts = data[kept], starts[kept]
        del kept
        return data, np.flatnonzero(starts)

    def safe_cut(self, text: str) -> int:
        """A late position at which a text can be cut and its parts encoded independently; 0 if there is none."""
        tail = max(len(text) - TAIL, 0)
        if found := self._last.search(text, tail):
            return found.start()
        return max(text.rfind(" ", 0, tail), text.rfind("\n", 0, tail), 0)

    @cached_property
    def _last(self) -> regex.Pattern[str]:
        return regex.compile(rf"(?r)[ \t\n\r{self._alone}]")

    def places(self, text: str) -> tuple[list[tuple[int, int, str]], np.ndarray, np.ndarray]:
        """The words of a text, as (begin, end, word) in the normalized text, and the offsets of its characters."""
        normal = self.normalize(text)
        if self._normalizer is None:
            begins, ends = np.arange(len(text)), np.arange(1, len(text) + 1)
        else:
            begins, ends = self._normalizer.offsets(text)
        if self._pattern != "bert":
            found = [(match.start(), match.end(), match[0]) for match in self._expression.finditer(normal)]
            return found, begins, ends
        found, place = [], 0
        for word in bert_words(normal):
            place = normal.index(word, place)
            found.append((place, place + len(word), word))
            place += len(word)
        return found, begins, ends
