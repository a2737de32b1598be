"""SentencePiece's own tables of replacements, generated from Python's Unicode data, and their compiler.

    nfkc        every string whose NFKC differs from the NFKC of its characters
    nmt_nfkc    nfkc; all white space becomes spaces, and control characters are removed: for translation
    ..._cf      nfkc or nmt_nfkc, then case folding

`compile_charsmap` writes the double array that double_array.py reads: equal ends of strings share their nodes, and the
children of a node go to the first free units that fit.
"""

import base64
import struct
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

from tinylm.errors import ConfigError, did_you_mean
from tinylm.tokenizer.normalizers.double_array import LEAF

RULES = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
SPACES = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
REMOVED = [*map(chr, (*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F))]
FULLWIDTH_TILDE = "\uff5e"  # differs from ~ in Japanese
BLOCK = 256  # units that differ in the last byte of their index
RECENT = 16 * BLOCK  # only the last units of the array are searched for free ones

Rules = dict[str, str]


@cache
def named_charsmap(name: str) -> str:
    """A table of SentencePiece by its name, in base64, as SentencePieceNormalizer takes it; empty for `identity`.

    Raises:
        ConfigError: for an unknown name.
    """
    if name == "identity":
        return ""
    if name not in RULES:
        known = did_you_mean(name, RULES) or ", known are identity, " + ", ".join(RULES)
        raise ConfigError(f"normalization: no rules {name!r}{known}")
    return base64.b64encode(compile_charsmap(named_rules(name))).decode("ascii")


def named_rules(name: str) -> Rules:
    """The rules of a table: string -> replacement."""
    rules = _nfkc()
    if name.startswith("nmt_"):
        rules |= dict.fromkeys(SPACES, " ") | dict.fromkeys(REMOVED, "")
        del rules[FULLWIDTH_TILDE]
    if name.endswith("_cf"):
        rules = {key: "".join(map(_folded, text)) for key, text in rules.items()}
        rules |= {each: new for each in _characters() if each not in rules and (new := _folded(each)) != each}
    return _needed(rules)


def _characters() -> Iterator[str]:
    """All characters but NUL, surrogates and noncharacters."""
    for point in range(1, 0x110000):
        if not (0xD800 <= point < 0xE000 or 0xFDD0 <= point < 0xFDF0 or point & 0xFFFE == 0xFFFE):
            yield chr(point)


def _nfkc() -> Rules:
    """The replacements of all characters, and of all strings with the decomposition of some character."""
    rules, whole = {}, set()
    variants: dict[str, list[str]] = defaultdict(list)  # character -> others that decompose to it alone
    for character in _characters():
        parts = unicodedata.normalize("NFKD", character)
        if parts == character:
            continue
        rules[character] = unicodedata.normalize("NFKC", character)
        if len(parts) == 1:
            variants[parts].append(character)
        else:
            whole.add(parts)
    for parts in whole:
        composed = unicodedata.normalize("NFKC", parts)
        if composed != parts:
            rules.update(("".join(key), composed) for key in product(*([part, *variants[part]] for part in parts)))
    return {key: text for key, text in rules.items() if key != text}


def _folded(character: str) -> str:
    """Simple case folding, which maps one character to one character."""
    folded = character.casefold()
    folded = folded if len(folded) == 1 else character.lower()
    return folded if len(folded) == 1 else character


def _needed(rules: Rules) -> Rules:
    """The rules without redundant ones, whose result shorter strings give as well."""
    found = {key: text for key, text in rules.items() if len(key) == 1}
    for length in range(2, max(map(len, rules)) + 1):
        longer = {key: text for key, text in rules.items() if len(key) == length}
        found |= {key: text for key, text in longer.items() if replaced(key, found, length - 1) != text}
    return found


def replaced(text: str, rules: Mapping[str, str], longest: int) -> str:
    """A text after replacement by the rules for strings up to a length, the longest string first."""
    parts, place = [], 0
    while place < len(text):
        for length in range(min(longest, len(text) - place), 0, -1):
            if (new := rules.get(text[place : place + length])) is not None:
                break
        else:
            length, new = 1, text[place]
        parts.append(new)
        place += length
    return "".join(parts)


# --- writing


def compile_charsmap(rules: Mapping[str, str]) -> bytes:
    """The bytes of a table, as in a model file.

    Raises:
        ConfigError: if there are no rules, a string is empty, or one contains NUL.
    """
    if not rules or any("\0" in key + text for key, text in rules.items()) or "" in rules:
        raise ConfigError("charsmap: needs at least one rule, no empty string and no NUL")
    offsets, texts = {}, bytearray()
    for text in sorted({*rules.values()}):
        offsets[text] = len(texts)
        texts += text.encode() + b"\0"
    nodes = _Nodes()
    root = nodes.number({key.encode(): offsets[text] for key, text in rules.items()})
    units = _placed(nodes.children, root)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(texts)


class _Nodes:
    """The nodes of a trie; equal nodes are stored once.

    Attributes:
        children: sorted pairs (byte, child) of each node; for byte 0 the child is a value
    """

    def __init__(self) -> None:
        self.children: list[tuple[tuple[int, int], ...]] = []
        self._numbers: dict[tuple[tuple[int, int], ...], int] = {}

    def number(self, values: Mapping[bytes, int]) -> int:
        """The number of the node from which these strings lead to their values."""
        by_first: dict[int, dict[bytes, int]] = defaultdict(dict)
        for key, value in values.items():
            by_first[key[0] if key else 0][key[1:]] = value
        found = []
        for byte, rest in sorted(by_first.items()):
            found.append((byte, self.number(rest) if byte else rest[b""]))
        return self._numbers.setdefault(key := tuple(found), self._new(key))

    def _new(self, key: tuple[tuple[int, int], ...]) -> int:
        if key not in self._numbers:
            self.children.append(key)
        return len(self.children) - 1


class _Array:
    """A double array under construction.

    Attributes:
        units: the units so far; LEAF if free
    """

    def __init__(self) -> None:
        self.units = [LEAF] * BLOCK
        self._free = dict.fromkeys(range(1, BLOCK))  # in order; the root stands at 0
        self._bases = {0}

    def base_for(self, labels: list[int]) -> int:
        """Finds an unused base with free units for these labels, and takes these units."""
        while True:
            for place in self._free:
                base = place ^ labels[0]
                if base not in self._bases and all(base ^ label in self._free for label in labels):
                    self._bases.add(base)
                    for label in labels:
                        del self._free[base ^ label]
                    return base
            size = len(self.units)
            self.units += [LEAF] * BLOCK
            kept = [place for place in self._free if place >= size - RECENT]
            self._free = dict.fromkeys([*kept, *range(size, size + BLOCK)])


def _placed(children: list[tuple[tuple[int, int], ...]], root: int) -> list[int]:
    """The double array of nodes."""
    array, bases, pending = _Array(), {}, [(0, 0, root)]  # place, label, node
    while pending:
        place, label, node = pending.pop()
        if node not in bases:
            bases[node] = array.base_for([byte for byte, _ in children[node]])
            for byte, child in children[node]:
                if byte:
                    pending.append((bases[node] ^ byte, byte, child))
                else:
                    array.units[bases[node]] = LEAF | child
        leaf = children[node][0][0] == 0
        array.units[place] = label | leaf << 8 | (place ^ bases[node]) << 10
    return array.units
