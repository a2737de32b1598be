"""Load on `tinylm serve`: throughput and latency with many clients, with batching and without, and memory.

    python scripts/bench/serve.py --model runs/small                       # 1, 8 and 64 clients, 200 tokens each
    python scripts/bench/serve.py --model runs/small --peer peer/bin/python --llama llama-server  # beside others
    python scripts/bench/serve.py --model runs/small --requests 5000       # memory

Two servers of the same model run at the same time, one with 64 rows, one with a single row, and are loaded in turn, so
that other work on the machine affects both alike. A client streams a completion of 200 tokens at temperature 1, with a
seed of its own and the end-of-text token ruled out, and begins the next one when it has ended. Each number of clients
makes `--each` requests for each of them. Latency is the time from the request to its last token, first that to the
first one.

The peers are `transformers serve`, run by a Python that has transformers[serving], and llama.cpp's server, on what
`tinylm export` writes. Beyond the context transformers reads on, and llama.cpp shifts its cache, where tinylm slides.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tinylm.bundle import load_bundle
from tinylm.locate import find_model

PROMPT, TOKENS, CLIENTS = "Once upon a time", 200, (1, 8, 64)
Body = Callable[[int], dict]


class Server(NamedTuple):
    """A server under load.

    Attributes:
        name: in the table
        port: on loopback
        process: its process
        body: number of a request -> its JSON
    """

    name: str
    port: int
    process: subprocess.Popen
    body: Body


class Answer(NamedTuple):
    """Times of an answer in seconds since its request, and its number of tokens."""

    first: float
    last: float
    tokens: int


# --- servers


@contextlib.contextmanager
def started(command: list[str], pattern: str, folder: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """Runs a server until the block ends; `pattern` finds its port in what it prints."""
    log = Path(folder) / f"{time.monotonic_ns()}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        while not (found := re.search(pattern, log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield int(found[1]), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def our_body(model: str) -> Body:
    """Requests to `tinylm serve`."""
    tokenizer = load_bundle(find_model(model)).tokenizer
    bias = {str(token): -100 for token in tokenizer.marks.stops}
    options = dict(model="m", prompt=PROMPT, max_tokens=TOKENS, stream=True, logit_bias=bias)
    return lambda number: options | dict(seed=number, stream_options=dict(include_usage=True))


def peer_body(folder: str) -> Body:
    """Requests to `transformers serve`, whose generation_config.json has no end of text."""
    options = dict(model=folder, prompt=PROMPT, max_tokens=TOKENS, stream=True)
    return lambda number: options | dict(seed=number)


def export_for_peer(model: str, folder: Path) -> str:
    """Exports a model whose texts do not end."""
    exported = folder / "exported"
    subprocess.run(
        [sys.executable, "-m", "tinylm", "export", "--model", model, "--to", "hf", "--out", str(exported)], check=True
    )
    for name in ("generation_config.json", "config.json"):
        path = exported / name
        values = json.loads(path.read_text()) if path.exists() else {}
        values |= dict(eos_token_id=None, pad_token_id=0)
        if name == "generation_config.json":
            values |= dict(do_sample=True, min_new_tokens=TOKENS)
        path.write_text(json.dumps(values))
    return str(exported)


def llama_body() -> Body:
    """Requests to llama.cpp's server that make it draw from all tokens."""
    options = dict(prompt=PROMPT, max_tokens=TOKENS, stream=True, stream_options=dict(include_usage=True))
    options |= dict(ignore_eos=True, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    return lambda number: options | dict(seed=number)


def peers(options: argparse.Namespace, folder: str, stack: contextlib.ExitStack) -> Iterator[Server]:
    """Starts the servers of other programs."""
    port = 18000 + os.getpid() % 1000
    if options.peer:
        exported = export_for_peer(options.model, Path(folder))
        command = [options.peer, "-m", "transformers.cli.transformers", "serve", exported, "--device", "cpu"]
        command += ["--port", str(port), *options.peer_option]
        _, process = stack.enter_context(started(command, r"running on http://\S+:(\d+)", folder))
        yield Server("transformers serve", port, process, peer_body(exported))
    if options.llama:
        exported, slots = f"{folder}/model.gguf", str(max(CLIENTS))
        export = [sys.executable, "-m", "tinylm", "export", "--to", "gguf", "--model", options.model, "--out", exported]
        subprocess.run(export, check=True)
        context = load_bundle(find_model(options.model)).model.config.max_seq_len
        command = [options.llama, "-m", exported, "--port", str(port + 1), "-np", slots, "--context-shift"]
        command += ["-c", str(context * max(CLIENTS)), "--threads", str(os.cpu_count())]
        _, process = stack.enter_context(started(command, r"listening on http://\S+:(\d+)", folder))
        yield Server("llama.cpp", port + 1, process, llama_body())


# --- load


async def ask(server: Server, number: int) -> Answer:
    """Streams one completion, with as little code as possible, since the client takes time from the server."""
    body = json.dumps(server.body(number)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    started_at, first, parts = time.perf_counter(), 0.0, []
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    while part := await reader.read(1 << 16):
        first = first or (time.perf_counter() - started_at if b"data:" in part else 0.0)
        parts.append(part)
    last = time.perf_counter() - started_at
    writer.close()
    answer = b"".join(parts)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{server.name}: {answer.decode()}")
    counted = re.search(rb'"completion_tokens": ?(\d+)', answer)
    assert counted is not None, answer[-500:]
    return Answer(first, last, int(counted[1]))


async def load(server: Server, clients: int, each: int) -> tuple[float, list[Answer]]:
    """The seconds that the clients take for `each` successive requests per client, and the answers."""
    answers: list[Answer] = []

    async def one(index: int) -> None:
        for turn in range(each):
            answers.append(await ask(server, index + turn * clients))

    begun = time.perf_counter()
    await asyncio.gather(*map(one, range(clients)))
    return time.perf_counter() - begun, answers


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def report(name: str, clients: int, turns: list[tuple[float, list[Answer]]]) -> float:
    """Prints a row of the table and returns its tokens/s, the median over turns."""
    answers = [answer for _, each in turns for answer in each]
    rate = statistics.median(sum(a.tokens for a in each) / seconds for seconds, each in turns)
    requests = statistics.median(len(each) / seconds for seconds, each in turns)
    lasts, firsts = [a.last for a in answers], [a.first for a in answers]
    spread = " ".join(f"{percentile(v, s):8.2f}" for v in (lasts, firsts) for s in (0.5, 0.99))
    print(f"{name:24} {clients:7} {requests:10.2f} {rate:9.0f}  {spread}", flush=True)
    return rate


def compare(servers: list[Server], turns: int, each: int) -> None:
    """Loads the servers in turn and prints the table."""
    found: dict[tuple[str, int], list] = {}
    for server in servers:
        asyncio.run(load(server, 1, 1))  # warms up
    for clients in CLIENTS:
        for _ in range(turns):
            for server in servers:
                found.setdefault((server.name, clients), []).append(asyncio.run(load(server, clients, each)))
    header = "latency p50      p99 first p50      p99"
    print(f"{'server':24} clients requests/s  tokens/s {header}")
    rates = {key: report(*key, measured) for key, measured in found.items()}
    for clients in CLIENTS:
        ours = rates[servers[0].name, clients]
        for other in servers[1:]:
            print(f"{clients} clients: {ours / rates[other.name, clients]:.1f} times the tokens/s of {other.name}")


def resident(process: subprocess.Popen) -> float:
    """Memory of a process in MB, as /proc counts it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


def watch_memory(server: Server, requests: int, clients: int = 64) -> None:
    """Prints the memory of a server ten times during many short requests."""
    short, made = server._replace(body=lambda number: server.body(number) | dict(max_tokens=1 + number % 16)), 0
    each = -(-requests // (10 * clients))
    for _ in range(10):
        asyncio.run(load(short, clients, each))
        made += each * clients
        print(f"after {made:6} requests: {resident(server.process):.1f} MB", flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder, model folder or checkpoint")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each number of clients")
    parser.add_argument("--each", type=int, default=1, help="requests of each client in a measurement")
    parser.add_argument("--requests", type=int, default=0, help="only measure memory, over so many requests")
    parser.add_argument("--peer", help="a Python that has transformers[serving]")
    parser.add_argument("--llama", help="llama.cpp's llama-server")
    parser.add_argument("--peer-option", action="append", default=[], help="option of transformers serve")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        tinylm = [sys.executable, "-m", "tinylm", "serve", "--model", f"m={options.model}", "--port", "0"]
        servers = []
        for rows in (64,) if options.requests else (64, 1):
            command = [*tinylm, "--rows", str(rows)]
            port, process = stack.enter_context(started(command, r"http://127.0.0.1:(\d+)", folder))
            servers.append(Server(f"tinylm, rows {rows}", port, process, our_body(options.model)))
        servers += peers(options, folder, stack)
        if options.requests:
            watch_memory(servers[0], options.requests)
        else:
            compare(servers, options.turns, options.each)


if __name__ == "__main__":
    main()
