"""Opens a page to play with models and to see inside them: tinylm play --model runs/small --open

Generate, compare two models, read the loss of a text, look at attention, and watch the curves of runs. Without --model
the newest run in runs/ is used. Only this machine can reach the page, unless --host says otherwise.
"""

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser, announce_model, pick_device
from tinylm.errors import CannotCreateError, ConfigError, MissingInputError, notice

if TYPE_CHECKING:
    import socket

HOST, PORT, MOST_TRIED = "127.0.0.1", 8760, 50


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser("play", __doc__)
    add = parser.add_argument
    kinds = "run folder, model folder or checkpoint; repeat it for several (default: the newest run in runs/)"
    add("--model", action="append", help=kinds)
    add("--runs", action="append", type=Path, help="run folder or folder of runs whose curves are shown (default: runs)")
    add("--host", default=HOST, help="address to listen on; 0.0.0.0 lets other machines in")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="name by which browsers reach the server")
    add("--port", type=int, help=f"port to listen on (default: the first free one from {PORT} on)")
    add("--open", action="store_true", help="open the page in the browser")
    parser.add_device_option()
    return parser


def run(arguments: list[str]) -> None:
    """Serves the page until it is stopped."""
    options = make_parser().parse(arguments)
    if options.port is not None and not 0 <= options.port < 1 << 16:
        raise ConfigError(f"--port must be from 0 to 65535, got {options.port}")
    for path in options.runs or []:
        if not path.is_dir():
            raise MissingInputError(f"--runs {path}: no such folder")
    found = [announce_model(given) for given in options.model or [None]]

    from tinylm.serving.server import listen, run_server, url

    listener = listen(options.host, options.port) if options.port is not None else listen_from(options.host, PORT)

    from tinylm.bundle import load_bundle
    from tinylm.serving.play import Player, play_app

    device, players = pick_device(options.device), {}
    for name, path in zip(names([given for given, _ in found]), [path for _, path in found], strict=True):
        players[name] = Player.of(name, load_bundle(path, device))
        players[name].engine.start()
    address = url(listener).replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    print(f"the page is at {address} (Ctrl-C stops it)", flush=True)
    if options.open:
        import webbrowser

        if not webbrowser.open(address):
            notice(f"--open: no browser was found; open {address} yourself")
    guard = play_app(players, options.runs or [Path("runs")], options.allowed_host)
    run_server(guard, listener, grace=1.0, stop=lambda: [each.engine.close() for each in players.values()])


def listen_from(host: str, first: int) -> "socket.socket":
    """A listening socket at the first free port."""
    from tinylm.serving.server import listen

    for port in range(first, first + MOST_TRIED):
        try:
            return listen(host, port)
        except CannotCreateError as error:
            if getattr(error.__cause__, "errno", None) != errno.EADDRINUSE:
                raise
    raise CannotCreateError(f"--port: those from {first} to {first + MOST_TRIED - 1} are in use; choose another")


def names(given: list[str]) -> list[str]:
    """A name for each model: that of its run or folder or, where several have that name, its path."""
    if repeated := next((each for each in given if given.count(each) > 1), None):
        raise ConfigError(f"--model {repeated}: given twice; name it once")
    paths = [Path(each).resolve() for each in given]
    short = [path.parent.name if path.name == "model" else f"{path.parents[1].name}/{path.stem}" if path.suffix == ".ckpt" else path.name for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, given, strict=True)]
