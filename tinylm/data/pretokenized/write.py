"""Writes token ids as nanoGPT, llm.c and Megatron read them, with the tokenizer and a list of the files."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tinylm.data.pretokenized import llmc, megatron, nanogpt
from tinylm.data.token_array import TokenArray
from tinylm.errors import ConfigError, DataError
from tinylm.files import atomic_folder, read_json, sha256_file, write_json
from tinylm.locate import TOKENIZER
from tinylm.targets import FolderKind, check_target
from tinylm.tokenizer import Tokenizer

FORMATS = ("nanogpt", "llmc", "megatron")
SHARD_TOKENS = 100_000_000  # as in modded-nanogpt
LIST, SIGN = "shards.json", rb'\{\s*"written_by": "tinylm prepare shards"'
BLOCK = 1 << 22  # ids
LONGEST = (1 << 31) - 1  # longest sequence of Megatron's: its length is an int32


def check_shard_target(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that exists, unless it holds shards of an earlier call that may be replaced."""
    names = {LIST, TOKENIZER, nanogpt.META}
    try:
        names |= set(read_json(folder / LIST)["sha256"])
    except (OSError, DataError, KeyError, TypeError):
        names = {LIST}  # none that is ours
    check_target(folder, FolderKind("a folder of shards", frozenset(names), LIST, SIGN), overwrite)


def check_vocabulary(form: str, vocab_size: int) -> None:
    """Refuses a vocabulary that a format cannot express; ConfigError."""
    if form == "nanogpt" and vocab_size > 1 << 16:
        raise ConfigError(
            f"--to nanogpt: the ids of {vocab_size:,} tokens do not fit into its 16 bits; use llmc or megatron"
        )


def write_pretokenized(
    form: str,
    parts: Mapping[str, np.ndarray | TokenArray],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, int]:
    """Writes token ids into a new folder, which appears only when it is complete.

    Beside the ids it holds `tokenizer.tinylm.json` and `shards.json`, the list of the files with their checksums.

    Args:
        form: one of `FORMATS`
        parts: part -> ids
        tokenizer: the tokenizer of the ids
        folder: the folder
        shard_tokens: of llmc: the most ids in a file
        overwrite: whether shards of an earlier call may be replaced
        progress: called with the number of ids of each block that was written

    Returns:
        file name -> number of ids

    Raises:
        CannotCreateError: if the folder exists and is not to be replaced.
        ConfigError: if the ids do not fit into the format.
        DataError: if a part is empty.
    """
    check_shard_target(folder, overwrite)
    check_vocabulary(form, tokenizer.vocab_size)
    for part, ids in parts.items():
        if not len(ids):
            raise DataError(f"the part {part} has no tokens; give it more of --split")
    with atomic_folder(folder) as new:
        write = _Writer(new, tokenizer, progress)
        if form == "nanogpt":
            counts = write.nanogpt(parts)
        elif form == "llmc":
            counts = write.llmc(parts, shard_tokens, folder.resolve().name)
        else:
            counts = write.megatron(parts)
        tokenizer.save(new / TOKENIZER)
        sums = {path.name: sha256_file(path) for path in sorted(new.iterdir()) if path.suffix in (".bin", ".idx")}
        described = {"written_by": "tinylm prepare shards", "format": form, "tokens": counts, "sha256": sums}
        write_json(new / LIST, described)
    return counts


class _Writer:
    def __init__(self, folder: Path, tokenizer: Tokenizer, progress: Callable[[int], object]) -> None:
        self.folder, self.tokenizer, self.progress = folder, tokenizer, progress

    def _write(self, name: str, ids: np.ndarray | TokenArray, dtype: np.dtype, header: bytes = b"") -> int:
        with (self.folder / name).open("wb") as file:
            file.write(header)
            for _, block in _blocks(ids):
                file.write(block.astype(dtype).tobytes())
                self.progress(len(block))
        return len(ids)

    def nanogpt(self, parts: Mapping[str, np.ndarray | TokenArray]) -> dict[str, int]:
        """train.bin and val.bin, and a meta.pkl unless the vocabulary is GPT-2's, which nanoGPT assumes without one."""
        if self.tokenizer.vocab_size != 50257:
            (self.folder / nanogpt.META).write_bytes(nanogpt.meta_bytes(self.tokenizer))
        return {f"{part}.bin": self._write(f"{part}.bin", ids, nanogpt.ID) for part, ids in parts.items()}

    def llmc(self, parts: Mapping[str, np.ndarray | TokenArray], shard_tokens: int, stem: str) -> dict[str, int]:
        """Files of at most `shard_tokens` ids, numbered in each part."""
        counts = {}
        for part, ids in parts.items():
            for number, first in enumerate(range(0, len(ids), shard_tokens)):
                piece, name = ids[first : first + shard_tokens], f"{stem}_{part}_{number:06}.bin"
                header, dtype = llmc.header_bytes(len(piece), self.tokenizer.vocab_size)
                counts[name] = self._write(name, piece, dtype, header)
        return counts

    def megatron(self, parts: Mapping[str, np.ndarray | TokenArray]) -> dict[str, int]:
        """A .bin and an .idx file of each part; a document is a sequence that ends with the end-of-text token."""
        dtype, counts = megatron.id_type(self.tokenizer.vocab_size), {}
        for part, ids in parts.items():
            counts[f"{part}.bin"] = self._write(f"{part}.bin", ids, dtype)
            with (self.folder / f"{part}.idx").open("wb") as file:
                for block in megatron.index_blocks(_lengths(ids, self.tokenizer.end_of_text), dtype):
                    file.write(block)
        return counts


def _blocks(ids: np.ndarray | TokenArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (position, ids) of consecutive blocks."""
    for first in range(0, len(ids), BLOCK):
        yield first, np.asarray(ids[first : first + BLOCK])


def _lengths(ids: np.ndarray | TokenArray, end: int | None) -> np.ndarray:
    """Ids of each document, its end-of-text token included, int64 (documents,)."""
    found = [] if end is None else [first + 1 + np.flatnonzero(block == end) for first, block in _blocks(ids)]
    stops = np.concatenate([*found, [len(ids)]]).astype(np.int64)
    lengths = np.diff(stops[: -1 if len(stops) > 1 and stops[-2] == len(ids) else None], prepend=0)
    if lengths.max() > LONGEST:
        raise ConfigError(f"--to megatron: a document of {lengths.max():,} tokens is longer than its {LONGEST:,}")
    return lengths
