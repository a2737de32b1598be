"""The normalizers of a tokenizer.json, one after the other, as Hugging Face's `tokenizers` applies them.

    Replace "``" by '"' > NFKD > StripAccents > Lowercase > Replace " {2,}" by " "        ALBERT's
    "``Ünïted  States"   >   '"united states'

Each step also returns the offsets of its result in its input. A text can be cut between a visible character and a space
or line end, unless a step replaces strings that contain both. The two programs may treat letters differently that are
too new for the Unicode version of one of them.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import regex

from tinylm.errors import ConfigError
from tinylm.tokenizer.normalizers.base import Normalizer, joining, through
from tinylm.tokenizer.normalizers.charsmap import Precompiled
from tinylm.tokenizer.normalizers.metaspace import WHITE

BOTH_ENDS, FIRST_MARK = r"\A +| +\z", r"\A▁"  # patterns of transformers that look at the beginning of a text
MOST_LONGER = 12  # limit of the length of a replacement relative to the replaced string

Offsets = tuple[np.ndarray, np.ndarray]


class Step(ABC):
    """One normalizer of a sequence."""

    @abstractmethod
    def apply(self, text: str, continues: bool) -> str:
        """The text after the step; `continues` as in `Normalizer.normalize`."""

    @abstractmethod
    def offsets(self, text: str) -> Offsets:
        """The offsets in the step's input of each character of its result, int64 (n,) each."""

    def may_cut(self, text: str, cut: int) -> bool:
        """Whether the step does not look across a cut between a visible character and a space or line end."""
        return True


class Mapped(Step):
    """A step that changes each character by itself.

    Args:
        fast: changes a whole text
        one: changes one character
    """

    def __init__(self, fast: Callable[[str], str], one: Callable[[str], str]) -> None:
        self._fast, self._one = fast, one

    def apply(self, text: str, continues: bool) -> str:
        """The changed text."""
        return self._fast(text)

    def offsets(self, text: str) -> Offsets:
        """The offsets of each character, which covers the one that it was made from."""
        counts = np.array([len(self._one(character)) for character in text], dtype=np.int64)
        begins = np.repeat(np.arange(len(text)), counts)
        return begins, begins + 1


class Form(Step):
    """A normalization form of Unicode: NFC, NFD, NFKC or NFKD."""

    def __init__(self, form: Any) -> None:
        self._form = form

    def apply(self, text: str, continues: bool) -> str:
        """The text in this form."""
        return unicodedata.normalize(self._form, text)

    def offsets(self, text: str) -> Offsets:
        """The offsets of each character, which covers the letter and all marks that it was made from."""
        joins, begins, ends = _joining_compatible(), [], []
        borders = [0, *(place for place in range(1, len(text)) if text[place] not in joins), len(text)]
        for begin, end in pairwise(borders):
            changed = self.apply(text[begin:end], False)
            same = changed == text[begin:end]
            begins += range(begin, end) if same else [begin] * len(changed)
            ends += range(begin + 1, end + 1) if same else [end] * len(changed)
        return np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)


class Replaced(Step):
    """Replaces all matches of a pattern.

    Args:
        pattern: the regular expression
        content: the replacement
        fixed: the only string that the pattern matches, if there is only one
        later: the pattern for a part that continues a text, if `pattern` depends on the beginning
    """

    def __init__(self, pattern: str, content: str, fixed: str = "", later: str = "") -> None:
        self._pattern, self._later = re.compile(pattern), re.compile(later or pattern)
        self._content, self._fixed = content, fixed

    def apply(self, text: str, continues: bool) -> str:
        """The text with all replacements."""
        if self._fixed:
            return text.replace(self._fixed, self._content)
        pattern = self._later if continues else self._pattern
        return pattern.sub(self._content.replace("\\", r"\\"), text)

    def _pieces(self, text: str) -> Iterator[tuple[int, int, str]]:
        """The parts of a text: (begin, end, the new text)."""
        done = 0
        for match in self._pattern.finditer(text):
            yield done, match.start(), text[done : match.start()]
            yield match.start(), match.end(), self._content
            done = match.end()
        yield done, len(text), text[done:]

    def offsets(self, text: str) -> Offsets:
        """The offsets of each character. Each character of a replacement covers the whole replaced string."""
        begins, ends = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for begin, end, new in self._pieces(text):
            same = new == text[begin:end]
            begins.append(np.arange(begin, end) if same else np.full(len(new), begin))
            ends.append(np.arange(begin, end) + 1 if same else np.full(len(new), end))
        return np.concatenate(begins), np.concatenate(ends)

    def may_cut(self, text: str, cut: int) -> bool:
        """Whether no match spans the cut: a fixed string may, other patterns match only spaces."""
        if not self._fixed:
            return True
        window = text[max(cut - len(self._fixed) + 1, 0) : cut + len(self._fixed) - 1]
        return self._fixed not in window


class Prepended(Step):
    """Puts a string before a text that is not empty."""

    def __init__(self, string: str) -> None:
        self._string = string

    def apply(self, text: str, continues: bool) -> str:
        """The text, with the string before it unless it `continues`."""
        return self._string + text if text and not continues else text

    def offsets(self, text: str) -> Offsets:
        """The offsets of each character. The string covers none."""
        put, kept = np.zeros(len(self._string) if text else 0, dtype=np.int64), np.arange(len(text))
        return np.concatenate([put, kept]), np.concatenate([put, kept + 1])


