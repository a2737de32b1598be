"""The pre_tokenizers WhitespaceSplit and Metaspace of a tokenizer.json, which write spaces as ▁.

"Hello  world"  ->  "▁Hello▁▁world", or "▁Hello▁world" if only words are kept
"""

import re
from typing import Any

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.normalizers.base import Normalizer

SPACE = "▁"
# Unicode's White_Space, as Rust has it; Python adds U+001C to U+001F
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_NOT_WHITE = re.compile(f"[^{WHITE}]+")


class Spacing(Normalizer):
    """Writes spaces as the pre_tokenizers WhitespaceSplit and Metaspace do before they cut a text.

    Args:
        words: whether only the words are kept, with one ▁ before each
        prefix: when a ▁ is put before a text that begins with none: "always", at the beginning of the text only
            ("first"), or "never"

    Raises:
        ConfigError: for `words` without a prefix, since nothing would separate the words.
    """

    kind = "spacing"

    def __init__(self, words: bool = False, prefix: str = "always") -> None:
        if prefix not in ("always", "first", "never") or (words and prefix != "always"):
            raise ConfigError(f"pre_tokenizer: WhitespaceSplit needs a Metaspace that always puts ▁, got {prefix!r}")
        self.words, self.prefix = words, prefix

    def normalize(self, text: str, *, continues: bool = False) -> str:
        """The text, with ▁ for spaces."""
        if self.words:
            return "".join(word if word[0] == SPACE else SPACE + word for word in _NOT_WHITE.findall(text))
        text = text.replace(" ", SPACE)
        return SPACE + text if self._puts(text) and not continues else text

    def _puts(self, text: str) -> bool:
        return self.prefix != "never" and text != "" and text[0] not in (SPACE, " ")

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The offsets of each character. A ▁ that was put before a word covers none."""
        if not self.words:
            put, kept = np.zeros(1 if self._puts(text) else 0, dtype=np.int64), np.arange(len(text))
            return np.concatenate([put, kept]), np.concatenate([put, kept + 1])
        begins, ends = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for word in _NOT_WHITE.finditer(text):
            put = np.full(0 if word[0][0] == SPACE else 1, word.start())
            begins += [put, np.arange(word.start(), word.end())]
            ends += [put, np.arange(word.start(), word.end()) + 1]
        return np.concatenate(begins), np.concatenate(ends)

    def may_cut(self, text: str, cut: int) -> bool:
        """Text may be cut before white space."""
        return text[cut] in WHITE

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {"words": self.words, "prefix": self.prefix}
