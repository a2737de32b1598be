"""The token cache: a corpus encoded once, as memory-mapped arrays of ids that are verified each time they are opened.

A cache is a folder with one file of ids per part (`train.bin`, ...), the log probabilities of the evaluation documents
if the corpus knows them (`val.log_probs`), and `meta.json`. The folder's name contains a key: the SHA-256 of the text,
the tokenizer and the format, which together determine the ids. A changed text or tokenizer therefore gets a new cache.
A damaged cache is detected by its checksums and rebuilt. The text is streamed, so memory does not grow with the corpus.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinylm.data.corpora import NAMES, Corpus
from tinylm.data.journal import JournaledFiles
from tinylm.data.pretrained import OTHER_NAMES, VOCABULARIES, pretrained_tokenizer
from tinylm.errors import ConfigError, DataError, TinyLMError, notice
from tinylm.files import (
    atomic_folder,
    locked,
    make_folder,
    read_json,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sweep,
    write_json,
)
from tinylm.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer, load_tokenizer, tokenizer_class
from tinylm.tokenizer.base import END_OF_TEXT
from tinylm.tokenizer.fast.blocks import Block, Packer
from tinylm.workers import map_in_order

FORMAT = 2


def is_tokenizer_file(spec: str) -> bool:
    """Returns whether `data.tokenizer` names a file rather than a kind: it has a suffix, or exists."""
    return spec not in Tokenizer.kinds and (Path(spec).suffix != "" or os.path.exists(spec))  # noqa: PTH110


def resolve_tokenizer(spec: str, corpus: Corpus, cache_dir: Path) -> Tokenizer:
    """Loads or trains the tokenizer that `data.tokenizer` names.

    Args:
        spec: a kind to train on the corpus, `bpe` and `word` optionally with a vocabulary size (`bpe:2048`); the file
            of a tokenizer; or a pretrained vocabulary of `pretrained.py` (`tiktoken:gpt2`)
        corpus: the training text
        cache_dir: a trained tokenizer is saved in its `tokenizers` folder, so that all processes of a job share it

    Raises:
        ConfigError: if the kind is unknown, or has no vocabulary size but one is given.
        MissingInputError: if the file does not exist, or a vocabulary cannot be downloaded.
    """
    if is_tokenizer_file(spec):
        return load_tokenizer(spec)
    name, _, size = spec.partition(":")
    if name == "tiktoken":
        return pretrained_tokenizer(size, cache_dir)
    if name not in Tokenizer.kinds and (better := _meant(spec)):
        raise ConfigError(f"data.tokenizer: no kind {spec!r}, did you mean '{better}'?")
    kind = tokenizer_class(name)
    if size and (name not in ("bpe", "word") or not size.isdecimal()):
        raise ConfigError(f"data.tokenizer: {spec}: only bpe and word have a size, written as bpe:2048")
    options: dict[str, Any] = {"special_tokens": [END_OF_TEXT] if corpus.separated else []}
    if kind is WordTokenizer:
        options = {}  # it has its own special tokens, one of them for unknown words
    if size:
        options["vocab_size"] = int(size)
    key = sha256_json(["tokenizer", FORMAT, name, corpus.fingerprint, options])
    path = cache_dir / "tokenizers" / f"{name}-{key[:16]}.json"
    with suppress(TinyLMError):  # missing or damaged
        return load_tokenizer(path)  # without the lock, for the cache may be read-only
    with locked(path.with_suffix(".lock")):
        try:
            return load_tokenizer(path)
        except TinyLMError:
            tokenizer = _learn(kind, corpus, options)
            write_json(path, tokenizer.to_dict())
            return tokenizer


def _meant(spec: str) -> str | None:
    """The `data.tokenizer` that is written as `gpt2` or `bpe1024`; None if there is none."""
    published = spec.lower().replace("-", "")
    if published in VOCABULARIES or published in OTHER_NAMES:
        return f"tiktoken:{OTHER_NAMES.get(published, published)}"
    sized = re.fullmatch(r"(bpe|word)\W?(\d+)", spec)
    return f"{sized[1]}:{sized[2]}" if sized else None


def _learn(kind: type[Tokenizer], corpus: Corpus, options: dict[str, Any]) -> Tokenizer:
    """Trains on the training part only, except for a CharTokenizer, which needs the characters of all parts."""
    started = time.monotonic()
    if kind is CharTokenizer:
        tokenizer = kind.train_from_texts(corpus.texts(), **options)
    elif kind is BPETokenizer:
        with _bar("counting words", "B") as counting, _bar("merging", " merges") as merging:
            bars = {"counting": counting, "merging": merging}
            tokenizer = kind.train_from_streams(
                corpus.documents("train"),
                processes=None,
                progress=lambda stage, done: bars[stage].update(done - bars[stage].n),
                **options,
            )
    else:
        tokenizer = kind.train_from_streams(corpus.documents("train"), **options)
    seconds = time.monotonic() - started
    asked = options.get("vocab_size", 0)
    fewer = f": it has no more of the {asked:,} asked for" if tokenizer.vocab_size < asked else ""
    if seconds > 1 or fewer:
        notice(f"learned {tokenizer.vocab_size:,} tokens from {corpus.name} ({seconds:.1f} s){fewer}")
    return tokenizer


def _bar(description: str, unit: str) -> tqdm:
    """Makes a progress bar that appears after 2 seconds, on a terminal only."""
    return tqdm(desc=description, unit=unit, unit_scale=True, delay=2, leave=False, disable=not sys.stderr.isatty())


def open_tokens(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path) -> dict[str, np.ndarray]:
    """Opens the token ids of all parts of a corpus, encoding it first if there is no valid cache.

    Args:
        corpus: the text
        tokenizer: the tokenizer to encode it with
        cache_dir: the cache is kept in its `tokens` folder

    Returns:
        part -> memory-mapped ids, uint16 or uint32, (tokens,)

    Raises:
        DataError: if the tokenizer cannot encode the text.
        CannotCreateError: if the cache folder cannot be created.
    """
    folder = _open_folder(corpus, tokenizer, cache_dir)
    return {part: _memmap(folder / f"{part}.bin", tokenizer.dtype) for part in corpus.parts}


def open_log_probs(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path) -> dict[str, np.ndarray]:
    """Opens the log probabilities of the evaluation documents under the distribution that generated the corpus.

    Arguments and errors are those of `open_tokens`.

    Returns:
        part -> nats, float64 (documents,), for all parts except training; an empty dict if the corpus knows none
    """
    folder = _open_folder(corpus, tokenizer, cache_dir)
    return {part: np.fromfile(folder / f"{part}.log_probs") for part in _known_parts(corpus)}


def _known_parts(corpus: Corpus) -> tuple[str, ...]:
    return corpus.parts[1:] if corpus.has_floor else ()


def _open_folder(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path) -> Path:
    """Returns the folder of a valid cache, building it if necessary."""
    key = sha256_json(["tokens", FORMAT, corpus.fingerprint, tokenizer.sha256])
    family = f"{_slug(corpus.cache_name)}-{tokenizer.kind}"
    folder = cache_dir / "tokens" / f"{family}-{key[:16]}"
    if _problem(folder, corpus) is None:
        return folder  # without the lock, for the cache may be read-only
    make_folder(folder.parent)
    with locked(folder.with_name(folder.name + ".lock")):
        problem = _problem(folder, corpus)
        if problem:
            stale = [other for other in folder.parent.glob(f"{family}-*") if other.is_dir() and other != folder]
            if problem == "missing" and stale:
                problem = "from an earlier text, split or tokenizer"
            if problem != "missing":
                notice(f"the token cache of {corpus.name} is {problem}: encoding again")
            sweep(folder.parent)
            _build(folder, corpus, tokenizer)
    return folder


def _memmap(path: Path, dtype: np.dtype) -> np.ndarray:
    """Memory-maps a file. (An empty file cannot be mapped.)"""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _slug(name: str) -> str:
    """Makes a file name from a corpus's name; paths get a digest, since different ones may share a stem."""
    if name in NAMES:
        return name
    whole = name if "://" in name else str(Path(name).absolute())
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', Path(name).stem)[:40]}-{sha256_bytes(whole.encode('utf-8', 'replace'))[:8]}"


