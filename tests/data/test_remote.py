"""Files at URLs, of local web servers and a local S3: streamed, interrupted and continued; each fault is one line."""

import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import zstandard
from moto.server import ThreadedMotoServer

from tinylm.data import open_corpus
from tinylm.data.download import Download, download
from tinylm.data.sources import Source, find_sources, remote
from tinylm.errors import ConfigError, DataError, MissingInputError

BODY = b"".join(b"line %d of a text\n" % i for i in range(150_000))  # 3 MB, several blocks
DEAD = "http://127.0.0.1:9"  # the discard port, on which no server listens


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("tinylm.data.web.WAITS", (0.01,) * 3)


def read(url: str) -> bytes:
    return b"".join(Source(url).blocks())


# --- HTTP


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_stream_goes_on_where_the_connection_broke(ranges, server, capfd):
    cuts = [100_000, 70_000, 1_000_000] if ranges else [100_000, 300_000, 1_000_000]
    url = server.serve("/a.txt", BODY, ranges=ranges, version="1", cuts=[*cuts])
    counts = []
    assert b"".join(Source(url).blocks(counts.append)) == BODY
    assert sum(counts) == len(BODY)
    begins = [100_000, 170_000, 1_170_000] if ranges else cuts
    assert server.ranges == [None, *(f"bytes={begin}-" for begin in begins)]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"tinylm: {url}: interrupted at byte 100,000 (")
    assert lines[0].endswith("continuing in 0.01 s")


def test_a_compressed_stream_is_decompressed_as_it_comes(server):
    stored = gzip.compress(BODY)
    url = server.serve("/a.txt.gz", stored, ranges=True, version="1", cuts=[50_000])
    source = Source(url)
    assert b"".join(source.blocks()) == BODY
    assert source.size == len(stored) and source.suffix == ".txt"


def test_the_first_block_comes_before_the_rest_is_sent(server):
    gate = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for sent in (0, 1):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n")
                    if sent:
                        connection.sendall(bytes(1_000_000))
                        assert gate.wait(20)
                        connection.sendall(bytes(1_000_000))

        thread = threading.Thread(target=answer)
        thread.start()
        blocks = Source(f"http://127.0.0.1:{listener.getsockname()[1]}/a.txt").blocks()
        first = next(blocks)
        assert first and not gate.is_set()
        gate.set()
        assert len(first) + sum(map(len, blocks)) == 2_000_000
        thread.join()


def test_a_file_that_changes_on_its_server_is_refused(server):
    url = server.serve("/a.txt", BODY, ranges=True, version="1", cuts=[600_000])
    source = Source(url)
    blocks = source.blocks()
    next(blocks)
    server.pages["/a.txt"].version = "2"
    with pytest.raises(DataError, match=r"/a\.txt: has changed while it was read \(it was written to\); start again"):
        list(blocks)
    with pytest.raises(DataError, match=r"has changed"):
        list(source.blocks())
    server.pages["/a.txt"].body += b"more"
    with pytest.raises(DataError, match=rf"\({len(BODY):,} bytes before, {len(BODY) + 4:,} now\)"):
        list(source.blocks())


def test_a_server_without_head_is_read(server):
    source = Source(server.serve("/a.txt", BODY, version="1", head=False))
    assert source.size == len(BODY) and b"".join(source.blocks()) == BODY


def test_the_fingerprint_of_a_remote_file_is_that_of_its_version(server):
    url = server.serve("/a.txt", b"one", version="1")
    first = Source(url).fingerprint()
    assert Source(url).fingerprint() == first
    server.serve("/a.txt", b"two", version="2")
    second = Source(url).fingerprint()
    other = Source(server.serve("/b.txt", b"two", version="2")).fingerprint()
    assert len({first, second, other}) == 3


def test_parquet_is_read_by_ranges(server):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": [f"Text {i}." for i in range(50_000)], "id": range(50_000)}), file)
    url = server.serve("/a.parquet", file.getvalue(), ranges=True, version="1")
    with Source(url).open() as opened:
        assert pq.read_table(opened, columns=["id"])["id"].to_pylist() == list(range(50_000))
    url = server.serve("/b.parquet", file.getvalue(), version="1")
    with Source(url).open() as opened, pytest.raises(MissingInputError, match=r"its server has no byte ranges; give"):
        pq.read_table(opened)


HTTP_FAULTS = {
    "missing": (dict(status=404), r"no such file \(Not Found\); check the address"),
    "forbidden": (dict(status=403), r"access was denied \(Forbidden\); check the access rights of the file"),
    "overloaded": (dict(status=503), r"cannot be read \(Service Unavailable\); check the network, and try again"),
}