class Stripped(Step):
    """Drops white space at the ends of a text."""

    def __init__(self, left: bool, right: bool) -> None:
        self._left, self._right = left, right

    def apply(self, text: str, continues: bool) -> str:
        """The text without this white space. A text that `continues` keeps it on the left."""
        text = text.lstrip(WHITE) if self._left and not continues else text
        return text.rstrip(WHITE) if self._right else text

    def offsets(self, text: str) -> Offsets:
        """The offsets of the remaining characters."""
        kept = self.apply(text, False)
        begin = len(text) - len(text.lstrip(WHITE)) if self._left else 0
        return np.arange(begin, begin + len(kept)), np.arange(begin, begin + len(kept)) + 1


class Table(Step):
    """SentencePiece's table of replacements."""

    def __init__(self, charsmap: str) -> None:
        self._normalizer = Precompiled(charsmap)

    def apply(self, text: str, continues: bool) -> str:
        """The text with all replacements."""
        return self._normalizer.normalize(text, continues=continues)

    def offsets(self, text: str) -> Offsets:
        """The offsets of `Precompiled`."""
        return self._normalizer.offsets(text)

    def may_cut(self, text: str, cut: int) -> bool:
        """Whether no grapheme spans the cut. A line end begins a new one, but a space may belong to the last one."""
        return text[cut] in "\r\n" or self._normalizer.may_cut(text, cut)


def _lower(text: str) -> str:
    return text.replace("\u03a3", "\u03c3").lower()  # a final sigma too, which only Python treats differently


_MARKS = regex.compile(r"\p{M}+")
_NMT = {
    **dict.fromkeys([*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F], ""),
    **dict.fromkeys([9, 10, 12, 13, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD], " "),
}


def _without_marks(text: str) -> str:
    return text if text.isascii() else _MARKS.sub("", text)


def _nmt(text: str) -> str:
    return text.translate(_NMT)


@cache
def _joining_compatible() -> frozenset[str]:
    """The characters that may join the one before them in any normalization form."""
    joins = joining()
    others = (chr(point) for point in range(0x80, 0x110000) if unicodedata.decomposition(chr(point)))
    return joins | {each for each in others if unicodedata.normalize("NFKD", each)[0] in joins}


def step_of(values: Any) -> Step | None:
    """The step for a normalizer of a tokenizer.json; None for an unknown normalizer."""
    match values:
        case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" as form, **more} if not more:
            return Form(form)
        case {"type": "Lowercase", **more} if not more:
            return Mapped(_lower, _lower)
        case {"type": "StripAccents", **more} if not more:
            return Mapped(_without_marks, _without_marks)
        case {"type": "Nmt", **more} if not more:
            return Mapped(_nmt, _nmt)
        case {"type": "Strip", "strip_left": bool(left), "strip_right": bool(right), **more} if not more:
            return Stripped(left, right)
        case {"type": "Prepend", "prepend": str(string), **more} if not more and len(string) <= MOST_LONGER:
            return Prepended(string)
        case {"type": "Precompiled", "precompiled_charsmap": str(charsmap), **more} if not more:
            return Table(charsmap)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new), **more} if not more and old:
            return Replaced(re.escape(old), new, fixed=old) if len(new) <= MOST_LONGER * len(old) else None
        case {"type": "Replace", "pattern": {"Regex": str(pattern)}, "content": str(new), **more} if not more:
            return _replaced_pattern(pattern, new)
    return None


def _replaced_pattern(pattern: str, content: str) -> Step | None:
    """The step for a pattern of spaces; None for any other."""
    if len(content) > MOST_LONGER:
        return None
    if pattern == BOTH_ENDS:
        return Replaced(r"\A +| +\Z", content, later=r" +\Z")
    if pattern == FIRST_MARK:
        return Replaced(pattern, content, later="(?!)")
    return Replaced(pattern, content) if regex.fullmatch(r" (?:\+|\{\d+,\d*\})", pattern) else None


class Rewriting(Normalizer):
    """The normalizers of a tokenizer.json, applied in order.

    Args:
        steps: the normalizers as in the file, without enclosing sequences

    Raises:
        ConfigError: for an unsupported step.
    """

    kind = "rewriting"
    most_per_byte = 12  # a compatibility character of 3 bytes becomes 33

    def __init__(self, steps: Sequence[dict[str, Any]]) -> None:
        self.steps = list(steps)
        self._steps: list[Step] = []
        for values in self.steps:
            step = step_of(values)
            if step is None:
                raise ConfigError(f"normalizer: {str(values)[:200]} is not supported")
            self._steps.append(step)

    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The text after all steps."""
        for step in self._steps:
            text = step.apply(text, continues)
        return text

    def offsets(self, text: str) -> Offsets:
        """The offsets of each character, through all steps."""
        found = np.arange(len(text)), np.arange(1, len(text) + 1)
        for step in self._steps:
            found = through(*found, *step.offsets(text))
            text = step.apply(text, False)
        return found

    def may_cut(self, text: str, cut: int) -> bool:
        """Text may be cut between a visible character and a space or line end that no step replaces together."""
        if text[cut] not in " \r\n" or text[cut - 1] in WHITE:
            return False
        return all(step.may_cut(text, cut) for step in self._steps)

    def options(self) -> dict[str, Any]:
        """The steps."""
        return {"steps": self.steps}
