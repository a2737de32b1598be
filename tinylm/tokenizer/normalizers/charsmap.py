"""The table of replacements (`precompiled_charsmap`) by which SentencePiece normalizes text.

    "ﬁ" -> "fi"      "e" U+0301 -> "é"      "\\t" -> " "      the longest string of the table is replaced first

The table is a trie over the UTF-8 of the replaced strings (double_array.py). Its values are the offsets of the
replacements, each terminated by NUL. Most characters of a text begin no string of the table; NumPy finds those that
may, and only these are looked up.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import regex

from tinylm.errors import ConfigError
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.double_array import DAMAGED, NOWHERE, DoubleArray

ALONE, FIRST, INNER = 1, 2, 4  # a character that is replaced alone, begins a longer string, or continues one
LONGEST_KEY = 64  # characters of a replaced string
LONGEST = 1000  # characters of a replacement
MOST_KNOWN = 1 << 18  # remembered steps
SHORTEST_LONG = 6  # bytes; Hugging Face's `Precompiled` replaces only shorter graphemes as a whole
NOTHING: Mapping[int, int] = MappingProxyType({})
_NEAR = r"(?:\r\n|[\x00-\x7F])?"
_GRAPHEMES = regex.compile(rf"(?:{_NEAR}[^\x00-\x7F]+)+{_NEAR}|\r\n")  # other ASCII characters are graphemes
_LETTER, _SIGNS = r"\p{InCB=Consonant}", r"[\p{InCB=Extend}\p{InCB=Linker}]"  # of Indic scripts
_NOT_JOINED = regex.compile(rf"(?={_LETTER})(?<={_SIGNS})(?<!{_LETTER}{_SIGNS}*)")  # borders that `regex` misses


class Change(NamedTuple):
    """The replacement of a part of a text.

    Attributes:
        begin: its offset in the text, in characters
        end: one past its last character
        text: what it becomes; may be empty
    """

    begin: int
    end: int
    text: str


class Charsmap:
    """A table of replacements.

    Args:
        data: uint32 size of the double array in bytes, the array, the replacements; little-endian

    Attributes:
        ascii_table: code point -> replacement, for `str.translate`, if each ASCII character is replaced alone; else
            None

    Raises:
        ConfigError: if the table is damaged.
    """

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[:4], "little")
        if not 0 < size <= len(data) - 4 or size % 4:
            raise ConfigError(f"{DAMAGED}, a trie of {size} bytes in {len(data)}")
        self._trie, self._texts = DoubleArray(data[4 : 4 + size]), data[4 + size :]
        self._kinds = np.zeros(0x110000, dtype=np.uint8)
        self._find_kinds()
        self._known: dict[tuple[int, str], tuple[int, str | None]] = {}
        short = [chr(point) for point in np.flatnonzero(self._kinds[:128] & ALONE)]
        lone = not (self._kinds[:128] & INNER).any()
        self.ascii_table = {ord(each): self._alone(each) for each in short} if lone else None

    @property
    def replacements(self) -> list[str]:
        """All replacements in the table."""
        return self._texts.decode("utf-8", "replace").split("\0")

    @property
    def characters(self) -> str:
        """All characters of the replaced strings, except surrogates."""
        points = np.flatnonzero(self._kinds).tolist()
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)

    def _find_kinds(self) -> None:
        """Finds the kind of each character and checks the table, character by character of all strings at once."""
        points, nodes, values = self._trie.characters_from(np.array([self._trie.root]))
        self._kinds[points[values >= 0]] |= ALONE
        self._kinds[points[self._trie.continued(nodes)]] |= FIRST
        found = [values]
        for _ in range(LONGEST_KEY):
            points, nodes, values = self._trie.characters_from(np.unique(nodes))
            self._kinds[points] |= INNER
            found.append(values)
        if len(nodes):
            raise ConfigError(f"{DAMAGED}, its strings have no end")
        self._check_values(np.unique(np.concatenate(found)))

    def _check_values(self, values: np.ndarray) -> None:
        try:
            for value in values[values >= 0].tolist():
                if value >= len(self._texts) or len(self._text(value)) > LONGEST:
                    raise ValueError
        except ValueError as error:
            raise ConfigError(f"{DAMAGED}, a replacement is missing, very long or not UTF-8") from error

    def _text(self, value: int) -> str:
        end = self._texts.find(b"\0", value)
        return self._texts[value : end if end >= 0 else None].decode()

    def _step(self, base: int, character: str) -> tuple[int, str | None]:
        """The node that a character leads to, and the replacement of the string that ends there, or None.

        The node is NOWHERE if there is none or it has no children.
        """
        if (step := self._known.get((base, character))) is not None:
            return step
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        node, ends = self._trie.step(base, character)
        text = self._text(self._trie.value(node)) if ends else None
        step = node if node != NOWHERE and self._trie.has_children(node) else NOWHERE, text
        self._known[base, character] = step
        return step

    def _alone(self, character: str) -> str:
        return self._step(self._trie.root, character)[1] or ""

    # --- text

    def changes(self, text: str, kept: Mapping[int, int] = NOTHING) -> list[Change]:
        """The replacements in a text, in order. The longest string at each position is replaced, as in SentencePiece.

        Args:
            text: any text
            kept: begin -> end of the parts that stay unchanged; they take precedence over strings of the table
        """
        found, done = [], 0
        candidates = self._candidates(text)
        for begin in sorted({*candidates, *kept}) if kept else candidates:
            if begin < done:
                continue
            if begin in kept:
                done = kept[begin]
                found.append(Change(begin, done, text[begin:done]))
                continue
            base, place, longest = self._trie.root, begin, None
            while base != NOWHERE and place < len(text):
                base, new = self._step(base, text[place])
                place += 1
                if new is not None:
                    longest = Change(begin, place, new)
            if longest:
                found.append(longest)
                done = longest.end
        return found

    def _candidates(self, text: str) -> list[int]:
        """The offsets where a string of the table may begin."""
        kinds = self._kinds[_points(text)]
        found = kinds & ALONE != 0
        found[:-1] |= (kinds[:-1] & FIRST != 0) & (kinds[1:] & INNER != 0)
        return found.nonzero()[0].tolist()

    def normalize(self, text: str) -> str:
        """The text with all replacements, as in SentencePiece except for white space."""
        if self.ascii_table is not None and text.isascii():
            return text.translate(self.ascii_table)
        return applied(text, self.changes(text))

    def changes_by_grapheme(self, text: str) -> list[Change]:
        """The replacements in a text, as in Hugging Face's `Precompiled`.

        A grapheme (a letter with its marks) of fewer than six bytes is looked up as a whole: it becomes the replacement
        of the shortest string of the table that it begins with. Otherwise each character is replaced by itself.
        """
        found, done = [], 0
        for run in _GRAPHEMES.finditer(text):
            found += self._changes_alone(text, done, run.start())
            end = run.start()
            for grapheme in _graphemes(run[0]):
                begin, end = end, end + len(grapheme)
                short = len(grapheme.encode("utf-8", "surrogatepass")) < SHORTEST_LONG
                new = self._shortest(grapheme) if short else None
                found += self._changes_alone(text, begin, end) if new is None else [Change(begin, end, new)]
            done = run.end()
        return found + self._changes_alone(text, done, len(text))

    def _changes_alone(self, text: str, begin: int, end: int) -> list[Change]:
        if begin == end:
            return []
        places = (begin + (self._kinds[_points(text[begin:end])] & ALONE).nonzero()[0]).tolist()
        return [Change(place, place + 1, self._alone(text[place])) for place in places]

    def _shortest(self, text: str) -> str | None:
        base = self._trie.root
        for character in text:
            base, new = self._step(base, character)
            if new is not None or base == NOWHERE:
                return new
        return None

    def keeps(self, character: str) -> bool:
        """Whether a character changes only if it and the next one begin a longer string of the table."""
        return not self._kinds[ord(character)] & (ALONE | INNER)

    def ignores(self, character: str) -> bool:
        """Whether a character is in no string of the table."""
        return not self._kinds[ord(character)]


def _graphemes(text: str) -> Iterator[str]:
    """The graphemes of a text; a sign joins the next letter only after another letter (rule GB9c of Unicode's UAX 29).

    `regex` joins them after any character: U+00A0 U+094D U+092F is one match of `\\X`, but two graphemes.
    """
    for part in _NOT_JOINED.split(text):
        yield from regex.findall(r"\X", part)


def _points(text: str) -> np.ndarray:
    """The code points of a text, uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def applied(text: str, changes: Iterable[Change]) -> str:
    """The text after these changes."""
    parts, done = [], 0
    for begin, end, new in changes:
        parts += [text[done:begin], new]
        done = end
    return "".join([*parts, text[done:]])


def changed_offsets(text: str, changes: Iterable[Change]) -> tuple[np.ndarray, np.ndarray]:
    """The offsets in a text where each character of the changed text begins and ends, int64 (n,) each."""
    begins, ends, done = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], 0
    for begin, end, new in [*changes, Change(len(text), len(text), "")]:
        kept = np.arange(done, begin)
        begins += [kept, np.full(len(new), begin)]
        ends += [kept + 1, np.full(len(new), end)]
        done = end
    return np.concatenate(begins), np.concatenate(ends)


