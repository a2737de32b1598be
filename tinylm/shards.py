"""Reads sharded checkpoints: one file for everything but the large tensors, and one file per process for their rows.

`last.ckpt` names a folder beside it, `last.ckpt.shards-1f0c9a2e`, which was complete before `last.ckpt` named it. A
kill at any moment therefore leaves the earlier checkpoint with its folder. training/sharding.py writes the files.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm.errors import DataError
from tinylm.files import check_seal

KEY = "shards"  # in a checkpoint: {"folder": name, "files": number of processes}
SHARDED = "sharded tensor"  # key of {SHARDED: name, "shape": [...]}, which stands for a tensor


class Shards:
    """The files of a sharded checkpoint, verified. Reading executes no code.

    Args:
        folder: the folder
        files: number of files

    Raises:
        DataError: if one is missing or damaged.
    """

    def __init__(self, folder: Path, files: int) -> None:
        self._files: list[dict[str, Tensor]] = []
        for path in (folder / f"{number}.pt" for number in range(files)):
            if not path.is_file():
                raise DataError(f"{path}: is missing: a checkpoint is complete with all {files} files of its folder")
            check_seal(path)
            self._files.append(torch.load(path, map_location="cpu", mmap=True, weights_only=True))

    def rows(self, name: str, shape: list[int], start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor of a shape; only these are read."""
        stop, first, found = shape[0] if stop is None else stop, 0, []
        for parts in self._files:
            part = parts[name]
            found.append(part[max(0, start - first) : max(0, stop - first)])
            first += len(part)
        return torch.cat(found).reshape(-1, *shape[1:])


Fill = Callable[[Shards, str, list[int]], Any]


def fill_shards(checkpoint: dict[str, Any], path: Path, fill: Fill = Shards.rows) -> dict[str, Any]:
    """A sharded checkpoint with its tensors; any other is returned unchanged.

    Args:
        checkpoint: the content of the file
        path: the file
        fill: (shards, name, shape) -> the value of a tensor
    """
    if KEY not in checkpoint:
        return checkpoint
    shards = Shards(path.parent / Path(checkpoint[KEY]["folder"]).name, checkpoint[KEY]["files"])

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            if SHARDED in value:
                return fill(shards, value[SHARDED], value["shape"])
            return type(value)((key, filled(each)) for key, each in value.items())
        return [filled(each) for each in value] if isinstance(value, list) else value

    return {key: filled(value) for key, value in checkpoint.items() if key != KEY}


def remove_shards(path: Path, keep: str | None = None) -> None:
    """Removes the shards of a checkpoint file, but not those in the folder named `keep`."""
    for folder in path.parent.glob(f"{path.name}.shards-*"):
        if re.fullmatch(r".*\.shards-[0-9a-f]{8}", folder.name) and folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
