"""Fixtures: a web server that can fail in every way, and processes that start in half a second."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import processes


@pytest.fixture
def python():
    """python(code, *arguments) starts a process, killed after the test."""
    processes = []

    def start(code: str, *arguments: object, **options) -> subprocess.Popen:
        command = [
            sys.executable,
            "-c",
            "import sys\nfrom pathlib import Path\n" + textwrap.dedent(code),
            *map(str, arguments),
        ]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        processes.append(subprocess.Popen(command, **pipes, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def forked():
    """forked(code, *arguments) is python(code, *arguments) in a process that has already imported tinylm.data."""
    started = []

    def start(code: str, *arguments: object) -> processes.Forked:
        started.append(processes.python("import sys\nfrom pathlib import Path\n" + textwrap.dedent(code), *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@dataclass
class Page:
    body: bytes = b""
    status: int = 200
    length: int | None = None  # what Content-Length claims
    reset: bool = False  # break the connection after the body instead of closing it
    ranges: bool = False  # answer requests for a range of bytes
    head: bool = True  # answer HEAD
    version: str | None = None  # the ETag
    cuts: list[int] = field(default_factory=list)  # by request: close the connection after so many bytes


@dataclass
class Server:
    url: str = ""
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)  # of each request

    def serve(self, path: str, body: bytes = b"", **options) -> str:
        """Adds a page and returns its URL."""
        self.pages[path] = Page(body, **options)
        return self.url + path


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    served = Server()

    monkeypatch.setattr("tinylm.data.web.WAITS", (0.01,) * 3)

    class Handler(BaseHTTPRequestHandler):
        broken = False

        def do_HEAD(self):
            page = served.pages.get(self.path, Page(status=404))
            self.answer(page, page.body, page.status if page.head else 405)

        def do_GET(self):
            asked = self.headers.get("Range")
            served.requests.append(self.path)
            served.ranges.append(asked)
            page = served.pages.get(self.path, Page(b"not here", status=404))
            body, status = page.body, page.status
            sent = page.cuts.pop(0) if page.cuts else None
            if page.ranges and asked:
                first, last = asked.removeprefix("bytes=").split("-")
                body, status = body[int(first) : int(last) + 1 if last else None], 206
            self.answer(page, body, status, first if status == 206 else None)
            self.broken = page.reset
            with contextlib.suppress(ConnectionError):  # the client has left
                self.wfile.write(body[:sent])

        def answer(self, page, body, status, first=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if page.length is None else page.length))
            if first is not None:
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(page.body)}")
            if page.version:
                self.send_header("ETag", f'"{page.version}"')
            self.end_headers()

        def finish(self):
            super().finish()
            if self.broken:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
                )
                self.connection.close()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        served.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        httpd.shutdown()
        thread.join()
