"""Merges by token name, as other tools' files list them.

GPT-2's files and tokenizer.json list merges by the names of tokens; BPETokenizer numbers them. tiktoken's files have
ranks instead of merges: of all neighbours whose joint bytes are a token, it merges the pair of lowest rank first.
`NamedMerges` states when the two rules give the same ids.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tinylm.errors import ConfigError, DataError, MissingInputError, TinyLMError
from tinylm.tokenizer.alphabet import ALPHABET
from tinylm.tokenizer.fast.merging import Pair, merge_word


class NamedMerges:
    """Merges read one by one, by the names of their tokens.

    Everything here follows from one fact. Take a stretch of a word whose borders no merge has crossed so far. It went
    through the same steps as if it were a word by itself. So if its bytes alone become one token within the first k
    merges, they become that token before any later merge applies, in every word.

    Attributes:
        names: of the bytes and merged tokens, in BPETokenizer's order
        merges: pairs of indices into `names`
    """

    def __init__(self) -> None:
        self.names = list(ALPHABET)
        self.merges: list[Pair] = []
        self._index = {name: token for token, name in enumerate(self.names)}
        self._merged: dict[Pair, Pair] = {}  # pair -> (rank, token)
        self._waiting: defaultdict[str, list[str]] = defaultdict(list)  # missing part -> the tokens that need it

    def __contains__(self, name: str) -> bool:
        return name in self._index

    @classmethod
    def from_merges_txt(cls, path: Path) -> Self:
        """Reads GPT-2's merges.txt.

        Raises:
            ConfigError: for a line that is not a pair, or a merge of a token that no merge makes.
        """
        table = cls()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line or (number == 1 and line.startswith("#version")):
                continue
            parts = line.split(" ")
            if len(parts) != 2:
                raise ConfigError(f"line {number} must be two tokens separated by a space, got {line[:40]!a}")
            table.add(*parts)
        table.finish()
        return table

    def add(self, left: str, right: str) -> None:
        """Appends a merge.

        Files converted from tiktoken's ranks list every pair that a token can be split into, including pairs of tokens
        that only later merges make. If the whole exists before its parts do, such a merge never applies, by the fact
        above, and is dropped. Whether it does is checked when the parts appear.

        Raises:
            ConfigError: if a dropped merge could have applied.
        """
        whole = left + right
        for part in (left, right):
            if part not in self._index:
                self._waiting[part].append(whole)
                return
        for name in self._waiting.pop(whole, ()):
            if name not in self._index or not self.is_whole(name):
                raise ConfigError(f"merges: {name!r} uses {whole!r} before a merge makes it; reorder the merges")
        pair = self._index[left], self._index[right]
        if whole not in self._index:
            self._index[whole] = len(self.names)
            self.names.append(whole)
        self._merged[pair] = len(self.merges), self._index[whole]
        self.merges.append(pair)

    def finish(self) -> None:
        """Raises ConfigError if a merge uses a token that no other merge makes."""
        for name, wholes in self._waiting.items():
            raise ConfigError(f"merges: {wholes[0]!r} uses {name!r}, which no merge makes; is the file complete?")

    def add_by_rank(self, name: str) -> None:
        """Appends the merge that makes the token of the next rank.

        The pair consists of the two tokens into which tiktoken's rule merges its bytes at lower ranks. By the fact
        above, no other pair with these bytes exists in any word when this rank is reached. So tiktoken's rule and the
        merges agree.

        Raises:
            ConfigError: if more than two tokens are left.
        """
        parts = [self.names[token] for token in self._encode(name)]
        if len(parts) != 2:
            raise ConfigError(f"{name!r} must merge two tokens of lower rank, got {' '.join(parts)}")
        self.add(*parts)

    def is_whole(self, name: str) -> bool:
        """Whether the bytes of this token are merged to this token."""
        return self._encode(name) == [self._index[name]]

    def _encode(self, name: str) -> list[int]:
        return merge_word([self._index[character] for character in name], self._merged)

    def arguments(
        self, vocab: Mapping[str, int], special_tokens: Sequence[str], may_miss: bool = False
    ) -> dict[str, Any]:
        """Arguments of BPETokenizer, with the ids of a vocabulary.

        Args:
            vocab: name -> id
            special_tokens: names of special tokens in it
            may_miss: whether the vocabulary may lack bytes that no merge uses

        Raises:
            ConfigError: if the vocabulary lacks a token.
        """
        used = {self.names[token] for pair in self.merges for token in pair}
        for place, name in enumerate(self.names):
            if name not in vocab and (not may_miss or place >= 256 or name in used):
                raise ConfigError(f"vocab: lacks {'the byte' if len(name) == 1 else 'the merged token'} {name!r}")
        if any(type(token) is int and token < 0 for token in vocab.values()):
            raise ConfigError(f"ids must be at least 0, got {min(vocab.values())}")
        ids = [vocab.get(name, -1) for name in [*self.names, *special_tokens]]
        return {"merges": self.merges, "special_tokens": special_tokens, "ids": ids}


def vocabulary(names: Sequence[str], special_tokens: Sequence[str], ids: Sequence[int]) -> dict[str, int]:
    """Name -> id of all tokens.

    Raises:
        ConfigError: if a special token has the name of an ordinary one.
    """
    for name in sorted(set(special_tokens) & set(names)):
        raise ConfigError(f"special_tokens: {name!r} is the name of an ordinary token in this format; rename it")
    return dict(zip([*names, *special_tokens], ids, strict=True))


@contextlib.contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Converts errors in a file's content to a DataError with the file's name and the expected format."""
    try:
        yield
    except TinyLMError as error:
        raise DataError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is not {expected} ({type(error).__name__}: {error})") from error


def require(path: str | Path) -> Path:
    """The path of an existing file.

    Raises:
        MissingInputError: if there is no such file.
    """
    if not Path(path).is_file():
        raise MissingInputError(f"{path}: no such tokenizer file")
    return Path(path)
