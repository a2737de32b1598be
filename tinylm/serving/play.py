"""The application of `tinylm play`: a page in the browser, and the JSON that it requests.

    GET  /api/models     the models, and the options of sampling
    POST /api/generate   a text, token by token, as JSON lines; it may begin with given tokens
    POST /api/read       the loss of a text, token by token
    POST /api/attention  the attention weights of a head over a text
    GET  /api/story      a built-in story
    GET  /api/runs       the runs; /api/curve has a metric of one

The page is in page/: plain HTML, CSS and JavaScript that load nothing from other sites.
"""

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylm.bundle import Bundle
from tinylm.checks import require
from tinylm.data.grammar.stories import COUNT, story
from tinylm.data.pairs import Turn
from tinylm.data.template import chat_template, find_template, prompt_ids
from tinylm.errors import ConfigError, TinyLMError, did_you_mean, first_line
from tinylm.generation import SamplingConfig
from tinylm.generation.text import Text
from tinylm.serving import engine as engines
from tinylm.serving.engine import Engine
from tinylm.serving.guard import Guard, read_json
from tinylm.serving.inside import look, named, number, read_text, spell, speller
from tinylm.serving.live_runs import Runs

PAGE = Path(__file__).with_name("page")
ROWS, MOST_WAITING, ALTERNATIVES = 4, 32, 10
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
KINDS = {"logit_bias": "bias", "banned_tokens": "tokens", "stop": "strings"}  # of options; the others are numbers

Value = TypeVar("Value")


@dataclass(frozen=True)
class Player:
    """A model on the page, and the engine that generates with it."""

    name: str
    bundle: Bundle
    engine: Engine

    @classmethod
    def of(cls, name: str, bundle: Bundle) -> "Player":
        """Prepares a model."""
        return cls(name, bundle, Engine.of(bundle, rows=ROWS, max_waiting=MOST_WAITING))

    @property
    def can_chat(self) -> bool:
        """Whether a prompt can be read as a user's message."""
        try:
            return chat_template(self.bundle.tokenizer) is not None
        except TinyLMError:
            return False

    def describe(self) -> dict[str, Any]:
        """Name, size and abilities of the model, for the page."""
        config, tokenizer, info = self.bundle.model.config, self.bundle.tokenizer, self.bundle.info
        return {
            "name": self.name,
            "parameters": self.bundle.model.num_parameters(),
            "layers": config.num_layers,
            "heads": config.num_heads,
            "context": config.max_seq_len,
            "vocabulary": tokenizer.vocab_size,
            "tokenizer": tokenizer.kind,
            "chat": self.can_chat,
            "conversation": info.get("template") == "chat",
            "prompt": info.get("prompt", ""),
        }

    def prompt_ids(self, prompt: str, chat: bool) -> list[int]:
        """The ids of a prompt, or of a user's message that the assistant is to answer."""
        generator = self.engine.generator
        if not chat:
            return generator.prompt_ids(prompt)
        template = find_template("chat", generator.tokenizer)
        return prompt_ids(generator.tokenizer, [Turn("user", prompt), Turn("assistant", "")], template)


