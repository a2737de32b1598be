"""BPE on characters, as SentencePiece writes it (Llama 2, Mistral).

    "▁Once▁upon"        a space is written ▁; text is not split into words, so any two neighbours may merge

Hugging Face's files list merges in the order in which they apply. SentencePiece's files have a score for each token
instead: the neighbours whose token has the highest score are joined first, and the leftmost ones if scores are equal.

A character without a token becomes the tokens of its bytes, which never merge, or `<unk>`. Usually no token has a space
after another character, so text can be cut before spaces: the parts are merged independently, and each distinct part
only once.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.bpe import LONG, check_dropout, check_ids
from tinylm.tokenizer.fast.blocks import utf8
from tinylm.tokenizer.fast.merging import Pair, merge_some, merge_word
from tinylm.tokenizer.fast.words import looked_up

SPACE = "▁"
BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]
UNKNOWN = " \u2047 "  # SentencePiece's text for <unk>


class CharacterBPE:
    """BPE on the characters of a text in which spaces are written ▁.

    Args:
        vocab: name -> id. Without `unknown` it must have the names of all bytes, from `<0x00>` to `<0xFF>`.
        merges: pairs of ids, in the order in which they were learned
        words: whether text is split before each ▁, so that no merge crosses it
        scores: the score of each token, in the order of `vocab`, instead of `merges`. Every pair that joins to a token
            is then a merge.
        unknown: the id for each run of characters without a token. Default: such characters become their bytes
        surface: the text that `unknown` decodes to
        unused: ids of tokens that encoding splits into their parts again

    Attributes:
        token_bytes: the bytes of each id
        merges: all merges, given or derived from the scores

    Raises:
        ConfigError: if a byte is missing, an id repeats or is out of range, or a merge makes no token.
    """

    kind = "characters"

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[Sequence[int]] = (),
        words: bool = False,
        scores: Sequence[float] | None = None,
        unknown: int | None = None,
        surface: str = UNKNOWN,
        unused: Sequence[int] = (),
    ) -> None:
        check_ids([*vocab.values()], len(vocab))
        self.vocab, self.words, self.unknown, self.surface = vocab, words, unknown, surface
        self.scores = None if scores is None else dict(zip(vocab, scores, strict=True))
        self.unused, self._unused = [*unused], {*unused}
        for name in BYTE_NAMES if unknown is None else ():
            if name not in vocab:
                raise ConfigError(f"vocab: lacks the byte {name}, which byte_fallback needs")
        self._names: dict[int, str] = {token: name for name, token in vocab.items()}
        self._bytes = [vocab[name] for name in BYTE_NAMES] if unknown is None else []
        self.merges = (
            [(left, right) for left, right in merges]
            if self.scores is None
            else merges_by(self.scores, vocab, BYTE_NAMES if unknown is None else ())
        )
        self.token_bytes = [b""] * (max([*self._names, -1 if unknown is None else unknown]) + 1)
        for token, name in self._names.items():
            self.token_bytes[token] = utf8(name.replace(SPACE, " "))
        for byte, token in enumerate(self._bytes):
            self.token_bytes[token] = bytes([byte])
        if unknown is not None:
            check_ids([*vocab.values(), unknown], len(vocab) + 1)
            self.token_bytes[unknown] = utf8(surface)
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
                raise ConfigError(f"merges: merge {rank} makes {name[:40]!r}, which is not a token, or is a byte")
            self._merged[left, right] = rank, self.vocab[name]
            whole.append(name)
        if self.scores is not None:
            ranks = {score: rank for rank, score in enumerate(sorted({*self.scores.values()}, reverse=True))}
            for pair, (_, token) in self._merged.items():
                self._merged[pair] = ranks[self.scores[self._names[token]]], token
        return whole

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`, as plain values."""
        if self.scores is None:
            found = {"merges": [list(pair) for pair in self.merges]}
        else:
            found = {"scores": [*self.scores.values()]}
        if self.unknown is not None:
            found |= {"unknown": self.unknown, "surface": self.surface}
        if self.unused:
            found |= {"unused": self.unused}
        return {"vocab": self.vocab, **found, "words": self.words}

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            DataError: for a lone surrogate.
        """
        if not text:
            return []
        if self.unused:
            return self._without_unused(text)
        ids = self._encode_parts(text)
        if self.unknown is None or self.unknown not in ids:
            return ids
        return [token for before, token in pairwise([-1, *ids]) if token != self.unknown or before != self.unknown]

    def _encode_parts(self, text: str) -> list[int]:
        return looked_up(self._cuts.split(text), self._remembered, self._merge)

    def _merge(self, part: str, joined: dict[int, Pair] | None = None) -> list[int]:
        return merge_word(self._unmerged(part), self._merged, joined)

    def _unmerged(self, part: str) -> list[int]:
        """The ids of the characters. A character without a token becomes its bytes or `unknown`."""
        ids: list[int] = []
        for character in part:
            token = self.vocab.get(character)
            if token is not None:
                ids.append(token)
            elif self.unknown is None:
                ids += [self._bytes[byte] for byte in utf8(character)]
            else:
                utf8(character)  # raises for a lone surrogate, which is not an unknown character
                ids.append(self.unknown)
        return ids

    def _without_unused(self, text: str) -> list[int]:
        """The ids of a text, with unused tokens split again.

        As in SentencePiece, all occurrences of a token in a text are split into one pair: the last one found.
        """
        joined: dict[int, Pair] = {}
        return self._split_unused(self._merge(text, joined), joined)

    def _split_unused(self, ids: list[int], joined: Mapping[int, Pair]) -> list[int]:
        """The ids with unused tokens split into their pairs. Each run of unknown ids becomes one."""
        stack, found = ids[::-1], []
        while stack:
            token = stack.pop()
            if token in self._unused and token in joined:
                stack += joined[token][::-1]
            elif token != self.unknown or found[-1:] != [token]:
                found.append(token)
        return found

    def sample(self, text: str, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """The ids of a text, int64 (n,), with BPE dropout, as in `BPETokenizer.sample`."""
        check_dropout(alpha)
        found: list[int] = []
        for part in self._cuts.split(text) if text else ():
            ids = self._unmerged(part)
            for begin in range(0, len(ids), LONG):
                found += merge_some(ids[begin : begin + LONG], self._merged, alpha, random)
        return np.array(self._split_unused(found, self._pairs), dtype=np.int64)

    @cached_property
    def _pairs(self) -> dict[int, Pair]:
        """Merged token -> a pair that makes it."""
        return {token: pair for pair, (_, token) in self._merged.items()}

    def spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The byte range of each id in a text that has ▁ for spaces, as in `Tokenizer.spans`."""
        sizes = self._sizes[ids]
        if self.unknown is not None and (unknown := np.flatnonzero(ids == self.unknown)).size:
            sizes[unknown] = [len(utf8(run[0])) for run in self._unknown_runs.finditer(text)]
        ends = np.cumsum(sizes)
        return np.stack([ends - sizes, ends], axis=1)

    @cached_property
    def _unknown_runs(self) -> re.Pattern[str]:
        known = "".join(name for name in self.vocab if len(name) == 1)
        return re.compile(f"[^{re.escape(known)}]+" if known else r"[\s\S]+")

    @cached_property
    def _sizes(self) -> np.ndarray:
        """The UTF-8 length of each name, and 1 for a byte, int64 (V,)."""
        sizes = np.ones(len(self.token_bytes), dtype=np.int64)
        for token, name in self._names.items():
            sizes[token] = len(utf8(name))
        sizes[self._bytes] = 1
        return sizes

    def _knows(self, character: str) -> bool:
        """Whether a character is never part of a run of unknown characters, which is one token."""
        return self.unknown is None or character in self.vocab

    def safe_cut(self, text: str) -> int:
        """A late position where a cut changes no token, for any text that follows; 0 if there is none."""
        if self.unused or not self._knows(SPACE):
            return 0
        cut = text.rfind(" ")
        while cut > 0 and (text[cut - 1] in self._inner or text[cut - 1] in (" ", SPACE)):
            cut = text.rfind(" ", 0, cut)
        if cut <= 0 and self._lone and self._knows("\n"):
            cut = text.rfind("\n")
        return max(cut, 0)


def all_merges(vocab: Mapping[str, int], byte_names: Sequence[str] = BYTE_NAMES) -> list[Pair]:
    """All pairs of ids whose names join to the name of a token.

    The tokens are in the order of `vocab`. Among the pairs of one token the longest left part comes first, as in
    transformers.

    Args:
        vocab: name -> id
        byte_names: names of bytes, which never merge
    """
    bytes_, pairs = {*byte_names}, []
    for name in vocab:
        if name not in bytes_:
            for cut in range(len(name) - 1, 0, -1):
                left, right = name[:cut], name[cut:]
                if left in vocab and right in vocab and left not in bytes_ and right not in bytes_:
                    pairs.append((vocab[left], vocab[right]))
    return pairs


def merges_by(
    scores: Mapping[str, float], vocab: Mapping[str, int], byte_names: Sequence[str] = BYTE_NAMES
) -> list[Pair]:
    """The pairs of `all_merges`, ordered by the score of the token that they make, the highest first."""
    order = sorted(vocab, key=lambda name: -scores[name])
    return all_merges({name: vocab[name] for name in order}, byte_names)
