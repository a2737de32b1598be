"""SentencePiece's table of replacements (`precompiled_charsmap`), with which it normalizes text.

    "ﬁ" -> "fi"      "e" U+0301 -> "é"      "\\t" -> " "      the longest string of the table is replaced first

The table is a trie over the UTF-8 of the strings that are replaced, stored as a double array (Aoe 1989; the layout is
that of Darts-clone), and the replacements, each ended by NUL. A unit of the array is a node of the trie, in 32 bits:

    bits 0-7    label: the byte that leads to the node
    bit 8       whether a string ends here; the unit at the node's base then holds the offset of its replacement
    bits 9-31   offset: the base is the node's index XOR the offset (times 256 if bit 9 is set)

The child of a node by byte c is the unit at base XOR c, if its label is c. `Charsmap` reads the array of a stranger's
file: no index leaves it, and the work is bounded. Most characters of a text begin no string of the table; NumPy finds
those that may, and only these are looked up.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import regex

from tinylm.errors import ConfigError
from tinylm.tokenizer.normalize import Normalizer

LEAF = 1 << 31  # marks a unit that holds a value
ALONE, FIRST, INNER = 1, 2, 4  # a character that is replaced alone, begins a longer string, or continues one
MOST_VISITS = 1 << 17  # of nodes, to check a table; that of NFKC needs 25,000
LONGEST_KEY = 64  # characters that are replaced
LONGEST = 1000  # characters of a replacement
MOST_KNOWN = 1 << 18  # remembered steps
SHORTEST_LONG = 6  # bytes of a grapheme that Hugging Face's `Precompiled` does not replace as a whole
NOWHERE = -1
LABELS = np.arange(1, 256)
NOTHING: Mapping[int, int] = MappingProxyType({})
_NEAR = r"(?:\r\n|[\x00-\x7F])?"
_GRAPHEMES = regex.compile(rf"(?:{_NEAR}[^\x00-\x7F]+)+{_NEAR}|\r\n")  # ASCII characters elsewhere stand alone


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

    Raises:
        ConfigError: if the table is damaged.
    """

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[:4], "little")
        if not 0 < size <= len(data) - 4 or size % 4:
            raise ConfigError(f"precompiled_charsmap: is damaged, a trie of {size} bytes in {len(data)}")
        self.data = data
        self._array = np.frombuffer(data[4 : 4 + size], dtype="<u4").astype(np.int64)
        self._units: list[int] = self._array.tolist()
        self._texts = data[4 + size :]
        self._kinds = np.zeros(0x110000, dtype=np.uint8)
        self._root, self._visits = self._base(0), 0
        self._find_kinds()
        self._known: dict[tuple[int, str], tuple[int, str | None]] = {}
        short = [chr(point) for point in np.flatnonzero(self._kinds[:128] & ALONE)]
        lone = not (self._kinds[:128] & INNER).any()
        self.ascii_table = {ord(each): self._alone(each) for each in short} if lone else None

    @property
    def replacements(self) -> list[str]:
        """The texts that strings of the table are replaced by."""
        return self._texts.decode("utf-8", "replace").split("\0")

    # --- the trie

    def _base(self, node: int) -> int:
        unit = self._units[node]
        return node ^ ((unit >> 10) << ((unit >> 6) & 8))

    def _find_kinds(self) -> None:
        """Fills the kind of each character, and checks the table, one more character of its strings at a time."""
        points, nodes, ends = self._characters_from(np.array([self._root]))
        self._kinds[points[ends]] |= ALONE
        self._kinds[points[self._continued(nodes)]] |= FIRST
        length = 1
        while len(nodes):
            if length == LONGEST_KEY:
                raise ConfigError("precompiled_charsmap: is damaged, its strings have no end")
            points, nodes, _ = self._characters_from(np.unique(nodes))
            self._kinds[points] |= INNER
            length += 1

    def _characters_from(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The steps by one character from any of these nodes.

        Args:
            nodes: bases of nodes, int64 (n,)

        Returns:
            code points, int64 (m,); the bases of the nodes they lead to, (m,); whether a string ends there, bool (m,)
        """
        found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))]
        points, left = np.zeros(len(nodes), np.int64), np.full(len(nodes), -1)  # left: bytes of the character to come
        while len(nodes):
            rows, labels, nodes, ends = self._children(nodes)
            lead = left[rows] < 0
            more = np.select(
                [labels < 0x80, labels < 0xC2, labels < 0xE0, labels < 0xF0, labels < 0xF5], [0, -1, 1, 2, 3], -1
            )
            left = np.where(lead, more, np.where(labels & 0xC0 == 0x80, left[rows] - 1, -1))
            points = np.where(
                lead, labels & (0x7F >> np.where(more > 0, more + 1, 0)), points[rows] << 6 | labels & 0x3F
            )
            whole = left == 0
            wrong = points[whole]
            if (left < 0).any() or (ends & ~whole).any() or ((wrong >> 11 == 0x1B) | (wrong >= 0x110000)).any():
                raise ConfigError("precompiled_charsmap: is damaged, it replaces what is not UTF-8")
            found.append((wrong, nodes[whole], ends[whole]))
            nodes, points, left = nodes[~whole], points[~whole], left[~whole]
        points, nodes, ends = map(np.concatenate, zip(*found, strict=True))
        return points, nodes, ends

    def _children(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The children of nodes: the index of their parent, their labels and bases, and whether a string ends there."""
        self._visits += len(nodes)
        if self._visits > MOST_VISITS:
            raise ConfigError("precompiled_charsmap: is damaged, its strings have no end")
        size = len(self._array)
        rows_of, found = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for begin in range(0, len(nodes), 4096):
            places = nodes[begin : begin + 4096, None] ^ LABELS
            fits = self._array.take(places, mode="clip") & (LEAF | 0xFF) == LABELS
            rows, columns = np.nonzero(fits & (places < size))
            rows_of.append(rows + begin)
            found.append(places[rows, columns])
        rows, places = np.concatenate(rows_of), np.concatenate(found)
        units = self._array[places]
        bases = places ^ ((units >> 10) << ((units >> 6) & 8))
        ends = (units >> 8 & 1).astype(bool)
        if (bases >= size).any():
            raise ConfigError("precompiled_charsmap: is damaged, a node lies outside the trie")
        self._check_values(self._array[bases[ends]])
        return rows, units & 0xFF, bases, ends

    def _check_values(self, values: np.ndarray) -> None:
        for value in np.unique(values & (LEAF - 1)).tolist():
            try:
                if value >= len(self._texts) or len(self._text(value)) > LONGEST:
                    raise ValueError
            except ValueError as error:
                raise ConfigError(
                    "precompiled_charsmap: is damaged, a replacement is missing, very long or not UTF-8"
                ) from error

    def _text(self, value: int) -> str:
        end = self._texts.find(b"\0", value)
        return self._texts[value : end if end >= 0 else None].decode()

    def _continued(self, bases: np.ndarray) -> np.ndarray:
        """Whether any byte leads on from each node, bool (n,)."""
        found = np.zeros(len(bases), dtype=bool)
        found[self._children(bases)[0]] = True
        return found

    def _step(self, base: int, character: str) -> tuple[int, str | None]:
        """The node that a character leads to, or NOWHERE, and the replacement of the string that ends there, if any."""
        if (step := self._known.get((base, character))) is not None:
            return step
        node, start = base, base
        for byte in character.encode():
            node = start ^ byte
            if not byte or node >= len(self._units) or self._units[node] & (LEAF | 0xFF) != byte:
                return NOWHERE, None
            start = self._base(node)
        text = self._text(self._units[start] & (LEAF - 1)) if self._units[node] >> 8 & 1 else None
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        goes_on = (self._array.take(start ^ LABELS, mode="clip") & (LEAF | 0xFF) == LABELS).any()
        step = self._known[base, character] = start if goes_on else NOWHERE, text
        return step

    def _alone(self, character: str) -> str:
        return self._step(self._root, character)[1] or ""

    # --- text

    def changes(self, text: str, kept: Mapping[int, int] = NOTHING) -> list[Change]:
        """The replacements in a text, in order: at each place that of the longest string, as in SentencePiece.

        Args:
            text: any text
            kept: where parts begin that are not changed, and where they end; they are found before strings of the table
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
            base, place, longest = self._root, begin, None
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
        """The text with all replacements, as in SentencePiece but for white space."""
        if self.ascii_table is not None and text.isascii():
            return text.translate(self.ascii_table)
        return applied(text, self.changes(text))

    def changes_by_grapheme(self, text: str) -> list[Change]:
        """The replacements in a text, as in Hugging Face's `Precompiled`.

        A grapheme (a letter with its marks) of fewer than six bytes is replaced as a whole by the replacement of the
        shortest string that it begins with; in others each character is replaced by itself.
        """
        found, done = [], 0
        for run in _GRAPHEMES.finditer(text):
            found += self._changes_alone(text, done, run.start())
            for grapheme in regex.finditer(r"\X", run[0]):
                begin, end = run.start() + grapheme.start(), run.start() + grapheme.end()
                short = len(grapheme[0].encode("utf-8", "surrogatepass")) < SHORTEST_LONG
                new = self._shortest(grapheme[0]) if short else None
                found += self._changes_alone(text, begin, end) if new is None else [Change(begin, end, new)]
            done = run.end()
        return found + self._changes_alone(text, done, len(text))

    def _changes_alone(self, text: str, begin: int, end: int) -> list[Change]:
        if begin == end:
            return []
        places = (begin + (self._kinds[_points(text[begin:end])] & ALONE).nonzero()[0]).tolist()
        return [Change(place, place + 1, self._alone(text[place])) for place in places]

    def _shortest(self, text: str) -> str | None:
        base = self._root
        for character in text:
            base, new = self._step(base, character)
            if new is not None or base == NOWHERE:
                return new
        return None

    def keeps(self, character: str) -> bool:
        """Whether a character stays as it is, unless it begins a string of the table that the next one continues."""
        return not self._kinds[ord(character)] & (ALONE | INNER)

    def ignores(self, character: str) -> bool:
        """Whether a character is in no string of the table."""
        return not self._kinds[ord(character)]


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
    """The normalizer of this name in a tokenizer.json, which applies a charsmap to graphemes.

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
        for plain, lines in groupby(text.split("\n"), str.isascii):  # no grapheme goes across a line end
            part = "\n".join(lines)
            parts.append(part.translate(alone) if plain else applied(part, self._table.changes_by_grapheme(part)))
        return alone.get(ord("\n"), "\n").join(parts)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets of each character; all characters of a replacement stand for all of what is replaced."""
        return changed_offsets(text, self._table.changes_by_grapheme(text))

    def may_cut(self, text: str, cut: int) -> bool:
        """Between two ASCII characters, which are two graphemes unless they are a line end of Windows."""
        return text[cut - 1 : cut + 1].isascii() and text[cut - 1 : cut + 1] != "\r\n"

    def options(self) -> dict[str, Any]:
        """The table."""
        return {"charsmap": self.charsmap}


@lru_cache(maxsize=4)
def read_base64(charsmap: str) -> Charsmap:
    """The table that is written in base64; raises ConfigError if it is damaged."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except binascii.Error as error:
        raise ConfigError(f"precompiled_charsmap: is damaged ({error})") from error
    return Charsmap(data)
