"""BPE on characters with byte fallback, as SentencePiece writes it (Llama 2, Mistral).

    "▁Once▁upon"        a space is written ▁; there are no words: a merge may use any two neighbours

A character without a token becomes the tokens of its bytes, which never merge. Most texts can be cut before a space,
since no token continues after a character with a space: the parts are merged independently, and each distinct part only
once.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.bpe import LONG, check_dropout, check_ids
from tinylm.tokenizer.fast.blocks import utf8
from tinylm.tokenizer.fast.merging import Pair, merge_some, merge_word

SPACE = "▁"
MAX_REMEMBERED = 1 << 18  # parts
BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


class CharacterBPE:
    """BPE on the characters of a text in which spaces are written ▁.

    Args:
        vocab: name -> id; needs the names of all bytes, from `<0x00>` to `<0xFF>`
        merges: pairs of ids, in the order in which they were learned
        words: whether no merge crosses the beginning of a ▁

    Attributes:
        token_bytes: the bytes of each id

    Raises:
        ConfigError: if a byte is missing, an id repeats or is out of range, or a merge has no result in the vocabulary.
    """

    kind = "characters"

    def __init__(self, vocab: dict[str, int], merges: Sequence[Sequence[int]], words: bool = False) -> None:
        check_ids([*vocab.values()], len(vocab))
        self.vocab, self.merges, self.words = vocab, [(left, right) for left, right in merges], words
        for name in BYTE_NAMES:
            if name not in vocab:
                raise ConfigError(f"vocab: lacks the byte {name}, which byte_fallback needs")
        self._names: dict[int, str] = {token: name for name, token in vocab.items()}
        self._bytes = [vocab[name] for name in BYTE_NAMES]
        self.token_bytes = [b""] * (max(self._names, default=-1) + 1)
        for token, name in self._names.items():
            self.token_bytes[token] = utf8(name.replace(SPACE, " "))
        for byte, token in enumerate(self._bytes):
            self.token_bytes[token] = bytes([byte])
        self._merged: dict[Pair, Pair] = {}  # pair -> (rank, id)
        whole = self._read_merges()
        self._inner = {first for name in whole for first, second in pairwise(name) if second == SPACE}  # before a space
        self._lone = not any("\n" in name for name in whole)  # whether no token joins a line end with anything
        before = "" if words else rf"(?<=[^{re.escape(''.join(self._inner | {SPACE}))}])"
        self._cuts = re.compile(f"{before}(?={SPACE})")
        self._remembered: dict[str, list[int]] = {}

    def _read_merges(self) -> list[str]:
        """Fills the table of merges and returns the names of the merged tokens."""
        whole, fallback = [], set(self._bytes)
        for rank, (left, right) in enumerate(self.merges):
            if left not in self._names or right not in self._names or (left, right) in self._merged:
                raise ConfigError(f"merges: merge {rank} repeats an earlier one, or uses an id without a token")
            name = self._names[left] + self._names[right]
            if name not in self.vocab or {left, right, self.vocab[name]} & fallback:
                raise ConfigError(f"merges: merge {rank} makes {name[:40]!r}, which is no token, or is one of a byte")
            self._merged[left, right] = rank, self.vocab[name]
            whole.append(name)
        return whole

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`, as plain values."""
        return {"vocab": self.vocab, "merges": [list(pair) for pair in self.merges], "words": self.words}

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            DataError: for a lone surrogate.
        """
        if not text:
            return []
        known, parts = self._remembered, self._cuts.split(text)
        try:
            return [*chain.from_iterable(map(known.__getitem__, parts))]
        except KeyError:
            if len(known) > MAX_REMEMBERED:
                known.clear()
            for part in parts:
                if part not in known:
                    known[part] = self._merge(part)
            return [*chain.from_iterable(map(known.__getitem__, parts))]

    def _merge(self, part: str) -> list[int]:
        return merge_word(self._unmerged(part), self._merged)

    def _unmerged(self, part: str) -> list[int]:
        """The ids of characters, or of the bytes of those without a token."""
        ids: list[int] = []
        for character in part:
            token = self.vocab.get(character)
            ids += [self._bytes[byte] for byte in utf8(character)] if token is None else [token]
        return ids

    def sample(self, text: str, alpha: float, random: np.random.Generator) -> np.ndarray:
        """The ids of a text, int64 (n,), with BPE dropout, as in `BPETokenizer.sample`."""
        check_dropout(alpha)
        found: list[int] = []
        for part in self._cuts.split(text) if text else ():
            ids = self._unmerged(part)
            for begin in range(0, len(ids), LONG):
                found += merge_some(ids[begin : begin + LONG], self._merged, alpha, random)
        return np.array(found, dtype=np.int64)

    def spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The bytes of a text, with its ▁, that each of its ids covers, as in `Tokenizer.spans`."""
        ends = np.cumsum(self._sizes[ids])
        return np.stack([ends - self._sizes[ids], ends], axis=1)

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Bytes of a name, 1 for the name of a byte, int64 (V,)."""
        sizes = np.ones(len(self.token_bytes), dtype=np.int64)
        for token, name in self._names.items():
            sizes[token] = len(utf8(name))
        sizes[self._bytes] = 1
        return sizes

    def safe_cut(self, text: str) -> int:
        """A late position where a cut changes no token, whatever text follows; 0 if there is none."""
        cut = text.rfind(" ")
        while cut > 0 and (text[cut - 1] in self._inner or text[cut - 1] in (" ", SPACE)):
            cut = text.rfind(" ", 0, cut)
        if cut <= 0 and self._lone:
            cut = text.rfind("\n")
        return max(cut, 0)
