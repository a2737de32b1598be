"""An HTTP server for one ASGI application: uvicorn, with limits on connections and a graceful stop.

uvicorn does not limit the time for a request to arrive, so silent connections would accumulate. Here a connection is
closed if it has not sent the head of a request within `HEAD_SECONDS`; once there are `MOST_CONNECTIONS`, the connection
that has been idle longest is closed for the next.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinylm.console import plural
from tinylm.errors import CannotCreateError, notice
from tinylm.serving.guard import Guard
from tinylm.signals import SIGNALS, quit_at_next, stopped_by

HEAD_SECONDS = 10  # for the head of a request to arrive
LINGER_SECONDS = 1  # for the rest of a refused body, which is discarded so that the client sees the answer
KEEP_SECONDS = 30  # for which a connection may be idle between two requests
MOST_CONNECTIONS = 200  # fewer than the open files that macOS allows a process
GRACE_SECONDS = 30.0


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at an address; port 0 takes any free port.

    Raises:
        CannotCreateError: if the port is in use or may not be used, or the host is not an address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise CannotCreateError(f"--host {host} --port {port}: {reason}; choose another") from error


def url(listener: socket.socket) -> str:
    """The address of a socket, such as `http://127.0.0.1:8000`."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(
    guard: Guard, listener: socket.socket, *, grace: float = GRACE_SECONDS, stop: Callable[[], Any] = lambda: None
) -> None:
    """Serves until a signal comes, then finishes the requests in progress; a second signal ends the process at once.

    Args:
        guard: the application
        listener: from `listen`
        grace: seconds that requests in progress may take after the signal
        stop: called when they are answered or the time is up

    Raises:
        Interrupted: after SIGINT.
        Preempted: after SIGTERM or SIGUSR1.
    """
    server = Server(guard, grace, stop)
    with listener:
        server.run([listener])
    if server.signal is not None:
        raise stopped_by(server.signal, f"stopped by {signal.Signals(server.signal).name}")


class Server(uvicorn.Server):
    """A server that, when stopped, finishes the requests in progress and answers new ones with 503.

    Args:
        guard: as for `run_server`
        grace: as for `run_server`
        stop: as for `run_server`

    Attributes:
        signal: number of the signal that has stopped the server
    """

    def __init__(self, guard: Guard, grace: float, stop: Callable[[], Any]) -> None:
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # `Guard` reports what fails
        protocol: dict[str, Any] = dict(http=Connection, ws="none", lifespan="off", timeout_keep_alive=KEEP_SECONDS)
        quiet: dict[str, Any] = dict(log_config=None, access_log=False, server_header=False)
        super().__init__(uvicorn.Config(guard, proxy_headers=False, timeout_graceful_shutdown=1, **protocol, **quiet))
        self.guard, self.grace, self.stop = guard, grace, stop
        self.signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Notes a signal."""
        quit_at_next()
        self.signal, self.guard.stopping, self.should_exit = sig, True, True
        if count := len(self.server_state.tasks):
            notice(f"finishing {plural(count, 'request')} in up to {self.grace:g} seconds (once more to quit at once)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for the requests in progress, then closes all connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.grace):
                while self.server_state.tasks:
                    await asyncio.sleep(0.02)
        self.stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals as `handle_exit` does, for a `with` block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items() if self.signal is None else ():
                signal.signal(number, handler)


class Connection(H11Protocol):
    """A connection that is closed if no request arrives in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the head of a request."""
        if len(self.connections) >= MOST_CONNECTIONS:
            idle = [each for each in self.connections if isinstance(each, Connection) and each.idle]
            (min(idle, key=lambda each: each.began).transport if idle else transport).abort()
        self.began = self.loop.time()
        super().connection_made(transport)
        self._watch()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete or self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Reads more of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request, or for the rest of a body that was refused."""
        super().on_response_complete()
        self.began = self.loop.time()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Limits the time to wait for data; single bytes do not extend it."""
        state = self.conn.their_state
        head = state is h11.IDLE and self.timeout_keep_alive_task is None  # uvicorn limits the time between requests
        if not head and not (state is h11.SEND_BODY and self.idle):
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS if head else LINGER_SECONDS, self.transport.abort)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