@pytest.mark.parametrize(("page", "problem"), HTTP_FAULTS.values(), ids=HTTP_FAULTS)
def test_http_faults_are_one_line(page, problem, server):
    url = server.serve("/a.txt", **page)
    with pytest.raises(MissingInputError, match=rf"^{url}: {problem}$") as raised:
        read(url)
    assert raised.value.exit_code == 66
    del raised


def test_a_server_that_does_not_answer_or_stays_away_is_one_line(server):
    with pytest.raises(MissingInputError, match=rf"^{DEAD}/a\.txt: its server cannot be reached .*Connection refused"):
        read(f"{DEAD}/a.txt")
    url = server.serve("/a.txt", BODY, ranges=True, version="1", cuts=[100_000, *[0] * 9])
    with pytest.raises(MissingInputError, match=r"/a\.txt: cannot be read \(.*\); check the network, and try again"):
        read(url)


def test_a_single_http_file_is_downloaded_once_and_resumed(server, tmp_path):
    url = server.serve("/a.txt", BODY, ranges=True, version="1", cuts=[100_000, 1_000_000])
    (source,) = find_sources(url)
    assert "://" not in source.url and b"".join(source.blocks()) == BODY
    assert server.ranges[0] is None and all(each.startswith("bytes=") for each in server.ranges[1:])
    find_sources(url)
    assert len(server.requests) == 3


def test_a_download_that_was_given_up_is_continued_by_the_next_start(server, tmp_path):
    url = server.serve("/a.txt", BODY, ranges=True, version="1", cuts=[2_000_000, *[0] * 3])
    with pytest.raises(MissingInputError, match=r"cannot download"):
        download(Download(url), tmp_path)
    (part,) = tmp_path.rglob(".part-a.txt")
    kept = 2_000_000
    assert part.read_bytes() == BODY[:kept]
    server.ranges.clear()
    assert download(Download(url), tmp_path).read_bytes() == BODY
    assert server.ranges == [f"bytes={kept}-"]
    assert not list(tmp_path.rglob(".part-*"))


def test_a_download_of_a_file_that_has_changed_meanwhile_starts_anew(server, tmp_path):
    url = server.serve("/a.txt", BODY, ranges=True, version="1", cuts=[2_000_000, *[0] * 3])
    with pytest.raises(MissingInputError):
        download(Download(url), tmp_path)
    server.serve("/a.txt", BODY[::-1], ranges=True, version="2")
    assert download(Download(url), tmp_path).read_bytes() == BODY[::-1]


def test_a_folder_of_a_web_server_is_listed(server):
    links = "".join(f'<a href="{name}">{name}</a>' for name in ("../", "a.txt", "b.jsonl", "c.png", "?C=N;O=D"))
    server.serve("/data/", links.encode())
    for name in ("a.txt", "b.jsonl", "c.png"):
        server.serve(f"/data/{name}", name.encode())
    assert [each.url for each in find_sources(f"{server.url}/data/")] == [
        f"{server.url}/data/a.txt", f"{server.url}/data/b.jsonl"
    ]  # fmt: skip
    (only,) = find_sources(f"{server.url}/data/*.txt")
    assert b"".join(only.blocks()) == b"a.txt"


# --- S3


@pytest.fixture(scope="module")
def s3():
    """A client of a local S3 with the bucket `texts`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = dict(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing")
    settings = keys | dict(
        AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="texts")
        client.server = server
        yield client
        client.close()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(s3):
    """put(key, body) stores a file in the bucket, which is emptied before."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for each in s3.list_objects_v2(Bucket="texts").get("Contents", []):
        s3.delete_object(Bucket="texts", Key=each["Key"])

    def put(key: str, body: bytes) -> str:
        s3.put_object(Bucket="texts", Key=key, Body=body)
        return f"s3://texts/{key}"

    return put


def test_a_file_of_s3_is_streamed_by_ranges(bucket, monkeypatch):
    monkeypatch.setattr(remote, "REQUEST", 300_000)
    url = bucket("a.txt.gz", gzip.compress(BODY, 1) + gzip.compress(BODY, 1))
    source = Source(url)
    counts = []
    assert b"".join(source.blocks(counts.append)) == BODY * 2
    assert sum(counts) == source.size and len(counts) > 1
    with source.open() as file:
        file.seek(-10, os.SEEK_END)
        tail = file.read()
        file.seek(3)
        assert file.tell() == 3 and len(tail) == 10


