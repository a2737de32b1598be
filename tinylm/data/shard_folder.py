"""Folders of token shards: completed where something is missing, joined from several processes, opened to train on."""

import contextlib
import time
from pathlib import Path

from tinylm.data.corpora import Corpus
from tinylm.data.shard_builder import Share, build_shards, new_index
from tinylm.data.shard_index import INDEX, ShardIndex, Tokens, index_files, open_parts, read_folder
from tinylm.errors import CannotCreateError, DataError, notice
from tinylm.files import TEMPORARY, make_folder, sweep
from tinylm.locate import TOKENIZER, command
from tinylm.tokenizer import Tokenizer, load_tokenizer


def examine(folder: Path, whole: ShardIndex, full: bool | None = None) -> tuple[ShardIndex, str | None]:
    """The index of a folder without its damaged shards, and what is wrong with the folder.

    Args:
        folder: the folder, which need not exist
        whole: an index of the expected source without shards, returned if there is no other
        full: whether to compare every shard's SHA-256, as in `ShardIndex.damaged`; always done if shards are missing

    Returns:
        the index; and `missing`, `unfinished`, `damaged: ...` or None if all is well
    """
    if not index_files(folder):
        return whole, "damaged: encoding again" if any(folder.glob("*.bin")) else "missing"
    try:
        index = read_folder(folder)
    except DataError:
        return whole, "damaged: encoding again"
    if index.source != whole.source:
        return whole, "damaged: encoding again"
    complete = index.complete
    damaged = index.damaged(folder, full if complete else True)
    if damaged:
        count, first = len(index.shards), damaged[0].file
        for key in damaged:
            del index.shards[key]
        return index, f"damaged: encoding again {len(damaged):,} of {count:,} shards ({first})"
    return index, None if complete else "unfinished"


def say_problem(corpus: Corpus, index: ShardIndex, problem: str | None, place: str = "the token cache") -> None:
    """Says what is wrong with a folder, unless it is new."""
    if problem == "unfinished":
        size = f"{index.num_bytes / 1e6:,.0f} MB of tokens in {len(index.shards):,} shards"
        notice(f"{corpus.name}: {size} already encoded: continuing")
    elif problem not in (None, "missing"):
        notice(f"{place} of {corpus.name} is {problem}")


def complete_folder(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, index: ShardIndex, share: Share = Share()
) -> ShardIndex:
    """Builds the shards of a share that an index lacks, and joins the indexes of all processes.

    Args:
        folder: the folder; one process alone writes it, or each its share
        corpus: the text
        tokenizer: encodes it
        index: the shards that are there
        share: those to build

    Returns:
        all shards of the folder; `complete` if no other process has any left to build
    """
    started = time.monotonic()
    make_folder(folder)
    sweep(folder, 0 if share.count == 1 else 3600)
    build_shards(folder, corpus, tokenizer, index, share)
    index.save(folder / share.index)
    whole = _join(folder)
    sizes = ", ".join(f"{whole.num_tokens(part):,} {part}" for part in whole.parts)
    if whole.complete:
        notice(f"encoded {corpus.name} into tokens: {sizes} ({time.monotonic() - started:.1f} s)")
    return whole


def _join(folder: Path) -> ShardIndex:
    """The index of a folder, saved as `index.json` if it is complete; then the others are removed.

    Several processes may do this at once: they write equal files.
    """
    try:
        whole = read_folder(folder)
    except DataError:  # another process has joined them meanwhile
        whole = ShardIndex.load(folder / INDEX)
    if whole.complete:
        others = [path for path in index_files(folder) if path.name != INDEX]
        if others or not (folder / INDEX).exists():
            whole.save(folder / INDEX)
        killed = [*folder.glob(f"{TEMPORARY}*.bin-*"), *folder.glob(f"{TEMPORARY}index-*")]
        for path in [*others, *killed]:
            path.unlink(missing_ok=True)
    return whole


def open_shards(folder: str | Path, full: bool | None = None) -> tuple[dict[str, Tokens], Tokenizer]:
    """Opens a folder of token shards that `tinylm prepare tokens` has written.

    Args:
        folder: the folder, which is only read
        full: whether to compare every shard's SHA-256, as in `ShardIndex.damaged`

    Returns:
        part -> memory-mapped ids, uint16 or uint32 (tokens,), and the tokenizer that made them

    Raises:
        DataError: if the folder is something else, incomplete or damaged.
    """
    folder = Path(folder).expanduser()
    index = read_folder(folder)
    if not index.complete:
        unread, missing = index.groups.count(None), index.missing()
        lacks = f"{missing[0].file} and {len(missing) - 1:,} more" if missing else f"{unread:,} of its groups"
        raise DataError(f"{folder}: is not complete, it lacks {lacks}; run `{command('prepare', 'tokens')}` again")
    if damaged := index.damaged(folder, full):
        remedy = f"run `{command('prepare', 'tokens')}` again with --verify"
        raise DataError(f"{folder / damaged[0].file}: is missing or damaged; {remedy}")
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.sha256 != index.tokenizer:
        raise DataError(f"{folder / TOKENIZER}: is not the tokenizer of these shards; restore that one")
    return open_parts(folder, index), tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Saves the tokenizer beside its shards, where `open_shards` reads it."""
    with contextlib.suppress(DataError, FileNotFoundError):
        if load_tokenizer(folder / TOKENIZER).sha256 == tokenizer.sha256:
            return
    tokenizer.save(folder / TOKENIZER, overwrite=True)


def check_folder(folder: Path, whole: ShardIndex) -> None:
    """Refuses a folder to write shards to that has anything else than shards of this corpus and tokenizer.

    Raises:
        CannotCreateError: naming what is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not index_files(folder):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
        if any(name != TOKENIZER and not name.startswith(TEMPORARY) for name in names):
            raise CannotCreateError(f"{folder}: exists and has no token shards of tinylm; choose another path")
        return
    with contextlib.suppress(DataError):
        found = read_folder(folder)
        if found.source != whole.source:
            raise CannotCreateError(
                f"{folder}: has shards of {found.corpus}, of another text, split or tokenizer; choose another path, "
                "or remove it"
            )
