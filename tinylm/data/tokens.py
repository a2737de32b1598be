"""The token cache: a corpus encoded once, as memory-mapped arrays of ids that are verified each time they are opened.

A cache is a folder of shards with an index (`shard_index.py`). The folder's name contains a key: the SHA-256 of the
text, the tokenizer and the format, which together determine the ids. A changed text or tokenizer therefore gets a new
cache. Damaged shards are detected and built again. The text is streamed, so memory does not grow with the corpus.
"""

import inspect
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.data.corpora import NAMES, Corpus
from tinylm.data.pretrained import OTHER_NAMES, VOCABULARIES, pretrained_tokenizer
from tinylm.data.shard_builder import new_index, parts_with_log_probs
from tinylm.data.shard_folder import complete_folder, examine
from tinylm.data.shard_index import FORMAT, ShardIndex, Tokens, open_parts, read_log_probs
from tinylm.errors import ConfigError, DataError, TinyLMError, did_you_mean, notice
from tinylm.files import locked, make_folder, sha256_bytes, sha256_json, sweep, write_json
from tinylm.plugins import Part, describe
from tinylm.progress import learning
from tinylm.tokenizer import (
    CharTokenizer,
    Tokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    load_tokenizer,
    tokenizer_class,
)
from tinylm.tokenizer.base import END_OF_TEXT
from tinylm.tokenizer.learned import VOCAB_SIZE, LearnedTokenizer
from tinylm.tokenizer.wordpiece import UNKNOWN_PIECE

TOKENIZER_FORMAT = 2


def is_tokenizer_file(spec: str) -> bool:
    """Returns whether `data.tokenizer` names a file rather than a kind: it has a suffix, or exists."""
    return spec not in Tokenizer.kinds and (Path(spec).suffix != "" or os.path.exists(spec))  # noqa: PTH110


def own_tokenizer(part: Part) -> Tokenizer | None:
    """The tokenizer of a plug-in; None for a class to be trained, whose arguments `init_args` does not complete."""
    found = part.load("data.tokenizer")
    if isinstance(found, type) and issubclass(found, Tokenizer):
        arguments = inspect.signature(found).parameters.values()
        named = [each for each in arguments if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        if any(each.default is each.empty and each.name not in part.init_args for each in named):
            return None
    made = part.make(field="data.tokenizer")
    if not isinstance(made, Tokenizer):
        kind = type(made).__name__
        raise ConfigError(f"data.tokenizer: {part} gives {kind}, which is not a subclass of tinylm.tokenizer.Tokenizer")
    return made


def resolve_tokenizer(spec: str | Part, corpus: Corpus, cache_dir: Path) -> Tokenizer:
    """Loads or trains the tokenizer that `data.tokenizer` names.

    Args:
        spec: a kind to train on the corpus, most of them optionally with a vocabulary size (`bpe:2048`); the file
            of a tokenizer; a pretrained vocabulary of `pretrained.py` (`tiktoken:gpt2`); or a plug-in, a class to train
        corpus: the training text
        cache_dir: a trained tokenizer is saved in its `tokenizers` folder, so that all processes of a job share it

    Raises:
        ConfigError: if the kind is unknown, or a vocabulary size is given for a kind without one.
        MissingInputError: if the file does not exist, or a vocabulary cannot be downloaded.
    """
    if isinstance(spec, Part):
        name, kind, options = spec.class_path.rpartition(".")[2], spec.load(), _own_options(spec, corpus)
        key = sha256_json(["tokenizer", TOKENIZER_FORMAT, *describe([spec]), corpus.fingerprint, options])
    elif is_tokenizer_file(spec):
        return load_tokenizer(spec)
    elif spec.partition(":")[0] == "tiktoken":
        return pretrained_tokenizer(spec.partition(":")[2], cache_dir)
    else:
        name, kind, options = _kind_to_train(spec, corpus)
        key = sha256_json(["tokenizer", TOKENIZER_FORMAT, name, corpus.fingerprint, options])
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


def _kind_to_train(spec: str, corpus: Corpus) -> tuple[str, type[Tokenizer], dict[str, Any]]:
    """The name and class of a kind such as `bpe:2048`, and the options of its training; errors as above."""
    name, _, size = spec.partition(":")
    if name not in Tokenizer.kinds and (better := _meant(spec)):
        raise ConfigError(f"data.tokenizer: no kind {spec!r}, did you mean '{better}'?")
    kind = tokenizer_class(name)
    if size and not (kind.has_size and size.isdecimal()):
        raise ConfigError(f"data.tokenizer: {spec}: only {', '.join(_sized())} have a size, written as bpe:2048")
    options: dict[str, Any] = _special_tokens(corpus)
    if kind is WordTokenizer:
        options = {}  # it has its own special tokens, one of them for unknown words
    elif kind is WordPieceTokenizer:  # a character may be missing from the training split
        options["special_tokens"] = [UNKNOWN_PIECE, *options["special_tokens"]]
    if size:
        options["vocab_size"] = int(size)
    return name, kind, options


def _special_tokens(corpus: Corpus) -> dict[str, Any]:
    return {"special_tokens": [END_OF_TEXT] if corpus.separated else []}


def _own_options(part: Part, corpus: Corpus) -> dict[str, Any]:
    """The arguments with which a plug-in is trained: `init_args`, and the special tokens if it takes them.

    Raises:
        ConfigError: for an argument that it does not take.
    """
    known = inspect.signature(part.load().train_from_streams).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in known.values())
    names = [*known][1:]
    for name in part.init_args:
        if not free and name not in names:
            hint = did_you_mean(name, names) or f"; it is trained with {', '.join(names) or 'no options'}"
            raise ConfigError(f"data.tokenizer: {part}: init_args: no argument {name}{hint}")
    special = _special_tokens(corpus) if free or "special_tokens" in names else {}
    return special | part.init_args