class Play:
    """The routes of the page.

    Args:
        players: the models by name, at least one
        runs: folders of runs
    """

    def __init__(self, players: Mapping[str, Player], runs: Sequence[Path] = ()) -> None:
        self.players, self.runs = players, Runs(runs)
        routes = [
            Route("/api/models", self.models),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/read", self.read, methods=["POST"]),
            Route("/api/attention", self.attention, methods=["POST"]),
            Route("/api/story", self.story),
            Route("/api/runs", self.list_runs),
            Route("/api/curve", self.curve),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
        self.router = Router(routes)

    def models(self, request: Request) -> JSONResponse:
        """The models, and the options of sampling with their defaults and help."""
        return JSONResponse({"models": [each.describe() for each in self.players.values()], "options": options()})

    async def generate(self, request: Request) -> StreamingResponse:
        """A text, token by token."""
        body = await read_json(request)
        player = self._player(body)
        given, chat = take(body, "prompt", str), take(body, "chat", bool, False)
        prompt = await run_in_threadpool(lambda: player.prompt_ids(given, chat))
        values = take(body, "options", dict, {})
        if values.get("seed") is None:
            values["seed"] = secrets.randbelow(1 << 32)
        if "logit_bias" in values:
            values["logit_bias"] = _by_id(values["logit_bias"])
        config, _ = player.engine.generator.check_options(values)
        begun = take(body, "begun", list, [])
        require(all(type(each) is int for each in begun), "begun must be a list of token ids")
        asked = engines.Request(prompt, config, alternatives=self._alternatives(player), begun=begun)
        return StreamingResponse(generate_lines(player, asked), media_type="application/x-ndjson")

    def _alternatives(self, player: Player) -> int:
        return min(ALTERNATIVES, player.bundle.tokenizer.vocab_size)

    async def read(self, request: Request) -> JSONResponse:
        """The loss of a text, token by token."""
        body = await read_json(request)
        player, text = self._player(body), take(body, "text", str)
        model, tokenizer = player.bundle.model, player.bundle.tokenizer
        return JSONResponse(await player.engine.run(lambda: read_text(model, tokenizer, text)))

    async def attention(self, request: Request) -> JSONResponse:
        """The attention weights of a head over a text."""
        body = await read_json(request)
        player, text = self._player(body), take(body, "text", str)
        layer, head = take(body, "layer", int), take(body, "head", int)
        model, tokenizer = player.bundle.model, player.bundle.tokenizer
        return JSONResponse(await player.engine.run(lambda: look(model, tokenizer, text, layer, head)))

    def story(self, request: Request) -> JSONResponse:
        """A story generated by the built-in grammar that is not in the corpus."""
        return JSONResponse({"text": story(0, COUNT + secrets.randbelow(1 << 30))})

    def list_runs(self, request: Request) -> JSONResponse:
        """The runs."""
        return JSONResponse({"runs": self.runs.overview(), "folders": [str(path) for path in self.runs.paths]})

    def curve(self, request: Request) -> JSONResponse:
        """A metric of a run."""
        wanted = request.query_params
        return JSONResponse(self.runs.curve(wanted.get("run", ""), wanted.get("metric", "")))

    def _player(self, body: dict[str, Any]) -> Player:
        name = take(body, "model", str)
        if name not in self.players:
            hint = did_you_mean(name, self.players) or f"; there are {', '.join(self.players)}"
            raise ConfigError(f"{name}: no such model{hint}")
        return self.players[name]


async def generate_lines(player: Player, request: engines.Request) -> AsyncIterator[str]:
    """The JSON lines of a text: prompt, given tokens and seed; each token; the end, or the error that ended it."""
    tokenizer = player.bundle.tokenizer
    describe = speller(tokenizer)
    begun = [describe(token) for token in request.begun]
    yield _line({"prompt": spell(tokenizer, request.prompt), "begun": begun, "seed": request.config.seed})
    ids = list(request.begun)
    try:
        async with aclosing(player.engine.stream(request)) as pieces:
            async for piece in pieces:
                others = [named(tokenizer, token) | {"nats": number(-each)} for token, each in piece.alternatives]
                if piece.token is not None:
                    ids.append(piece.token)
                    token = describe(piece.token) | {"nats": number(-piece.log_prob), "alternatives": others}
                    yield _line({"token": token})
                else:  # the end-of-text token
                    yield _line({"end": {"nats": number(-piece.log_prob), "alternatives": others}})
                if piece.finished:
                    yield _line({"finished": piece.finished, "kept": _kept(player, request, ids)})
    except TinyLMError as error:
        yield _line({"error": first_line(error)})


def _kept(player: Player, request: engines.Request, ids: list[int]) -> int:
    """Number of characters of a text before the stop string that ended it, or of all."""
    text = Text(request.prompt)
    reader, kept = player.engine.generator.reader(text, request.config), 0
    for token in ids:
        text.ids.append(token)
        kept += len(reader.read())
    return kept + len(reader.rest())


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def take(body: dict[str, Any], name: str, kind: type[Value], default: Value | None = None) -> Value:
    """A field of a request's body; ConfigError if it has another type, or is missing and has no default."""
    value = body.get(name, default)
    if type(value) is not kind:
        raise ConfigError(f"{name} must be a value of type {kind.__name__}, got {value!r}")
    return value


def _by_id(biases: Any) -> Any:
    """Biases by token id: the keys of a JSON object are strings."""
    if not isinstance(biases, dict) or not all(key.isdecimal() for key in biases):
        raise ConfigError(f"logit_bias must be numbers by token id, got {biases!r}")
    return {int(key): value for key, value in biases.items()}


def options() -> list[dict[str, Any]]:
    """The options of sampling: name, kind, default and help."""
    documented = docstring_parser.parse_from_object(SamplingConfig).params
    help_texts = {each.arg_name: " ".join((each.description or "").split()) for each in documented}
    defaults = {each.name: each.default for each in fields(SamplingConfig)}
    return [
        {"name": name, "kind": KINDS.get(name, "number"), "default": default, "help": help_texts[name]}
        for name, default in defaults.items()
    ]


class PageHeaders:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def forward(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, forward)


def play_app(players: Mapping[str, Player], runs: Sequence[Path] = (), hosts: Sequence[str] = ()) -> Guard:
    """The whole application. The engines of its models must have been started.

    Args:
        players: the models by name, at least one
        runs: folders of runs
        hosts: names of the server besides those of this machine
    """
    return Guard(PageHeaders(Play(players, runs).router), hosts)