def test_globs_and_folders_of_s3_are_listed(bucket):
    for key in ("d/a.txt", "d/b.md.gz", "d/sub/c.txt", "d/x.png", "d/.git/e.txt", "other.txt"):
        bucket(key, b"x")
    assert [each.url for each in find_sources("s3://texts/d")] == [
        "s3://texts/d/a.txt", "s3://texts/d/b.md.gz", "s3://texts/d/sub/c.txt"
    ]  # fmt: skip
    assert [each.url for each in find_sources("s3://texts/d/*.txt")] == ["s3://texts/d/a.txt"]
    assert [each.url for each in find_sources("s3://texts/**/c.*")] == ["s3://texts/d/sub/c.txt"]
    assert [each.url for each in find_sources("s3://texts/d", exclude=("sub", "*.md*"))] == ["s3://texts/d/a.txt"]
    assert [each.url for each in find_sources("s3://texts/other.txt")] == ["s3://texts/other.txt"]
    with pytest.raises(ConfigError, match="is one file"):
        find_sources("s3://texts/other.txt", include=("*",))


def test_a_folder_is_listed_without_a_request_for_each_file(bucket, monkeypatch, capfd):
    for key in ("d/a.txt", "d/node_modules/b.js", "d/node_modules/c.js"):
        bucket(key, b"text")
    (listed,) = find_sources("s3://texts/d")
    assert capfd.readouterr().err == "tinylm: s3://texts/d: 1 file; left out: 1 folders (node_modules 1)\n"
    alone = Source("s3://texts/d/a.txt")
    fingerprint = alone.fingerprint()
    monkeypatch.setattr(remote, "_look_up", None)
    assert listed.size == 4 and listed.fingerprint() == fingerprint


def test_a_file_of_s3_that_changes_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(remote, "REQUEST", 1_000_000)
    source = Source(bucket("a.txt", BODY))
    first = source.fingerprint()
    blocks = source.blocks()
    next(blocks)
    bucket("a.txt", BODY[::-1])
    with pytest.raises(DataError, match=r"s3://texts/a\.txt: has changed while it was read"):
        list(blocks)
    assert Source(source.url).fingerprint() != first


def test_a_stream_of_s3_goes_on_after_its_server_was_away(bucket, s3, monkeypatch, capfd):
    monkeypatch.setattr(remote, "REQUEST", 500_000)
    monkeypatch.setattr("tinylm.data.web.WAITS", (0.2, 0.5, 1, 2, 2, 2))
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)  # which alone would bridge a few seconds
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    blocks = Source(bucket("a.txt", BODY)).blocks()
    text = next(blocks)
    server, (_, port) = s3.server, s3.server.get_host_and_port()
    server.stop()
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    timer = threading.Timer(2, again.start)
    timer.start()
    text += b"".join(blocks)
    timer.join()
    s3.server = again
    assert text == BODY
    assert "s3://texts/a.txt: interrupted at byte 500,000" in capfd.readouterr().err


def faults() -> dict:
    keys = r"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE \(FSSPEC_S3_ANON=true for a public bucket\)"
    return {
        "s3://texts/gone.txt": ({}, r"no such file \(.*\); check the address"),
        "s3://nobucket/a.txt": ({}, r"no such file \(.*\); check the address"),
        "no key": (dict(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None), rf"no key was found \(.*\); set {keys}"),
        "no profile": (dict(AWS_PROFILE="nosuch"), rf"no key was found \(.*nosuch.*\); set {keys}"),
        "wrong key": (dict(AWS_ACCESS_KEY_ID="wrong"), rf"access was denied \(.*\); check {keys}"),
        "no network": (dict(AWS_ENDPOINT_URL=DEAD), r"its server cannot be reached \(.*\); check the network"),
    }


@pytest.mark.parametrize(
    "case", ["s3://texts/gone.txt", "s3://nobucket/a.txt", "no key", "no profile", "wrong key", "no network"]
)
def test_faults_of_s3_are_one_line(case, bucket, monkeypatch):
    url = case if "://" in case else bucket("a.txt", b"x")
    environment, problem = faults()[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if case == "wrong key":
        requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data=b"0", timeout=10)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        for use in (read, find_sources):
            with pytest.raises(MissingInputError, match=rf"^{url}: {problem}") as raised:
                use(url)
            assert raised.value.exit_code == 66 and "\n" not in str(raised.value)
    finally:
        if case == "wrong key":
            requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data=b"Infinity", timeout=10)
        fsspec.get_filesystem_class("s3").clear_instance_cache()


