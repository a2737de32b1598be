"""Downloads: fetched once, with a progress bar and a checksum, or an error that says where to put the file by hand."""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tinylm.data.web import BLOCK, TIMEOUT, ChangedError, Connection, State, http_connect, reason, release, resumed
from tinylm.errors import ConfigError, DataError, MissingInputError, TinyLMError, notice
from tinylm.files import full_disk, locked, read_json, sha256_bytes, sha256_file, write_json
from tinylm.progress import ProgressBar


@dataclass(frozen=True)
class Download:
    """A file on the web.

    Attributes:
        url: its address
        sha256: its checksum, if known
        pointer: URL of a Git LFS pointer that names the checksum, if the host has one
    """

    url: str
    sha256: str | None = None
    pointer: str | None = None

    def path(self, cache_dir: Path) -> Path:
        """The file's place in the cache, where it can also be put by hand."""
        try:
            name = unquote(urlsplit(self.url).path).rsplit("/", 1)[-1] or "index"
        except ValueError as error:
            raise ConfigError(f"{self.url}: is not a URL ({error})") from error
        return cache_dir / "downloads" / sha256_bytes(self.url.encode())[:8] / name


def download(source: Download, cache_dir: Path) -> Path:
    """Downloads a file unless the cache has it, and returns its path.

    Raises:
        MissingInputError: if it cannot be downloaded; names the path to put it by hand.
        DataError: if its checksum differs.
    """
    path = source.path(cache_dir)
    if not path.is_file():
        with locked(path.with_name(".lock")):
            if not path.is_file():  # another process may have downloaded it meanwhile
                _fetch(source, path)
    elif source.sha256 is not None and sha256_file(path) != source.sha256:
        raise DataError(f"{path}: is not the file of {source.url} (SHA-256 differs); delete it to download it again")
    return path


def stream(source: Download, cache_dir: Path) -> Generator[bytes, None, None]:
    """The bytes of a file in blocks, downloaded only as far as they are read; neither kept nor checked.

    If the file is in the cache, it is read from there.

    Raises:
        MissingInputError: if it cannot be downloaded; names the path to put it by hand.
    """
    path = source.path(cache_dir)
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
        return
    notice(f"reading {source.url}")
    with _network_errors(source, path):
        yield from resumed(source.url, http_connect(source.url))


def _fetch(source: Download, path: Path) -> None:
    """Downloads a file. The beginning of an interrupted download is kept beside it, and the next call continues it."""
    notice(f"downloading {source.url}")
    part, record = (path.with_name(f".part-{path.name}{suffix}") for suffix in ("", ".json"))
    with _network_errors(source, path):
        expected = source.sha256 or (source.pointer and _pointed_sha256(source.pointer))
        try:
            found = _copy(source.url, part, record)
        except ChangedError:  # since the call that began it
            part.unlink()
            found = _copy(source.url, part, record)
    if expected and found != expected:
        part.unlink()
        record.unlink()
        raise DataError(f"{source.url}: is not the expected file (SHA-256 {found[:16]}...); try again later")
    os.replace(part, path)
    record.unlink(missing_ok=True)


@contextlib.contextmanager
def _network_errors(source: Download, path: Path) -> Iterator[None]:
    """Raises MissingInputError, with the path to put the file by hand, in place of any network error."""
    try:
        yield
    except TinyLMError:
        raise
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        release(error)
        raise MissingInputError(
            f"cannot download {source.url} ({reason(error)}); without a network, put the file at {path} by hand"
        ) from error


def _copy(url: str, part: Path, record: Path) -> str:
    """Downloads what is missing of a part, with a progress bar, and returns the SHA-256 of the whole file.

    Args:
        url: the address
        part: the file to write
        record: a JSON file with the size and the version of the whole file
    """
    known = _begun(part, record)

    bar = ProgressBar(f"downloading {url}", known and known.size)

    def connect(begin: int, end: int | None) -> Connection:
        connection = http_connect(url)(begin, end)
        bar.total = connection.state.size
        if known is None:
            write_json(record, dataclasses.asdict(connection.state))
        return connection

    with full_disk(part), part.open("r+b" if known else "w+b") as file:
        digest, begin = hashlib.sha256(), 0
        while block := file.read(BLOCK):
            digest.update(block)
            begin += len(block)
        if known is None or begin != known.size:
            with bar:
                bar.update(begin)
                for block in resumed(url, connect, known, begin):
                    digest.update(block)
                    bar.update(file.write(block))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _begun(part: Path, record: Path) -> State | None:
    """The state of the file that was partly downloaded; None if there is no part to continue."""
    try:
        state = State(**read_json(record))
        continues = state.version is not None and 0 < part.stat().st_size <= (state.size or 0)
    except (OSError, ValueError, TypeError):
        return None
    return state if continues else None


def _pointed_sha256(url: str) -> str:
    """The SHA-256 in a Git LFS pointer: its line `oid sha256:<hex>`."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        text = response.read(1024).decode("utf-8", "replace")
    for line in text.splitlines():
        if line.startswith("oid sha256:"):
            return line.removeprefix("oid sha256:").strip()
    raise DataError(f"{url}: is not a Git LFS pointer, so the download cannot be checked")
