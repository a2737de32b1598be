"""Samples of TinyStories from a local server with files in the same format."""

import pytest

from tinylm.data import open_corpus
from tinylm.data.corpora import tinystories
from tinylm.data.corpora.tinystories import NAMES, sources, write_sample
from tinylm.data.download import Download
from tinylm.errors import DataError, MissingInputError

# The format of the real files: a story, a newline, the separator, a newline. é has two bytes, “ three.
TRAIN = ["Once upon a time there was a café.\n", "\nOne day, a “cat” sat.\n", "\nLily\n\nhad a ball.\n", "\nTom ran.\n"]
VALID = ["Ben saw a bird.\n", "\nThe end.\n", "\nA third one.\n"]


def file_of(stories: list[str]) -> bytes:
    return "".join(story + "<|endoftext|>" for story in stories).encode() + b"\n"


@pytest.fixture
def mirror(server):
    """The URL of a folder with the two files."""
    for name, texts in zip(NAMES, (TRAIN, VALID), strict=True):
        server.serve(f"/mirror/{name}", file_of(texts))
    return f"{server.url}/mirror"


def test_the_default_source_is_gpt_4s_part_on_hugging_face():
    train, val = sources(None)
    assert train.url.startswith("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/")
    assert (train.url.split("/")[-1], val.url.split("/")[-1]) == NAMES
    assert NAMES == ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")


def test_a_sample_is_a_prefix_of_each_file_byte_for_byte(mirror, tmp_path):
    paths = write_sample(tmp_path / "new" / "s", (3, 2), sources(mirror), tmp_path / "cache")
    assert [path.name for path in paths] == ["train.txt", "val.txt"]
    for path, texts, count in zip(paths, (TRAIN, VALID), (3, 2), strict=True):
        written = path.read_bytes()
        assert file_of(texts).startswith(written)
        assert written.decode().split("<|endoftext|>") == [*texts[:count], ""]
    assert not list((tmp_path / "new").rglob(".tmp-*"))


def test_with_a_single_file_the_validation_stories_follow(server, tmp_path):
    url = server.serve("/all.txt", file_of(TRAIN))
    write_sample(tmp_path, (2, 1), sources(url), tmp_path / "cache")
    assert (tmp_path / "train.txt").read_text(encoding="utf-8").split("<|endoftext|>") == [*TRAIN[:2], ""]
    assert (tmp_path / "val.txt").read_text(encoding="utf-8").split("<|endoftext|>") == [TRAIN[2], ""]
    assert server.requests == ["/all.txt"]


def test_a_sample_is_a_corpus_with_the_files_own_split(mirror, tmp_path):
    write_sample(tmp_path / "s", (3, 2), sources(mirror), tmp_path / "cache")
    corpus = open_corpus(str(tmp_path / "s"), split=(0.9, 0.1), cache_dir=tmp_path / "cache")
    assert ["".join(each) for each in corpus.documents("train")] == TRAIN[:3]
    assert ["".join(each) for each in corpus.documents("val")] == VALID[:2]
    assert corpus.separated  # so <|endoftext|> separates the stories
    assert corpus.name == str(tmp_path / "s")


def test_reading_stops_after_the_sample(tmp_path, monkeypatch, server):
    """A stream that fails right after the blocks of the sample."""
    url = server.serve("/long.txt", b"")

    def stream(source, cache_dir):
        yield "one<|endoftext|>tw\u00f6".encode()[:-1]  # a block may end inside a character ...
        yield "tw\u00f6".encode()[-1:] + b"<|endof"  # ... and inside a separator
        yield b"text|>three"
        raise AssertionError("read too far")

    monkeypatch.setattr(tinystories, "stream", stream)
    write_sample(tmp_path, (1, 1), (Download(url), Download(url)), tmp_path)
    assert (tmp_path / "train.txt").read_bytes() == b"one<|endoftext|>"
    assert (tmp_path / "val.txt").read_bytes() == "tw\u00f6<|endoftext|>".encode()


def test_a_file_in_the_cache_needs_no_network(tmp_path):
    origins = sources("http://127.0.0.1:9/mirror")  # no server listens there
    for source, texts in zip(origins, (TRAIN, VALID), strict=True):
        source.path(tmp_path / "cache").parent.mkdir(parents=True)
        source.path(tmp_path / "cache").write_bytes(file_of(texts))
    write_sample(tmp_path, (1, 1), origins, tmp_path / "cache")
    assert (tmp_path / "val.txt").read_text() == VALID[0] + "<|endoftext|>"


def test_failures_leave_no_file(mirror, server, tmp_path):
    with pytest.raises(DataError, match=r"train\.txt: has 4 stories for train\.txt, not 9; ask for fewer"):
        write_sample(tmp_path / "s", (9, 1), sources(mirror), tmp_path / "cache")
    with pytest.raises(MissingInputError, match=r"cannot download .*none.txt \(Not Found\)"):
        write_sample(tmp_path / "s", (1, 1), sources(f"{server.url}/none.txt"), tmp_path / "cache")
    url = server.serve("/bad.txt", b"\xff\xfe" * 50)
    with pytest.raises(DataError, match=r"bad\.txt: is not UTF-8"):
        write_sample(tmp_path / "s", (1, 1), sources(url), tmp_path / "cache")
    url = server.serve("/short.txt", b"one<|endoftext|>two", length=100)
    with pytest.raises(MissingInputError, match=r"short\.txt .*81 more expected"):
        write_sample(tmp_path / "s", (3, 1), sources(url), tmp_path / "cache")
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]


def test_a_connection_that_ends_after_the_sample_is_no_error(server, tmp_path):
    url = server.serve("/cut.txt", file_of(TRAIN), length=10**9)
    write_sample(tmp_path, (3, 1), sources(url), tmp_path / "cache")
    assert (tmp_path / "val.txt").read_text(encoding="utf-8") == TRAIN[3] + "<|endoftext|>"
