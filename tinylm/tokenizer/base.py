"""The base class of tokenizers: text -> ids -> the same text.

A tokenizer is a table of byte strings, one per id, and a way to split text into them. The table is common to all
(vocabulary.py); subclasses implement the splitting. Special tokens, such as `<|endoftext|>`, have ids but are matched
in text only on request, so that user input stays plain text.

A subclass outside tinylm is recorded in its files by its import path, and read from them only if that is trusted.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import regex

from tinylm.errors import ConfigError, DataError, did_you_mean
from tinylm.files import file_size, read_chunks, sha256_json, write_json
from tinylm.plugins import Part, admit
from tinylm.targets import FileKind, check_target
from tinylm.tokenizer.fast.blocks import Block, blocks, utf8
from tinylm.tokenizer.marks import END_OF_TEXT, Chat, Marks
from tinylm.tokenizer.vocabulary import Vocabulary
from tinylm.workers import map_in_order

__all__ = ["END_OF_TEXT", "Chat", "Marks", "Tokenizer", "refuse_own_class", "tokenizer_class"]

FORMAT = 1
TOKENIZER_FILE = FileKind("a tokenizer", rb'\{\s*"format": \d+,\s*"kind": "')
READABLE = ", nor a tokenizer.json; a folder with vocab.json and merges.txt, or a .tiktoken file, can be read too"


class Tokenizer(Vocabulary):
    """Text to token ids and back.

    Attributes:
        kind: name of the subclass in files and configs
        has_size: whether training takes `vocab_size`, the number of tokens
        most_per_byte: upper bound of ids per byte of a text
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type["Tokenizer"]]] = {}
    has_size: ClassVar[bool] = False
    most_per_byte = 1

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("tinylm."):
            if "kind" in vars(cls):  # an abstract class has none
                cls.kinds[cls.kind] = cls
        elif "kind" not in vars(cls):
            cls.kind = cls.__name__

    @property
    def own_class(self) -> str | None:
        """The import path of the class if it is not one of tinylm's."""
        if type(self) in self.kinds.values():
            return None
        with contextlib.suppress(ConfigError):  # a class within a function has no import path
            Part.of(type(self))  # trusts the class, so that this process can load the files that it saves
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, special_tokens={list(self.special_tokens)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.sha256)

    # --- text -> ids

    @classmethod
    @abstractmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], **options: Any) -> Self:
        """Trains a tokenizer on texts, each an iterable of chunks."""

    @classmethod
    def train_from_texts(cls, texts: Iterable[str], **options: Any) -> Self:
        """Trains a tokenizer on texts. Options and errors as in `train_from_streams`."""
        return cls.train_from_streams(([text] for text in texts), **options)

    @classmethod
    def train(cls, paths: Iterable[str | Path], **options: Any) -> Self:
        """Trains a tokenizer on UTF-8 files, read in bounded memory.

        Raises:
            MissingInputError: if a file does not exist.
            DataError: if a file is not UTF-8.
        """
        return cls.train_from_streams((read_chunks(Path(path)) for path in paths), **options)

    @abstractmethod
    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text, int64 (n,). Names of special tokens are plain text.

        Args:
            text: any text
            start: its offset in a longer text, in characters

        Raises:
            DataError: if the text cannot be encoded.
        """

    def encode_array(self, text: str, *, allow_special: bool = False) -> np.ndarray:
        """The ids of a text, int64 (n,).

        Args:
            text: any text
            allow_special: whether names of special tokens in the text become their ids

        Raises:
            DataError: if the text cannot be encoded, with the position.
        """
        if not allow_special or not self.special_tokens:
            return self.encode_ordinary(text)
        parts = [np.empty(0, dtype=np.int64)]
        for piece, special, start in self._split_special(text):
            parts.append(self.encode_ordinary(piece, start) if special is None else np.array([special]))
        return np.concatenate(parts)

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text and the characters that each id covers. Arguments and errors as in `encode_array`.

        Returns:
            ids, int64 (n,), and offsets, int64 (n, 2): `text[begin:end]` is the text of a token. A token with only some
            of a character's bytes covers the whole character.
        """
        ids, spans = [np.empty(0, dtype=np.int64)], [np.empty((0, 2), dtype=np.int64)]
        done = 0  # in bytes, as the spans are
        for piece, special, start in self._split_special(text) if allow_special else [(text, None, 0)]:
            size = len(utf8(piece))
            ids.append(self.encode_ordinary(piece, start) if special is None else np.array([special]))
            spans.append(done + (self.spans(piece, ids[-1]) if special is None else np.array([[0, size]])))
            done += size
        character = np.cumsum((np.frombuffer(utf8(text), dtype=np.uint8) & 0xC0) != 0x80) - 1  # index of each byte's
        begins, ends = np.concatenate(spans).T
        return np.concatenate(ids), np.stack([character[begins], character[ends - 1] + 1], axis=1)

    def _split_special(self, text: str) -> Iterator[tuple[str, int | None, int]]:
        """Splits a text at names of special tokens: (part, its id or None, offset)."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        start = 0
        for piece in regex.split("(" + "|".join(map(regex.escape, names)) + ")", text) if names else [text]:
            yield piece, self.special_tokens.get(piece), start
            start += len(piece)

    def spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The byte range (begin, end) that each id covers in a text without special tokens, int64 (n, 2)."""
        sizes = self._sizes(text, ids)
        ends = np.cumsum(sizes)
        return np.stack([ends - sizes, ends], axis=1)

    def _sizes(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The number of bytes that each id covers in the text, int64 (n,)."""
        return self.byte_lengths[ids]

    def bytes_from(self, text: str, ids: np.ndarray, first: int) -> int:
        """The number of bytes that the ids from index `first` on cover in a text without special tokens."""
        return int(self.byte_lengths[ids[first:]].sum())

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of a text, as a list. Arguments and errors as in `encode_array`."""
        return self.encode_array(text, allow_special=allow_special).tolist()

    def encode_stream(self, chunks: Iterable[str], processes: int | None = 1) -> Iterator[np.ndarray]:
        """Encodes one text that arrives in chunks, in bounded memory. The ids equal those of the whole text.

        Args:
            chunks: consecutive parts of the text
            processes: processes that encode; None for one per core
        """
        for ids in map_in_order(self.encode_packed, blocks([chunks], self.safe_cut), processes):
            yield ids.astype(np.int64)

    def encode_file(self, path: str | Path, processes: int | None = 1) -> np.ndarray:
        """The ids of a UTF-8 file, `dtype` (n,). `processes` as in `encode_stream`.

        Raises:
            MissingInputError: if the file does not exist.
            DataError: if it is not UTF-8 or cannot be encoded.
        """
        most = file_size(Path(path)) * self.most_per_byte + 1
        ids = np.empty(most, dtype=self.dtype)  # untouched pages cost no memory
        count = 0
        for part in map_in_order(self.encode_packed, self._file_blocks(Path(path)), processes):
            ids[count : count + len(part)] = part
            count += len(part)
        return ids[:count]

    def _file_blocks(self, path: Path) -> Iterator[Block]:
        return blocks([read_chunks(path)], self.safe_cut)

    def encode_packed(self, block: Block) -> np.ndarray:
        """The ids of a block as in `encode_block`, but in `dtype` (n,)."""
        return self.encode_block(block).astype(self.dtype, copy=False)

    def encode_block(self, block: Block) -> np.ndarray:
        """The ids of the texts of a block, int64 (n,), separated by `end_of_text` if there is such a token.

        Raises:
            DataError: if the text cannot be encoded.
        """
        end = np.array([] if self.end_of_text is None else [self.end_of_text], dtype=np.int64)
        parts = [self._encode_part(block.texts[0], block.start)]
        for text in block.texts[1:]:
            parts += [end, self._encode_part(text)]
        return np.concatenate(parts)

    def _encode_part(self, text: str, start: int = 0) -> np.ndarray:
        return self.encode_ordinary(text, start)

    def safe_cut(self, text: str) -> int:
        """A late position at which a text can be cut and its parts encoded independently; 0 if there is none."""
        return len(text)

    def sample(self, text: str, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """The ids of a text in a segmentation drawn at random (subword regularization), int64 (n,).

        Args:
            text: any text; names of special tokens are plain text
            alpha: for the unigram model, the power to which the probability of a segmentation is raised (Kudo 2018);
                for byte pair encoding, the probability with which a merge is left out (BPE dropout, Provilkov et al.
                2020)
            random: source of random numbers

        Raises:
            ConfigError: if the tokenizer segments each text in one way only, or alpha is out of range.
        """
        raise ConfigError(f"tokenizer: kind {self.kind} segments a text in one way only; bpe and unigram draw samples")

    @cached_property
    def fixed_ids(self) -> np.ndarray:
        """Whether each id stays unchanged in `resample`, bool (V,): special tokens and ids without bytes."""
        return self.byte_lengths == 0

    def resample(self, ids: np.ndarray, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """Segments the text of ids, none of them fixed, anew, at random as in `sample`: int64 (n,) -> (m,)."""
        return self.sample(b"".join(self.token_bytes[token] for token in ids).decode(), alpha, random)

    def normalized(self, text: str) -> str:
        """The text that decoding returns if every character is known: the text itself, unless a subclass normalizes."""
        return text

    # --- files

    @property
    def sha256(self) -> str:
        """Fingerprint of the kind and options. Tokenizers with equal fingerprints give equal ids."""
        return sha256_json(self._values())

    def _values(self) -> dict[str, Any]:
        marks = {} if self._marks is None else {"marks": [*self._marks[:2], list(self._marks.stops)]}
        origin = {} if self._origin is None else {"origin": self._origin}
        chat = {} if self._chat is None else {"chat": self._chat._asdict()}
        own = {} if self.own_class is None else {"class_path": self.own_class}
        return {"format": FORMAT, "kind": self.kind, **own, **self.options(), **marks, **origin, **chat}

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as plain values, with its fingerprint."""
        return {**self._values(), "sha256": self.sha256}

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "tokenizer") -> "Tokenizer":
        """Recreates a tokenizer from `to_dict`.

        Args:
            values: the result of `to_dict`
            source: name of the file, for error messages

        Raises:
            DataError: if the values do not describe a tokenizer, or the fingerprint does not match.
        """
        if not isinstance(values, dict) or not {"format", "kind", "sha256"} <= values.keys():
            raise DataError(f"{source}: is not a tinylm tokenizer{READABLE}")
        if values["format"] != FORMAT:
            raise DataError(f"{source}: has format {values['format']}, this version of tinylm reads format {FORMAT}")
        others = ("format", "kind", "class_path", "marks", "origin", "chat", "sha256")
        options = {name: value for name, value in values.items() if name not in others}
        own = _own_class(values["class_path"], source) if "class_path" in values else None
        try:
            tokenizer = (own or tokenizer_class(values["kind"]))(**options)
            if "marks" in values:
                tokenizer = tokenizer.with_marks(*values["marks"])
            if "origin" in values:
                tokenizer = tokenizer.with_origin(dict(values["origin"]))
            if "chat" in values:
                tokenizer = tokenizer.with_chat(Chat(**values["chat"]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: is not a tinylm tokenizer ({error})") from error
        if tokenizer.sha256 != values["sha256"]:
            raise DataError(f"{source}: is damaged (SHA-256 differs from the recorded one); save it again")
        return tokenizer

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the tokenizer to a JSON file, atomically.

        Args:
            path: the file
            overwrite: replace an earlier tokenizer

        Raises:
            CannotCreateError: if the file exists and `overwrite` is false, or it is not a tokenizer.
        """
        check_target(path, TOKENIZER_FILE, overwrite)
        write_json(path, self.to_dict())


def _own_class(class_path: str, source: str) -> type[Tokenizer]:
    """Loads the class of a tokenizer file, defined outside tinylm. The class must be trusted.

    Raises:
        ConfigError: if the class is not trusted.
        DataError: if it is not a subclass of Tokenizer.
    """
    part = Part(class_path)
    admit([part], None, source)
    found = part.load()
    if not (isinstance(found, type) and issubclass(found, Tokenizer)):
        raise DataError(f"{source}: {class_path} is not a subclass of tinylm.tokenizer.Tokenizer")
    return found


def refuse_own_class(tokenizer: Tokenizer, target: str) -> None:
    """Refuses to export a tokenizer of the user's own class: another program could not encode as it does.

    Raises:
        ConfigError: naming the class.
    """
    if tokenizer.own_class is not None:
        raise ConfigError(f"tokenizer: {tokenizer.own_class} cannot be written as {target}, which lacks its code")


def tokenizer_class(kind: str) -> type[Tokenizer]:
    """The tokenizer class of a kind.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind not in Tokenizer.kinds:
        hint = did_you_mean(kind, Tokenizer.kinds)
        raise ConfigError(f"tokenizer: no kind {kind!r}{hint or ', known are ' + ', '.join(Tokenizer.kinds)}")
    return Tokenizer.kinds[kind]
