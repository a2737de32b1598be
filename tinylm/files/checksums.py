"""SHA-256 of files and values, and the seal of a checkpoint."""

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tinylm.errors import DataError

if TYPE_CHECKING:
    import hashlib


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return _sha256(data).hexdigest()


def _sha256(data: bytes = b"") -> "hashlib._Hash":
    import hashlib  # imported here: a tokenizer trains without its 4 MB of OpenSSL

    return hashlib.sha256(data)


def sha256_json(data: Any) -> str:
    """SHA-256 of the canonical JSON of `data`, which does not depend on the order of keys."""
    return sha256_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode("utf-8"))


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; the file is read in blocks."""
    with Path(path).open("rb") as file:
        return _sha256_of_first(file, sys.maxsize)


_END_OF_ZIP = b"PK\x05\x06"  # last record of a zip archive: 22 bytes that end with the length of the comment
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64


def seal_zip(file: BinaryIO) -> None:
    """Appends the SHA-256 of a newly written zip archive to it, as the archive's comment.

    PyTorch's checkpoints are zip archives, and a flipped bit may load silently as a wrong weight; `check_seal` detects
    it. Zip readers ignore the comment, so a sealed archive remains an ordinary zip file.
    """
    file.seek(-22, os.SEEK_END)
    if file.read(4) != _END_OF_ZIP:
        raise ValueError("not a zip archive without a comment")
    file.seek(-2, os.SEEK_END)
    body = file.tell()
    file.seek(0)
    digest = _sha256_of_first(file, body)
    file.seek(body)
    file.write(_SEAL_LENGTH.to_bytes(2, "little") + _SEAL + digest.encode("ascii"))


def check_seal(path: str | Path) -> None:
    """Verifies a zip archive by the SHA-256 of `seal_zip` or, without one (written by Lightning), by its CRCs.

    Raises:
        DataError: if the file is truncated, damaged, or not a zip archive.
    """
    path = Path(path)
    with path.open("rb") as file:
        body = path.stat().st_size - _SEAL_LENGTH - 2
        file.seek(max(body, 0))
        if body < 0 or file.read(2 + len(_SEAL)) != _SEAL_LENGTH.to_bytes(2, "little") + _SEAL:
            return _check_crcs(path)
        recorded = file.read().decode("ascii", "replace")
        file.seek(0)
        if _sha256_of_first(file, body) != recorded:
            raise DataError(f"{path}: is damaged (SHA-256 differs from the recorded one); use another checkpoint")


def _check_crcs(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # zipfile raises many different types for damaged archives
        raise DataError(f"{path}: is truncated or not a checkpoint ({error}); use another checkpoint") from error
    if bad is not None:
        raise DataError(f"{path}: is damaged (CRC of {bad} differs from the recorded one); use another checkpoint")


def _sha256_of_first(file: BinaryIO, size: int) -> str:
    digest = _sha256()
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
