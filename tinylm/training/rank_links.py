"""Watch: the connections between ranks, and the thread that finds a missing, dead or stalled rank.

A closed connection means a dead rank; a silent one, a stopped process or a broken network. A rank that makes no
progress while the others have moved on is the one that they wait for.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistError, TCPStore, distributed_c10d

from tinylm.errors import Interrupted, Preempted, TinyLMError

BEATS = 20  # signs of life within the timeout, but at least one a second
GRACE = 5.0  # seconds that a rank has to end by itself after another has failed
STOPS = (0, Interrupted.exit_code, Preempted.exit_code)
_watches = itertools.count()  # of this process; all ranks count alike


def _identity() -> dict[str, Any]:
    """Host and process id; equal values of `space` mean that the process ids are of one machine or container."""
    host = space = socket.gethostname()
    with contextlib.suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        space = f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    return {"host": host, "pid": os.getpid(), "space": space}


def _interruptibly(wait: Callable[[], Any]) -> Any:
    """The result of a call that waits outside Python, where no signal could end it: it waits in another thread."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(wait())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="rank-watch-start", daemon=True).start()
    return result.result()


@dataclass
class _Peer:
    """The connection to a rank."""

    link: socket.socket
    rank: int = -1  # until it has introduced itself
    identity: dict[str, Any] = field(default_factory=dict)
    unread: bytes = b""
    silent: int = 0  # ticks since the last message
    place: int = 0  # in training
    activity: int = 0
    done: bool = False  # it may close the connection

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a closed connection is noticed when reading
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def __str__(self) -> str:
        where = f" ({self.identity['host']}, process {self.identity['pid']})" if self.identity else ""
        return f"rank {self.rank}{where}"