def _problem(folder: Path, corpus: Corpus) -> str | None:
    """Returns `missing`, `damaged`, or None if the cache is valid."""
    if not folder.is_dir():
        return "missing"
    try:
        recorded = read_json(folder / "meta.json")["sha256"]
        good = all(recorded[name] == sha256_file(folder / name) for name in _file_names(corpus))
    except (OSError, DataError, KeyError, TypeError):
        good = False
    return None if good else "damaged"


def _file_names(corpus: Corpus) -> list[str]:
    return [f"{part}.bin" for part in corpus.parts] + [f"{part}.log_probs" for part in _known_parts(corpus)]


def _build(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Encodes all parts into a new cache folder, atomically; continues where a killed process stopped."""
    started = time.monotonic()
    with atomic_folder(folder, resumable=True) as new, closing(JournaledFiles(new, _file_names(corpus))) as files:
        if files.entries:
            notice(f"{corpus.name}: {sum(files.sizes.values()) / 1e6:,.0f} MB of tokens already encoded: continuing")
        being_encoded: deque[tuple[str, list[float]]] = deque()

        def blocks() -> Iterator[Block]:
            for part, block, log_probs in islice(_blocks(corpus, tokenizer), files.entries, None):
                being_encoded.append((part, log_probs))
                yield block

        with _bar(f"encoding {corpus.name}", " tokens") as bar:
            for ids in map_in_order(tokenizer.encode_packed, blocks(), processes=None, alone=8):
                part, log_probs = being_encoded.popleft()
                known = {f"{part}.log_probs": np.array(log_probs).tobytes()} if log_probs else {}
                files.add({f"{part}.bin": ids.tobytes()} | known)
                bar.update(len(ids))
        files.finish()
        counts = {part: files.sizes[f"{part}.bin"] // tokenizer.dtype.itemsize for part in corpus.parts}
        checksums = {name: sha256_file(new / name) for name in files.sizes}
        write_json(new / "meta.json", {"format": FORMAT, "corpus": corpus.name, "tokens": counts, "sha256": checksums})
    seconds = time.monotonic() - started
    sizes = ", ".join(f"{count:,} {part}" for part, count in counts.items())
    notice(f"encoded {corpus.name} into tokens: {sizes} ({seconds:.1f} s)")


def _blocks(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[tuple[str, Block, list[float]]]:
    """Yields (part, block, log probabilities of the documents added since that part's last block).

    The order is always the same, so that an interrupted build can be continued.
    """
    packers = {part: Packer(tokenizer.safe_cut) for part in corpus.parts}
    log_probs: dict[str, list[float]] = {part: [] for part in corpus.parts}

    def packed(part: str, blocks: Iterable[Block]) -> Iterator[tuple[str, Block, list[float]]]:
        for block in blocks:
            yield part, block, log_probs[part]
            log_probs[part] = []

    for part, document in corpus.items():
        if part in _known_parts(corpus):
            document = ["".join(document)]
            log_probs[part].append(corpus.log_prob(document[0]))
        yield from packed(part, packers[part].add(document))
    for part in corpus.parts:
        yield from packed(part, packers[part].rest(end=corpus.separated))
