"""Reading over a network: a broken connection is reopened at the byte where it ended.

`resumed` does so for any kind of connection. HTTP is implemented here with the standard library: fsspec's HTTP starts
over when a connection breaks, and cannot resume at all if a server has no byte ranges.
"""

import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from tinylm.errors import DataError, MissingInputError, TinyLMError, notice

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes per read
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each attempt, since the last byte received
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses of errors that may pass
UNREACHABLE = ("ClientConnectorError", "ClientConnectorDNSError", "EndpointConnectionError", "ConnectError")
LIBRARIES = ("aiohttp", "aiobotocore", "botocore", "httpx", "httpcore", "urllib3", "requests", "gcsfs", "google")


@dataclass(frozen=True)
class State:
    """Size and version, which distinguish one content of a file from another.

    Attributes:
        size: bytes as stored; None if unknown
        version: an ETag, a time of modification, or the like; None if unknown
    """

    size: int | None
    version: str | None = None

    def differs(self, other: "State") -> bool:
        """Whether a value that both know is different."""
        pairs = ((self.size, other.size), (self.version, other.version))
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)


@dataclass(frozen=True)
class Connection:
    """An opened file, from some byte on.

    Attributes:
        state: of the whole file
        blocks: its bytes, from that byte to the end
        close: ends the connection
    """

    state: State
    blocks: Iterator[bytes]
    close: Callable[[], None] = lambda: None


Connect = Callable[[int, int | None], Connection]  # of the first byte, and the one after the last (None: to the end)


class ChangedError(DataError):
    """A file has changed."""

    def __init__(self, name: str, before: State, now: State) -> None:
        sizes = f"{before.size:,} bytes before, {now.size:,} now" if before.size != now.size else "it was written to"
        super().__init__(f"{name}: has changed while it was read ({sizes}); start again when nothing writes to it")


def resumed(
    name: str, connect: Connect, known: State | None = None, begin: int = 0, end: int | None = None
) -> Generator[bytes, None, None]:
    """Bytes `begin` to `end` of a file. After an interruption, reading continues at the byte where it stopped.

    Args:
        name: the file's name in messages
        connect: opens the file
        known: the state it must have
        begin: the first byte
        end: the byte after the last; by default that of the file

    Raises:
        ChangedError: if the file changes.
        Exception: any of `connect` and its blocks, if waiting does not help.
    """
    position, reached, waits = begin, known is not None, iter(WAITS)
    while True:
        try:
            connection = connect(position, end)
            try:
                if known is not None and known.differs(connection.state):
                    raise ChangedError(name, known, connection.state)
                known = known or connection.state
                for block in connection.blocks:
                    position, reached, waits = position + len(block), True, iter(WAITS)
                    yield block
            finally:
                connection.close()
            last = known.size if end is None else end
            if last is None or position >= last:
                return
            raise http.client.IncompleteRead(b"", last - position)
        except Exception as error:
            wait = next(waits, None)
            if wait is None or not transient(error) or (unreachable(error) and not reached):
                raise
            release(error)
            notice(f"{name}: interrupted at byte {position:,} ({reason(error)}); continuing in {wait:g} s")
        time.sleep(wait)


def patient(name: str, call: Callable[[], State]) -> State:
    """The result of a call that is repeated after a transient error."""
    waits = iter(WAITS)
    while True:
        try:
            return call()
        except Exception as error:
            wait = next(waits, None)
            if wait is None or not transient(error) or unreachable(error):
                raise
            release(error)
            notice(f"{name}: {reason(error)}; trying again in {wait:g} s")
        time.sleep(wait)


def transient(error: BaseException) -> bool:
    """Whether a network error may pass."""
    status = http_status(error)
    if isinstance(error, TinyLMError) or any(each in type(error).__name__ for each in ("Credentials", "Profile")):
        return False
    if status is not None:
        return status in PASSING
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, http.client.InvalidURL):
        return False
    return isinstance(error, OSError | http.client.HTTPException) or type(error).__module__.split(".")[0] in LIBRARIES


def http_status(error: BaseException) -> int | None:
    """The HTTP status in an error of any library; None if there is none."""
    response = getattr(error, "response", None)
    found = (getattr(error, "code", None), getattr(error, "status", None), getattr(response, "status_code", None))
    return next((each for each in found if isinstance(each, int) and each >= 400), None)


def unreachable(error: BaseException) -> bool:
    """Whether the server cannot be reached."""
    cause = getattr(error, "reason", error)
    return isinstance(cause, socket.gaierror | ConnectionRefusedError) or type(error).__name__ in UNREACHABLE


def release(error: BaseException) -> None:
    """Closes the response that an HTTP error holds."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()


def reason(error: BaseException) -> str:
    """The message of a network error, on one line."""
    text = str(getattr(error, "reason", "")) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


# --- HTTP


def http_connect(url: str) -> Connect:
    """Connects to a URL. A server without byte ranges sends the whole file, which is skipped up to the first byte."""

    def connect(begin: int, end: int | None) -> Connection:
        ranged = {"Range": f"bytes={begin}-{'' if end is None else end - 1}"} if begin or end else {}
        response = urllib.request.urlopen(urllib.request.Request(url, headers=ranged), timeout=TIMEOUT)
        if end is not None and response.status != 206:
            response.close()
            raise MissingInputError(
                f"{url}: its server has no byte ranges; give the URL of this file alone, which is then downloaded"
            )
        return Connection(http_state(response), _body(response, begin, end), response.close)

    return connect


def http_state(response: http.client.HTTPResponse) -> State:
    """The size and the version of the file in a response."""
    size = response.headers.get("Content-Length")
    if response.status == 206:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return State(int(size) if size and size.isdecimal() else None, version)


def look_up(url: str) -> State:
    """The size and the version of a URL, without its content."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return http_state(response)
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in (403, 405, 501):  # some servers allow GET only
                raise
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return http_state(response)


def _body(response: http.client.HTTPResponse, begin: int, end: int | None) -> Iterator[bytes]:
    """The body of a response from byte `begin` of the file on, checked against its Content-Length."""
    length, received = int(response.headers.get("Content-Length") or 0), 0
    skip = begin if response.status != 206 else 0
    while block := response.read1(BLOCK):  # returns the bytes available, without waiting for a whole block
        received += len(block)
        if received > skip:
            yield block[max(0, skip - received + len(block)) :]
    if length and received != length:
        raise http.client.IncompleteRead(b"", length - received)