# --- corpora


def documents(corpus) -> list[str]:
    return ["".join(document) for _, document in corpus.items()]


def test_a_corpus_is_the_same_wherever_it_lies(bucket, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "REQUEST", 10_000)
    records = b"".join(b'{"text": "Document %d says %d."}\n' % (i, i * i) for i in range(5_000))
    Path("a.jsonl").write_bytes(records)
    stored = zstandard.ZstdCompressor().compress(records)
    found = [
        open_corpus(url, split=(0.9, 0.1), cache_dir=tmp_path)
        for url in (
            "a.jsonl",
            bucket("d/a.jsonl.zst", stored),
            "s3://texts/d",
            server.serve("/a.jsonl.zst", stored, ranges=True, version="1", cuts=[10_000, 20_000]),
        )
    ]
    expected = documents(found[0])
    assert len(expected) == 5_000
    for corpus in found[1:]:
        assert documents(corpus) == expected
        assert [len(list(corpus.documents(part))) for part in corpus.parts] == [
            len(list(found[0].documents(part))) for part in corpus.parts
        ]
    assert found[1].fingerprint != found[0].fingerprint  # of a remote file it is that of its version
    again = open_corpus("s3://texts/d/a.jsonl.zst", split=(0.9, 0.1), cache_dir=tmp_path)
    assert again.fingerprint == found[1].fingerprint


def test_an_invalid_text_is_named_by_its_url(bucket, tmp_path):
    bucket("latin.txt", "Où est né".encode("latin-1"))
    for source in ("s3://texts/latin.txt", "lines:s3://texts/latin.txt"):
        with pytest.raises(DataError, match=r"^s3://texts/latin\.txt: is not UTF-8 at byte 1"):
            open_corpus(source, split=(0.9, 0.1), cache_dir=tmp_path)


@pytest.mark.slow  # starts tinylm
def test_a_program_names_a_missing_bucket_on_one_line(bucket, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "tinylm", "fit", "--config", "small", "--data.corpus", "s3://nobucket/a.txt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 66
    (line,) = [each for each in done.stderr.splitlines() if "error" in each]
    assert line == "tinylm: error: s3://nobucket/a.txt: no such file (The specified bucket does not exist); " + (
        "check the address"
    )


# --- other stores


def test_files_in_memory_are_streamed():
    system = fsspec.filesystem("memory")
    system.pipe("/corpus/a.txt", BODY)
    system.pipe("/corpus/deep/b.txt.gz", gzip.compress(b"b"))
    first, second = find_sources("memory://corpus")
    assert b"".join(first.blocks()) == BODY and b"".join(second.blocks()) == b"b"
    system.rm("/corpus", recursive=True)


@pytest.mark.parametrize(
    ("url", "package", "install"),
    [
        ("s3://b/a.txt", "s3fs", 'pip install "tinylm[data]"'),
        ("gs://b/a.txt", "gcsfs", "pip install gcsfs"),
        ("hf://datasets/u/d/a.txt", "huggingface_hub", 'pip install "tinylm[data]"'),
    ],
)
def test_a_missing_package_is_named(url, package, install, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition("://")[0], raising=False)
    for use in (read, find_sources):
        with pytest.raises(MissingInputError) as raised:
            use(url)
        assert str(raised.value) == f"{url}: needs the package {package}: {install}"


def test_an_unknown_kind_of_url_is_named():
    with pytest.raises(MissingInputError, match=r"^s4://b/a\.txt: cannot be read: .*known are s3, gs, hf, https, file"):
        find_sources("s4://b/a.txt")


# --- processes


@pytest.mark.slow
def test_a_program_that_streams_ends_quietly_and_by_ctrl_c(bucket, python, tmp_path):
    code = """
    import sys
    from tinylm.data.sources import Source
    from tinylm.signals import raised
    from tinylm.errors import Interrupted
    try:
        with raised():
            while True:
                blocks = Source(sys.argv[1]).blocks()
                print(len(next(blocks)), flush=True)
                if sys.argv[2] == "once":
                    break
    except Interrupted:
        print("stopped", flush=True)
    """
    url = bucket("a.txt", BODY)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "default"}
    for mode in ("once", *["always"] * 2):
        process = python(code, url, mode, env=environment)
        assert process.stdout.readline().strip() == str(remote.BLOCK)
        if mode == "always":
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 0 and stderr == ""
        assert mode == "once" or stdout.endswith("stopped\n")
