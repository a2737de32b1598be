"""Folders of token shards: completing them, joining the work of several processes, and opening them for training."""

import contextlib
import time
from pathlib import Path

from tinylm.data.corpora import Corpus
from tinylm.data.shard_builder import WHOLE, Share, build_shards, new_index
from tinylm.data.shard_index import INDEX, ShardIndex, Tokens, index_files, open_parts, read_folder
from tinylm.errors import CannotCreateError, DataError, notice
from tinylm.files import TEMPORARY, make_folder
from tinylm.locate import TOKENIZER, command
from tinylm.tokenizer import Tokenizer, load_tokenizer


def examine(
    folder: Path, whole: ShardIndex, full: bool | None = None, share: Share = WHOLE
) -> tuple[ShardIndex, str | None]:
    """The index of a folder without its damaged shards, and the problem of the folder if there is one.

    Args:
        folder: the folder, which need not exist
        whole: an index of the expected source without shards, returned if there is no other
        full: whether to compare every shard's SHA-256, as in `ShardIndex.damaged`; always done if shards are missing
        share: the shards to look at

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
    ours = [key for key in index.shards if share.takes(key, len(index.groups))]
    complete = index.complete
    damaged = index.damaged(folder, full if complete else True, ours)
    for key in damaged:
        del index.shards[key]
    if damaged:
        return index, f"damaged: encoding again {len(damaged):,} of {len(ours):,} shards ({damaged[0].file})"
    if complete:
        return index, None
    return index, f"unfinished, {len(ours):,} shards exist: continuing" if ours else "missing"


def complete_folder(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    index: ShardIndex,
    share: Share = WHOLE,
    processes: int | None = None,
) -> ShardIndex:
    """Builds the shards of a share that an index lacks, and joins the indexes of all processes.

    Args:
        folder: the folder
        corpus: the text
        tokenizer: encodes it
        index: the shards that are there
        share: those to build
        processes: processes that encode; None for one per core

    Returns:
        all shards of the folder; `complete` if no other process has any left to build
    """
    started = time.monotonic()
    build_shards(make_folder(folder), corpus, tokenizer, index, share, processes)
    index.save(folder / share.index)
    whole = _join(folder)
    if whole.complete:
        sizes = ", ".join(f"{whole.num_tokens(part):,} {part}" for part in whole.parts)
        notice(f"encoded {corpus.name} into tokens: {sizes} ({time.monotonic() - started:.1f} s)")
    return whole


def write_shards(
    folder: str | Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    share: Share = WHOLE,
    *,
    full: bool | None = None,
    processes: int | None = None,
) -> ShardIndex:
    """Writes a corpus to a folder of token shards, or the share of one of several processes.

    The shards do not depend on the number of processes, their order, or kills; existing shards are kept.

    Args:
        folder: the folder, the same for all processes
        corpus: the text
        tokenizer: encodes it; it is saved in the folder, for `open_shards`
        share: the shards to write
        full: whether to compare the SHA-256 of the shards that are there, as in `ShardIndex.damaged`
        processes: processes that encode; None for one per core

    Returns:
        all shards of the folder; `complete` if no other process has any left to build

    Raises:
        CannotCreateError: if the folder holds anything else, or cannot be created.
        DataError: if the tokenizer cannot encode the text.
    """
    folder, whole = Path(folder), new_index(corpus, tokenizer)
    check_folder(folder, whole)
    index, problem = examine(folder, whole, full, share)
    if problem is None and index_files(folder) == [folder / INDEX]:
        return index
    if problem not in (None, "missing"):
        notice(f"{folder}: is {problem}")
    write_tokenizer(make_folder(folder), tokenizer)
    return complete_folder(folder, corpus, tokenizer, index, share, processes)


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
    """Refuses a target folder that holds anything but shards of this corpus and tokenizer.

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
