"""Downloads from a local server: complete and checked, or an error that says where to put the file by hand."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tinylm.data import corpora, open_corpus
from tinylm.data.download import Download, download
from tinylm.errors import DataError, MissingInputError, TinyLMError

BODY = "Once upon a time é\r\n".encode() * 50_000  # several blocks
SHA256 = hashlib.sha256(BODY).hexdigest()
DEAD = "http://127.0.0.1:9"  # the discard port, on which no server listens


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def leftover_files(cache_dir):
    return [path.name for path in cache_dir.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_download_is_checked_and_fetched_once(server, tmp_path, capfd):
    source = Download(server.serve("/deep/some%20text.txt", BODY), sha256=SHA256)
    path = download(source, tmp_path)
    assert path.read_bytes() == BODY
    assert path.name == "some text.txt"
    assert capfd.readouterr().err.count("downloading") == 1
    assert download(source, tmp_path) == path
    assert server.requests == ["/deep/some%20text.txt"]
    assert capfd.readouterr().err == ""
    assert leftover_files(tmp_path) == ["some text.txt"]


def test_equal_names_at_different_urls_are_different_files(server, tmp_path):
    paths = [download(Download(server.serve(f"/{i}/input.txt", b"%d" % i)), tmp_path) for i in range(2)]
    assert [path.read_bytes() for path in paths] == [b"0", b"1"]


def test_concurrent_downloads_fetch_once(server, tmp_path):
    source = Download(server.serve("/a.txt", BODY), sha256=SHA256)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(source, tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {BODY}
    assert server.requests == ["/a.txt"]


def test_an_unexpected_file_is_refused_and_not_kept(server, tmp_path):
    source = Download(server.serve("/a.txt", BODY + b"!"), sha256=SHA256)
    with pytest.raises(DataError, match=r"/a\.txt: is not the expected file \(SHA-256"):
        download(source, tmp_path)
    assert leftover_files(tmp_path) == []


FAILURES = {
    "not found": (dict(status=404), "Not Found"),
    "server error": (dict(status=503), "Service Unavailable"),
    "cut short": (dict(body=BODY, length=len(BODY) + 1), "1 more expected"),
    "broken connection": (dict(body=BODY, length=2 * len(BODY), reset=True), "reset|forcibly closed"),
}


@pytest.mark.parametrize(("page", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failed_download_names_the_path_for_the_file_and_leaves_nothing(page, reason, server, tmp_path):
    source = Download(server.serve("/a.txt", **page))
    by_hand = re.escape(f"put the file at {source.path(tmp_path)} by hand")
    with pytest.raises(MissingInputError, match=rf"cannot download .*/a\.txt .*({reason}).*{by_hand}") as raised:
        download(source, tmp_path)
    assert raised.value.exit_code == 66
    assert set(leftover_files(tmp_path)) <= {".part-a.txt", ".part-a.txt.json"}  # which the next call continues
    del raised  # frees the response, which would otherwise cause a ResourceWarning in a later test


def test_without_a_network_a_file_put_at_the_named_path_is_used(tmp_path):
    source = Download(f"{DEAD}/a.txt", sha256=SHA256)
    path = source.path(tmp_path)
    with pytest.raises(MissingInputError, match=rf"refused.*put the file at {re.escape(str(path))} by hand"):
        download(source, tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BODY)
    assert download(source, tmp_path) == path
    path.write_bytes(BODY[:-1])
    with pytest.raises(DataError, match=r"a\.txt: is not the file of .* delete it to download it again"):
        download(source, tmp_path)


@pytest.mark.parametrize("url", ["http://[bad", "://nothing", "nosuch://host/a.txt", "http://127.0.0.1:port/a"])
def test_an_invalid_url_raises_an_error_of_ours(url, tmp_path):
    with pytest.raises(TinyLMError, match=re.escape(url)):
        open_corpus(url, split=(0.9, 0.1), cache_dir=tmp_path)


# --- Git LFS


def pointer(digest: str) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(BODY)}\n".encode()


def test_a_git_lfs_pointer_gives_the_checksum(server, tmp_path):
    url = server.serve("/a.txt", BODY)
    good = server.serve("/good", pointer(SHA256))
    assert download(Download(url, pointer=good), tmp_path / "good").read_bytes() == BODY
    assert server.requests == ["/good", "/a.txt"]

    bad = server.serve("/bad", pointer("0" * 64))
    with pytest.raises(DataError, match="is not the expected file"):
        download(Download(url, pointer=bad), tmp_path / "bad")
    none = server.serve("/none", b"<html>please log in</html>")
    with pytest.raises(DataError, match="none: is not a Git LFS pointer"):
        download(Download(url, pointer=none), tmp_path / "none")
    assert leftover_files(tmp_path / "bad") == leftover_files(tmp_path / "none") == []


# --- corpora


def test_a_url_is_a_corpus(server, tmp_path):
    url = server.serve("/a.txt", "é\r\n0123456".encode())
    found = open_corpus(url, split=(0.5, 0.5), cache_dir=tmp_path)
    assert ["".join("".join(document) for document in found.documents(part)) for part in found.parts] == [
        "é\r\n01",
        "23456",
    ]


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [("tinyshakespeare", "TINYSHAKESPEARE", BODY), ("names", "FIRST_NAMES", BODY.replace(b"\r\n", b""))],
)
def test_a_corpus_in_the_cache_needs_no_network_and_is_checked(name, source, text, tmp_path, monkeypatch):
    download = getattr(corpora, source)
    path = download.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    with pytest.raises(DataError, match="SHA-256 differs"):
        open_corpus(name, split=(0.9, 0.1), cache_dir=tmp_path)
    monkeypatch.setattr(corpora, source, Download(download.url, sha256=SHA256))
    found = open_corpus(name, split=(0.9, 0.1), cache_dir=tmp_path)
    assert "".join(found.texts()) == text.decode()


def test_tinystories_is_checked_by_its_pointers(server, tmp_path, monkeypatch):
    texts = [b"one<|endoftext|>two", b"three"]
    sources = [
        Download(
            server.serve(f"/{i}.txt", text), pointer=server.serve(f"/{i}", pointer(hashlib.sha256(text).hexdigest()))
        )
        for i, text in enumerate(texts)
    ]
    monkeypatch.setattr(corpora, "TINYSTORIES", sources)
    found = open_corpus("tinystories", split=(0.9, 0.1), cache_dir=tmp_path)
    assert list(found.texts()) == ["one", "two", "three"]
