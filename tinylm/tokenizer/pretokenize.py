"""Cutting a text into words, before anything is merged: no token of a BPE reaches over the edge of such a word.

A word takes the space before it along (" cat"), so that spaces cost no tokens of their own. Which characters make up a
word is a regular expression; GPT-2's, GPT-4's and that of `WordTokenizer` are known by name.
"""

from collections.abc import Iterable, Iterator

import regex

from tinylm.errors import ConfigError, DataError

PATTERNS = {
    # contractions | letters | digits | other signs | white space, the last of it only where no word follows
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # cl100k: contractions in capitals too, numbers three digits at a time, line ends apart from other white space
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # letters and digits with their marks and inner apostrophes | any other sign for itself | white space as in gpt2
    "words": (
        r" ?[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:['\u2019][\p{L}\p{N}][\p{L}\p{N}\p{M}]*)*| ?[^\s\p{L}\p{N}]"
        r"|\s+(?!\S)|\s+"
    ),
}


class WordSplitter:
    """Cuts text into words that join to the text.

    Args:
        pattern: `gpt2`, `gpt4`, `words`, or a regular expression of the `regex` package that matches one word

    Raises:
        ConfigError: if the pattern is none, or has groups other than (?:...).
    """

    def __init__(self, pattern: str) -> None:
        self.named = pattern in PATTERNS
        try:
            compiled = regex.compile(PATTERNS.get(pattern, pattern))
        except regex.error as error:
            raise ConfigError(
                f"pattern: {pattern!r} is neither {' nor '.join(PATTERNS)} nor a regular expression ({error})"
            ) from error
        if compiled.groups:
            raise ConfigError(f"pattern: {pattern!r} has groups; write (?:...) instead of (...)")
        self._find_words = compiled.findall

    def words(self, text: str) -> list[str]:
        """The words of a text.

        Raises:
            DataError: if a pattern of one's own leaves a part of the text out.
        """
        words = self._find_words(text)
        if not self.named and sum(map(len, words)) < len(text):
            raise DataError("pattern: does not match all of the text; let it end with |[\\s\\S]")
        return words

    def words_of_stream(self, chunks: Iterable[str]) -> Iterator[list[str]]:
        """The words of a text that arrives in chunks: the same as of the whole, list by list.

        What may still change with the next chunk is kept back, which is little where words are parted by spaces. With
        a pattern of one's own nothing is known of it, and the whole text is kept until its end.
        """
        rest = ""
        for chunk in chunks:
            rest += chunk
            if self.named and (cut := _safe_cut(rest)):
                yield self.words(rest[:cut])
                rest = rest[cut:]
        yield self.words(rest)


def _safe_cut(text: str) -> int:
    """The last place where cutting a text changes none of its words: before a space that follows anything but white
    space. No named pattern has a word across such a place, or looks across it for what ends there."""
    cut = text.rfind(" ")
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind(" ", 0, cut)
    return max(cut, 0)
