"""SentencePiece's normalization: a table of replacements, and white space written as ▁.

    "Hello  world "  ->  "▁Hello▁world"        a space is put before the text; runs of spaces become one

User-defined symbols are found first and stay unchanged. `charsmap.py` has the table.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.fast.blocks import utf8
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.charsmap import LONGEST, NOTHING, Change, applied, changed_offsets, read_base64

SPACE = "▁"


class SentencePieceNormalizer(Normalizer):
    """The normalizer of a SentencePiece model. The options have SentencePiece's names.

    Args:
        charsmap: the table of replacements, in base64; empty for none (`identity`)
        add_dummy_prefix: whether a space is put before a text
        remove_extra_whitespaces: whether spaces at both ends of a text are dropped, and other runs of spaces become one
        escape_whitespaces: whether spaces are written ▁
        treat_whitespace_as_suffix: whether the space is put after a text instead
        symbols: user-defined symbols

    Raises:
        ConfigError: if the table is damaged, or a replacement or symbol has two spaces though extra ones are removed.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        charsmap: str = "",
        add_dummy_prefix: bool = True,
        remove_extra_whitespaces: bool = True,
        escape_whitespaces: bool = True,
        treat_whitespace_as_suffix: bool = False,
        symbols: Sequence[str] = (),
    ) -> None:
        self.charsmap, self.symbols = charsmap, list(symbols)
        self.add_dummy_prefix, self.remove_extra_whitespaces = add_dummy_prefix, remove_extra_whitespaces
        self.escape_whitespaces, self.treat_whitespace_as_suffix = escape_whitespaces, treat_whitespace_as_suffix
        self._table = read_base64(charsmap) if charsmap else None
        written = [*self.symbols, *(self._table.replacements if self._table else ())]
        if remove_extra_whitespaces and any("  " in each for each in written):
            raise ConfigError(
                "remove_extra_whitespaces: a symbol or replacement has two spaces; tinylm has no rule for it"
            )
        longest = sorted(self.symbols, key=len, reverse=True)
        first = "|".join(sorted({re.escape(name[:2]) for name in longest}))  # a quick test that fails at most positions
        self._symbols = re.compile(f"(?={first})(?=({'|'.join(map(re.escape, longest))}))") if longest else None
        self._spaced = any({" ", SPACE} & {*name[1:]} for name in longest)
        self.most_per_byte = min(max([4, *(len(utf8(each)) + 1 for each in written)]), 4 * LONGEST)
        self.drops_first_spaces = remove_extra_whitespaces
        self._space = SPACE if escape_whitespaces else " "

    @property
    def table(self) -> bytes:
        """The table of replacements as in a model file; empty for none."""
        return base64.b64decode(self.charsmap)

    @property
    def strips(self) -> bool:
        """Whether decoding drops the space before a text."""
        return self.add_dummy_prefix or self.remove_extra_whitespaces

    def _kept(self, text: str) -> Mapping[int, int]:
        """Begin -> end of the symbols in a text."""
        if self._symbols is None:
            return NOTHING
        return {match.start(): match.end(1) for match in self._symbols.finditer(text)}

    def _changes(self, text: str) -> list[Change]:
        kept = self._kept(text)
        if self._table is not None:
            return self._table.changes(text, kept)
        return [Change(begin, end, text[begin:end]) for begin, end in kept.items()]

    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The normalized text. `continues` as in `Normalizer.normalize`: then no space is put before it."""
        if self._table is not None:
            normal = self._table.normalize(text) if self._symbols is None else applied(text, self._changes(text))
        else:
            normal = text
        if not text or self._is_white(text, normal):
            return ""
        if self.remove_extra_whitespaces:
            normal = re.sub("  +", " ", normal if continues else normal.lstrip(" "))
        if self.escape_whitespaces:
            normal = normal.replace(" ", SPACE)
        before, after = self._added(continues)
        normal = before + normal
        return (normal.rstrip(self._space) if self.remove_extra_whitespaces else normal) + after

    def _added(self, continues: bool) -> tuple[str, str]:
        """The strings that are put before and after a text."""
        if not self.add_dummy_prefix:
            return "", ""
        if self.treat_whitespace_as_suffix:
            return "", self._space
        return "" if continues else self._space, ""

    def _is_white(self, text: str, normal: str) -> bool:
        """Whether a text consists of spaces only, all of which are removed."""
        if not self.remove_extra_whitespaces or normal.strip(" "):
            return False
        return all(change.text == " " for change in self._changes(text))

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets of each character. A space that was put before or after the text covers none."""
        changes = self._changes(text)
        begins, ends = changed_offsets(text, changes)
        normal = applied(text, changes)
        if not text or self._is_white(text, normal):
            return begins[:0], ends[:0]
        before, after = self._added(continues=False)
        if self.remove_extra_whitespaces:
            white = np.array([character == " " for character in normal], dtype=bool)
            stays = ~(white & np.append(True, white[:-1])[: len(white)])
            begins, ends = begins[stays], ends[stays]
            left = len(self.normalize(text)) - len(before) - len(after)
            begins, ends = begins[: max(left, 0)], ends[: max(left, 0)]
            before = before if left >= 0 else ""
        first, last = np.full(len(before), begins[0] if len(begins) else 0), np.full(len(after), len(text))
        return np.concatenate([first, begins, last]), np.concatenate([first, ends, last])

    def may_cut(self, text: str, cut: int) -> bool:
        """Text may be cut where no replacement, symbol or run of spaces lies; with symbols, before spaces only."""
        if self.add_dummy_prefix and self.treat_whitespace_as_suffix:
            return False
        before, behind = text[cut - 1], text[cut]
        if self._table is not None and not (self._table.keeps(before) and self._table.ignores(behind)):
            return False
        if self.remove_extra_whitespaces and before in (" ", SPACE):
            return False
        return not self.symbols or (behind == " " and not self._spaced)

    def name_of(self, content: str) -> str:
        """A symbol unchanged, or any other string normalized."""
        return content if content in self.symbols else self.normalize(content)

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {
            "charsmap": self.charsmap,
            "add_dummy_prefix": self.add_dummy_prefix,
            "remove_extra_whitespaces": self.remove_extra_whitespaces,
            "escape_whitespaces": self.escape_whitespaces,
            "treat_whitespace_as_suffix": self.treat_whitespace_as_suffix,
            "symbols": self.symbols,
        }
