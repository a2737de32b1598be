"""Guard, the ASGI middleware around every application of tinylm, and the reading of JSON bodies.

Any page in a browser can send requests to a server on the same machine. A request must therefore name this server as
its Host (a foreign name that resolves to 127.0.0.1 is DNS rebinding) and must not come from a page of another site.

Errors have the form of OpenAI's API, `{"error": {"message", "type", "param", "code"}}`.
"""

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylm.errors import ConfigError, DataError, NumericError, first_line, notice
from tinylm.serving.engine import QueueFull, ServerStopped

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
BODY_SECONDS = 30  # for the body of a request to arrive
MAX_BODY = 1 << 20  # bytes
TYPES = {403: "permission_error", 429: "rate_limit_error"}
WORDS = {404: "there is no such path on this server", 405: "this path does not take this method"}
CLIENT_LEFT = 499  # stands for the status if there was no answer
STOPPING = "the server is stopping; try again later"


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status
        message: the problem and its remedy
        param: the field of the request that is wrong
        code: a word for programs
        headers: further headers of the answer
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        param = None if param is None else _encodable(param)
        self.body = {"error": {"message": _encodable(message), "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def _encodable(text: str) -> str:
    """A text quoted from a request, without lone surrogates, which JSON can contain and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def refusal(error: BaseException) -> Refused:
    """The answer to an exception; one that was not expected is also reported on stderr."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # Starlette's, for an unknown path or method
        return Refused(error.status_code, WORDS.get(error.status_code, error.detail), headers=dict(error.headers or {}))
    if isinstance(error, QueueFull):
        return Refused(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": "1"})
    if isinstance(error, ServerStopped):
        return Refused(503, STOPPING, headers={"Retry-After": "5"})
    if isinstance(error, ConfigError | DataError):
        return Refused(400, str(error))
    if isinstance(error, NumericError):
        return Refused(500, str(error))
    notice(f"error: {type(error).__name__}: {first_line(error)}; --debug shows where")
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    return Refused(500, "an internal error; the server's output has more")


class Guard:
    """Refuses requests from pages of other sites, and turns every exception into an answer.

    Args:
        app: the application, such as a `starlette.routing.Router`
        hosts: names of the server besides `LOOPBACK` and the address to which a client has connected
        answered: called with the path, the status and the seconds of each answer

    Attributes:
        stopping: whether new requests are refused, since the server ends once those in progress are answered
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str] = (), answered: Callable[[str, int, float], None] | None = None
    ) -> None:
        self.app, self.hosts, self.stopping = app, {*LOOPBACK, *map(str.lower, hosts)}, False
        self.answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["app"] = self.app  # for Starlette's router: unknown paths and methods raise HTTPException
        status, began = 0, time.perf_counter()

        async def forward(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        answer = None
        try:
            self._check(scope)
            await self.app(scope, receive, forward)
        except ClientDisconnect:
            status = status or CLIENT_LEFT
        except asyncio.CancelledError:  # the time for a graceful stop is up
            answer = Refused(503, STOPPING)
        except Exception as error:
            answer = refusal(error)
        if answer is not None and not status:
            await answer.response()(scope, receive, forward)
        if self.answered is not None:
            self.answered(scope["path"], status, time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        local = (scope.get("server") or ("",))[0]
        if name not in {*self.hosts, f"[{local}]" if ":" in local else local}:
            raise Refused(421, f"the Host {name!r} is not a name of this server; --allowed-host adds one")
        origin = headers.get("origin")
        foreign = origin is not None and origin.lower().partition("://")[2] != host
        navigates = headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        if foreign or (headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates):
            raise Refused(403, f"requests from pages of another site are refused{f' ({origin})' if origin else ''}")
        if self.stopping:
            raise Refused(503, STOPPING, headers={"Retry-After": "5", "Connection": "close"})


# --- bodies


async def read_json(request: Request, most: int = MAX_BODY) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Args:
        request: the request, its body unread
        most: the largest body that is read, in bytes

    Raises:
        Refused: if the body is too large or too slow, or is not a JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form in a page of another site cannot send it
        raise Refused(415, f"the Content-Type must be application/json, got {kind or 'none'}")
    body = await _read_body(request, most)
    try:
        found = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not valid JSON: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body must be a JSON object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


async def _read_body(request: Request, most: int) -> bytes:
    too_large = Refused(413, f"the body is larger than {most:,} bytes, the limit of this server")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        problem = f"the body did not arrive within {BODY_SECONDS} seconds"
        raise Refused(408, problem, headers={"Connection": "close"}) from None
    return bytes(body)