class Precompiled(Normalizer):
    """The normalizer Precompiled of a tokenizer.json, which applies a charsmap to graphemes.

    Args:
        charsmap: the table, in base64

    Raises:
        ConfigError: if the table is damaged.
    """

    kind = "precompiled"

    def __init__(self, charsmap: str) -> None:
        self.charsmap = charsmap
        self._table = read_base64(charsmap)

    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The text with the replacements of `Charsmap.changes_by_grapheme`; quickly where lines are ASCII."""
        alone = self._table.ascii_table
        if alone is None or "\r" in text:
            return applied(text, self._table.changes_by_grapheme(text))
        parts = []
        for plain, lines in groupby(text.split("\n"), str.isascii):  # no grapheme spans a line end
            part = "\n".join(lines)
            parts.append(part.translate(alone) if plain else applied(part, self._table.changes_by_grapheme(part)))
        return alone.get(ord("\n"), "\n").join(parts)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets of each character. Each character of a replacement covers the whole replaced string."""
        return changed_offsets(text, self._table.changes_by_grapheme(text))

    def may_cut(self, text: str, cut: int) -> bool:
        """Text may be cut between two ASCII characters, which are two graphemes unless they are CR LF."""
        return text[cut - 1 : cut + 1].isascii() and text[cut - 1 : cut + 1] != "\r\n"

    def options(self) -> dict[str, Any]:
        """The table."""
        return {"charsmap": self.charsmap}


@lru_cache(maxsize=4)
def read_base64(charsmap: str) -> Charsmap:
    """Decodes a table from base64. Raises ConfigError if it is damaged."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except binascii.Error as error:
        raise ConfigError(f"precompiled_charsmap: is damaged ({error})") from error
    return Charsmap(data)
