"""Ticket: a text on its way from the engine's thread to the task that waits for it."""

import asyncio
from collections.abc import Callable
from typing import Any

from tinylm.serving.batch import Piece, Row


class Ticket:
    """The part of a text that its task has yet to read. All methods run on the thread of its event loop.

    Args:
        row: the text
        wakes: whether every piece wakes the task; otherwise only the last does

    Attributes:
        loop: the event loop
        pieces: pieces that have not been taken yet
        error: the exception that ended the text
        ended: whether no more pieces will come
    """

    def __init__(self, row: Row, wakes: bool) -> None:
        self.loop, self.row, self.wakes = asyncio.get_running_loop(), row, wakes
        self.pieces: list[Piece] = []
        self.error: BaseException | None = None
        self.ended = False
        self.waiter: asyncio.Future[None] | None = None

    def deliver(self, item: Piece | BaseException) -> None:
        """Takes the next piece or the error that ends the text."""
        if isinstance(item, BaseException):
            self.error, self.ended = item, True
        else:
            self.pieces.append(item)
            self.ended = bool(item.finished)
        if self.waiter is not None and not self.waiter.done() and (self.wakes or self.ended):
            self.waiter.set_result(None)

    async def take(self) -> list[Piece]:
        """The pieces that have come since the last call, at least one; raises the error that ended the text."""
        while not self.ended and not (self.pieces and self.wakes):
            self.waiter = self.loop.create_future()
            await self.waiter
        pieces, self.pieces = self.pieces, []
        if not pieces and self.error is not None:
            raise self.error
        return pieces


def deliver_all(items: list[tuple[Ticket, Any]]) -> None:
    """Hands the pieces or errors of a step to their tickets."""
    for ticket, item in items:
        ticket.deliver(item)


def call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> bool:
    """Calls a function on an event loop's thread; False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True
