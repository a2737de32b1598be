"""Finds the files of token ids among those that `data.corpus` names, by their content, and the part of each."""

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path

from tinylm.data.pretokenized import llmc, megatron, nanogpt
from tinylm.data.pretokenized.base import Pretokenized, Shard
from tinylm.data.pretokenized.own import read_own
from tinylm.data.sources.globs import glob_files
from tinylm.errors import DataError
from tinylm.files import open_input

HEADERLESS = "ids without a header"
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PART = re.compile(rf"(?:^|[_.-])({'|'.join(PARTS)})(?=[_.-]|$)", re.IGNORECASE)
WIDE = 1 << 16  # number of ids that 16 bits can distinguish


def find_pretokenized(source: str, vocab_size: int | None = None) -> Pretokenized | None:
    """The shards that a folder, a file, a glob or the prefix of Megatron's files names; None if they hold no token ids.

    Args:
        source: the value of `data.corpus`
        vocab_size: of the tokenizer, which decides how wide ids without a header are

    Raises:
        MissingInputError: if a file cannot be read.
        DataError: if a shard is damaged, or the files are of several formats.
    """
    name = os.path.expanduser(source)  # noqa: PTH111 (Path would change `~` within a glob)
    path = Path(name)
    if os.path.isdir(name):  # noqa: PTH112 (Path raises for an overlong name)
        if (ours := read_own(source, path)) is not None:
            return ours
        names = sorted(each for each in path.iterdir() if not each.name.startswith("."))
        names = [each for each in names if each.suffix in (".bin", ".idx") and each.is_file()]
        folder, whole = path, True
    elif os.path.isfile(f"{name}.idx"):  # noqa: PTH113
        names, folder, whole = [Path(f"{name}.idx")], path.parent, False
    else:
        names = [Path(each) for each in glob_files(name)[0]] if source.endswith((".bin", ".idx")) else []
        folder, whole = names[0].parent if names else path.parent, False
    found = [each for each in map(_reader(whole, vocab_size), _heads(names)) if each is not None]
    if not found:
        return None
    if not whole and len(found) == 1 and found[0][0].path.name == "train.bin" and found[0][1] == nanogpt.KIND:
        return find_pretokenized(str(folder), vocab_size)  # val.bin is beside it
    kinds = {kind: shard.path for shard, kind in found}
    if len(kinds) > 1:
        listed = " and ".join(f"{path.name} ({kind})" for kind, path in kinds.items())
        raise DataError(f"data.corpus: {source}: has token ids of several formats, {listed}; name one by a glob")
    return Pretokenized(source, found[0][1], _parts(source, [shard for shard, _ in found]), folder)


def _heads(paths: list[Path]) -> list[Path]:
    """The files to open: an .idx stands for the .bin of its name."""
    indices = {path.stem for path in paths if path.suffix == ".idx"}
    indices |= {path.stem for path in paths if path.suffix == ".bin" and path.with_suffix(".idx").is_file()}
    every = [path.with_suffix(".idx") if path.stem in indices else path for path in paths]
    return list(dict.fromkeys(every))


def _reader(whole: bool, vocab_size: int | None) -> Callable[[Path], tuple[Shard, str] | None]:
    """A function that opens a file of token ids; `whole`: of a folder, where only train.bin needs no header."""

    def read(path: Path) -> tuple[Shard, str] | None:
        if path.suffix == ".idx":
            shard = megatron.read_shard(path)
            return None if shard is None else (shard, megatron.KIND)
        if (shard := llmc.read_shard(path)) is not None:
            return shard
        layout = path.stem in PARTS.values() and (path.with_name("train.bin")).is_file()
        layout = layout and any(path.with_name(name).is_file() for name in ("val.bin", nanogpt.META))
        if (whole and not layout) or _is_text(path):
            return None
        wide = vocab_size is not None and vocab_size > WIDE
        shard = nanogpt.read_headerless(path, nanogpt.ID_WIDE if wide else nanogpt.ID)
        return shard, nanogpt.KIND if layout else HEADERLESS

    return read


def _is_text(path: Path) -> bool:
    """Whether a file begins like a text: UTF-8 without NUL."""
    with open_input(path) as file:
        head = file.read(4096)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _parts(source: str, shards: list[Shard]) -> dict[str, list[Shard]]:
    """The shards of each part, by the names of the files; all are `train` if no name contains a part.

    Raises:
        DataError: if some names contain a part and others do not, or none is of `train`.
    """
    named = [(PART.findall(shard.path.stem), shard) for shard in shards]
    if not any(words for words, _ in named):
        return {"train": shards}
    parts: dict[str, list[Shard]] = {"train": [], "val": [], "test": []}
    for words, shard in named:
        if not words:
            problem = f"the name of {shard.path.name} says neither train nor val, unlike others'"
            raise DataError(f"data.corpus: {source}: {problem}; name the files by a glob")
        parts[PARTS[words[-1].lower()]].append(shard)
    if not parts["train"]:
        if len(shards) == 1:
            return {"train": shards}
        raise DataError(f"data.corpus: {source}: no file is named train; name the files to train on by a glob")
    return {part: found for part, found in parts.items() if found}
