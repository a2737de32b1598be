"""Clients and signals that a public server meets, on real sockets."""

import contextlib
import functools
import json
import os
import re
import signal
import socket
import time

import httpx
import openai
import pytest
import torch

from tests import processes
from tests.serving.http_servers import CHATTY, LETTERS, client, make_model, running, serve
from tinylm.bundle import save_bundle
from tinylm.serving import guard, server
from tinylm.serving.openai_fields import Limits

ENDLESS = 10**9
get, post_raw = (functools.partial(each, verify=False, timeout=60) for each in (httpx.get, httpx.post))
posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def models():
    found = [serve("letters", LETTERS, rows=2, max_waiting=2), serve("chatty", CHATTY)]
    yield found
    for model in found:
        model.engine.close()


@pytest.fixture(scope="module")
def address(models):
    with running(models, Limits(max_tokens=ENDLESS)) as found:
        yield found


@contextlib.contextmanager
def connected(address: str, **options):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30, **options) as connection:
        yield connection


def head(address: str, length: int, **headers: str) -> bytes:
    lines = {"Host": address.removeprefix("http://"), "Content-Type": "application/json", "Content-Length": length}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in (lines | given).items())
    return f"POST /v1/completions HTTP/1.1\r\n{text}\r\n".encode()


def answer(connection: socket.socket) -> tuple[int, dict]:
    """The status and the body of an answer that comes whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(1 << 16)
        assert part, data
        data += part
    beginning, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", beginning)[1])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return int(beginning.split()[1]), json.loads(body)


def endless(**fields) -> dict:
    return {"model": "letters", "prompt": "a", "max_tokens": ENDLESS, **fields}


def post(address: str, **fields) -> httpx.Response:
    return post_raw(f"{address}/v1/completions", json={"model": "letters", "prompt": "a"} | fields)


def metric(address: str, name: str, model: str = "letters") -> float:
    text = get(f"{address}/metrics").text
    return float(re.search(rf'^{name}{{model="{model}"}} (\S+)', text, re.MULTILINE)[1])


def is_idle(address: str) -> bool:
    return metric(address, "tinylm_texts_growing") + metric(address, "tinylm_texts_waiting") == 0


# --- clients that leave, are slow, or are many


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(address, stream):
    body = json.dumps(endless(stream=stream, n=2)).encode()
    with connected(address) as connection:
        connection.sendall(head(address, len(body)) + body)
        assert processes.wait_for(lambda: metric(address, "tinylm_texts_growing") == 2)
        if stream:
            connection.recv(1)
    assert processes.wait_for(lambda: is_idle(address))
    assert [metric(address, "tinylm_new_tokens_total") for _ in range(2)] == [
        metric(address, "tinylm_new_tokens_total")
    ] * 2


def test_a_full_queue_is_answered_with_429_and_the_others_go_on(address):
    with client(address) as api:
        streams = [api.completions.create(**endless(stream=True)) for _ in range(2)]
        for stream in streams:
            next(iter(stream))
        body = json.dumps(endless(n=2)).encode()
        with connected(address) as waiting:
            waiting.sendall(head(address, len(body)) + body)
            assert processes.wait_for(lambda: metric(address, "tinylm_texts_waiting") == 2)
            for is_streamed in (False, True):
                with pytest.raises(openai.RateLimitError, match="try again later") as caught:
                    api.completions.create(**endless(stream=is_streamed))
                assert caught.value.response.headers["retry-after"] == "1"
        for stream in streams:
            assert next(iter(stream)).choices[0].text
            stream.close()
    assert processes.wait_for(lambda: is_idle(address))


def test_a_client_that_does_not_read_does_not_delay_others(address):
    body = json.dumps(endless(stream=True)).encode()
    with connected(address) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(head(address, len(body)) + body)
        assert processes.wait_for(lambda: metric(address, "tinylm_texts_growing") == 1)
        for _ in range(3):
            assert post(address, max_tokens=50).status_code == 200
    assert processes.wait_for(lambda: is_idle(address))


def test_half_open_connections_make_room_and_are_closed_in_time(models, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
    with running(models) as address, contextlib.ExitStack() as stack:
        half = [stack.enter_context(connected(address)) for _ in range(1000)]
        for connection in half:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        assert post(address).status_code == 200
        for connection in half:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""


def test_single_bytes_do_not_keep_a_connection_open(models, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    with running(models) as address, connected(address) as connection, pytest.raises(ConnectionError):
        for byte in b"GET /v1/models HTTP/1.1\r\nX-Long: " + b"x" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)


def test_a_body_that_does_not_come_is_answered(models, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with running(models) as address, connected(address) as connection:
        connection.sendall(head(address, 100) + b"{")
        status, body = answer(connection)
        assert status == 408 and "did not arrive" in body["error"]["message"]
        assert connection.recv(1) == b""


def test_a_body_that_is_too_large_is_refused_before_it_is_read(address):
    with connected(address) as connection:
        connection.sendall(head(address, 10_000_000) + b"{")
        assert answer(connection)[0] == 413
    chunks = post_raw(
        f"{address}/v1/completions",
        content=(b" " * 65536 for _ in range(160)),
        headers={"Content-Type": "application/json"},
    )
    assert chunks.status_code == 413 and "1,048,576 bytes" in chunks.json()["error"]["message"]


# --- requests that no client of ours makes


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"model": ', "not valid JSON"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"temperature": NaN}', "NaN"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "a JSON object"),
        (b"", "not valid JSON"),
    ],
)
def test_a_body_that_is_no_object_is_refused(address, body, problem):
    found = post_raw(f"{address}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400 and problem in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "proxy.example"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_requests_of_other_sites_are_refused(models, headers, status):
    with running(models, hosts=["proxy.example"]) as address:
        found = get(f"{address}/v1/models", headers=headers)
    assert found.status_code == status
    assert status == 200 or found.json()["error"]["message"]


def test_paths_methods_and_content_types_are_refused_in_the_api_s_form(address):
    found = [get(f"{address}/{path}") for path in ("v2", "v1/completions", "v1/models/")]
    found.append(post_raw(f"{address}/v1/completions", data={"model": "letters"}))
    assert [each.status_code for each in found] == [404, 405, 404, 415]
    assert all(each.json()["error"].keys() == {"message", "type", "param", "code"} for each in found)


# --- what fails inside


def test_a_model_that_makes_nan_is_answered_with_500_and_others_go_on(models, capfd):
    model = make_model(LETTERS)
    torch.nn.init.constant_(model.head.weight, torch.nan)
    broken = serve("broken", LETTERS, model)
    with running([broken, models[0]]) as address, client(address) as api:
        for options in ({}, {"stream": True}, {"max_tokens": 0, "echo": True, "logprobs": 1}):
            with pytest.raises(openai.InternalServerError, match="not finite"):
                api.completions.create(model="broken", prompt="ab", **options)
        assert post(address).status_code == 200
        assert get(f"{address}/healthz").status_code == 200
    broken.engine.close()
    assert "Traceback" not in capfd.readouterr().err


def test_an_engine_that_fails_is_reported_and_unhealthy(models, monkeypatch, capfd):
    failing = serve("failing", LETTERS)
    monkeypatch.setattr(failing.engine._batch, "step", lambda: 1 / 0)
    with running([failing, models[0]]) as address:
        assert post(address, model="failing").status_code == 500
        assert post(address).status_code == 200
        health = get(f"{address}/healthz")
        assert health.status_code == 503 and "failing has failed" in health.json()["error"]["message"]
    err = capfd.readouterr().err
    assert "ZeroDivisionError" in err and "Traceback" not in err


def test_an_answer_that_takes_too_long_is_ended(models):
    with running(models, Limits(max_tokens=ENDLESS, timeout=0.3)) as address, client(address) as api:
        with pytest.raises(openai.InternalServerError, match="longer than") as caught:
            api.completions.create(**endless())
        assert caught.value.status_code == 504
        pieces = []
        with pytest.raises(openai.APIError, match="longer than"):
            for event in api.completions.create(**endless(stream=True)):
                pieces.append(event.choices[0].text)
        assert pieces
        assert processes.wait_for(lambda: is_idle(address))


# --- the process


@pytest.fixture
def start(tmp_path):
    """start(*options) starts `tinylm serve` with a random model: the process, its URL and the file of its output."""
    started = []
    save_bundle(tmp_path / "letters", make_model(LETTERS).float(), LETTERS)

    def start(*options: str):
        output = tmp_path / f"output-{len(started)}.txt"
        words = ["serve", "--model", "letters", "--port", "0", "--max-tokens", str(ENDLESS), *options]
        process = processes.start(processes.command_line, words, tmp_path, output)
        started.append(process)

        def address():
            found = re.search(r"(http://\S+)/v1", output.read_text() if output.exists() else "")
            return found and found[1]

        processes.wait_for(lambda: address() or not process.is_alive(), 60)
        return process, address(), output

    yield start
    for process in started:
        process.kill()
        process.join()


def stop_while_streaming(start, options, *numbers: int, **fields):
    """Signals to a server that streams; its exit code, the end of the stream and the output."""
    process, address, output = start(*options)
    text = ""
    request = "POST", f"{address}/v1/completions"
    with (
        contextlib.suppress(httpx.RemoteProtocolError),
        httpx.stream(*request, json=endless(stream=True, **fields), timeout=60, verify=False) as stream,
    ):
        for part in stream.iter_text():
            if not text:
                os.kill(process.pid, numbers[0])
                assert processes.wait_for(lambda: "once more" in output.read_text())
                assert get(f"{address}/healthz").status_code == 503
                for number in numbers[1:]:
                    os.kill(process.pid, number)
            text += part
    process.join(60)
    return process.exitcode, text, output.read_text()


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_server_finishes_what_streams(start, number, code):
    found, text, output = stop_while_streaming(start, [], number, max_tokens=1500)
    assert found == code and text.endswith("data: [DONE]\n\n") and text.count('"text"') == 1500
    assert output.splitlines()[-1].startswith("tinylm: ") and "Traceback" not in output


@posix
def test_a_text_that_outlasts_the_limit_ends_with_an_error(start):
    code, text, output = stop_while_streaming(start, ["--grace", "0.3"], signal.SIGTERM)
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert code == 75 and "stopping" in last["error"]["message"] and "Traceback" not in output


@posix
def test_a_second_signal_ends_the_server_at_once(start):
    code, text, output = stop_while_streaming(start, [], signal.SIGTERM, signal.SIGTERM)
    assert code == -signal.SIGTERM and "[DONE]" not in text and "Traceback" not in output


def test_a_port_in_use_is_one_line(start, address, tmp_path):
    port = address.rpartition(":")[2]
    process, url, output = start("--port", port)
    process.join(60)
    lines = output.read_text().splitlines()
    assert process.exitcode == 73 and url is None
    assert lines == [f"tinylm: error: --host 127.0.0.1 --port {port}: Address already in use; choose another"]