def _meant(spec: str) -> str | None:
    """The value of `data.tokenizer` probably meant by `gpt2` or `bpe1024`; None if there is none."""
    published = spec.lower().replace("-", "")
    if published in VOCABULARIES or published in OTHER_NAMES:
        return f"tiktoken:{OTHER_NAMES.get(published, published)}"
    sized = re.fullmatch(rf"({'|'.join(_sized())})\W?(\d+)", spec)
    return f"{sized[1]}:{sized[2]}" if sized else None


def _sized() -> list[str]:
    """The kinds that have a size."""
    return sorted(name for name, kind in Tokenizer.kinds.items() if kind.has_size)


def _learn(kind: type[Tokenizer], corpus: Corpus, options: dict[str, Any]) -> Tokenizer:
    """Trains on the training part only, except for a CharTokenizer, which needs the characters of all parts."""
    started = time.monotonic()
    if kind is CharTokenizer:
        with corpus.reading("characters of"):
            tokenizer = kind.train_from_texts(corpus.texts(), **options)
    else:
        pieces = options.get("vocab_size", VOCAB_SIZE) - 256 - len(options.get("special_tokens", ()))
        with corpus.reading("counting words of", "train") as counting, learning(counting, pieces) as progress:
            more = {"processes": None, "progress": progress} if issubclass(kind, LearnedTokenizer) else {}
            tokenizer = kind.train_from_streams(corpus.documents("train"), **options, **more)
    seconds = time.monotonic() - started
    asked = options.get("vocab_size", 0)
    fewer = f": the text has no more ({asked:,} were requested)" if tokenizer.vocab_size < asked else ""
    if seconds > 1 or fewer:
        notice(f"learned {tokenizer.vocab_size:,} tokens from {corpus.name} ({seconds:.1f} s){fewer}")
    return tokenizer


def open_tokens(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path) -> dict[str, Tokens]:
    """Opens the token ids of all parts of a corpus, encoding it first if there is no valid cache.

    Args:
        corpus: the text
        tokenizer: the tokenizer to encode it with
        cache_dir: the cache is kept in its `tokens` folder

    Returns:
        part -> memory-mapped ids, uint16 or uint32, (tokens,); a TokenArray where they fill several shards

    Raises:
        DataError: if the tokenizer cannot encode the text.
        CannotCreateError: if the cache folder cannot be created.
    """
    return open_parts(*open_cache(corpus, tokenizer, cache_dir))


def open_log_probs(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path) -> dict[str, np.ndarray]:
    """Opens the log probabilities of the evaluation documents under the distribution that generated the corpus.

    Arguments and errors are those of `open_tokens`.

    Returns:
        part -> nats, float64 (documents,), for all parts except training; an empty dict if the corpus does not know
        them
    """
    known = parts_with_log_probs(corpus)
    found = read_log_probs(*open_cache(corpus, tokenizer, cache_dir)) if known else {}
    return {part: found.get(part, np.empty(0)) for part in known}


def open_cache(
    corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path, full: bool | None = None, processes: int | None = None
) -> tuple[Path, ShardIndex]:
    """The folder of a valid cache and its index, built if necessary.

    Arguments and errors are those of `open_tokens`, and two more.

    Args:
        corpus: the text
        tokenizer: encodes it
        cache_dir: as in `open_tokens`
        full: whether to compare every shard's SHA-256, as in `ShardIndex.damaged`
        processes: processes that encode; None for one per core
    """
    key = sha256_json(["tokens", FORMAT, corpus.fingerprint, tokenizer.sha256])
    family = f"{_slug(corpus.cache_name)}-{tokenizer.kind}"
    folder = cache_dir / "tokens" / f"{family}-{key[:16]}"
    whole = new_index(corpus, tokenizer)
    index, problem = examine(folder, whole, full)
    if problem is None:
        return folder, index  # without the lock, for the cache may be read-only
    make_folder(folder.parent)
    with locked(folder.with_name(folder.name + ".lock")):
        index, problem = examine(folder, whole, full)
        if problem is None:
            return folder, index
        stale = [other for other in folder.parent.glob(f"{family}-*") if other.is_dir() and other != folder]
        if problem == "missing" and stale:
            problem = "from an earlier text, split or tokenizer: encoding again"
        if problem != "missing":
            notice(f"the token cache of {corpus.name} is {problem}")
        sweep(make_folder(folder), older_than=0)  # of a killed process
        try:
            return folder, complete_folder(folder, corpus, tokenizer, index, processes=processes)
        except DataError:  # the text cannot be encoded
            if not index.shards:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _slug(name: str) -> str:
    """Makes a file name from a corpus's name; paths get a digest, since different paths may share a stem."""
    if name in NAMES:
        return name
    whole = name if "://" in name else str(Path(name).absolute())
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', Path(name).stem)[:40]}-{sha256_bytes(whole.encode('utf-8', 'replace'))[:8]}"