class Watch:
    """The connections of one rank, and the thread that looks after them.

    Rank 0 is connected to all others, which are connected to rank 0 only; it tells them of a loss.

    Attributes:
        place: how far this rank has come; ranks that wait for one another have equal values
        activity: grows with `place` and with whatever else this rank does
        ready: set when all ranks are connected
        left: set when rank 0 has said goodbye
    """

    def __init__(self, strategy: Any, timeout: float) -> None:
        self.rank, self.size, self.local_rank = strategy.global_rank, strategy.world_size, strategy.local_rank
        self.procs = getattr(strategy.launcher, "procs", [])  # Lightning's own launcher: ranks 1, 2, ...
        self.timeout, self.interval = timeout, min(1.0, timeout / BEATS)
        self.limit = int(timeout / self.interval) - 3  # ticks: so all have ended within the timeout
        self.place = self.activity = self._still = 0
        self.ready, self.left, self._over = threading.Event(), threading.Event(), False
        self.peers: dict[int, _Peer] = {}
        self._seen: list[int] = []
        self._selector = selectors.DefaultSelector()
        self.store = self._find_store(strategy.cluster_environment)
        key = f"tinylm/watch/{next(_watches)}"
        if self.rank == 0:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            listener = socket.create_server(
                ("", 0), family=family, backlog=self.size, dualstack_ipv6=family != socket.AF_INET
            )
            self.token = secrets.token_hex(8)
            self._selector.register(listener, selectors.EVENT_READ)
            self.store.set(key, f"{listener.getsockname()[1]} {self.token}")
        else:
            self._connect(key, strategy.cluster_environment.main_address)
        threading.Thread(target=self._run, name="rank-watch", daemon=True).start()

    # --- the start

    def _find_store(self, environment: Any) -> Any:
        """The store of the process group, on rank 0 or at torchrun's agent."""
        if torch.distributed.is_initialized():
            return distributed_c10d._get_default_store()
        address, port = environment.main_address, environment.main_port
        here = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        wait = timedelta(seconds=self.timeout)
        try:
            return _interruptibly(
                lambda: TCPStore(
                    address, port, self.size, here, timeout=wait, wait_for_workers=False, multi_tenant=True
                )
            )
        except DistError as error:
            raise TinyLMError(self._absent(f"nothing answers at {address}:{port}")) from error

    def _connect(self, key: str, address: str) -> None:
        """Connects to rank 0."""
        try:
            _interruptibly(lambda: self.store.wait([key], timedelta(seconds=self.timeout)))
            port, token = self.store.get(key).decode().split()
            link = socket.create_connection((address, int(port)), timeout=self.timeout)
        except (DistError, OSError) as error:
            raise TinyLMError(self._absent(str(error).splitlines()[0])) from error
        link.settimeout(self.timeout)
        self.peers[0] = peer = _Peer(link, rank=0)
        link.sendall(f"{token} {json.dumps([self.rank, _identity()])}\n".encode())
        self._selector.register(link, selectors.EVENT_READ, peer)

    def _absent(self, reason: str) -> str:
        return f"rank 0 of {self.size} did not start within {self.timeout:g} s ({reason}); run.timeout sets the limit"

    @property
    def _missing(self) -> list[int]:
        return [rank for rank in range(1, self.size) if self.rank == 0 and rank not in self.peers]

    # --- the thread

    def _run(self) -> None:
        tick, silent = time.monotonic() + self.interval, 0
        while not self._over:
            for key, _ in self._selector.select(max(0.0, tick - time.monotonic())):
                self._accept(key.fileobj) if key.data is None else self._receive(key.data)
            if time.monotonic() < tick:
                continue
            # silence is counted in ticks, not in seconds: if the whole job is suspended for an hour, that is one
            tick, silent = time.monotonic() + self.interval, silent + 1
            for peer in list(self.peers.values()):
                peer.silent += not peer.done
                peer.send(place=self.place, activity=self.activity)
            self._check_start(silent)
            self._check_peers()

    def _accept(self, listener: Any) -> None:
        link, _ = listener.accept()
        link.settimeout(self.timeout)
        self._selector.register(link, selectors.EVENT_READ, _Peer(link))

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.link.recv(65536)
        except OSError:
            data = b""
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        if not data or (peer.rank < 0 and lines and not self._introduce(peer, lines.pop(0))):
            self._selector.unregister(peer.link)
            peer.link.close()
            if peer.rank >= 0 and not peer.done:
                self.lose(f"{peer} died", peer)
            return
        for line in lines:
            peer.silent = 0
            self._understand(peer, json.loads(line))

    def _introduce(self, peer: _Peer, line: bytes) -> bool:
        """Admits a rank; False for anyone else who found the port."""
        token, _, hello = line.partition(b" ")
        if not secrets.compare_digest(token, self.token.encode()):
            return False
        peer.rank, peer.identity = json.loads(hello)
        self.peers[peer.rank] = peer
        peer.send(identity=_identity())
        if not self._missing:
            for other in self.peers.values():
                other.send(ready=True)
            self.ready.set()
        return True

    def _understand(self, peer: _Peer, message: dict[str, Any]) -> None:
        peer.identity = message.get("identity", peer.identity)
        peer.place, peer.activity = message.get("place", peer.place), message.get("activity", peer.activity)
        if message.get("ready"):
            self.ready.set()
        if "lost" in message:
            self._end(**message["lost"], told_by=peer.rank)
        if "bye" in message:
            peer.done = message["bye"] in STOPS
            if peer.rank == 0:
                self.left.set()
            if not peer.done:
                self.lose(f"{peer} failed: {message['why']}", peer, code=message["bye"])

    def _check_start(self, ticks: int) -> None:
        """Rank 0 before training: names the ranks that ended or have not come."""
        missing = self._missing
        for rank in missing:
            code = self.procs[rank - 1].poll() if rank <= len(self.procs) else None
            if code is not None:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                self.lose(
                    f"rank {rank} ended before training ({how})", _Peer(socket.socket(), rank), max(code, 0) or 70
                )
        if missing and ticks > self.limit:
            names = ", ".join(map(str, missing))
            who = f"rank{'s' if len(missing) > 1 else ''} {names} of {self.size} did not start"
            for rank in missing:
                if rank <= len(self.procs):
                    self.procs[rank - 1].kill()
            self.lose(
                f"{who} within {self.timeout:g} s; run.timeout sets the limit", _Peer(socket.socket(), missing[0])
            )

    def _check_peers(self) -> None:
        """Names a rank without a sign of life, or (on rank 0) one whose training others wait for."""
        for peer in self.peers.values():
            if peer.silent > self.limit:
                self.lose(f"{peer} stalled: no sign of life for {self.limit * self.interval:.0f} s", peer, stalled=True)
        active = [peer for peer in self.peers.values() if not peer.done]
        if self.rank != 0 or self._missing or len(active) < len(self.peers):
            return
        me = _Peer(socket.socket(), 0, _identity(), place=self.place, activity=self.activity)
        everyone = [me, *active]
        seen = [peer.activity for peer in everyone]
        self._still = self._still + 1 if seen == self._seen else 0
        self._seen = seen
        last = min(everyone, key=lambda peer: peer.place)
        if self._still > self.limit and last.place < max(peer.place for peer in everyone):
            seconds = self._still * self.interval
            self.lose(f"{last} stalled: the other ranks have waited for it for {seconds:.0f} s", last, stalled=True)

    # --- the end

    def lose(self, what: str, peer: _Peer, code: int = TinyLMError.exit_code, stalled: bool = False) -> None:
        """Tells the other ranks, and ends this process."""
        loss = {"what": what, "rank": peer.rank, "identity": peer.identity, "code": code, "stalled": stalled}
        for other in self.peers.values():
            other.send(lost=loss)
        self._end(**loss)

    def _end(
        self, what: str, rank: int, identity: dict[str, Any], code: int, stalled: bool, told_by: int | None = None
    ) -> None:
        """Ends this process, which may be waiting in a collective: no exception could reach it there."""
        ours = _identity()
        here = ours["space"] == identity.get("space")
        failed = " failed: " in what
        if failed:
            time.sleep(GRACE)  # it may be about to report the same itself
        alone = rank != told_by  # a rank that tells of itself can end itself, too
        speaks = self.local_rank == 0 or (rank == 0 and self.rank == 1 and alone)
        if speaks and not (failed and here):
            print(
                f"tinylm: error: {what}; fit --resume continues from the last checkpoint", file=sys.stderr, flush=True
            )
        if stalled and here and alone and identity["pid"] != ours["pid"]:
            time.sleep(0 if speaks else self.interval)  # or the rank that speaks would take it for dead
            with contextlib.suppress(OSError):
                os.kill(identity["pid"], signal.SIGKILL)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)

    def leave(self, code: int, why: str = "") -> None:
        """Says goodbye. After a stop the others let rank 0 report it first, since launchers end all at the first exit.

        Args:
            code: exit code of this process
            why: error message
        """
        for peer in self.peers.values():
            peer.done = True
            peer.send(bye=code, why=why)
        if self.rank != 0 and code != 0:
            self.left.wait(GRACE)
            time.sleep(0.5)
        self._over = self.rank != 0
