"""Opens a page to play with models and to see inside them: tinylm play --model runs/small --open

Generate, compare two models, read the loss of a text, look at attention, and watch the curves of runs. Without --model
the newest run in runs/ is used, or the built-in storyteller if there is none. Only this machine can reach the page,
unless --host says otherwise.
"""

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.commands.serve import LOOPBACK, close, find_models, load
from tinylm.console import Parser
from tinylm.errors import CannotCreateError, ConfigError, MissingInputError, notice

if TYPE_CHECKING:
    import socket

    from tinylm.serving.play import Player

PORTS = range(8760, 8800)
GRACE = 1.0  # seconds for growing texts to end


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser("play", __doc__)
    add = parser.add_argument
    kinds = "run folder, model folder or checkpoint, once for each (default: the newest run in runs/, else storyteller)"
    add("--model", action="append", metavar="[NAME=]PATH", help=f"{kinds}; NAME is its name on the page")
    parser.add_trust_option()
    add(
        "--runs", action="append", type=Path, help="run folder or folder of runs whose curves are shown (default: runs)"
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="name by which browsers reach the server")
    add("--port", type=int, help=f"port to listen on (default: the first free one from {PORTS[0]} on)")
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
    models = find_models(options.model)

    from tinylm.serving.server import listen, run_server, url

    listener = listen_from(options.host) if options.port is None else listen(options.host, options.port)
    with listener:
        players = {name: load_player(name, path, options.device) for name, path in models.items()}

        from tinylm.serving.play import play_app

        guard = play_app(players, options.runs or [Path("runs")], [options.host, *options.allowed_host])
        if options.host not in LOOPBACK:
            notice(f"anyone who can reach {options.host} can use this page")
        address = url(listener).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        print(f"the page is at {address} (Ctrl-C stops it)", flush=True)
        if options.open:
            show(address)

        try:
            run_server(guard, listener, grace=GRACE, stop=lambda: close(players.values()))
        finally:
            close(players.values())


def load_player(name: str, path: Path, device: str) -> "Player":
    """Loads a model and starts its engine."""
    from tinylm.serving.play import Player

    player = Player.of(name, load(path, device, texts=1))
    player.engine.start()
    return player


def show(address: str) -> None:
    """Opens an address in the browser."""
    import webbrowser

    if not webbrowser.open(address):
        notice(f"--open: found no browser; open {address} yourself")


def listen_from(host: str) -> "socket.socket":
    """A listening socket at the first free port."""
    from tinylm.serving.server import listen

    for port in PORTS:
        try:
            return listen(host, port)
        except CannotCreateError as error:
            if getattr(error.__cause__, "errno", None) != errno.EADDRINUSE:
                raise
    raise CannotCreateError(f"the ports from {PORTS[0]} to {PORTS[-1]} are in use; choose another by --port")
