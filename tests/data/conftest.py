"""Fixtures: a web server that can fail in every way, and processes that start in half a second."""

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


@dataclass
class Page:
    body: bytes = b""
    status: int = 200
    length: int | None = None  # what Content-Length claims
    reset: bool = False  # break the connection after the body instead of closing it


@dataclass
class Server:
    url: str = ""
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def serve(self, path: str, body: bytes = b"", **options) -> str:
        """Adds a page and returns its URL."""
        self.pages[path] = Page(body, **options)
        return self.url + path


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.requests.append(self.path)
            page = served.pages.get(self.path, Page(b"not here", status=404))
            self.send_response(page.status)
            self.send_header("Content-Length", str(len(page.body) if page.length is None else page.length))
            self.end_headers()
            self.wfile.write(page.body)

        def finish(self):
            super().finish()
            if served.pages.get(self.path, Page()).reset:
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
