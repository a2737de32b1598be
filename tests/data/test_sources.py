"""Bytes of local files: compressed or not, of folders and globs, and of files that change while they are read."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import sys
import tarfile
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard

from tinylm.data.sources import Source, find_sources
from tinylm.errors import ConfigError, DataError, MissingInputError

posix = pytest.mark.skipif(os.name == "nt", reason="needs links")
TEXT = "".join(f"Line {i} says é {random.Random(i).random()}.\n" for i in range(60_000)).encode()  # some blocks
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
NAMES = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "Zstandard"}
kinds = pytest.mark.parametrize("kind", COMPRESS)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))


def write(name: str, content: bytes | str = "Text.") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(name: str) -> bytes:
    return b"".join(Source(name).blocks())


def found(pattern: str, **options) -> list[str]:
    return [Path(each.url).as_posix() for each in find_sources(pattern, **options)]


# --- compression


@kinds
def test_a_compressed_file_is_its_content_whatever_its_name(kind):
    compressed = COMPRESS[kind](TEXT)
    for name in (f"a.txt.{kind}", "a.txt"):
        write(name, compressed)
        assert read(name) == TEXT
        with Source(name).open() as file:
            assert file.read() == compressed
        assert Source(name).size == len(compressed)
        assert Source(name).fingerprint() == sha256(compressed).hexdigest()
        assert Source(name).suffix == ".txt"
    write("b.gz", TEXT)
    assert read("b.gz") == TEXT  # as some browsers save it


@kinds
def test_streams_that_follow_each_other_are_read_as_one(kind):
    parts = [TEXT[:1000], b"", TEXT[1000:1001], TEXT[1001:]]
    write("a", b"".join(COMPRESS[kind](part) for part in parts))
    assert read("a") == TEXT
    write("b", COMPRESS[kind](b""))
    assert read("b") == b""


@kinds
def test_many_small_streams_come_in_large_blocks(kind):
    write("a", b"".join(COMPRESS[kind](b"%d\n" % i) for i in range(2000)))
    expected = b"".join(b"%d\n" % i for i in range(2000))
    assert list(Source("a").blocks()) == [expected]
    write("b", TEXT)
    *blocks, _ = Source("b").blocks()
    assert blocks and all(256_000 < len(block) < 1_100_000 for block in blocks)


def test_padding_and_skippable_frames_are_no_content():
    write("a.gz", gzip.compress(TEXT) + bytes(1000) + gzip.compress(b"end") + bytes(512))
    assert read("a.gz") == TEXT + b"end"
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\x28\xb5\x2f\xfd"  # as of pzstd
    write("a.zst", frame + COMPRESS["zst"](TEXT) + frame + COMPRESS["zst"](b"end") + frame)
    assert read("a.zst") == TEXT + b"end"


@kinds
def test_a_truncated_file_says_where_it_ends(kind):
    compressed = COMPRESS[kind](TEXT)
    for size in (12, 1000, len(compressed) // 2, len(compressed) - 1):
        write(f"a.{kind}", compressed[:size])
        message = rf"^a\.{kind}: is truncated: its {NAMES[kind]} data break off at byte {size:,}; get it again$"
        with pytest.raises(DataError, match=message) as raised:
            read(f"a.{kind}")
        assert raised.value.exit_code == 65
    write(f"b.{kind}", COMPRESS[kind](b"x") + compressed[:50])  # the second stream
    with pytest.raises(DataError, match=rf"^b\.{kind}: is truncated"):
        read(f"b.{kind}")


@kinds
def test_no_flipped_bit_of_a_compressed_file_goes_unnoticed(kind):
    text, chance = TEXT[:3000], random.Random(0)
    compressed = COMPRESS[kind](text)
    for _ in range(100):
        place = chance.randrange(11, len(compressed))  # behind the header, which has bits of no meaning
        damaged = bytearray(compressed)
        damaged[place] ^= 1 << chance.randrange(8)
        write("a", bytes(damaged))
        try:
            content = read("a")
        except DataError as error:
            assert str(error).startswith("a: is ") and "; get it again" in str(error) and "\n" not in str(error)
        else:
            assert content == text, place


@kinds
def test_a_file_of_zeros_is_read_in_bounded_memory(kind):
    write("a", COMPRESS[kind](bytes(50_000_000)))
    tracemalloc.start()
    blocks = Source("a").blocks()
    sizes = [len(block) for block in blocks]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 50_000_000
    assert peak < (150_000_000 if kind == "zst" else 16_000_000)  # zstandard has no limit on what 4 kB become


@kinds
def test_a_tar_archive_in_a_compression_is_refused(kind):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(write("x.txt", TEXT))
    write(f"a.tar.{kind}", COMPRESS[kind](file.getvalue()))
    message = rf"^a\.tar\.{kind}: is a tar archive, not text; tar -xf a\.tar\.{kind}$"
    with pytest.raises(DataError, match=message):
        read(f"a.tar.{kind}")


def test_without_zstandard_one_line_says_what_to_install(monkeypatch):
    write("a.zst", COMPRESS["zst"](TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    message = r'^a\.zst: is compressed with Zstandard; pip install "tinylm\[data\]" to read it$'
    with pytest.raises(MissingInputError, match=message):
        read("a.zst")


def test_a_report_counts_the_stored_bytes(monkeypatch):
    for content in (COMPRESS["xz"](TEXT), TEXT):
        counts = []
        write("a", content)
        assert b"".join(Source("a").blocks(counts.append)) == TEXT
        assert sum(counts) == len(content)
        assert len(counts) > 1


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl.zst", ".jsonl"),
        ("a.TXT.GZ", ".txt"),
        ("b.c/a", ""),
        ("a.gz", ""),
        ("s3://bucket/a.parquet", ".parquet"),
        ("https://host/a.json.xz?key=b.c", ".json"),
        ("notes?.md", ".md"),
    ],
)
def test_the_suffix_is_that_of_the_content(name, suffix):
    assert Source(name).suffix == suffix


# --- files that change


@pytest.mark.parametrize("content", [TEXT, COMPRESS["gz"](TEXT)], ids=["text", "gzip"])
def test_a_file_that_grows_while_it_is_read_is_refused(content):
    path = write("a.txt", content)
    blocks = Source("a.txt").blocks()
    next(blocks)
    with path.open("ab") as file:
        file.write(content)
    sizes = f"{len(content):,} bytes before, {2 * len(content):,} now"
    message = rf"^a\.txt: has changed while it was read \({sizes}\); start again when nothing writes to it$"
    with pytest.raises(DataError, match=message) as raised:
        list(blocks)
    assert raised.value.exit_code == 65


def test_a_file_that_changes_between_two_reads_is_refused():
    path = write("a.txt", "one")
    source = Source("a.txt")
    assert b"".join(source.blocks()) == b"one"
    copy = pickle.loads(pickle.dumps(source))
    write("a.txt", "two")
    os.utime(path, ns=(0, 10**18))
    for each in (source, copy):
        for read_again in (lambda source: list(source.blocks()), Source.open, Source.fingerprint):
            with pytest.raises(DataError, match=r"a\.txt: has changed while it was read \(it was written to\)"):
                read_again(each)
    assert read("a.txt") == b"two"


def test_a_missing_file_is_named():
    for use in (lambda source: source.size, Source.open, Source.fingerprint, lambda source: list(source.blocks())):
        with pytest.raises(MissingInputError, match=r"^a\.txt: no such file$"):
            use(Source("a.txt"))


# --- folders


@pytest.fixture
def notes():
    for name in (
        "notes/a.md", "notes/B.TXT", "notes/deep/c.jsonl.gz", "notes/deep/d.parquet", "notes/x.py", "notes/p.png",
        "notes/p2.png", "notes/README", "notes/.hidden.md", "notes/.git/e.md", "notes/node_modules/f.js",
        "notes/deep/__pycache__/g.py",
    ):  # fmt: skip
        write(name)


ALL = ["notes/B.TXT", "notes/a.md", "notes/deep/c.jsonl.gz", "notes/deep/d.parquet", "notes/x.py"]


@pytest.mark.parametrize("pattern", ["notes", "notes/", "file"])
def test_a_folder_gives_its_texts_and_records_and_says_what_it_leaves_out(pattern, notes, capsys, tmp_path):
    if pattern == "file":
        pattern = (tmp_path / "notes").as_uri()
        assert found(pattern) == [(tmp_path / name).as_posix() for name in ALL]
    else:
        assert found(pattern) == ALL
    kinds = ".txt 1, .md 1, .jsonl 1, .parquet 1, .py 1"
    left_out = "3 of other kinds (.png 2, no suffix 1), 2 hidden, 2 folders (node_modules 1, __pycache__ 1)"
    message = capsys.readouterr().err
    begin, end = message.split("; left out: ")
    assert begin == f"tinylm: {pattern}: 5 files ({kinds})"
    assert end.strip() == left_out


def test_include_and_exclude_choose_by_name_or_path(notes):
    assert found("notes", include=("*.md", "README")) == ["notes/README", "notes/a.md"]
    assert found("notes", exclude=("*.py", "deep")) == ["notes/B.TXT", "notes/a.md"]
    assert found("notes", exclude=("deep/*",)) == ["notes/B.TXT", "notes/a.md", "notes/x.py"]
    assert found("notes", include=("deep/*",), exclude=("*.gz",)) == ["notes/deep/d.parquet"]
    assert found("notes/*", include=("*.png",)) == ["notes/p.png", "notes/p2.png"]
    assert found("notes/**/*.*", exclude=("*.png", "*.md", "*/deep/*", "*.js")) == ["notes/B.TXT", "notes/x.py"]


def test_patterns_for_a_single_file_are_an_error(notes):
    for option in ("include", "exclude"):
        for pattern in ("notes/a.md", "http://127.0.0.1:9/a.md"):
            message = rf"data\.{option} chooses from a folder, and {pattern} is one file; leave it out"
            with pytest.raises(ConfigError, match=message):
                find_sources(pattern, **{option: ("*.md",)})


def test_a_folder_without_texts_says_what_it_holds(notes):
    write("other/a.png")
    write("other/b.pdf")
    holds = r"it holds 2 of other kinds \(\.png 1, \.pdf 1\)|it holds 2 of other kinds \(\.pdf 1, \.png 1\)"
    with pytest.raises(MissingInputError, match=holds) as raised:
        find_sources("other")
    assert raised.value.exit_code == 66
    with pytest.raises(MissingInputError, match=r"notes: .* it holds .*5 not included|\(it holds 8 not included"):
        find_sources("notes", include=("*.mdd",))


@posix
def test_a_loop_of_links_and_links_to_a_file_are_read_once(notes, capsys):
    Path("notes/deep/up").symlink_to("..")
    Path("notes/here").symlink_to(".")
    Path("notes/0.md").symlink_to("a.md")
    assert found("notes") == ALL
    assert "1 links to files that are there already" in capsys.readouterr().err
    Path("notes/broken.md").symlink_to("gone.md")
    with pytest.raises(MissingInputError, match=r"notes/broken\.md: is a link to gone\.md, which does not exist"):
        find_sources("notes")


def test_nothing_is_found_where_nothing_is(notes):
    assert found("nosuch") == found("nosuch/*.md") == []
