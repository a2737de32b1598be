"""Downloads: fetched once, with a progress bar and a checksum, or an error that says where to put the file by hand."""

import contextlib
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tinylm.errors import ConfigError, DataError, MissingInputError, TinyLMError, notice
from tinylm.files import atomic_write, locked, sha256_bytes, sha256_file
from tinylm.progress import ProgressBar

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes per read


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
    with _network_errors(source, path), urllib.request.urlopen(source.url, timeout=TIMEOUT) as response:
        yield from _blocks(response)


def _fetch(source: Download, path: Path) -> None:
    notice(f"downloading {source.url}")
    with _network_errors(source, path):
        expected = source.sha256 or (source.pointer and _pointed_sha256(source.pointer))
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as response, atomic_write(path) as file:
            found = _copy(response, file)
            if expected and found != expected:
                raise DataError(f"{source.url}: is not the expected file (SHA-256 {found[:16]}...); try again later")


@contextlib.contextmanager
def _network_errors(source: Download, path: Path) -> Iterator[None]:
    """Raises MissingInputError, with the path to put the file by hand, in place of any network error."""
    try:
        yield
    except TinyLMError:
        raise
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = str(getattr(error, "reason", "")) or str(error) or type(error).__name__
        raise MissingInputError(
            f"cannot download {source.url} ({reason}); without a network, put the file at {path} by hand"
        ) from error


def _copy(response: http.client.HTTPResponse, file) -> str:
    """Copies a response to a file with a progress bar, and returns its SHA-256."""
    size = int(response.headers.get("Content-Length") or 0)
    digest = hashlib.sha256()
    with ProgressBar("downloading", size) as bar:
        for block in _blocks(response):
            digest.update(block)
            bar.update(file.write(block))
    return digest.hexdigest()


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body of a response, checked against its Content-Length."""
    size, received = int(response.headers.get("Content-Length") or 0), 0
    while block := response.read1(BLOCK):  # returns the bytes available, without waiting for a whole block
        received += len(block)
        yield block
    if size and received != size:
        raise http.client.IncompleteRead(b"", size - received)


def _pointed_sha256(url: str) -> str:
    """The SHA-256 in a Git LFS pointer: its line `oid sha256:<hex>`."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        text = response.read(1024).decode("utf-8", "replace")
    for line in text.splitlines():
        if line.startswith("oid sha256:"):
            return line.removeprefix("oid sha256:").strip()
    raise DataError(f"{url}: is not a Git LFS pointer, so the download cannot be checked")
