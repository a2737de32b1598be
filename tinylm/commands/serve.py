"""Serves models over HTTP by OpenAI's API: tinylm serve --model runs/small

Any OpenAI client then uses http://127.0.0.1:8000/v1. Concurrent requests are generated together. The
environment variable TINYLM_API_KEY sets a key that clients must send. Ctrl-C stops the server once the requests in
progress are answered.
"""

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser, announce_model, check_at_least, pick_device
from tinylm.errors import ConfigError, notice
from tinylm.generation.options import check_rule
from tinylm.locate import find_model

if TYPE_CHECKING:
    from tinylm.bundle import Bundle
    from tinylm.serving.openai import Served
    from tinylm.serving.play import Player

KEY = "TINYLM_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # addresses that only this machine can reach
ROWS_TIMED = 16  # texts at once for which the number of threads is chosen


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser("serve", __doc__)
    add = parser.add_argument
    kinds = "run folder, model folder or checkpoint, once for each model (default: the newest run in runs/)"
    add("--model", action="append", metavar="[NAME=]PATH", help=f"{kinds}; NAME is its id in the API")
    parser.add_trust_option()
    parser.add_device_option()
    add = parser.add_argument_group("address").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    add("--port", type=int, default=8000, help="port to listen on; 0 takes any free one")
    names = "name by which clients reach the server, such as that of a reverse proxy (default: --host and loopback)"
    add("--allowed-host", action="append", default=[], metavar="NAME", help=f"{names}; may be repeated")
    add = parser.add_argument_group("limits").add_argument
    add("--rows", type=int, default=64, help="texts of a model generated at once; each takes memory for its context")
    add("--max-waiting", type=int, default=256, help="further texts of a model that may wait; more get 429")
    add("--max-tokens", type=int, default=2048, help="most tokens of a text, and the default for chats")
    add("--max-body", type=int, default=1 << 20, help="most bytes of a request")
    add("--timeout", type=float, default=600.0, help="most seconds of an answer")
    add("--grace", type=float, default=30.0, help="most seconds for a stopped server to finish its answers")
    return parser


def run(arguments: list[str]) -> None:
    """Serves until a signal stops the server."""
    options = make_parser().parse(arguments)
    check_options(options)
    key = read_key()
    models = find_models(options.model)

    from tinylm.serving.server import listen

    listener = listen(options.host, options.port)  # before the models are loaded, which takes a while
    with listener:
        from tinylm.serving.openai import OpenAIServer
        from tinylm.serving.openai_fields import Limits
        from tinylm.serving.server import run_server, url

        served = [load_served(name, path, options) for name, path in models.items()]
        limits = Limits(options.max_tokens, options.timeout, options.max_body)
        server = OpenAIServer(served, limits, key=key, hosts=[options.host, *options.allowed_host])
        if options.host not in LOOPBACK and not key:
            notice(f"anyone who can reach {options.host} can use this server; {KEY} sets a key")
        notice(f"serving {', '.join(models)} at {url(listener)}/v1; Ctrl-C stops")
        try:
            run_server(server.guard, listener, grace=options.grace, stop=lambda: close(served))
        finally:
            close(served)


def check_options(options: argparse.Namespace) -> None:
    """Raises ConfigError for a limit out of range."""
    check_at_least(1, options, "rows", "max_tokens", "max_body")
    check_at_least(0, options, "max_waiting")
    check_rule(0 <= options.port < 1 << 16, "--port", "from 0 to 65535", options.port)
    check_rule(0 < options.timeout < math.inf, "--timeout", "positive", options.timeout)
    check_rule(0 <= options.grace < math.inf, "--grace", "0 or positive", options.grace)


def read_key() -> str:
    """The key in the environment; an empty string for none."""
    key = os.environ.get(KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise ConfigError(f"{KEY} must be printable ASCII characters without spaces around them; unset it for no key")
    return key or ""


def find_models(given: Sequence[str] | None) -> dict[str, Path]:
    """The model folder or checkpoint of each name, in the order given."""
    models: dict[str, Path] = {}
    for each in given or [announce_model(None)[0]]:
        name, separator, path = each.partition("=")
        if not separator or Path(each).exists():
            name, path = default_name(Path(each)), each
        if not name or name in models:
            problem = f"two models are called {name}" if name else "the name is empty"
            raise ConfigError(f"--model {each}: {problem}; write --model NAME={path}")
        models[name] = find_model(path)
    return models


def default_name(path: Path) -> str:
    """The name of the run that a path belongs to."""
    path = path.absolute()
    if path.name == "model" or path.parent.name == "checkpoints":
        path = path.parent if path.name == "model" else path.parent.parent
    return path.stem if path.is_file() else path.name


def load_served(name: str, path: Path, options: argparse.Namespace) -> "Served":
    """Loads a model and starts its engine."""
    from tinylm.serving.engine import Engine
    from tinylm.serving.openai import Served

    bundle = load(path, options.device, min(options.rows, ROWS_TIMED))
    engine = Engine.of(bundle, rows=options.rows, max_waiting=options.max_waiting)
    engine.start()
    return Served(name, engine)


def load(path: Path, device: str, texts: int) -> "Bundle":
    """Loads a model, and chooses the number of threads for so many texts at once."""
    from tinylm.bundle import load_bundle
    from tinylm.generation.fast.choice import fastest_threads

    notice(f"loading {path}")
    bundle = load_bundle(path, pick_device(device))
    fastest_threads(bundle.model, texts)
    return bundle


def close(models: Iterable["Served | Player"]) -> None:
    """Ends the engines."""
    for model in models:
        model.engine.close()
