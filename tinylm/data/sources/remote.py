"""A file at a URL: HTTP by the standard library, object stores by fsspec's file systems."""

import asyncio
import atexit
import http.client
import importlib
import io
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from tinylm.data.web import (
    ChangedError,
    Connect,
    Connection,
    State,
    http_connect,
    http_status,
    look_up,
    patient,
    reason,
    release,
    resumed,
    unreachable,
)
from tinylm.errors import MissingInputError, TinyLMError
from tinylm.files import sha256_json

REQUEST = 1 << 23  # bytes per request to an object store
BLOCK = 1 << 20  # bytes
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
KEYS = {
    "s3fs": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (FSSPEC_S3_ANON=true for a public bucket)",
    "gcsfs": "GOOGLE_APPLICATION_CREDENTIALS (FSSPEC_GS_TOKEN=anon for a public bucket)",
    "huggingface_hub": "HF_TOKEN, or run hf auth login",
}
DIGESTS = (
    "ETag",
    "etag",
    "xet_hash",
    "blob_id",
    "generation",
    "md5Hash",
    "content_md5",
)  # names that stores use for a version
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")  # a listing may round these


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL."""

    url: str

    def state(self) -> State:
        """Size and version, by one request."""
        with _network_errors(self.url):
            return patient(self.url, lambda: look_up(self.url) if _is_http(self.url) else _look_up(self.url))

    def fingerprint(self, state: State, report: object = None) -> str:
        """The SHA-256 of its URL, size and version; the content is not read."""
        return sha256_json([self.url, state.size, state.version])

    def open(self, state: State) -> BinaryIO:
        """Opens it, to be read in any order by requests for ranges of bytes."""
        if state.size is None:
            raise MissingInputError(f"{self.url}: its server does not tell the size; download it first")

        def fetch(begin: int, end: int) -> bytes:
            with _network_errors(self.url):
                return b"".join(resumed(self.url, _connect(self.url), state, begin, end))

        return cast(BinaryIO, io.BufferedReader(_Ranges(state.size, fetch), BLOCK))

    def stored(self, state: State) -> Generator[bytes, None, None]:
        """Its bytes in blocks; after an interruption, reading continues at the byte where it stopped."""
        blocks = resumed(self.url, _connect(self.url), state)
        with _network_errors(self.url):
            yield from blocks


class _Ranges(io.RawIOBase):
    """A file that is read by ranges of bytes.

    Attributes:
        size: its bytes
        fetch: returns bytes `begin` to `end`
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self.size, self.fetch, self.position = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.position))
        if length:
            buffer[:length] = self.fetch(self.position, self.position + length)
        self.position += length
        return length


# --- listing


Listed = tuple[str, str, State | None]  # URL, path below the folder, and the state where the listing tells it


def list_folder(url: str) -> list[Listed] | None:
    """All files in a folder and below it, sorted; None if the URL is a file."""
    with _network_errors(url):
        system, path = _file_system(url)
        if not _is_http(url) and system.info(path)["type"] != "directory":
            return None
        return _listed(system, system.find(path, detail=True), path.rstrip("/"))


def list_glob(url: str) -> list[Listed]:
    """The files that a glob matches, sorted. Paths are relative to the file system."""
    with _network_errors(url):
        system, path = _file_system(url)
        return _listed(system, system.glob(path, detail=True), "")


def _listed(system: Any, found: dict[str, dict], folder: str) -> list[Listed]:
    files = [(name, info) for name, info in sorted(found.items()) if info["type"] == "file"]
    return [
        (system.unstrip_protocol(name), name.removeprefix(folder).lstrip("/"), _state(info)) for name, info in files
    ]


def _state(info: dict) -> State | None:
    """Size and version of a file in a listing; None unless it tells both."""
    version = _version(info, DIGESTS)
    return None if version is None or info.get("size") is None else State(info["size"], version)


def _version(info: dict, keys: tuple[str, ...]) -> str | None:
    return next((str(info[key]) for key in keys if info.get(key)), None)


# --- object stores


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _connect(url: str) -> Connect:
    return http_connect(url) if _is_http(url) else _store_connect(url)


def _store_connect(url: str) -> Connect:
    """Connects to a file of an object store: a request for every few megabytes."""

    def connect(begin: int, end: int | None) -> Connection:
        state = _look_up(url)
        last = state.size if end is None else end
        if last is None:
            raise MissingInputError(f"{url}: its size is unknown; download it first")
        return Connection(state, _ranges(url, begin, last, state))

    return connect


def _ranges(url: str, begin: int, end: int, state: State) -> Iterator[bytes]:
    """Bytes `begin` to `end` in blocks. The last block is yielded only if the file is still the same."""
    system, path = _file_system(url)
    for first in range(begin, end, REQUEST):
        last = min(first + REQUEST, end)
        data = system.cat_file(path, start=first, end=last)
        if len(data) != last - first:
            raise http.client.IncompleteRead(b"", last - first - len(data))
        if last == end and begin + REQUEST < end and state.differs(now := _look_up(url)):
            raise ChangedError(url, state, now)
        for offset in range(0, len(data), BLOCK):
            yield data[offset : offset + BLOCK]


def _look_up(url: str) -> State:
    """The size and the version of a file in an object store."""
    system, path = _file_system(url)
    system.invalidate_cache()
    info = system.info(path)
    if info["type"] == "directory":
        raise MissingInputError(f"{url}: is a folder; give a file")
    return State(info.get("size"), _version(info, (*DIGESTS, *TIMES)))


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    scheme = url.partition("://")[0]
    try:
        fsspec = importlib.import_module("fsspec.core")
        atexit.unregister(_end_requests)
        atexit.register(_end_requests)
        return fsspec.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme, "fsspec")
        install = 'pip install "tinylm[data]"' if package != "gcsfs" else "pip install gcsfs"
        raise MissingInputError(f"{url}: needs the package {package}: {install}") from error
    except ValueError as error:
        raise MissingInputError(f"{url}: cannot be read: {reason(error)}; known are s3, gs, hf, https, file") from error


def _end_requests() -> None:
    """Ends fsspec's thread with the program. Pending requests are cancelled silently."""
    fsspec = importlib.import_module("fsspec.asyn")
    loop, thread = fsspec.loop[0], fsspec.iothread[0]

    async def cancel() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    if loop is None or not loop.is_running():
        return
    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(cancel(), loop).result(timeout=5)
    loop.call_soon_threadsafe(loop.stop)  # the file systems then close their sockets themselves
    thread.join(timeout=5)
    if not loop.is_running():
        loop.close()


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Converts any error of a network or store to a MissingInputError that names a remedy."""
    try:
        yield
    except TinyLMError:
        raise
    except Exception as error:  # each store has its own types
        release(error)
        raise MissingInputError(f"{url}: {_problem(url, error)}") from error


def _problem(url: str, error: Exception) -> str:
    package = PACKAGES.get(url.partition("://")[0], "")
    keys = KEYS.get(package, "the access rights of the file")
    if isinstance(error, FileNotFoundError) or http_status(error) in (404, 410):
        return f"no such file ({reason(error)}); check the address"
    if "Credentials" in type(error).__name__ or "Profile" in type(error).__name__:
        return f"no key was found ({reason(error)}); set {keys}"
    if isinstance(error, PermissionError) or http_status(error) in (401, 403):
        return f"access was denied ({reason(error)}); check {keys}"
    if unreachable(error):
        return f"its server cannot be reached ({reason(error)}); check the network and the address"
    return f"cannot be read ({reason(error)}); check the network, and try again"
