"""A server that speaks OpenAI's API: completions and chats, whole or streamed, of one or several models.

Each model has an engine, which all requests share. A request is checked (openai_fields.py), its prompts are encoded
(openai_prompts.py) and its texts handed to the engine; openai_choices.py writes them in the API's form. In
addition there are `/healthz` and, for Prometheus, `/metrics`.

Left out: tools, images and audio, embeddings, the Responses API. They are refused by name.
"""

import hmac
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from tinylm.data.template import chat_template
from tinylm.serving.answers import EventStream, attended, complete, grow
from tinylm.serving.engine import Engine, Piece, Request
from tinylm.serving.guard import Guard, Refused, read_json
from tinylm.serving.metrics import Metrics
from tinylm.serving.openai_choices import ChatChoice, Spelling, TextChoice
from tinylm.serving.openai_fields import Asked, Fields, Limits, read_chat, read_completion
from tinylm.serving.openai_prompts import Prompt, read_conversation, read_prompts
from tinylm.serving.scoring import score


@dataclass(eq=False)
class Served:
    """A model of the server.

    Attributes:
        name: its id in the API
        engine: generates its texts
        created: when it was loaded, in seconds since 1970
    """

    name: str
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        tokenizer = self.engine.generator.tokenizer
        self.spelling, self.template = Spelling(tokenizer), chat_template(tokenizer)

    def describe(self) -> dict[str, Any]:
        """The model in the API's form."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "tinylm"}


class OpenAIServer:
    """The application.

    Args:
        models: their engines have been started
        limits: of each request
        key: clients must send it; empty for none
        hosts: as for `Guard`

    Attributes:
        guard: the ASGI application
    """

    def __init__(self, models: Sequence[Served], limits: Limits, *, key: str = "", hosts: Sequence[str] = ()) -> None:
        self.models, self.limits, self._key = {model.name: model for model in models}, limits, key
        routes = [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.show_model),
            Route("/healthz", self.health),
            Route("/metrics", self.show_metrics),
        ]
        self.metrics = Metrics({model.name: model.engine for model in models}, {route.path for route in routes})
        self.guard = Guard(Router(routes, redirect_slashes=False), hosts, answered=self.metrics.answered)

    # --- endpoints

    async def completions(self, request: HTTPRequest) -> Response:
        """Continues prompts."""
        fields, model = await self._read(request)
        prompts = await read_prompts(fields, model.engine.generator)
        asked = read_completion(fields, self.limits)
        numbered = enumerate(prompt for prompt in prompts for _ in range(asked.count))
        choices = [TextChoice(index, model.spelling, prompt, asked) for index, prompt in numbered]
        return await self._answer(request, Work("text_completion", model, asked, prompts, choices, self.metrics))

    async def chat(self, request: HTTPRequest) -> Response:
        """Answers a conversation."""
        fields, model = await self._read(request)
        prompt = await read_conversation(fields, model.engine.generator, model.template, model.name)
        asked = read_chat(fields, self.limits)
        choices = [ChatChoice(index, model.spelling, asked) for index in range(asked.count)]
        return await self._answer(request, Work("chat.completion", model, asked, [prompt], choices, self.metrics))

    async def list_models(self, request: HTTPRequest) -> Response:
        """The models."""
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [model.describe() for model in self.models.values()]})

    async def show_model(self, request: HTTPRequest) -> Response:
        """One model."""
        self._check_key(request)
        return JSONResponse(self._model(request.path_params["name"]).describe())

    async def health(self, request: HTTPRequest) -> Response:
        """Whether all engines run."""
        failed = [name for name, model in self.models.items() if model.engine.failure is not None]
        if failed:
            raise Refused(503, f"the engine of {', '.join(failed)} has failed; restart the server")
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: HTTPRequest) -> Response:
        """The measurements."""
        return self.metrics.response()

    # --- requests

    def _check_key(self, request: HTTPRequest) -> None:
        if not self._key:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
            problem = "the API key is wrong" if given else "an API key is needed: send Authorization: Bearer KEY"
            raise Refused(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _model(self, name: str) -> Served:
        if name not in self.models:
            problem = f"the model {name!r} does not exist; this server has {', '.join(self.models)}"
            raise Refused(404, problem, param="model", code="model_not_found")
        return self.models[name]

    async def _read(self, request: HTTPRequest) -> tuple[Fields, Served]:
        """The fields of a request, and its model."""
        self._check_key(request)
        fields = Fields(await read_json(request, self.limits.max_body))
        name = fields.take("model", str, None)
        if name is None:
            raise Refused(400, f"model is missing; this server has {', '.join(self.models)}", param="model")
        return fields, self._model(name)

    async def _answer(self, request: HTTPRequest, work: "Work") -> Response:
        """The answer, whole or as events."""
        most = work.model.engine.max_waiting
        if len(work.choices) > max(most, 1):
            problem = f"the request asks for {len(work.choices)} texts, the queue of this server holds {most}"
            raise Refused(400, f"{problem}; ask for fewer", param="n")
        work.client = f"{request.client.host if request.client else ''} {work.asked.user}"
        if work.asked.stream:
            return EventStream(work.events(), self.limits.timeout)
        return JSONResponse(await attended(request.receive, self.limits.timeout, work.whole()))


@dataclass(eq=False)
class Work:
    """A request that is being answered.

    Attributes:
        kind: the `object` of the answer
        model: the model
        asked: the options
        prompts: the prompts
        choices: one for each text, those of the first prompt first
        metrics: of the server
        client: the client, for the engine's queue
    """

    kind: str
    model: Served
    asked: Asked
    prompts: Sequence[Prompt]
    choices: Sequence[TextChoice | ChatChoice]
    metrics: Metrics
    client: str = ""

    def __post_init__(self) -> None:
        self.started, self.made = time.perf_counter(), 0
        self._id = f"{'chatcmpl' if self.kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}"

    async def whole(self) -> dict[str, Any]:
        """The answer."""
        await self._score()
        texts = await complete(self.model.engine, self._requests()) or [[]] * len(self.choices)
        self.made = sum(piece.token is not None for pieces in texts for piece in pieces)
        choices = [choice.whole(pieces) for choice, pieces in zip(self.choices, texts, strict=True)]
        return self._head(self.kind) | {"choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events of the answer; none before the first token, so that an error can still be the answer."""
        chunk = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        head = self._head(chunk) | ({"usage": None} if self.asked.usage else {})
        await self._score()
        begun = False
        async with aclosing(self._pieces()) as pieces:
            async for index, piece in pieces:
                if not begun:
                    self.metrics.first_token(self.model.name, time.perf_counter() - self.started)
                for choice in () if begun else self.choices:
                    if (beginning := choice.beginning()) is not None:
                        yield head | {"choices": [beginning]}
                begun = True
                self.made += piece.token is not None
                if (part := self.choices[index].part(piece)) is not None:
                    yield head | {"choices": [part]}
        if self.asked.usage:
            yield head | {"choices": [], "usage": self._usage()}

    def _requests(self) -> list[Request]:
        """The texts to generate."""
        given = self.asked
        configs = given.configs() if given.generates else []
        return [
            Request(prompt.ids, config, given.alternatives or 0, self.client)
            for prompt in self.prompts
            for config in configs
        ]

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """The pieces of all texts, each with the index of its choice."""
        if not self.asked.generates:
            for choice in self.choices:
                yield choice.index, Piece("", None, 0.0, (), "length")
            return
        async with aclosing(grow(self.model.engine, self._requests())) as pieces:
            async for each in pieces:
                yield each

    async def _score(self) -> None:
        """Scores the prompts, if they are echoed with log probabilities."""
        asked, generator = self.asked, self.model.engine.generator
        if not asked.echo or asked.alternatives is None:
            return
        texts = [choice for choice in self.choices if isinstance(choice, TextChoice)]
        for number, prompt in enumerate(self.prompts):
            scored = await self.model.engine.run(
                partial(score, generator.model, prompt.ids, asked.alternatives, generator.decoder.end)
            )
            for choice in texts[number * asked.count : (number + 1) * asked.count]:
                choice.echo_tokens(scored)

    def _head(self, kind: str) -> dict[str, Any]:
        """The fields that all events of an answer share."""
        name, created = self.model.name, int(time.time())
        return {"id": self._id, "object": kind, "created": created, "model": name, "system_fingerprint": None}

    def _usage(self) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self.prompts)
        return {"prompt_tokens": read, "completion_tokens": self.made, "total_tokens": read + self.made}
