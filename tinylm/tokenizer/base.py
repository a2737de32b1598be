"""The contract that every tokenizer keeps: text -> ids -> the same text.

A tokenizer is a table of byte strings, one for each id, and a way to cut a text into them. So decoding is the same for
all (join the bytes, read them as UTF-8) and lives here; cutting is what the subclasses are about. Special tokens, such
as `<|endoftext|>`, have ids but are never found in text unless it is asked for: what a user types stays plain text.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import regex

from tinylm.errors import ConfigError, DataError, did_you_mean, notice
from tinylm.files import decode, file_size, read_chunks, read_json, read_range, sha256_json, write_json
from tinylm.workers import map_in_order

FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
READABLE = ", nor a tokenizer.json; a folder with vocab.json and merges.txt, or a .tiktoken file, can be read too"


SEPARATOR = b"\xff"  # between two texts: no UTF-8 has this byte
BLOCK = 1 << 20  # characters that are encoded at once: little memory, and the work for a call does not count


class Block:
    """A part of a corpus that can be encoded by itself: some texts, between which documents end.

    Args:
        texts: the first may be the rest of a document, the last its beginning
        start: where the first one begins in its document, in characters, for positions in errors
    """

    def __init__(self, texts: list[str], start: int = 0) -> None:
        self.__dict__["texts"] = texts
        self.start = start

    @cached_property
    def data(self) -> bytes:
        """The texts as UTF-8, with `SEPARATOR` between them.

        Raises:
            DataError: for a lone surrogate.
        """
        return SEPARATOR.join(map(utf8, self.texts))

    @cached_property
    def texts(self) -> list[str]:
        """The texts, decoded when they are wanted where the block comes from another process."""
        return [text.decode() for text in self.data.split(SEPARATOR)]

    def __reduce__(self) -> tuple[Callable, tuple]:
        try:
            return Block._of_data, (self.data, self.start)
        except DataError:
            return Block, (self.texts, self.start)

    @staticmethod
    def _of_data(data: bytes, start: int) -> "Block":
        block = Block.__new__(Block)
        block.__dict__["data"], block.start = data, start
        return block


class FileBlock(Block):
    """A block that is a part of a UTF-8 file, read by the process that encodes it.

    Args:
        path: the file
        begin: where the part begins in it, in bytes
        end: where it ends
    """

    def __init__(self, path: Path, begin: int, end: int) -> None:
        self.path, self.begin, self.end, self.start = path, begin, end, begin

    @cached_property
    def data(self) -> bytes:
        """As `Block`.

        Raises:
            DataError: if it is not UTF-8, with the place.
        """
        data = read_range(self.path, self.begin, self.end)
        decode(data, self.path, self.begin)
        return data

    def __reduce__(self) -> tuple[Callable, tuple]:
        return FileBlock, (self.path, self.begin, self.end)


def file_blocks(path: Path, safe_cut: Callable[[str], int]) -> Iterator[Block]:
    """The blocks of a file, of which hardly anything is read yet: they end before a space, if there is one.

    Raises:
        MissingInputError: if there is no such file.
    """
    size, begin, length = file_size(path), 0, BLOCK
    if not safe_cut("a a"):  # nothing is known of where this text can be cut
        length = max(size, 1)
    while begin + length < size:
        end = begin + length
        tail = read_range(path, max(begin, end - 4096), end)
        cut = max((found.start() + 1 for found in regex.finditer(rb"[!-~](?= )", tail)), default=0)
        if cut:
            end -= len(tail) - cut
        else:
            text = read_range(path, begin, end).decode(errors="ignore")
            end = begin + len(text[: safe_cut(text)].encode())
        if end > begin:
            yield FileBlock(path, begin, end)
        begin, length = end, BLOCK if end > begin else 2 * length
    if begin < size:
        yield FileBlock(path, begin, size)


class Packer:
    """Cuts documents, or packs them together, into blocks of about a megabyte.

    Args:
        safe_cut: where a text may be cut, as `Tokenizer.safe_cut`
    """

    def __init__(self, safe_cut: Callable[[str], int]) -> None:
        self._safe_cut = safe_cut
        self._texts: list[str] = []  # documents that have ended
        self._parts: list[str] = []  # chunks of the one that has not
        self._start = self._next_start = 0  # of the first text, and of `_parts`, in their documents
        self._held, self._enough = 0, BLOCK  # characters

    def add(self, document: Iterable[str]) -> Iterator[Block]:
        """Takes a document, in chunks; gives the blocks that become full."""
        if self._held >= self._enough:
            yield from self.rest(end=True)
        for chunk in document:
            for begin in range(0, len(chunk), BLOCK):
                self._parts.append(chunk[begin : begin + BLOCK])
                self._held += len(self._parts[-1])
                if self._held >= self._enough:
                    yield from self._cut()
        self._texts.append("".join(self._parts))
        self._parts, self._next_start = [], 0

    def rest(self, end: bool) -> Iterator[Block]:
        """The last block; with `end` the last document's end is in it."""
        if self._texts:
            yield Block([*self._texts, ""] if end else self._texts, self._start)
        self._texts, self._start, self._held, self._enough = [], 0, 0, BLOCK

    def _cut(self) -> Iterator[Block]:
        text = "".join(self._parts)
        cut = self._safe_cut(text)
        if cut or self._texts:
            yield Block([*self._texts, text[:cut]], self._start)
            self._texts, text = [], text[cut:]
            self._start = self._next_start = self._next_start + cut
        self._parts, self._held = [text], len(text)
        self._enough = max(BLOCK, 2 * len(text))  # where there is no place to cut, it is looked for now and then only


