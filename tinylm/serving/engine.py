"""Engine: a thread that generates many texts at once and passes them to asyncio as they grow.

Requests wait in a bounded queue that serves clients in turn. Between two steps, texts join and leave the batch
(batch.py), and functions that use the model run on the same thread, for at most half of the time while texts grow.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from tinylm.bundle import Bundle
from tinylm.errors import ConfigError, TinyLMError, first_line
from tinylm.generation.generate import Generator
from tinylm.model import TransformerLM
from tinylm.serving.batch import Batch, Piece, Request, Row
from tinylm.serving.queue import FairQueue
from tinylm.serving.ticket import Ticket, call, deliver_all
from tinylm.tokenizer import Tokenizer

__all__ = ["Counts", "Engine", "Piece", "QueueFull", "Request", "ServerStopped"]

Result = TypeVar("Result")


class QueueFull(TinyLMError, exit_code=70):
    """Too many texts are waiting."""


class ServerStopped(TinyLMError, exit_code=70):
    """The engine was closed before the text ended."""


@dataclass(frozen=True)
class Counts:
    """The state of an engine.

    Attributes:
        growing: texts that grow
        waiting: texts that wait for a row, or whose prompts are being read
        jobs: waiting functions
        texts: number of texts that have ended by themselves, so far
        new_tokens: number of tokens generated so far
        prompt_tokens: number of tokens of prompts read so far, including those read again when a text slides
        steps: number of steps so far
        cache_bytes: memory of the key/value cache
    """

    growing: int
    waiting: int
    jobs: int
    texts: int
    new_tokens: int
    prompt_tokens: int
    steps: int
    cache_bytes: int


class Engine:
    """Generates many texts at once (continuous batching).

    A text equals that of `Generator.generate` for the same options and seed, whatever else is in the batch, barring
    ties decided by rounding. Any decoder that `make_decoder` chooses can be used. On CUDA, steps are not captured as
    graphs, since their number of rows changes. An exception on the thread ends all texts; later requests are refused.

    Args:
        model: the model, in evaluation mode
        tokenizer: its tokenizer
        rows: most texts that grow at once; memory for so many contexts is allocated
        max_waiting: most further texts that wait

    Attributes:
        generator: checks options and encodes prompts
        failure: the exception that ended the thread, if one did

    Raises:
        ConfigError: for a number of rows below 1 or too large for the memory, or a negative max_waiting.
    """

    def __init__(self, model: TransformerLM, tokenizer: Tokenizer, *, rows: int = 64, max_waiting: int = 256) -> None:
        for name, value, least in (("rows", rows, 1), ("max_waiting", max_waiting, 0)):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        self.generator, self.max_waiting = Generator(model, tokenizer), max_waiting
        self.failure: BaseException | None = None
        self._batch = Batch(self.generator, rows)
        self._queue: FairQueue[Ticket] = FairQueue()
        self._jobs: deque[Callable[..., None]] = deque()
        self._tickets: dict[Row, Ticket] = {}  # of the batch
        self._changed = threading.Condition()  # guards the queue, the jobs and `_closing`
        self._closing, self._balance = False, 0.0
        self._texts = self._new_tokens = self._steps = 0
        self._thread = threading.Thread(target=self._serve, name="tinylm engine", daemon=True)

    @classmethod
    def of(cls, bundle: Bundle, *, rows: int, max_waiting: int) -> "Engine":
        """The engine of a loaded model, which reads conversations as it was trained to; arguments are the engine's."""
        engine = cls(bundle.model, bundle.tokenizer, rows=rows, max_waiting=max_waiting)
        engine.generator.conversation = "template" in bundle.info
        return engine

    def start(self) -> None:
        """Starts the thread, with the generator's options as they are now."""
        self.generator.refresh_decoder()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its current step. Texts that still grow or wait end with ServerStopped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def counts(self) -> Counts:
        """The numbers of texts and tokens at this moment."""
        batch = self._batch
        waiting = len(self._queue) + len(batch.unread)
        numbers = len(self._jobs), self._texts, self._new_tokens, batch.prompt_tokens, self._steps
        return Counts(len(batch.growing), waiting, *numbers, batch.memory.num_bytes)

    # --- on the event loop's thread

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yields a text token by token. Leaving the iterator ends the text before the next step.

        Raises:
            ConfigError: for an invalid prompt or option, or options that leave no token to choose from
            QueueFull: if too many texts wait
            NumericError: if the logits are not finite
            ServerStopped: if the engine is closed.
        """
        ticket = self._enter(request, wakes=True)
        try:
            while not ticket.ended or ticket.pieces or ticket.error is not None:
                for piece in await ticket.take():
                    yield piece
        finally:
            self._leave(ticket)

    async def complete(self, request: Request) -> list[Piece]:
        """The pieces of a whole text, as from `stream`, without a wakeup for each. Cancelling it ends the text."""
        ticket = self._enter(request, wakes=False)
        try:
            pieces = await ticket.take()
            if ticket.error is not None:
                raise ticket.error
            return pieces
        finally:
            self._leave(ticket)

    async def run(self, function: Callable[[], Result]) -> Result:
        """Calls a function that uses the model, on the engine's thread, between two steps, and returns its result.

        While texts grow, functions take at most half of the time. Errors are those of the function, and ServerStopped.
        """
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def job(error: BaseException | None = None) -> None:
            result = None
            if error is None and not future.done():
                try:
                    result = function()
                except Exception as raised:
                    error = raised
            call(loop, settle, result, error)

        with self._changed:
            self._check_open()
            self._jobs.append(job)
            self._changed.notify()
        return await future

    def _check_open(self) -> None:
        if self.failure is not None:
            raise ServerStopped(f"the engine has failed: {first_line(self.failure)}") from self.failure
        if self._closing or not self._thread.is_alive():
            raise ServerStopped("the engine is closed")

    def _enter(self, request: Request, wakes: bool) -> Ticket:
        """Checks a request and puts it into the queue."""
        self._check(request)
        ticket = Ticket(Row(self.generator, request), wakes)
        if ticket.row.text.finished:
            raise ConfigError("the given tokens contain a stop string, which ends the text; nothing follows")
        with self._changed:
            self._check_open()
            if len(self._queue) - self._batch.free >= self.max_waiting:
                raise QueueFull(f"{self.max_waiting} texts are waiting already; try again later")
            self._queue.put(request.client, ticket)
            self._changed.notify()
        return ticket

    def _check(self, request: Request) -> None:
        model, tokenizer = self.generator.model.config, self.generator.tokenizer
        if not request.prompt:
            raise ConfigError("the prompt has no tokens; give at least one")
        if len(request.prompt) > model.max_seq_len:
            raise ConfigError(f"the prompt has {len(request.prompt)} tokens, the context holds {model.max_seq_len}")
        if not all(0 <= token < tokenizer.vocab_size for token in (*request.prompt, *request.begun)):
            raise ConfigError(f"a token of the prompt is outside the vocabulary of {tokenizer.vocab_size}")
        if len(request.begun) >= request.config.max_new_tokens or tokenizer.until_stop(request.begun) != request.begun:
            raise ConfigError("the given tokens end the text; nothing follows")
        if not 0 <= request.alternatives <= tokenizer.vocab_size:
            raise ConfigError(f"alternatives must be from 0 to {tokenizer.vocab_size}, got {request.alternatives}")
        request.config.check_tokens(tokenizer.vocab_size, tokenizer.marks.stops)

    def _leave(self, ticket: Ticket) -> None:
        """Marks a text whose client has left."""
        if not ticket.ended:
            ticket.row.left = True
            with self._changed:
                self._queue.remove(ticket.row.request.client, ticket)

    # --- on the engine's thread

    def _serve(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # a new thread does not inherit the number
        try:
            while self._admit():
                started = time.perf_counter()
                self._deliver(self._batch.step())
                self._tickets = {row: ticket for row, ticket in self._tickets.items() if not row.left}
                self._run_job(time.perf_counter() - started)
            self._end(ServerStopped("the server is stopping"))
        except BaseException as error:
            self.failure = error
            self._end(error)

    def _admit(self) -> bool:
        """Waits for work and moves requests into free rows; False if the engine is to end."""
        with self._changed:
            while not (self._closing or self._tickets or self._queue or self._jobs):
                self._batch.clear()  # texts whose clients have left
                self._changed.wait()
            while self._queue and self._batch.free:
                ticket = self._queue.take()
                self._tickets[ticket.row] = ticket
                self._batch.join(ticket.row)
            return not self._closing

    def _deliver(self, made: list[tuple[Row, Piece | TinyLMError]]) -> None:
        """Delivers the results of a step, with one call for each event loop."""
        self._steps += bool(made)
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Any]]] = {}
        for row, item in made:
            ticket = self._tickets[row]
            loops.setdefault(ticket.loop, []).append((ticket, item))
            self._new_tokens += isinstance(item, Piece) and item.token is not None
            if not isinstance(item, Piece) or item.finished:
                self._texts += isinstance(item, Piece)
                del self._tickets[row]
        for loop, items in loops.items():
            if not call(loop, deliver_all, items):
                for ticket, _ in items:
                    ticket.row.left = True

    def _run_job(self, spent: float) -> None:
        """Runs a waiting function, unless functions have taken more than half of the time while texts grow."""
        if not self._jobs:
            return
        self._balance = min(self._balance + spent, 0.0) if self._tickets else 0.0
        if self._balance < 0:
            return
        started = time.perf_counter()
        self._jobs.popleft()()
        self._balance -= time.perf_counter() - started

    def _end(self, error: BaseException) -> None:
        """Ends all texts and functions with an error."""
        with self._changed:
            self._closing = True
            tickets = [*self._tickets.values(), *self._queue.clear()]
            jobs, self._jobs = list(self._jobs), deque()
        self._tickets = {}
        self._batch.clear()
        for ticket in tickets:
            call(ticket.loop, deliver_all, [(ticket, error)])
        for job in jobs:
            job(error)
