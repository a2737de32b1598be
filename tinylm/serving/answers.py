"""Long-running answers, as one JSON value or as events; they end with the client's connection or at a time limit.

Server-sent events are lines `data: JSON`, each followed by an empty line; the last is `data: [DONE]`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinylm.serving.engine import Engine, Piece, Request
from tinylm.serving.guard import Refused, refusal

QUEUED = 32  # pieces held here for a slow client; further ones wait in the engine
Result = TypeVar("Result")


async def attended(receive: Receive, seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work for a waiting client; the work is cancelled when the client leaves.

    Args:
        receive: the ASGI `receive` of the request, whose body has been read
        seconds: limit of time
        work: the work

    Raises:
        ClientDisconnect: if the client has left.
        Refused: if the time limit is exceeded.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if left.done():
            raise ClientDisconnect
        raise Refused(504, f"the answer took longer than {seconds:g} seconds, the limit of this server", code="timeout")
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Waits until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events until they end, the client leaves, or an error occurs, which is sent as the last event.

    An error before the first event becomes an ordinary error response.

    Args:
        events: JSON values
        seconds: limit of time
    """

    def __init__(self, events: AsyncGenerator[Any, None], seconds: float) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.events, self.seconds, self.started = events, seconds, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        last = "[DONE]"
        try:
            await attended(receive, self.seconds, self._send_all(send))
        except ClientDisconnect:
            raise
        except Exception as error:
            if not self.started:
                raise
            last = json.dumps(refusal(error).body)
        end = {"type": "http.response.body", "body": f"data: {last}\n\n".encode(), "more_body": False}
        with suppress(TimeoutError):  # the client does not read
            await asyncio.wait_for(send(end), 1)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.events) as events:
            async for event in events:
                if not self.started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    self.started = True
                body = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode(errors="replace")
                await send({"type": "http.response.body", "body": body, "more_body": True})


# --- several texts


async def grow(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yields the pieces of several texts as they come, each with the index of its text."""
    queue: asyncio.Queue[tuple[int, Piece] | BaseException] = asyncio.Queue(QUEUED)

    async def pump(index: int, request: Request) -> None:
        try:
            async with aclosing(engine.stream(request)) as pieces:  # pyright: ignore[reportArgumentType] (a generator)
                async for piece in pieces:
                    await queue.put((index, piece))
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(*each)) for each in enumerate(requests)]
    try:
        growing = len(tasks)
        while growing:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            growing -= bool(item[1].finished)
    finally:
        await _end(tasks)


async def complete(engine: Engine, requests: Sequence[Request]) -> list[list[Piece]]:
    """The pieces of several texts, when all have ended."""
    tasks = [asyncio.create_task(engine.complete(request)) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels the tasks that are still running, and waits for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