def blocks(documents: Iterable[Iterable[str]], safe_cut: Callable[[str], int]) -> Iterator[Block]:
    """The blocks of some documents, each in chunks; the last one's end is not in them."""
    packer = Packer(safe_cut)
    for document in documents:
        yield from packer.add(document)
    yield from packer.rest(end=False)


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        kind: the name of the subclass in files and in YAML
        token_bytes: the UTF-8 bytes of each id; those of a special token are its name
        special_tokens: name -> id
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type["Tokenizer"]]] = {}

    def __init__(self, token_bytes: list[bytes], special_tokens: Sequence[str] = ()) -> None:
        self.special_tokens = {name: len(token_bytes) + i for i, name in enumerate(special_tokens)}
        if len(self.special_tokens) != len(special_tokens) or "" in self.special_tokens:
            raise ConfigError(f"special_tokens must be different and not empty, got {list(special_tokens)}")
        self.token_bytes = token_bytes + [utf8(name) for name in special_tokens]

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.kind] = cls

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, special_tokens={list(self.special_tokens)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.token_bytes)

    @property
    def dtype(self) -> np.dtype:
        """The smallest numbers for the ids: uint16 or uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, or None where the tokenizer has none."""
        return self.special_tokens.get(END_OF_TEXT)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of raw text behind each id, int64 (V,): 0 for special tokens, which stand for no text."""
        lengths = np.array([len(piece) for piece in self.token_bytes], dtype=np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    # --- text -> ids

    @classmethod
    @abstractmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], **options: Any) -> Self:
        """A tokenizer whose vocabulary comes from these texts, each of which arrives in chunks."""

    @classmethod
    def train_from_texts(cls, texts: Iterable[str], **options: Any) -> Self:
        """A tokenizer whose vocabulary comes from these texts. Options and errors as `train_from_streams`'s."""
        return cls.train_from_streams(([text] for text in texts), **options)

    @classmethod
    def train(cls, paths: Iterable[str | Path], **options: Any) -> Self:
        """A tokenizer whose vocabulary comes from these UTF-8 files, read in bounded memory.

        Raises:
            MissingInputError: if a file is not there.
            DataError: if one is not UTF-8.
        """
        return cls.train_from_streams((read_chunks(Path(path)) for path in paths), **options)

    @abstractmethod
    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text as int64 (n,), special tokens read as plain text.

        Args:
            text: any text
            start: where it begins in a longer one, in characters, for positions in errors

        Raises:
            DataError: for text that the tokenizer has no ids for.
        """

    def encode_array(self, text: str, *, allow_special: bool = False) -> np.ndarray:
        """The ids of a text, int64 (n,).

        Args:
            text: any text
            allow_special: whether the names of special tokens in it become their ids

        Raises:
            DataError: for text that the tokenizer has no ids for, with the place.
        """
        if not allow_special or not self.special_tokens:
            return self.encode_ordinary(text)
        parts = [np.empty(0, dtype=np.int64)]
        for piece, special, start in self._split_special(text):
            parts.append(self.encode_ordinary(piece, start) if special is None else np.array([special]))
        return np.concatenate(parts)

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text and which of its characters each stands for. Arguments and errors as `encode_array`'s.

        Returns:
            ids, int64 (n,), and offsets, int64 (n, 2): `text[begin:end]` holds the token's characters. A token that is
            a part of a character's bytes has the whole character.
        """
        ids, sizes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for piece, special, start in self._split_special(text) if allow_special else [(text, None, 0)]:
            ids.append(self.encode_ordinary(piece, start) if special is None else np.array([special]))
            sizes.append(self._sizes(piece, ids[-1]) if special is None else np.array([len(utf8(piece))]))
        ends = np.cumsum(np.concatenate(sizes))
        character = np.cumsum((np.frombuffer(utf8(text), dtype=np.uint8) & 0xC0) != 0x80) - 1  # that a byte belongs to
        begins = character[ends - np.concatenate(sizes)]
        return np.concatenate(ids), np.stack([begins, character[ends - 1] + 1], axis=1)

    def _split_special(self, text: str) -> Iterator[tuple[str, int | None, int]]:
        """The parts of a text that are, and that are not, special tokens' names: (part, id or None, where)."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        start = 0
        for piece in regex.split("(" + "|".join(map(regex.escape, names)) + ")", text) if names else [text]:
            yield piece, self.special_tokens.get(piece), start
            start += len(piece)

    def _sizes(self, text: str, ids: np.ndarray) -> np.ndarray:
        """How many bytes of a text each of its ids stands for, int64 (n,)."""
        return self.byte_lengths[ids]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of a text, as a list. Arguments and errors as `encode_array`'s."""
        return self.encode_array(text, allow_special=allow_special).tolist()

    def encode_stream(self, chunks: Iterable[str], processes: int | None = 1) -> Iterator[np.ndarray]:
        """The ids of one text that arrives in chunks; the same as of the whole, in bounded memory.

        Args:
            chunks: of the text
            processes: as in `map_in_order`: how many encode, None for one on each core
        """
        for ids in map_in_order(self.encode_packed, blocks([chunks], self.safe_cut), processes):
            yield ids.astype(np.int64)

    def encode_file(self, path: str | Path, processes: int | None = 1) -> np.ndarray:
        """The ids of a UTF-8 file, `dtype` (n,). Processes as in `encode_stream`.

        Raises:
            MissingInputError: if the file is not there.
            DataError: if it is not UTF-8, or the tokenizer has no ids for it.
        """
        ids = map_in_order(self.encode_packed, file_blocks(Path(path), self.safe_cut), processes)
        return np.concatenate([np.empty(0, dtype=self.dtype), *ids])

    def encode_packed(self, block: Block) -> np.ndarray:
        """As `encode_block`, in the `dtype` in which ids are stored."""
        return self.encode_block(block).astype(self.dtype)

    def encode_block(self, block: Block) -> np.ndarray:
        """The ids of texts, one after the other, with `end_of_text` between them if there is such a token, int64 (n,).

        Raises:
            DataError: for text that the tokenizer has no ids for.
        """
        end = np.array([] if self.end_of_text is None else [self.end_of_text], dtype=np.int64)
        parts = [self.encode_ordinary(block.texts[0], block.start)]
        for text in block.texts[1:]:
            parts += [end, self.encode_ordinary(text)]
        return np.concatenate(parts)

    def safe_cut(self, text: str) -> int:
        """A late place where a text can be cut and its parts encoded by themselves, whatever follows; 0 for none."""
        return len(text)

    # --- ids -> text

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of ids.

        Args:
            ids: token ids, also as an array or a tensor
            errors: what to do with bytes that are not UTF-8, as in `bytes.decode`

        Raises:
            DataError: for an id outside the vocabulary; for bad UTF-8 if errors is "strict".
        """
        try:
            return b"".join(self._bytes(i) for i in ids).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise DataError(f"these tokens are not UTF-8 ({error.reason} at byte {error.start})") from error

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids piece by piece, as they come; never half a character. The pieces join to `decode(ids)`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            if piece := decoder.decode(self._bytes(i)):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _bytes(self, token: int) -> bytes:
        token = int(token)
        if not 0 <= token < self.vocab_size:
            raise DataError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self.token_bytes[token]

    # --- files

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What `__init__` needs to make this tokenizer again, as plain values."""

    @property
    def sha256(self) -> str:
        """A fingerprint: equal exactly for tokenizers that give the same ids."""
        return sha256_json({"format": FORMAT, "kind": self.kind, **self.options()})

    def to_dict(self) -> dict[str, Any]:
        """Everything about the tokenizer as plain values, with its fingerprint."""
        return {"format": FORMAT, "kind": self.kind, **self.options(), "sha256": self.sha256}

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "tokenizer") -> "Tokenizer":
        """The tokenizer that `to_dict` described.

        Args:
            values: what `to_dict` gave
            source: the file's name, for error messages

        Raises:
            DataError: if the values are no tokenizer's, or not those that were saved.
        """
        if not isinstance(values, dict) or not {"format", "kind", "sha256"} <= values.keys():
            raise DataError(f"{source}: is not a tinylm tokenizer{READABLE}")
        if values["format"] != FORMAT:
            raise DataError(f"{source}: has format {values['format']}, this tinylm reads format {FORMAT}")
        options = {name: value for name, value in values.items() if name not in ("format", "kind", "sha256")}
        try:
            tokenizer = tokenizer_class(values["kind"])(**options)
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{source}: is not a tinylm tokenizer ({error})") from error
        if tokenizer.sha256 != values["sha256"]:
            raise DataError(f"{source}: is damaged (SHA-256 differs from the recorded one); save it again")
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to one JSON file, atomically."""
        write_json(path, self.to_dict())


def tokenizer_class(kind: str) -> type[Tokenizer]:
    """The tokenizer class of a kind's name.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind not in Tokenizer.kinds:
        hint = did_you_mean(kind, Tokenizer.kinds)
        raise ConfigError(f"tokenizer: no kind {kind!r}{hint or ', known are ' + ', '.join(Tokenizer.kinds)}")
    return Tokenizer.kinds[kind]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a tokenizer from whatever holds one.

    That is a file of `Tokenizer.save`; Hugging Face's tokenizer.json; tiktoken's ranks, if the name ends in .tiktoken;
    a folder with one of the first two (the former as tokenizer.tinylm.json), or with GPT-2's vocab.json and merges.txt.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is damaged or something else.
    """
    from tinylm.tokenizer import formats  # it knows all tokenizers, which know this file

    path = Path(path)
    if path.is_dir():
        return formats.read_folder(path)
    if path.suffix == ".tiktoken":
        notice(f"{path} does not say how it cuts words: taking gpt2's way; read_tiktoken takes another pattern")
        return formats.read_tiktoken(path)
    values = read_json(formats.require(path))
    if formats.is_tokenizer_json(values):
        return formats.from_tokenizer_json(values, source=str(path))
    return Tokenizer.from_dict(values, source=str(path))


def utf8(text: str, errors: str = "strict") -> bytes:
    """The UTF-8 bytes of a text; `errors` as in `str.encode`.

    Raises:
        DataError: for a lone surrogate, which is half a character and has no UTF-8 form.
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; "
            f"remove it or decode the source with errors='replace'"
        ) from error
