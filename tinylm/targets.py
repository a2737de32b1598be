"""Output files and folders named by the user. An existing one is replaced only on request, and only if tinylm wrote it.

Commands call `check_target` before the work begins, Python functions before the first byte is written.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tinylm.errors import CannotCreateError
from tinylm.locate import MANIFEST, TOKENIZER, WEIGHTS

HEAD = 1 << 16  # bytes read at each end to recognize a file


@dataclass(frozen=True)
class FileKind:
    """A kind of file, recognized by its first and last bytes. Without a pattern none is recognized, as with plain text.

    Attributes:
        name: for messages, with its article
        pattern: matches the first `HEAD` bytes and the last ones together
    """

    name: str
    pattern: bytes = rb"(?!)"

    def recognizes(self, path: Path) -> bool:
        """Whether an existing path is a file of this kind."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            begin = file.read(HEAD)
            file.seek(max(len(begin), path.stat().st_size - HEAD))
            return re.match(self.pattern, begin + file.read(), re.DOTALL) is not None


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder, recognized by the names of its files; an empty folder may be used for any kind.

    Attributes:
        name: for messages, with its article
        names: names of its files, some of which may be missing
        sign: the file that must be there
        pattern: matches the first bytes of that file
    """

    name: str
    names: frozenset[str]
    sign: str
    pattern: bytes = b""

    def recognizes(self, path: Path) -> bool:
        """Whether an existing path is a folder of this kind."""
        names = {each.name for each in path.iterdir()} if path.is_dir() else {""}
        proof = FileKind(self.name, self.pattern)
        return names <= self.names and (not names or proof.recognizes(path / self.sign))


def check_target(path: str | Path, kind: FileKind | FolderKind, overwrite: bool = False) -> None:
    """Refuses a path that exists, unless it may be replaced.

    Args:
        path: the file or folder to write
        kind: what will be written
        overwrite: whether an earlier one of this kind may be replaced

    Raises:
        CannotCreateError: if it exists and is something else, or must not be replaced.
    """
    path = Path(path)
    if not os.path.lexists(path) or (isinstance(kind, FolderKind) and path.is_dir() and not any(path.iterdir())):
        return
    if not kind.recognizes(path):
        raise CannotCreateError(f"{path}: exists and is not {kind.name} of tinylm; choose another path, or remove it")
    if not overwrite:
        raise CannotCreateError(f"{path}: exists; choose another path, or replace it with --overwrite")


PICTURE = FileKind(
    "a picture",
    rb"\x89PNG.*Software\0tinylm\b|<\?xml.*<dc:title>tinylm</dc:title>|%PDF-.*/Creator \(tinylm\)",
)
MODEL_FOLDER = FolderKind("a model folder", frozenset((MANIFEST, WEIGHTS, TOKENIZER)), MANIFEST)
HUGGINGFACE_FOLDER = FolderKind(
    "a Hugging Face folder",
    frozenset(("config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json",
               "tokenizer_config.json")),
    "README.md",
    rb"---\n(?:\w+: [^\n]*\n)+tags:\n- tinylm\n",
)  # fmt: skip
TEXT = FileKind("recognizably an output")
